"""The FAISS index beside the vectors of a `VectorIndex` (Douze et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int64, Shaped

from embed_jax.errors import InputError, one_line, require

FAISS_FILE = "vectors.faiss"
TRAINING_ROWS = 100_000  # that an index learns from


def _library() -> Any:
    """Returns FAISS, whose types lack most of what it has."""
    require("faiss")
    import faiss

    return faiss


def write_faiss(
    folder: Path,
    blocks: Sequence[Float[np.ndarray, "_ D"]],
    dim: int,
    factory: str,
    parameters: str,
) -> None:
    """Makes an index.

    Args:
        folder: to write to.
        blocks: the vectors.
        dim: of a vector.
        factory: FAISS's index factory string.
        parameters: FAISS's search-time settings.

    Raises:
        InputError: FAISS is not installed, does not know `factory` or `parameters`, or cannot train
            the index on these vectors, or search it among some of them.
    """
    faiss = _library()
    count = sum(map(len, blocks))
    try:
        if is_binary(factory):
            index: Any = faiss.index_binary_factory(dim, factory)
        else:
            index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
        if not index.is_trained:
            step = -(-count // TRAINING_ROWS)
            sample = np.concatenate([block[::step] for block in blocks])
            index.train(_as_stored(index, sample))
        for block in blocks:
            add_faiss(index, block)
        search_faiss(index, np.zeros((1, dim), np.float32), 1, np.zeros(1, np.int64))
    except RuntimeError as error:
        reason = one_line(error).split("Error: ")[-1]
        described = f"{factory!r}{f' with {parameters!r}' if parameters else ''}"
        raise InputError(
            f"FAISS cannot make the index {described} of {count} vectors: {reason}"
        ) from None
    save_faiss(index, folder)


def is_binary(factory: str) -> bool:
    """Tells whether an index compares signs by Hamming distance, such as "BFlat"."""
    return factory.startswith("B")


def add_faiss(index: Any, vectors: Float[np.ndarray, "n D"]) -> None:
    """Adds vectors to an index, whose numbers follow those that it has."""
    index.add(_as_stored(index, vectors))


def _as_stored(index: Any, vectors: Float[np.ndarray, "n D"]) -> Shaped[np.ndarray, "n W"]:
    """Returns vectors, or for a binary index their signs, in bits."""
    if isinstance(index, _library().IndexBinary):
        return np.packbits(vectors > 0, axis=1)
    return np.ascontiguousarray(vectors)


def save_faiss(index: Any, folder: Path) -> None:
    """Writes an index."""
    faiss = _library()
    write = faiss.write_index
    if isinstance(index, faiss.IndexBinary):
        write = faiss.write_index_binary
    write(index, str(folder / FAISS_FILE))


def read_faiss(folder: Path, factory: str) -> Any:
    """Reads an index that was made by a factory string.

    Raises:
        FileNotFoundError: the file does not exist.
        InputError: it is damaged, or FAISS is not installed.
    """
    file = folder / FAISS_FILE
    if not file.exists():
        raise FileNotFoundError(2, "missing", str(file))
    faiss = _library()
    try:
        return (faiss.read_index_binary if is_binary(factory) else faiss.read_index)(str(file))
    except RuntimeError as error:
        raise InputError(f"{file}: damaged: {one_line(error)}") from None


def search_faiss(
    index: Any,
    queries: Float[np.ndarray, "Q D"],
    count: int,
    serials: Int64[np.ndarray, " n"] | None = None,
    probes: int = 0,
) -> Int64[np.ndarray, "Q count"]:
    """Returns the numbers of candidates, -1 where FAISS finds fewer.

    Args:
        index: FAISS's.
        queries: vectors.
        count: how many candidates.
        serials: the numbers among which to search; None: all.
        probes: lists of an IVF index that are searched; 0: as it was built.
    """
    faiss, selector = _library(), None
    if serials is not None:
        marks = np.zeros(-(-index.ntotal // 8) * 8, bool)
        marks[serials] = True
        bits = np.packbits(marks, bitorder="little")  # must live as long as the selector
        selector = faiss.IDSelectorBitmap(bits)
    parameters = _parameters(index, selector, count, probes)
    return index.search(_as_stored(index, queries), count, params=parameters)[1]


def _parameters(index: Any, selector: Any, count: int, probes: int) -> Any:
    """Returns how to search for this many vectors, of those that are selected."""
    faiss = _library()
    if isinstance(index, faiss.IndexBinary):
        return faiss.SearchParameters(sel=selector)
    index = faiss.downcast_index(index)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _parameters(index.index, selector, count, probes)
        return faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexHNSW):
        depth = max(index.hnsw.efSearch, count)
        return faiss.SearchParametersHNSW(sel=selector, efSearch=depth)
    if isinstance(index, faiss.IndexIVF):
        return faiss.SearchParametersIVF(sel=selector, nprobe=probes or index.nprobe)
    return faiss.SearchParameters(sel=selector)
