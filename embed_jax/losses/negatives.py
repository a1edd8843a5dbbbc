"""Which texts of the batch are negatives of an example, and how similar: what contrastive losses reduce over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt

from embed_jax.errors import InputError
from embed_jax.losses.similarity import normalize
from embed_jax.registry import unknown
from embed_jax.types import Block, Columns

ANCHOR, POSITIVE = 0, 1
MARGINS = ("absolute", "relative", "threshold")


@struct.dataclass
class Texts:
    """One side of the pairs that a term of a loss is about; leading axis n.

    Attributes:
        vectors: of length 1 for cosine similarity and for one prefix; several prefixes have `inverse_norms`.
        inverse_norms: of each prefix of the vectors, or None if there is one.
        example, column: whose text it is, and which.
        text, partner: hashes of the text, and of the other text of its pair (zeros for a hard negative).
        keys: the example's id and group (zeros for a hard negative), or None.
        guide: the text as a guide model sees it, of length 1, or None.
        positive: rows only: the similarity to their own positive, and the guide's.
    """

    vectors: Float[Array, "n D"]
    inverse_norms: Float[Array, "n M"] | None
    example: Int[Array, " n"]
    column: Int[Array, " n"]
    present: Bool[Array, " n"]
    text: UInt[Array, "n 2"]
    partner: UInt[Array, "n 2"]
    keys: UInt[Array, "n L 2"] | None
    guide: Float[Array, "n F"] | None
    positive: Float[Array, "M n"] | None = None
    guide_positive: Float[Array, " n"] | None = None


@dataclasses.dataclass(frozen=True)
class Negatives:
    """How texts are compared, and which don't count.

    Attributes:
        similarity: "cosine" or "dot".
        dims: the prefixes to compare, ascending, each of length 1 (Matryoshka); none: whole embeddings.
        mask_duplicates: examples that share a text, an id or a group are not each other's negatives, nor is a hard
            negative that is the example's own anchor or positive.
        mask_by: "": no more; "model": nor is a text that the model itself finds too similar; "guide": a guide.
        mask_margin, mask_strategy: too similar is above the similarity s of anchor and positive by the same model,
            less the margin ("absolute": s - margin; "relative": s - margin * |s|), or above the margin itself
            ("threshold").
        hard_negatives: "all": an example's hard negatives are everybody's; "own": only its own.
    """

    similarity: str = "cosine"
    dims: tuple[int, ...] = ()
    mask_duplicates: bool = True
    mask_by: str = ""
    mask_margin: float = 0.0
    mask_strategy: str = "absolute"
    hard_negatives: str = "all"

    def __post_init__(self):
        for what, value, known in (
            ("similarity", self.similarity, ("cosine", "dot")),
            ("mask_by", self.mask_by, ("", "model", "guide")),
            ("mask_strategy", self.mask_strategy, MARGINS),
            ("hard_negatives", self.hard_negatives, ("all", "own")),
        ):
            if value not in known:
                raise InputError(f"config.loss: {unknown(what, value, known)}")

    def texts(self, columns: Columns, which: tuple[int, ...]) -> Texts:
        """The texts of some columns, one column after the other."""
        batch = columns.embeddings.shape[1]
        if self.mask_by == "guide" and columns.guide is None:
            raise InputError(
                "config.loss: mask_by='guide' needs config.model.guide, a guide model; found none"
            )
        vectors = columns.embeddings.astype(jnp.float32)
        inverse_norms = None
        if len(self.dims) > 1:
            square = jnp.stack(
                [jnp.sum(vectors[..., :dim] ** 2, axis=-1) for dim in self.dims], axis=-1
            )
            inverse_norms = jax.lax.rsqrt(jnp.maximum(square, 1e-24))
        else:
            vectors = vectors[..., : self.dims[0]] if self.dims else vectors
            vectors = normalize(vectors) if self.similarity == "cosine" or self.dims else vectors
        pair = [column in (ANCHOR, POSITIVE) for column in which]
        partners = [columns.text_hash[1 - column if column < 2 else column] for column in which]

        def joined(parts: list[Array]) -> Array:
            return jnp.concatenate(parts)

        def of_pairs(parts: list[Array]) -> Array:
            return joined(
                [
                    part if is_pair else jnp.zeros_like(part)
                    for part, is_pair in zip(parts, pair, strict=True)
                ]
            )

        return Texts(
            vectors=joined([vectors[column] for column in which]),
            inverse_norms=None
            if inverse_norms is None
            else joined([inverse_norms[column] for column in which]),
            example=joined([columns.example for _ in which]),
            column=joined([jnp.full(batch, column) for column in which]),
            present=joined([columns.present[column] for column in which]),
            text=joined([columns.text_hash[column] for column in which]),
            partner=of_pairs(partners),
            keys=None if columns.keys is None else of_pairs([columns.keys for _ in which]),
            guide=None
            if self.mask_by != "guide"
            else joined([normalize(columns.guide[column].astype(jnp.float32)) for column in which]),
        )

    def earlier(self, own: Columns) -> Texts | None:
        """The positives of earlier batches, or None if there is no queue of them."""
        if own.queue is None:
            return None
        if self.mask_by == "guide":
            raise InputError(
                "config.loss: mask_by='guide' does not go with a queue, which a guide model has not seen"
            )
        return self.texts(own.queue, (POSITIVE,))

    def rows(self, own: Columns, column: int) -> Texts:
        """The rows of a term: one column of a device's own examples, with the similarity to their positives."""
        rows, other = self.texts(own, (column,)), self.texts(own, (1 - column,))
        guide = None if rows.guide is None else jnp.sum(rows.guide * other.guide, axis=-1)
        return rows.replace(positive=self.paired(rows, other), guide_positive=guide)

    def paired(self, first: Texts, second: Texts) -> Float[Array, "M n"]:
        """Similarities of the n-th text with the n-th."""
        if first.inverse_norms is None:
            return jnp.sum(first.vectors * second.vectors, axis=-1)[None]
        products = first.vectors * second.vectors
        dots = jnp.stack([jnp.sum(products[:, :dim], axis=-1) for dim in self.dims])
        return dots * first.inverse_norms.T * second.inverse_norms.T

    def similarities(self, rows: Texts, candidates: Texts) -> Float[Array, "M b n"]:
        """Similarities of all pairs; prefixes share the products: each adds its own further dimensions."""
        if rows.inverse_norms is None:
            return _product(rows.vectors, candidates.vectors)[None]
        dots, total, start = [], 0.0, 0
        for stop in self.dims:
            total = total + _product(rows.vectors[:, start:stop], candidates.vectors[:, start:stop])
            dots.append(total)
            start = stop
        scales = rows.inverse_norms.T[:, :, None] * candidates.inverse_norms.T[:, None, :]
        return jnp.stack(dots) * scales

    def are(
        self, rows: Texts, candidates: Texts, similarities: Float[Array, "M b n"]
    ) -> Bool[Array, "M b n"]:
        """Whether a candidate is a negative of a row.

        An example's own anchor and positive never are; its own hard negatives are those of its anchor, not of its
        positive.
        """
        same = rows.example[:, None] == candidates.example[None, :]
        is_hard = (candidates.column > POSITIVE)[None, :]
        negative = candidates.present[None, :] & (
            ~same | (is_hard & (rows.column == ANCHOR)[:, None])
        )
        if self.hard_negatives == "own":
            negative &= same | ~is_hard
        if self.mask_duplicates:
            for mine in (rows.text, rows.partner):
                for theirs in (candidates.text, candidates.partner):
                    negative &= ~_equal(mine, theirs)
            if rows.keys is not None:
                for kind in range(rows.keys.shape[1]):
                    known = jnp.any(rows.keys[:, kind] != 0, axis=-1)[:, None]
                    negative &= ~(known & _equal(rows.keys[:, kind], candidates.keys[:, kind]))
        negative = negative[None]
        if self.mask_by:
            negative = negative & ~self._too_similar(rows, candidates, similarities)
        return negative

    def _too_similar(
        self, rows: Texts, candidates: Texts, similarities: Array
    ) -> Bool[Array, "M b n"]:
        if self.mask_by == "guide":
            found = _product(rows.guide, candidates.guide)[None]
            positive = rows.guide_positive[None]
        else:
            found, positive = similarities, rows.positive
        limit = {
            "absolute": positive - self.mask_margin,
            "relative": positive - self.mask_margin * jnp.abs(positive),
            "threshold": jnp.full_like(positive, self.mask_margin),
        }[self.mask_strategy]
        return found > limit[..., None]


