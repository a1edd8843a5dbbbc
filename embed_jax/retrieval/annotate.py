"""Scores of a teacher for lists of passages: scored once, kept on disk, read by losses and filters.

    lists = record_lists(open_records("mined.jsonl"))
    with ScoreStore(Path("scores.jsonl"), {"model": "teacher"}) as store:
        score_missing(lists, store, in_blocks(cross_encoder.score))
        records = [record for item in scored_lists(lists, store) for record in as_list(*item)]

A teacher is a function of texts: a cross-encoder, the similarity of an embedding model, an API. Of
a score file that has all the scores, `read_score_file` makes a teacher that computes nothing.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from embed_jax.data.pairs import KEYS, NLI, NLI_LABELS, SCORED_LIST, kind_of, parse_label
from embed_jax.data.sources import record_fields
from embed_jax.errors import InputError
from embed_jax.pair_scores import PairScorer, score_pairs
from embed_jax.retrieval.score_store import ScoreStore, StoredScores, read_score_file
from embed_jax.retrieval.topk import Encode
from embed_jax.types import QueryPassage

__all__ = ["PassageList", "RunLists", "ScoreStore", "StoredScores", "in_blocks", "read_score_file"]
__all__ += ["SCORED_FORMS", "as_list", "as_pairs", "record_lists", "score_missing"]
__all__ += ["scored_lists", "similarity_scorer", "teacher_margin"]

BLOCK = 1024  # pairs that a local model scores between two writes to disk
Grades = Mapping[str, Mapping[str, int]]
BlockScorer = Callable[
    [Iterable[QueryPassage]], Iterator[tuple[Sequence[QueryPassage], np.ndarray]]
]
"""Takes pairs, and yields some of them with their scores as they come, in any order."""


@dataclasses.dataclass(frozen=True)
class PassageList:
    """A query with passages that a teacher scores.

    Attributes:
        query: the query's text.
        passages: the passages' texts.
        relevant: whether each passage is known to answer the query.
        carried: more fields of the record that is made of it.
    """

    query: str
    passages: Sequence[str]
    relevant: Sequence[bool]
    carried: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class RecordLists:
    """The lists of training records, one for each record; made by `record_lists`."""

    records: Sequence[Mapping[str, Any]]
    columns: Callable[[Mapping[str, Any]], Sequence[str | None]]

    def __iter__(self) -> Iterator[PassageList]:
        for record in self.records:
            query, *passages = (text for text in self.columns(record) if text is not None)
            first = _is_relevant(record)
            carried = {name: record[name] for name in KEYS if record.get(name) is not None}
            relevant = [first] + [False] * (len(passages) - 1)
            yield PassageList(query or "", passages, relevant, carried)


def _is_relevant(record: Mapping[str, Any]) -> bool:
    """Tells whether the first passage of a record answers the query."""
    kind, label = kind_of(record), record.get("label")
    if kind == SCORED_LIST or label is None:
        return True
    entails = parse_label(label) == NLI_LABELS["entailment"]
    return entails if kind == NLI else label != 0


def record_lists(records: Sequence[Mapping[str, Any]]) -> RecordLists:
    """Returns the lists of pairs, triplets, n-tuples and so on, or of scored lists.

    The first passage is relevant, except that of a pair with the label 0, or of a premise that does
    not entail it. Scores that a list has are not used.

    Args:
        records: see `data.sources.open_records`.

    Raises:
        InputError: the records are of no known format, or have a single text each.
    """
    fields = record_fields(records)
    if len(fields.columns(records[0])) < 2:
        raise InputError(f"expected a query and passages, found the fields {', '.join(records[0])}")
    return RecordLists(records, fields.columns)


@dataclasses.dataclass(frozen=True)
class RunLists:
    """The lists of the results of searches: for each query the union, those of the first run first.

    Attributes:
        corpus: documents by id.
        queries: queries by id.
        qrels: {query id: {document id: grade}}; documents with a grade above 0 are relevant.
        runs: {query id: {document id: score}} of each search, best first.
        with_relevant: whether relevant documents that no search found follow at the end.

    Raises:
        InputError: a query or a document of a run is not known.
    """

    corpus: Mapping[str, str]
    queries: Mapping[str, str]
    qrels: Grades
    runs: Sequence[Mapping[str, Mapping[str, float]]]
    with_relevant: bool = False

    def __post_init__(self):
        for query, documents in itertools.chain(*(run.items() for run in self.runs)):
            if query not in self.queries:
                raise InputError(f"the query {query!r} of a run is not one of the task's")
            for document in documents:
                if document not in self.corpus:
                    raise InputError(
                        f"the document {document!r} that a run has for the query {query!r} is not "
                        "in the corpus"
                    )

    def __iter__(self) -> Iterator[PassageList]:
        for query in dict.fromkeys(itertools.chain(*self.runs)):
            grades = self.qrels.get(query, {})
            answers = {name for name, grade in grades.items() if grade > 0 and name in self.corpus}
            results = itertools.chain(*(run.get(query, ()) for run in self.runs))
            extra = sorted(answers) if self.with_relevant else ()
            documents = list(dict.fromkeys(itertools.chain(results, extra)))
            yield PassageList(
                self.queries[query],
                [self.corpus[name] for name in documents],
                [name in answers for name in documents],
                {"id": query, "passage_ids": documents},
            )


def missing_pairs(lists: Iterable[PassageList], store: ScoreStore) -> Iterator[QueryPassage]:
    """Yields the pairs that have no score in the store, each once, in the order of the lists."""
    seen = set()
    for passage_list in lists:
        for passage in passage_list.passages:
            pair = (passage_list.query, passage)
            if pair not in seen and pair not in store:
                seen.add(pair)
                yield pair


def in_blocks(score: PairScorer, size: int = BLOCK) -> BlockScorer:
    """Returns a scorer that scores pairs block by block, in their order.

    Models give a pair slightly different last bits beside other pairs. Blocks are the same whether
    a run was interrupted or not, and so are the scores.

    Args:
        score: scores pairs, such as a cross-encoder's `score`.
        size: pairs of a block.

    Raises:
        InputError: for a size below 1.
        InputError, RunError: by the scorer, see `score_pairs`.
    """
    if size < 1:
        raise InputError(f"block: expected 1 or more, found {size}")

    def score_blocks(
        pairs: Iterable[QueryPassage],
    ) -> Iterator[tuple[Sequence[QueryPassage], Float[np.ndarray, " n"]]]:
        pairs = iter(pairs)
        while block := list(itertools.islice(pairs, size)):
            yield block, score_pairs(score, block)

    return score_blocks


def similarity_scorer(
    encode_queries: Encode,
    encode_passages: Encode,
    similarity: Callable[[np.ndarray, np.ndarray], Any],
) -> PairScorer:
    """Returns a scorer of pairs by the similarity of their embeddings.

    Args:
        encode_queries: embeds queries; gets each text of a call once.
        encode_passages: embeds passages.
        similarity: of each embedding with the one at the same position, such as
            `similarity_pairwise` of a model.
    """

    def embed(encode: Encode, texts: Sequence[str]) -> Float[np.ndarray, "n D"]:
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        return np.asarray(encode(list(rows)))[[rows[text] for text in texts]]

    def score(queries: Sequence[str], passages: Sequence[str]) -> Float[np.ndarray, " n"]:
        return np.asarray(
            similarity(embed(encode_queries, queries), embed(encode_passages, passages))
        )

    return score


def score_missing(
    lists: Iterable[PassageList],
    store: ScoreStore,
    score: BlockScorer,
    *,
    progress: Callable[[int], None] = lambda count: None,
) -> int:
    """Scores the pairs that the store lacks, and adds them to it.

    Args:
        lists: can be iterated over several times.
        store: gets the scores as they come.
        score: the teacher; see `in_blocks` and `remote.rerank.rerank_scorer`.
        progress: called with the number of pairs after each write.

    Returns:
        How many pairs were scored.

    Raises:
        InputError, RunError: by `score`; a score is not finite. Scores that came before are kept.
    """
    count = 0
    for pairs, scores in score(missing_pairs(lists, store)):
        store.add(pairs, scores)
        count += len(pairs)
        progress(len(pairs))
    return count


def scored_lists(
    lists: Iterable[PassageList], store: ScoreStore
) -> Iterator[tuple[PassageList, list[float]]]:
    """Yields each list with the scores of its passages, which the store must have."""
    for passage_list in lists:
        yield (
            passage_list,
            [store[passage_list.query, passage] for passage in passage_list.passages],
        )


def teacher_margin(passage_list: PassageList, scores: Sequence[float]) -> float:
    """Returns how far the teacher puts the relevant passages above all others.

    It is the lowest score of a relevant passage minus the highest score of another; infinite for a
    list without others, and -inf for one without a relevant passage.

    >>> teacher_margin(PassageList("q", ["a", "b"], [True, False]), [3.0, 1.0])
    2.0
    """
    relevant, others = (
        [score for score, flag in zip(scores, passage_list.relevant, strict=True) if flag is side]
        for side in (True, False)
    )
    if not relevant:
        return -math.inf
    return min(relevant) - max(others, default=-math.inf)


def as_list(passage_list: PassageList, scores: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Makes a record `query passages scores`, with the list's carried fields."""
    texts = {"query": passage_list.query, "passages": list(passage_list.passages)}
    yield {**texts, "scores": list(scores), **passage_list.carried}


def as_pairs(passage_list: PassageList, scores: Sequence[float]) -> Iterator[dict[str, Any]]:
    """Makes a record `sentence1 sentence2 score` for each passage, with the list's id and group."""
    keys = {name: value for name, value in passage_list.carried.items() if name in KEYS}
    for passage, score in zip(passage_list.passages, scores, strict=True):
        yield {"sentence1": passage_list.query, "sentence2": passage, "score": score, **keys}


SCORED_FORMS = {"scored-lists": as_list, "scored-pairs": as_pairs}
