"""Candidates for the negatives of queries: found by searchers, scored, and chosen among."""

from __future__ import annotations

import collections
import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from embed_jax.errors import InputError
from embed_jax.pair_scores import PairScorer, score_pairs
from embed_jax.registry import unknown
from embed_jax.retrieval.copies import PassageIndex
from embed_jax.retrieval.mined import Report

Pair = Mapping[str, Any]
SAMPLING = ("top", "random")


@runtime_checkable
class Searcher(Protocol):
    """A corpus that can be searched: BM25, an embedding model, FAISS."""

    def search(
        self, queries: Sequence[str], k: int
    ) -> tuple[Float[np.ndarray, "Q k"], Int[np.ndarray, "Q k"]]:
        """Returns scores and rows of each query's k best passages, best first.

        -inf and -1 where fewer are found.
        """

    def score(
        self, queries: Sequence[str], rows: Int[np.ndarray, "Q p"]
    ) -> Float[np.ndarray, "Q p"]:
        """Computes the similarity of each query with its own rows; -inf for row -1."""


@dataclasses.dataclass(frozen=True)
class Mining:
    """Settings of mining that decide which of the candidates become negatives.

    A query's candidates are the passages that the searchers rank highest, without copies of its
    known positives, its own text and repeated texts. Of the first `rank_max`, those that pass the
    limits on scores remain, and of these all but the first `rank_min`; from them `number` are
    taken. These are the semantics of sentence-transformers 6 (`mine_hard_negatives`), except for a
    query of several positives: margins compare with the pair's own.

    Attributes:
        number: negatives of each pair.
        rank_min: how many of the remaining candidates are skipped, the hardest first.
        rank_max: how many candidates are looked at.
        score_min: the lowest score of a negative.
        score_max: the highest score of a negative.
        absolute_margin: a negative scores at most positive - absolute_margin.
        relative_margin: a negative scores at most positive - relative_margin * |positive|; 0.05 is
            the TopK-PercPos of 95 % of NV-Retriever (Moreira et al. 2024).
        sampling: "top", the hardest, or "random".
        seed: of random sampling, which depends on it, the query's text and the query's candidates
            only.

    Raises:
        InputError: for values that cannot be.
    """

    number: int = 1
    rank_min: int = 0
    rank_max: int = 100
    score_min: float = -math.inf
    score_max: float = math.inf
    absolute_margin: float | None = None
    relative_margin: float | None = None
    sampling: str = "top"
    seed: int = 0

    def __post_init__(self):
        if self.number < 1:
            raise InputError(f"number: expected 1 or more, found {self.number}")
        if self.rank_min < 0:
            raise InputError(f"rank_min: expected 0 or more, found {self.rank_min}")
        if self.number > self.rank_max - self.rank_min:
            window = f"rank_min={self.rank_min} and rank_max={self.rank_max}"
            raise InputError(f"{window} leave no room for number={self.number} negatives")
        if not self.score_min <= self.score_max:
            raise InputError(
                f"score_min={self.score_min} and score_max={self.score_max} leave no score"
            )
        for name in ("absolute_margin", "relative_margin"):
            margin = getattr(self, name)
            if margin is not None and not math.isfinite(margin):
                raise InputError(f"{name}: expected a finite number or None, found {margin}")
        if self.sampling not in SAMPLING:
            raise InputError(unknown("sampling", self.sampling, SAMPLING))

    @property
    def by_score(self) -> bool:
        """Tells whether scores decide what is a negative, not only ranks."""
        margins = self.absolute_margin is not None or self.relative_margin is not None
        return margins or self.score_min > -math.inf or self.score_max < math.inf


@dataclasses.dataclass(frozen=True)
class MiningQuery:
    """A query with its pairs.

    Attributes:
        positives: the row in the corpus of each pair's positive.
        known: the rows equal to a positive, with or without a title.
        own: the rows equal to the query's text.
    """

    text: str
    pairs: list[Pair]
    positives: Int[np.ndarray, " p"]
    known: Int[np.ndarray, " c"]
    own: Int[np.ndarray, " o"]


@dataclasses.dataclass
class QueryCandidates:
    """A query's candidates in order: rows, the searcher that found each, scores.

    `positive_scores[s]` are the scores of the query's positives by searcher s.
    """

    rows: Int[np.ndarray, " c"]
    sources: Int[np.ndarray, " c"]
    scores: Float[np.ndarray, " c"]
    positive_scores: Float[np.ndarray, "s p"]
    dropped: collections.Counter[str]


