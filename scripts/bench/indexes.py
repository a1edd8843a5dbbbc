"""Bench of indexes of one vector a document: building, loading, searching and changing them."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.errors import InputError, require

from .measure import MIB, count, in_fresh_process, peak_growth, print_json, print_row, result

DESCRIPTION = """Time, memory, size and recall of indexes of one vector a document.

The vectors are those of a file, such as real texts encoded by scripts.encode. Some of them, drawn
at random, are the queries, and are not in the index. If --documents asks for more vectors than the
file has, the others are perturbed: a vector of the file, and half the difference of two others of
its k-means cluster, so that their spread is that of the real ones around them. Each of building,
searching and changing runs in a fresh process; "peak" is how far its memory rose. Recall is of the
ten best by exact search."""
EXAMPLES = """examples:
  python -m scripts.bench indexes --vectors sentences.npy --documents 20000
  python -m scripts.bench indexes --vectors sentences.npy --documents 1000000 --json"""
KINDS = "exact,int8,binary,hnsw,ivf-pq,lance"
DEFAULT_KINDS = "exact,int8,binary,hnsw,ivf-pq"
WIDTHS = (34, 14)
BLOCK = 4096  # vectors made and read at a time
CLUSTERS = 256
SHARE = 0.5  # of the difference that perturbs a vector
UNITS = {
    "build peak": "MiB",
    "search peak": "MiB",
    "p50": "ms",
    "p95": "ms",
    "bytes per document": "B",
    "recall@10": "",
    "recall@10 low": "",
    "recall@10 high": "",
}


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--vectors", type=Path, required=True, help=".npy file [N, D]")
    for name, value, text in (
        ("documents", 20_000, "vectors in the index"),
        ("queries", 1000, "vectors of the file that are the queries"),
        ("changed", 10_000, "vectors that are added, and then deleted"),
        ("candidates", 128, "candidates of a search"),
        ("probes", 16, "lists that ivf-pq and lance look at"),
    ):
        command.add_argument(
            f"--{name}", type=count, default=value, help=f"{text} (default: %(default)s)"
        )
    command.add_argument(
        "--kinds", default=DEFAULT_KINDS, help=f"of indexes: {KINDS} (default: %(default)s)"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    unknown = set(args.kinds.split(",")) - set(KINDS.split(","))
    if unknown:
        return f"--kinds: expected some of {KINDS}, found {min(unknown)!r}"
    return None


def bench_indexes(args: argparse.Namespace) -> None:
    sizes = {"documents": args.documents, "queries": args.queries, "changed": args.changed}
    with tempfile.TemporaryDirectory() as folder:
        real = make_data(Path(folder), args.vectors, args.documents, args.queries, args.changed)
        in_fresh_process(__name__, "find_exact", {"folder": folder})
        if not args.json:
            print(f"{args.documents:,} vectors, {real:,} of them real, the others perturbed")
        for kind in args.kinds.split(","):
            values = in_fresh_process(__name__, "measure_build", {"folder": folder, "kind": kind})
            options = {"candidates": args.candidates, "probes": args.probes}
            values |= in_fresh_process(
                __name__, "measure_search", {"folder": folder, "kind": kind, **options}
            )
            values |= in_fresh_process(__name__, "measure_change", {"folder": folder, "kind": kind})
            for name, value in values.items():
                unit = UNITS.get(name, "s")
                if args.json:
                    details = {**sizes, "real": real, "kind": kind, **options}
                    print_json(
                        result(f"indexes/{kind}/{name}", unit, value, None, None, 1, **details)
                    )
                else:
                    label = f"{kind}: {name}, {unit}" if unit else f"{kind}: {name}"
                    print_row((label, value), WIDTHS)


def make_data(folder: Path, vectors: Path, documents: int, queries: int, changed: int) -> int:
    """Writes documents, queries and vectors to add; returns how many documents are real."""
    try:
        every = np.load(vectors, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise InputError(f"--vectors: {vectors}: not an .npy file: {error}") from None
    if every.ndim != 2 or len(every) <= queries + CLUSTERS:
        raise InputError(
            f"--vectors: expected more than {queries + CLUSTERS} vectors, found the shape "
            f"{list(every.shape)}"
        )
    rng = np.random.default_rng(0)
    order = rng.permutation(len(every))
    np.save(folder / "queries.npy", np.asarray(every[np.sort(order[:queries])], np.float32))
    rest = np.sort(order[queries:])
    real = min(len(rest), documents)
    made = perturbed(np.asarray(every[rest], np.float32), rng)
    for name, size, start in (("documents", documents, real), ("extra", changed, 0)):
        shape = (size, every.shape[1])
        file = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, shape)
        for begin in range(0, start, BLOCK):
            own = rest[begin : min(begin + BLOCK, start)]
            file[begin : begin + len(own)] = every[own]
        for begin in range(start, size, BLOCK):
            file[begin : begin + BLOCK] = next(made)[: size - begin]
        file.flush()
    return real


def perturbed(vectors: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Yields blocks of vectors near real ones, as long as those: see the description."""
    require("faiss")
    import faiss

    dim = vectors.shape[1]
    means = faiss.Kmeans(dim, min(CLUSTERS, len(vectors) // 39 or 1), niter=10, seed=1)
    means.train(vectors)
    _, labels = means.index.search(vectors, 1)
    members = np.argsort(labels[:, 0], kind="stable")
    sizes = np.bincount(labels[:, 0], minlength=means.k)
    starts = np.cumsum(sizes) - sizes
    while True:
        rows = rng.integers(0, len(vectors), BLOCK)
        own = labels[rows, 0]
        left, right = (
            members[starts[own] + rng.integers(0, 2**31, BLOCK) % sizes[own]] for _ in range(2)
        )
        block = vectors[rows] + SHARE * (vectors[left] - vectors[right])
        lengths = np.linalg.norm(vectors[rows], axis=1, keepdims=True)
        yield block * lengths / np.maximum(np.linalg.norm(block, axis=1, keepdims=True), 1e-12)


def rows_of(file: Path, prefix: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields ids and vectors; pages of a mapping that was let go do not count as memory."""
    size = len(np.load(file, mmap_mode="r"))
    for start in range(0, size, BLOCK):
        block = np.array(np.load(file, mmap_mode="r")[start : start + BLOCK])
        yield from ((f"{prefix}{number}", row) for number, row in enumerate(block, start))


def find_exact(folder: str) -> dict[str, float]:
    """Writes the numbers of the ten nearest documents of each query."""
    from embed_jax.retrieval import top_k

    path = Path(folder)
    documents = np.load(path / "documents.npy", mmap_mode="r")
    blocks = (documents[start : start + BLOCK] for start in range(0, len(documents), BLOCK))
    _, rows = top_k(np.load(path / "queries.npy"), blocks, 10, similarity="cosine")
    np.save(path / "exact.npy", rows)
    return {}


def measure_build(folder: str, kind: str) -> dict[str, float]:
    """Returns seconds and MiB of building an index, and its size."""
    from embed_jax.retrieval import build_index, open_index

    path = Path(folder)
    began = time.perf_counter()

    def build() -> None:
        documents = rows_of(path / "documents.npy", "d")
        build_index(path / kind, documents, identity={}, kind=kind)

    peak = peak_growth(build) / MIB
    seconds = time.perf_counter() - began
    size = open_index(path / kind).size()["bytes per document"]
    return {"build": seconds, "build peak": peak, "bytes per document": size}


def measure_search(folder: str, kind: str, candidates: int, probes: int) -> dict[str, float]:
    """Returns seconds of opening, milliseconds of a query, MiB and recall."""
    from embed_jax.evals.metrics import mean_interval
    from embed_jax.retrieval import open_index

    path = Path(folder)
    queries = np.load(path / "queries.npy")
    options: dict[str, Any] = {"candidates": candidates}
    if kind in ("ivf-pq", "lance"):
        options["probes"] = probes
    milliseconds, runs, load = [], [], []

    def search() -> None:
        began = time.perf_counter()
        index = open_index(path / kind)
        load.append(time.perf_counter() - began)
        index.search(queries[:1], 10, **options)  # compiles
        for query in queries:
            began = time.perf_counter()
            runs.extend(index.search(query[None], 10, **options))
            milliseconds.append(1000 * (time.perf_counter() - began))

    peak = peak_growth(search) / MIB
    exact = np.load(path / "exact.npy")
    shares = np.array(
        [
            len({f"d{row}" for row in rows} & set(run)) / 10
            for rows, run in zip(exact, runs, strict=True)
        ]
    )
    low, high = mean_interval(shares)
    p50, p95 = np.quantile(milliseconds, (0.5, 0.95)).tolist()
    recall = {"recall@10": float(shares.mean()), "recall@10 low": low, "recall@10 high": high}
    return {"load": load[0], "p50": p50, "p95": p95, "search peak": peak, **recall}


def measure_change(folder: str, kind: str) -> dict[str, float]:
    """Returns the seconds of adding vectors, and of deleting as many of the first ones."""
    from embed_jax.retrieval import open_index

    path = Path(folder)
    index = open_index(path / kind)
    size = len(np.load(path / "extra.npy", mmap_mode="r"))
    moments = [time.perf_counter()]
    index.add(rows_of(path / "extra.npy", "new "))
    moments.append(time.perf_counter())
    index.delete(list(itertools.islice(index.ids, size)))
    moments.append(time.perf_counter())
    add, delete = np.diff(moments).tolist()
    return {f"add {size}": add, f"delete {size}": delete}
