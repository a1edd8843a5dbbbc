"""Hard negatives: passages that a search ranks high for a query, without its known positives.

Queries are searched for in blocks, so memory does not grow with their number. `retrieval.copies`
says which texts are copies of each other: a copy of a known positive, whatever its title, is never
a negative.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import numpy as np

from embed_jax.data.pairs import normal_form
from embed_jax.errors import InputError
from embed_jax.pair_scores import PairScorer
from embed_jax.retrieval.bm25 import bm25_searcher
from embed_jax.retrieval.copies import Fold, PassageIndex
from embed_jax.retrieval.index import dense_searcher, faiss_searcher
from embed_jax.retrieval.mined import FORMS, Mined, Report, records_of
from embed_jax.retrieval.mining_candidates import (
    Mining,
    MiningQuery,
    Pair,
    Searcher,
    choose_negatives,
    find_candidates,
    rescore_candidates,
    score_lists,
)

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

CARRIED = ("id", "group")  # fields of a pair that stay with its triplets and n-tuples


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
    queries: Sequence[MiningQuery],
    corpus: Sequence[str],
    index: PassageIndex,
    searchers: Sequence[Searcher],
    options: Mining,
    score: PairScorer | None,
    report: Report,
) -> list[Mined]:
    candidates = find_candidates(queries, index, searchers, options)
    if score and options.by_score:
        rescore_candidates(queries, candidates, corpus, score)
    mined = []
    for query, own_candidates in zip(queries, candidates, strict=True):
        for place, pair in enumerate(query.pairs):
            chosen = choose_negatives(
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
        values = score_lists(
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


def _queries(pairs: Sequence[Pair], index: PassageIndex) -> list[MiningQuery]:
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
        MiningQuery(
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