def find_candidates(
    queries: Sequence[MiningQuery],
    index: PassageIndex,
    searchers: Sequence[Searcher],
    options: Mining,
) -> list[QueryCandidates]:
    texts = [query.text for query in queries]
    most = max(len(query.positives) for query in queries)
    positives = np.full((len(queries), most), -1)
    for number, query in enumerate(queries):
        positives[number, : len(query.positives)] = query.positives
    # Room for each positive and a copy of it, the query's own text and repeated texts; few
    # different k, hence few compilations.
    repeated = int((index.same != np.arange(len(index.same))).sum())
    room = options.rank_max + 1 + min(repeated, options.rank_max)
    most = max(len(query.positives) + len(query.known) for query in queries)
    k = room + (1 << (most - 1).bit_length())
    results = [searcher.search(texts, k) for searcher in searchers]
    scores, rows = (
        np.stack(leaves, axis=-1) for leaves in zip(*results, strict=True)
    )  # [Q, k, searchers]
    positive_scores = np.stack([searcher.score(texts, positives) for searcher in searchers], axis=1)
    candidates = []
    for number, query in enumerate(queries):
        depth = room + len(query.positives) + len(query.known)  # whatever else is in the block
        ours = scores[number, :depth].ravel(), rows[number, :depth].ravel()
        candidates.append(_distinct(*ours, len(searchers), query, index, options.rank_max))
        candidates[-1].positive_scores = positive_scores[number]
    return candidates


def _distinct(
    scores, rows, searchers: int, query: MiningQuery, index: PassageIndex, limit: int
) -> QueryCandidates:
    """Selects the first `limit` different passages.

    Copies of a positive and the query itself are left out.
    """
    sources = np.tile(np.arange(searchers), len(rows) // searchers)
    is_found = rows >= 0
    scores, rows, sources = scores[is_found], rows[is_found], sources[is_found]
    text = index.same[rows]
    known = np.isin(text, query.known)
    contained = ~known & index.copies(text.tolist(), [pair["positive"] for pair in query.pairs])
    repeated = np.ones(len(rows), bool)
    repeated[np.unique(text, return_index=True)[1]] = False
    repeated = ~known & ~contained & (repeated | np.isin(text, query.own))
    usable = ~known & ~contained & ~repeated
    seen = np.cumsum(usable) - usable < limit  # up to the last one used
    usable &= seen
    dropped = collections.Counter(
        positive=int((known & seen).sum()),
        contained=int((contained & seen).sum()),
        duplicate=int((repeated & seen).sum()),
    )
    nothing = np.zeros((0, 0), np.float32)
    return QueryCandidates(rows[usable], sources[usable], scores[usable], nothing, dropped)


def rescore_candidates(
    queries: Sequence[MiningQuery],
    candidates: list[QueryCandidates],
    corpus: Sequence[str],
    score: PairScorer,
) -> None:
    """Replaces the searchers' scores by those of `score`, and sorts the candidates by them."""
    lists = [
        (query.text, [corpus[row] for row in (*query.positives, *own_candidates.rows)])
        for query, own_candidates in zip(queries, candidates, strict=True)
    ]
    for query, own_candidates, values in zip(
        queries, candidates, score_lists(score, lists), strict=True
    ):
        positive, scores = np.split(np.asarray(values, np.float32), [len(query.positives)])
        order = np.argsort(-scores, kind="stable")
        own_candidates.rows, own_candidates.scores, own_candidates.positive_scores = (
            own_candidates.rows[order],
            scores[order],
            positive[None],
        )
        own_candidates.sources = np.zeros_like(own_candidates.rows)


def score_lists(score: PairScorer, lists: Sequence[tuple[str, list[str]]]) -> list[list[float]]:
    """Scores lists of passages, each list for one query, all in one call."""
    values = score_pairs(
        score, [(query, passage) for query, passages in lists for passage in passages]
    )
    ends = np.cumsum([len(passages) for _, passages in lists])
    return [part.tolist() for part in np.split(values, ends[:-1])]


def choose_negatives(
    query: str,
    own_candidates: QueryCandidates,
    positive: Float[np.ndarray, " s"],
    options: Mining,
    report: Report,
) -> Int[np.ndarray, " n"]:
    """Chooses a pair's negatives among its query's candidates; returns their positions."""
    scores, own = own_candidates.scores, positive[own_candidates.sources]
    outside = (scores < options.score_min) | (scores > options.score_max)
    close = np.zeros_like(outside)
    if options.absolute_margin is not None:
        close |= scores + options.absolute_margin > own
    if options.relative_margin is not None:
        # Not positive * (1 - margin), which is above a negative positive.
        close |= scores > own - np.abs(own) * options.relative_margin
    passed = np.flatnonzero(~outside & ~close)
    chosen = passed[options.rank_min :]
    if options.sampling == "random" and len(chosen) > options.number:
        places = random.Random(f"{options.seed}:{query.strip()}").sample(
            range(len(chosen)), options.number
        )
        chosen = chosen[np.sort(places)]
    chosen = chosen[: options.number]
    report.pairs[len(chosen)] += 1
    counts = {"score": outside.sum(), "margin": (close & ~outside).sum(), "kept": len(chosen)}
    counts["rank"] = min(options.rank_min, len(passed))
    counts["surplus"] = len(passed) - counts["rank"] - len(chosen)
    report.candidates.update(
        {name: int(count) for name, count in counts.items()} | own_candidates.dropped
    )
    return chosen
