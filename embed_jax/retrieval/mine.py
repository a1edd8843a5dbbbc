"""Hard negatives: passages that a search ranks high for a query, without its known positives.

Queries are searched for in blocks, so memory does not grow with their number. `retrieval.copies`
says which texts are copies of each other: a copy of a known positive, whatever its title, is never
a negative.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import random
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int

from embed_jax.data.pairs import normal_form
from embed_jax.errors import InputError
from embed_jax.pair_scores import PairScorer, score_pairs
from embed_jax.registry import unknown
from embed_jax.retrieval.bm25 import bm25_searcher
from embed_jax.retrieval.copies import Fold, PassageIndex
from embed_jax.retrieval.index import dense_searcher, faiss_searcher
from embed_jax.retrieval.mined import FORMS, Mined, Report, records_of

__all__ = [
    "FORMS",
    "Mined",
    "Mining",
    "Report",
    "PairScorer",
    "Searcher",
    "bm25_searcher",
    "corpus_with",
    "dense_searcher",
]
__all__ += ["faiss_searcher", "mine_negatives", "mine_records", "records_of"]

Pair = Mapping[str, Any]
SAMPLING = ("top", "random")
CARRIED = ("id", "group")  # fields of a pair that stay with its triplets and n-tuples


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
class _Query:
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
class _Candidates:
    """A query's candidates in order: rows, the searcher that found each, scores.

    `positive_scores[s]` are the scores of the query's positives by searcher s.
    """

    rows: Int[np.ndarray, " c"]
    sources: Int[np.ndarray, " c"]
    scores: Float[np.ndarray, " c"]
    positive_scores: Float[np.ndarray, "s p"]
    dropped: collections.Counter[str]


def corpus_with(
    pairs: Sequence[Pair], corpus: Sequence[str] = (), report: Report | None = None
) -> list[str]:
    """Returns the corpus and the positives that it lacks, each text once.

    A positive that is a passage without its title isn't lacking.

    Args:
        pairs: records with a positive.
        corpus: passages.
        report: receives the number of positives that the corpus lacks.

    Raises:
        InputError: for an empty text.
    """
    index = PassageIndex(corpus)
    distinct = [text for row, text in enumerate(corpus) if index.same[row] == row]
    positives = [_text(pair, "positive", number) for number, pair in enumerate(pairs)]
    lacking: dict[str, str] = {}
    for text, rows in zip(positives, index.rows_of(positives), strict=True):
        if not rows:
            lacking.setdefault(normal_form(text), text)
    if report is not None and corpus:
        report.lacking, report.positives = len(lacking), len(set(map(normal_form, positives)))
    return distinct + list(lacking.values())


def mine_negatives(
    pairs: Sequence[Pair],
    corpus: Sequence[str],
    searchers: Sequence[Searcher],
    options: Mining,
    *,
    score: PairScorer | None = None,
    block: int = 1024,
    report: Report | None = None,
    fold: Fold | None = None,
) -> Iterator[list[Mined]]:
    """Yields hard negatives for pairs, a block of queries at a time.

    The searchers' candidates are interleaved by rank. Limits on scores apply to the score of the
    searcher that found a candidate (first), and margins to the same searcher's score of the
    positive; with `score` to its scores, by which the candidates are then ordered too. Without such
    limits `score` only scores the chosen negatives.

    Args:
        pairs: records with anchor and positive. All positives of an anchor are known positives of
            that query. Negatives that a pair has already are not used.
        corpus: passages, the positives among them; see `corpus_with`. Of equal texts the first one
            counts. A `TitledText` is recognised with and without its title.
        searchers: each over this corpus.
        options: which candidates become negatives.
        score: scores (query, passage) pairs, such as a cross-encoder.
        block: queries at a time; does not change the result.
        report: receives the counts of the candidates.
        fold: makes more texts copies of each other, such as `copies.token_fold` of the model to be
            trained.

    Yields:
        The pairs of up to `block` queries; pairs of one query stand together, queries in order of
        their first pair.

    Raises:
        InputError: at once for no searcher, a positive that is not in the corpus or an empty text;
            at the end if no pair has a negative.
        InputError, RunError: see `score_pairs`.
    """
    if not searchers:
        raise InputError("searchers: expected one or more, found none")
    index = PassageIndex(corpus, fold)
    queries = _queries(pairs, index)
    report = Report() if report is None else report

    def blocks() -> Iterator[list[Mined]]:
        for start in range(0, len(queries), block):
            chosen = _mine_block(
                queries[start : start + block], corpus, index, searchers, options, score, report
            )
            yield chosen
        report.refuse_nothing()

    return blocks()


def mine_records(
    pairs: Sequence[Pair],
    corpus: Sequence[str],
    searchers: Sequence[Searcher],
    options: Mining,
    form: str = "n-tuples",
    *,
    score: PairScorer | None = None,
    block: int = 1024,
    fold: Fold | None = None,
) -> tuple[list[dict[str, Any]], Report]:
    """Mines all negatives as records in one of FORMS, and returns the report too.

    See `mine_negatives` for the arguments.
    """
    report = Report()
    blocks = mine_negatives(
        pairs, corpus, searchers, options, score=score, block=block, report=report, fold=fold
    )
    return [record for mined in blocks for record in records_of(mined, form)], report


def _mine_block(
    queries: Sequence[_Query],
    corpus: Sequence[str],
    index: PassageIndex,
    searchers: Sequence[Searcher],
    options: Mining,
    score: PairScorer | None,
    report: Report,
) -> list[Mined]:
    candidates = _search(queries, index, searchers, options)
    if score and options.by_score:
        _rescore(queries, candidates, corpus, score)
    mined = []
    for query, own_candidates in zip(queries, candidates, strict=True):
        for place, pair in enumerate(query.pairs):
            chosen = _choose(
                query.text,
                own_candidates,
                own_candidates.positive_scores[:, place],
                options,
                report,
            )
            mined.append(
                Mined(
                    pair["anchor"],
                    pair["positive"],
                    tuple(corpus[row] for row in own_candidates.rows[chosen]),
                    tuple(own_candidates.scores[chosen].tolist()),
                    float(own_candidates.positive_scores[0, place])
                    if len(own_candidates.positive_scores) == 1
                    else None,
                    {name: pair[name] for name in CARRIED if pair.get(name) is not None},
                )
            )
    if score and not options.by_score:
        values = _scored(
            score,
            [
                (mined_pair.anchor, [mined_pair.positive, *mined_pair.negatives])
                for mined_pair in mined
            ],
        )
        for number, (positive, *negatives) in enumerate(values):
            mined[number] = dataclasses.replace(
                mined[number], positive_score=positive, scores=tuple(negatives)
            )
    return mined


def _search(
    queries: Sequence[_Query],
    index: PassageIndex,
    searchers: Sequence[Searcher],
    options: Mining,
) -> list[_Candidates]:
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
    scores, rows, searchers: int, query: _Query, index: PassageIndex, limit: int
) -> _Candidates:
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
    return _Candidates(rows[usable], sources[usable], scores[usable], nothing, dropped)


def _rescore(
    queries: Sequence[_Query],
    candidates: list[_Candidates],
    corpus: Sequence[str],
    score: PairScorer,
) -> None:
    """Replaces the searchers' scores by those of `score`, and sorts the candidates by them."""
    lists = [
        (query.text, [corpus[row] for row in (*query.positives, *own_candidates.rows)])
        for query, own_candidates in zip(queries, candidates, strict=True)
    ]
    for query, own_candidates, values in zip(
        queries, candidates, _scored(score, lists), strict=True
    ):
        positive, scores = np.split(np.asarray(values, np.float32), [len(query.positives)])
        order = np.argsort(-scores, kind="stable")
        own_candidates.rows, own_candidates.scores, own_candidates.positive_scores = (
            own_candidates.rows[order],
            scores[order],
            positive[None],
        )
        own_candidates.sources = np.zeros_like(own_candidates.rows)