def gap_block(
    negatives: Negatives, adjust: Callable[[Texts, Texts, Array], Array] | None = None
) -> Callable[[Texts, Texts, Any], Float[Array, "M b n"]]:
    """The block of logits minus the row's positive logit, -inf where a candidate is no negative.

    Relative to the positive, so that a loss far below float32's resolution of the logits is not lost.

    Args:
        adjust: `(rows, candidates, similarities) -> what to add to the logits`.
    """

    def block(rows: Texts, candidates: Texts, scale: Float[Array, ""]) -> Float[Array, "M b n"]:
        similarities = negatives.similarities(rows, candidates)
        gaps = (similarities - rows.positive[..., None]) * scale
        if adjust is not None:
            gaps = gaps + adjust(rows, candidates, similarities)
        return jnp.where(negatives.are(rows, candidates, similarities), gaps, -jnp.inf)

    return block


def similarity_block(
    negatives: Negatives, map_: Callable[[Array, Any], Array], nothing: float
) -> Block:
    """The block of `map_(similarities, shared)`, and `nothing` where a candidate is no negative."""

    def block(rows: Texts, candidates: Texts, shared: Any) -> Float[Array, "M b n"]:
        similarities = negatives.similarities(rows, candidates)
        return jnp.where(
            negatives.are(rows, candidates, similarities), map_(similarities, shared), nothing
        )

    return block


def sizes(own: Columns) -> tuple[int, ...]:
    """The prefixes to compare; none: whole embeddings."""
    return () if own.prefixes is None else own.prefixes.sizes


def _product(rows: Float[Array, "b D"], candidates: Float[Array, "n D"]) -> Float[Array, "b n"]:
    return jnp.matmul(rows, candidates.T, precision=jax.lax.Precision.HIGHEST)


def _equal(rows: UInt[Array, "b 2"], candidates: UInt[Array, "n 2"]) -> Bool[Array, "b n"]:
    return (rows[:, None, 0] == candidates[None, :, 0]) & (
        rows[:, None, 1] == candidates[None, :, 1]
    )
