"""Embeddings in fewer bytes: int8, uint8, int4, binary, ubinary and product quantisation.

    calibration = calibrate(sample, "int8")
    codes = quantize_embeddings(embeddings, "int8", calibration)  # a quarter of the bytes
    close = dequantize_embeddings(codes, "int8", calibration)

Each also compresses prefixes of Matryoshka embeddings: `truncate` first, and calibrate on truncated
embeddings. Codes are searched by `embed_jax.retrieval.compressed`.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Num, Shaped, UInt8

from embed_jax.errors import InputError, require
from embed_jax.retrieval.calibration import (
    BINARY,
    BITS,
    Calibration,
    Codebook,
    Ranges,
    calibration_of,
    check_precision,
    checked,
    pq_parts,
)


def quantize_embeddings(
    embeddings: Num[np.ndarray, "N D"], precision: str, calibration: Calibration | None = None
) -> Shaped[np.ndarray, "N W"]:
    """Compresses embeddings into codes.

    | precision | codes | rule |
    |---|---|---|
    | float32 | float32 [N, D] | as they are |
    | uint8 | uint8 [N, D] | clip(floor((x - low) / step), 0, 255), by the dimension's `Ranges` |
    | int8 | int8 [N, D] | the same minus 128 |
    | int4 | uint8 [N, D/2] | 16 bins; dimension 2i in the lower four bits of byte i, as in FAISS |
    | ubinary | uint8 [N, D/8] | bit = x > 0, the first dimension in the highest bit |
    | binary | int8 [N, D/8] | the same minus 128 |
    | pq<m> | uint8 [N, m] | the number of the nearest centre of each of m parts (FAISS) |

    int8, uint8, binary and ubinary are sentence-transformers' `quantize_embeddings` (Shakir, Aarsen
    and Lee 2024), bit for bit. Unlike there, ranges are never taken from the embeddings themselves,
    which would make the codes of documents and of queries mean different things, and a dimension
    that fills no whole bytes is refused, not padded.

    Args:
        embeddings: float embeddings.
        precision: one of the table.
        calibration: see `calibrate`, for this precision (int8 and uint8 share it); None for float32
            and binary.

    Raises:
        InputError: for an unknown precision, one that does not fit the dimension, numbers that are
            not finite, or a calibration that is missing, of another precision or of another
            dimension.
    """
    embeddings = checked(embeddings)
    check_precision(precision, embeddings.shape[1])
    check_calibration(precision, calibration, embeddings.shape[1])
    if precision == "float32":
        return embeddings
    if isinstance(calibration, Codebook):
        return _product_quantizer(calibration).compute_codes(embeddings)
    if isinstance(calibration, Ranges):
        step = np.where(calibration.step == 0, np.float32(1), calibration.step)
        codes = (
            np.floor((embeddings - calibration.low) / step)
            .clip(0, 2**calibration.bits - 1)
            .astype(np.uint8)
        )
        if precision == "int4":
            codes = codes[:, ::2] | codes[:, 1::2] << 4
    else:
        codes = np.packbits(embeddings > 0, axis=1)
    return _sign_moved(codes).view(np.int8) if precision in ("int8", "binary") else codes


def dequantize_embeddings(
    codes: Shaped[np.ndarray, "N W"], precision: str, calibration: Calibration | None = None
) -> Float[np.ndarray, "N D"]:
    """Computes embeddings near those that were compressed.

    They are the middle of a bin, a part's centre, or +1 or -1 for a bit.

    Raises:
        InputError: for an unknown precision, codes that are not of this precision, or a wrong
            `calibration`, see `quantize_embeddings`.
    """
    codes = np.asarray(codes)
    check_codes(codes, precision, calibration)
    if precision == "float32":
        return codes
    codes = unsigned(codes)
    if isinstance(calibration, Codebook):
        parts = np.arange(codes.shape[1])
        return calibration.centres[parts, codes].reshape(len(codes), calibration.dim)
    if precision in BINARY:
        return np.unpackbits(codes, axis=1) * np.float32(2) - np.float32(1)
    if precision == "int4":
        codes = np.stack([codes & 15, codes >> 4], axis=2).reshape(len(codes), -1)
    assert isinstance(calibration, Ranges), "check_codes has checked it"
    return calibration.low + (codes + np.float32(0.5)) * calibration.step


@dataclasses.dataclass(frozen=True)
class Compressed:
    """Codes with what is needed to read them.

    `codes` may be an open .npy file (`numpy.load(..., mmap_mode="r")`).

    Raises:
        InputError: when made of codes that are not of this precision and calibration.
    """

    codes: Shaped[np.ndarray, "N W"]
    precision: str
    calibration: Calibration | None = None

    def __post_init__(self):
        check_codes(self.codes, self.precision, self.calibration)

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def dim(self) -> int:
        """D, of the embeddings."""
        return (
            self.calibration.dim
            if self.calibration
            else self.bytes_per_vector * 8 // BITS[self.precision]
        )

    @property
    def bytes_per_vector(self) -> int:
        """Returns the bytes of one code."""
        return self.codes.shape[1] * self.codes.dtype.itemsize

    def rows(self, numbers: Int[np.ndarray, " n"]) -> Float[np.ndarray, "n D"]:
        """Decodes some embeddings."""
        return dequantize_embeddings(self.codes[numbers], self.precision, self.calibration)


def compress(
    embeddings: Num[np.ndarray, "N D"], precision: str, calibration: Calibration | None = None
) -> Compressed:
    """Compresses embeddings; the result also has what is needed to read the codes."""
    return Compressed(
        quantize_embeddings(embeddings, precision, calibration), precision, calibration
    )


def unsigned(codes: Shaped[np.ndarray, "N W"]) -> Shaped[np.ndarray, "N W"]:
    """Returns codes from 0 up: of int8 and binary plus 128, others unchanged."""
    return _sign_moved(codes.view(np.uint8)) if codes.dtype == np.int8 else codes


def check_calibration(precision: str, calibration: Calibration | None, dim: int) -> None:
    """Raises an InputError unless `calibration` is of this precision and dimension."""
    needed, actual = calibration_of(precision), calibration.precision if calibration else None
    if needed != actual:
        raise InputError(
            f"calibration for {precision}: expected {needed and f'one of {needed}'}, found {actual}"
        )
    if calibration and calibration.dim != dim:
        raise InputError(f"calibration: of {calibration.dim} dimensions, the embeddings have {dim}")


def check_codes(
    codes: Shaped[np.ndarray, "N W"], precision: str, calibration: Calibration | None
) -> None:
    """Raises an InputError unless `codes` can be of this precision and calibration."""
    dim = calibration.dim if calibration else codes.shape[-1] * (8 if precision in BINARY else 1)
    check_calibration(precision, calibration, dim)
    check_precision(precision, dim)
    kind = {"float32": np.float32, "int8": np.int8, "binary": np.int8}.get(precision, np.uint8)
    width = dim if precision == "float32" else pq_parts(precision) or dim * BITS[precision] // 8
    if codes.ndim != 2 or codes.dtype != kind or codes.shape[1] != width:
        expected, actual = f"{np.dtype(kind)} [N, {width}]", f"{codes.dtype} {list(codes.shape)}"
        raise InputError(f"codes of {precision}: expected {expected}, found {actual}")


def _sign_moved(codes: UInt8[np.ndarray, "N W"]) -> UInt8[np.ndarray, "N W"]:
    """Bytes from 0 to 255 as those of the int8 that is 128 less, and back."""
    return codes ^ np.uint8(128)


def _product_quantizer(codebook: Codebook):
    require("faiss")
    import faiss

    quantizer = faiss.ProductQuantizer(codebook.dim, len(codebook.centres), 8)
    faiss.copy_array_to_vector(codebook.centres.ravel(), quantizer.centroids)
    return quantizer
