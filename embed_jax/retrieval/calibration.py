"""Calibrations: ranges or centres that compression learns from a sample of embeddings."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
from jaxtyping import Float, Num

from embed_jax.atomic import replaced
from embed_jax.errors import InputError, require, warn

BITS = {
    "float32": 32,
    "int8": 8,
    "uint8": 8,
    "int4": 4,
    "binary": 1,
    "ubinary": 1,
}  # of a dimension
BINARY = ("binary", "ubinary")
CENTRES = 256  # of each part of a product quantiser: a code is one byte

SAMPLE = 16_384  # embeddings that are enough to learn from
MIN_SAMPLE = 100  # fewer say little about the largest and smallest value
MIN_SAMPLE_PQ = 4 * CENTRES
ADVISED_SAMPLE_PQ = 39 * CENTRES  # FAISS's advice
# Of int4, cut off at each end: with 16 bins of equal width a normal distribution has the least
# squared error when they span 2.68 standard deviations to each side (Max 1960, table II), and 0.4 %
# lies beyond.
TAIL = 0.004


@dataclasses.dataclass(frozen=True)
class Ranges:
    """Bins of equal width for each dimension, for int8, uint8 (256 bins) and int4 (16).

    Attributes:
        low: where the first bin begins, float32 [D]; smaller values fall into it too.
        high: where the last bin begins, float32 [D]; larger values fall into it too.
        bits: 8 or 4.
        count: how many embeddings they were learnt from.
    """

    low: Float[np.ndarray, " D"]
    high: Float[np.ndarray, " D"]
    bits: int
    count: int

    @property
    def dim(self) -> int:
        """D, the size of the embeddings."""
        return len(self.low)

    @property
    def precision(self) -> str:
        """Returns the precision that it is for; int8's is also uint8's."""
        return f"int{self.bits}"

    @property
    def step(self) -> Float[np.ndarray, " D"]:
        """The width of a bin; 0 where all values of the sample are equal."""
        return (self.high - self.low) / np.float32(2**self.bits - 1)


@dataclasses.dataclass(frozen=True)
class Codebook:
    """A product quantiser (Jégou et al. 2011): each part of an embedding becomes a centre.

    Each of m parts becomes the nearest of 256 centres.

    Attributes:
        centres: float32 [m, 256, D/m].
        count: how many embeddings they were learnt from.
    """

    centres: Float[np.ndarray, "m 256 s"]
    count: int

    @property
    def dim(self) -> int:
        """D, the size of the embeddings."""
        return self.centres.shape[0] * self.centres.shape[2]

    @property
    def precision(self) -> str:
        """The precision that it is for."""
        return f"pq{len(self.centres)}"


Calibration = Ranges | Codebook


def calibrate(sample: Float[np.ndarray, "N D"], precision: str) -> Calibration | None:
    """Learns ranges or centres for `quantize_embeddings` from a sample of embeddings.

    None for float32, binary and ubinary. int8 and uint8: from the smallest to the largest value of
    each dimension, as in sentence-transformers. int4: bins of equal width between the quantiles 0.4
    % and 99.6 %: a few large values would leave most of 16 bins empty. PQ: FAISS's k-means, seeded.

    Args:
        sample: at least 100 embeddings, for PQ 1,024; 16,384 are enough.
        precision: "int8", "uint8", "int4", or "pq" and the bytes of a code: "pq48".

    Raises:
        InputError: for an unknown precision, one that does not fit the dimension, too few
            embeddings or numbers that are not finite; for PQ if FAISS is not installed.
    """
    sample = checked(sample, "calibration")
    check_precision(precision, sample.shape[1])
    if calibration_of(precision) is None:
        return None
    parts = pq_parts(precision)
    least = MIN_SAMPLE_PQ if parts else MIN_SAMPLE
    if len(sample) < least:
        raise InputError(
            f"calibration of {precision}: expected at least {least:,} vectors, found "
            f"{len(sample):,}"
        )
    if parts:
        return _codebook(sample, parts)
    if BITS[precision] == 8:
        return Ranges(sample.min(axis=0), sample.max(axis=0), 8, len(sample))
    low, high = np.quantile(sample, [TAIL, 1 - TAIL], axis=0).astype(np.float32)
    return Ranges(low, low + (high - low) * np.float32(15 / 16), 4, len(sample))


def pq_parts(precision: str) -> int:
    """Returns m of "pq<m>", 0 for other precisions."""
    match = re.fullmatch(r"pq([1-9]\d*)", precision)
    return int(match[1]) if match else 0


def calibration_of(precision: str) -> str | None:
    """Returns the precision whose calibration this one needs, or None.

    Raises:
        InputError: for an unknown precision.
    """
    if not pq_parts(precision) and precision not in BITS:
        accepted = f"{', '.join(BITS)}, or pq and the bytes of a code, such as pq48"
        raise InputError(f"precision: unknown {precision!r}; accepted are {accepted}")
    if precision == "float32" or precision in BINARY:
        return None
    return "int8" if precision == "uint8" else precision


def check_precision(precision: str, dim: int) -> None:
    """Raises an InputError for a precision that embeddings of this dimension cannot have.

    Unknown precisions raise it too.
    """
    calibration_of(precision)
    divisor = pq_parts(precision) or max(1, 8 // BITS[precision])
    if dim < 1 or dim % divisor:
        raise InputError(f"{precision}: expected a dimension divisible by {divisor}, found {dim}")


def checked(
    embeddings: Num[np.ndarray, "N D"], what: str = "embeddings"
) -> Float[np.ndarray, "N D"]:
    """Returns the embeddings as float32, contiguous.

    Raises:
        InputError: unless they are a matrix of finite floating-point numbers; `what` begins the
            message.
    """
    embeddings = np.asarray(embeddings)
    if embeddings.ndim != 2 or not np.issubdtype(embeddings.dtype, np.floating):
        shape = f"{embeddings.dtype} {list(embeddings.shape)}"
        raise InputError(f"{what}: expected floating-point numbers [N, D], found {shape}")
    embeddings = np.ascontiguousarray(embeddings, np.float32)
    finite = np.isfinite(embeddings).all(axis=1)
    if not finite.all():
        raise InputError(f"{what}: row {int(np.argmin(finite))} has a number that is not finite")
    return embeddings


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Writes `path`.json, which describes the calibration, and `path`.npz, the numbers.

    Each file is replaced as a whole.

    Args:
        calibration: see `calibrate`.
        path: without an ending; another one ending in .json or .npz is the same.
    """
    described, numbers = _files(path)
    fields = {
        field.name: getattr(calibration, field.name) for field in dataclasses.fields(calibration)
    }
    arrays = {name: value for name, value in fields.items() if isinstance(value, np.ndarray)}
    plain = {name: value for name, value in fields.items() if name not in arrays}
    content = {
        "kind": type(calibration).__name__.lower(),
        "dim": calibration.dim,
        **plain,
        "arrays": sorted(arrays),
    }
    with replaced(numbers) as beside:
        with beside.open("wb") as file:
            # NumPy's types take the arrays for its argument `allow_pickle`.
            np.savez(file, **cast(dict[str, Any], arrays))
        with replaced(described) as beside:
            beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def load_calibration(path: Path) -> Calibration:
    """Reads the files that `save_calibration` wrote; `path` as there.

    Raises:
        InputError: if one of the two files is missing, damaged, or not the other's.
    """
    described, numbers = _files(path)
    try:
        content = json.loads(described.read_text(encoding="utf-8"))
        with np.load(numbers) as file:
            arrays = dict(file)
    except OSError as error:
        raise InputError(f"{error.filename or path}: cannot be read: {error.strerror}") from None
    except Exception as error:  # json's, zipfile's, numpy's: a damaged file has many faces
        raise InputError(f"{path}: no calibration: {error}") from None
    try:
        kind = {"ranges": Ranges, "codebook": Codebook}[content["kind"]]
        values = {**content, **arrays}
        calibration = kind(**{field.name: values[field.name] for field in dataclasses.fields(kind)})
        sound = calibration.dim == content["dim"] and all(
            np.isfinite(array).all() for array in arrays.values()
        )
        sound = sound and (
            calibration.low.shape == calibration.high.shape
            if kind is Ranges
            else calibration.centres.shape[1] == CENTRES
        )
    except (KeyError, TypeError, AttributeError, IndexError):
        sound = False
    if not sound:
        raise InputError(f"{described}: no calibration, or {numbers.name} is another's")
    return calibration


def _files(path: Path) -> tuple[Path, Path]:
    base = path.with_suffix("") if path.suffix in (".json", ".npz") else path
    return base.with_name(f"{base.name}.json"), base.with_name(f"{base.name}.npz")


def _codebook(sample: Float[np.ndarray, "N D"], parts: int) -> Codebook:
    require("faiss")
    import faiss

    if len(sample) < ADVISED_SAMPLE_PQ:
        message = f"{CENTRES} centres are learnt from {len(sample):,} vectors"
        warn(f"pq{parts}: {message}; FAISS advises {ADVISED_SAMPLE_PQ:,}")
    quantizer = faiss.ProductQuantizer(sample.shape[1], parts, 8)
    quantizer.cp.min_points_per_centroid = 1  # else FAISS warns too, in its own way
    quantizer.train(sample)
    centres = faiss.vector_to_array(quantizer.centroids).reshape(parts, CENTRES, -1)
    return Codebook(centres, len(sample))
