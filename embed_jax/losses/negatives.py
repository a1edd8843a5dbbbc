"""Negatives of an example among the texts of the batch, which contrastive losses reduce over."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int, UInt

from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.scores import Score, dense, join_columns
from embed_jax.types import Block, Columns, Number, require_field
from embed_jax.vectors import dot_matrix, normalize

ANCHOR, POSITIVE = 0, 1
MARGINS = ("absolute", "relative", "threshold")


class Texts(struct.PyTreeNode):
    """One side of the pairs that a term of a loss is about; leading axis n.

    Attributes:
        embeddings: as the score prepares them.
        example, column: whose text it is, and which.
        text, partner: hashes of the text, and of the other text of its pair (zeros for a hard
            negative).
        keys: the example's id and group (zeros for a hard negative), or None.
        guide: the text as a guide model sees it, of length 1, or None.
        side: on which side of the score they stand (static): "query", "document", or "both" for
            some of each.
    """

    embeddings: Any
    example: Int[Array, " n"]
    column: Int[Array, " n"]
    present: Bool[Array, " n"]
    text: UInt[Array, "n 2"]
    partner: UInt[Array, "n 2"]
    keys: UInt[Array, "n L 2"] | None
    guide: Float[Array, "n F"] | None
    side: str = struct.field(pytree_node=False, default="both")


class Rows(Texts, kw_only=True):
    """Texts that are compared with candidates: one column of a device's own examples.

    Attributes:
        positive: the similarity to their own positive.
        guide_positive: the same as a guide model sees it, or None.
    """

    positive: Float[Array, "M n"]
    guide_positive: Float[Array, " n"] | None = None


@dataclasses.dataclass(frozen=True)
class Negatives:
    """The comparison of texts, and which of them don't count.

    Attributes:
        score: compares a text on the query side with one on the document side.
        dims: the prefixes to compare, ascending, each of length 1 (Matryoshka); none: whole
            embeddings.
        mask_duplicates: examples that share a text, an id or a group are not each other's
            negatives, nor is a hard negative that is the example's own anchor or positive.
        mask_by: "": no more; "model": nor is a text that the model itself finds too similar;
            "guide": a guide.
        mask_margin, mask_strategy: too similar is above the similarity s of anchor and positive by
            the same model, less the margin ("absolute": s - margin; "relative": s - margin * |s|),
            or above the margin itself ("threshold").
        hard_negatives: "all": an example's hard negatives are everybody's; "own": only its own.
    """

    score: Score
    dims: tuple[int, ...] = ()
    mask_duplicates: bool = True
    mask_by: str = ""
    mask_margin: Number = 0.0
    mask_strategy: str = "absolute"
    hard_negatives: str = "all"

    def __post_init__(self):
        for what, value, known in (
            ("mask_by", self.mask_by, ("", "model", "guide")),
            ("mask_strategy", self.mask_strategy, MARGINS),
            ("hard_negatives", self.hard_negatives, ("all", "own")),
        ):
            if value not in known:
                raise InputError(f"config.loss: {unknown(what, value, known)}")

    def texts(self, columns: Columns, which: tuple[int, ...]) -> Texts:
        """Returns the texts of some columns, one column after the other."""
        batch = columns.present.shape[1]
        guide = columns.guide if self.mask_by == "guide" else None
        if self.mask_by == "guide" and guide is None:
            raise InputError(
                "config.loss: mask_by='guide' needs config.model.guide, a guide model; found none"
            )
        embeddings = [self.score.prepare(columns.embeddings[column], self.dims) for column in which]
        sides = {"query" if column == columns.query else "document" for column in which}
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
            embeddings=join_columns(embeddings),
            side=sides.pop() if len(sides) == 1 else "both",
            example=joined([columns.example for _ in which]),
            column=joined([jnp.full(batch, column) for column in which]),
            present=joined([columns.present[column] for column in which]),
            text=joined([columns.text_hash[column] for column in which]),
            partner=of_pairs(partners),
            keys=None if columns.keys is None else of_pairs([columns.keys for _ in which]),
            guide=None
            if guide is None
            else joined([normalize(dense(guide[column], "a guide")) for column in which]),
        )

    def earlier(self, own: Columns) -> Texts | None:
        """Returns the positives of earlier batches, or None without a queue of them."""
        if own.queue is None:
            return None
        if self.mask_by == "guide":
            raise InputError(
                "config.loss: mask_by='guide' does not go with a queue, which a guide model has "
                "not seen"
            )
        return self.texts(own.queue, (POSITIVE,))

    def rows(self, own: Columns, column: int) -> Rows:
        """Returns the rows of a term: one column of a device's own examples.

        They carry the similarity to their positives.
        """
        rows, other = self.texts(own, (column,)), self.texts(own, (1 - column,))
        guide_positive = None
        if rows.guide is not None and other.guide is not None:
            guide_positive = jnp.sum(rows.guide * other.guide, axis=-1)
        return Rows(**vars(rows), positive=self.paired(rows, other), guide_positive=guide_positive)

    def paired(self, first: Texts, second: Texts) -> Float[Array, "M n"]:
        """Computes similarities of the n-th text with the n-th."""
        queries, documents = (first, second) if first.side != "document" else (second, first)
        return self.score.pairs(queries.embeddings, documents.embeddings, self.dims)

    def similarities(self, rows: Rows, candidates: Texts) -> Float[Array, "M b n"]:
        """Computes similarities of all pairs.

        Raises:
            InputError: for two queries, or two documents, that the score can't compare.
        """
        if self.score.symmetric or (rows.side, candidates.side) == ("query", "document"):
            return self.score.matrix(rows.embeddings, candidates.embeddings, self.dims)
        if (rows.side, candidates.side) == ("document", "query"):
            similarities = self.score.matrix(candidates.embeddings, rows.embeddings, self.dims)
            return jnp.swapaxes(similarities, 1, 2)
        raise InputError(
            f"config.loss: similarity={self.score.name!r} compares a query with a document, never "
            "two of one kind: expected the terms qp and pq only (in gist, contrast_anchors=False, "
            "contrast_positives=False)"
        )

    def numbers(self, own: Columns, column: int, which: tuple[int, ...]) -> int:
        """Returns the numbers per pair that the similarity of two columns is computed from."""
        sides = [(column, other) if column == own.query else (other, column) for other in which]
        return max(
            self.score.numbers(own.embeddings[query], own.embeddings[document])
            for query, document in sides
        )

    def are(
        self, rows: Rows, candidates: Texts, similarities: Float[Array, "M b n"]
    ) -> Bool[Array, "#M b n"]:
        """Tells whether a candidate is a negative of a row.

        An example's own anchor and positive never are; its own hard negatives are those of its
        anchor, not of its positive.
        """
        same = rows.example[:, None] == candidates.example[None, :]
        is_hard = (candidates.column > POSITIVE)[None, :]
        negative = candidates.present[None, :] & (
            ~same | (is_hard & (rows.column == ANCHOR)[:, None])
        )
        if self.hard_negatives == "own":
            negative &= same | ~is_hard
        if self.mask_duplicates:
            # Partners too: of two examples with one anchor, each has a positive of the other.
            for mine in (rows.text, rows.partner):
                for other_hash in (candidates.text, candidates.partner):
                    negative &= ~_equal(mine, other_hash)
            if rows.keys is not None and candidates.keys is not None:
                for kind in range(rows.keys.shape[1]):
                    # Zeros say that an example has no such key: they are not equal to each other.
                    known = jnp.any(rows.keys[:, kind] != 0, axis=-1)[:, None]
                    negative &= ~(known & _equal(rows.keys[:, kind], candidates.keys[:, kind]))
        negative = negative[None]
        if self.mask_by:
            negative = negative & ~self._too_similar(rows, candidates, similarities)
        return negative

    def _too_similar(
        self, rows: Rows, candidates: Texts, similarities: Array
    ) -> Bool[Array, "M b n"]:
        if self.mask_by == "guide":
            compared = dot_matrix(require_field(rows.guide), require_field(candidates.guide))[None]
            positive = require_field(rows.guide_positive)[None]
        else:
            compared, positive = similarities, rows.positive
        limit = {
            "absolute": positive - self.mask_margin,
            "relative": positive - self.mask_margin * jnp.abs(positive),
            "threshold": jnp.full_like(positive, self.mask_margin),
        }[self.mask_strategy]
        return compared > limit[..., None]


def gap_block(
    negatives: Negatives, adjust: Callable[[Rows, Texts, Array], Array] | None = None
) -> Callable[[Rows, Texts, Any], Float[Array, "M b n"]]:
    """Returns the block of logits minus the row's positive logit.

    It is -inf where a candidate is not a negative. Logits are relative to the positive, so that a
    loss far below float32's resolution of the logits is not lost.

    Args:
        negatives: which candidates are negatives, and their similarities.
        adjust: `(rows, candidates, similarities) -> what to add to the logits`.
    """

    def block(rows: Rows, candidates: Texts, scale: Float[Array, ""]) -> Float[Array, "M b n"]:
        similarities = negatives.similarities(rows, candidates)
        gaps = (similarities - rows.positive[..., None]) * scale
        if adjust is not None:
            gaps = gaps + adjust(rows, candidates, similarities)
        # -inf, and not a large negative number: a sum over no negatives is then exactly 0.
        return jnp.where(negatives.are(rows, candidates, similarities), gaps, -jnp.inf)

    return block


def similarity_block(
    negatives: Negatives, map_: Callable[[Array, Any], Array], nothing: float
) -> Block:
    """Returns the block of `map_(similarities, shared)`.

    It is `nothing` where a candidate is not a negative.
    """

    def block(rows: Rows, candidates: Texts, shared: Any) -> Float[Array, "M b n"]:
        similarities = negatives.similarities(rows, candidates)
        return jnp.where(
            negatives.are(rows, candidates, similarities), map_(similarities, shared), nothing
        )

    return block


def sizes(own: Columns) -> tuple[int, ...]:
    """Returns the prefixes to compare; empty: whole embeddings."""
    return () if own.prefixes is None else own.prefixes.sizes


def _equal(rows: UInt[Array, "b 2"], candidates: UInt[Array, "n 2"]) -> Bool[Array, "b n"]:
    return (rows[:, None, 0] == candidates[None, :, 0]) & (
        rows[:, None, 1] == candidates[None, :, 1]
    )