def _scored(score: PairScorer, lists: Sequence[tuple[str, list[str]]]) -> list[list[float]]:
    """Scores lists of passages, each list for one query, all in one call."""
    values = score_pairs(
        score, [(query, passage) for query, passages in lists for passage in passages]
    )
    ends = np.cumsum([len(passages) for _, passages in lists])
    return [part.tolist() for part in np.split(values, ends[:-1])]


def _choose(
    query: str,
    own_candidates: _Candidates,
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


def _queries(pairs: Sequence[Pair], index: PassageIndex) -> list[_Query]:
    if not len(pairs):
        raise InputError("pairs: expected at least one, found none")
    anchors, positives = (
        [_text(pair, name, number) for number, pair in enumerate(pairs)]
        for name in ("anchor", "positive")
    )
    rows = index.rows_of(positives)
    grouped: dict[Hashable, list[int]] = {}
    for number, (query, own) in enumerate(zip(index.keys(anchors), rows, strict=True)):
        if not own:
            raise InputError(
                f"pair {number}: its positive is not in the corpus: "
                f"{positives[number].strip()[:60]!r}"
            )
        grouped.setdefault(query, []).append(number)
    copies = index.rows_of([anchors[numbers[0]] for numbers in grouped.values()])
    return [
        _Query(
            anchors[numbers[0]],
            [pairs[number] for number in numbers],
            np.array([rows[number][0] for number in numbers]),
            np.unique([row for number in numbers for row in rows[number]]),
            np.array(same, int),
        )
        for numbers, same in zip(grouped.values(), copies, strict=True)
    ]


def _text(pair: Pair, name: str, number: int) -> str:
    text = pair.get(name)
    if not isinstance(text, str) or not text.strip():
        raise InputError(
            f"pair {number}: {name}: expected a text that is not empty, found {text!r}"
        )
    return text
