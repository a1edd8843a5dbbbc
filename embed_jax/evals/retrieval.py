"""Retrieval like BEIR's: search a corpus, score rankings by graded judgements."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from embed_jax.data.pairs import SearchTask
from embed_jax.data.sources import open_retrieval_task
from embed_jax.errors import InputError
from embed_jax.evals.search import (
    Qrels,
    SearchTexts,
    TextsById,
    check_qrels,
    score_run,
    search_task,
    small_corpus,
)
from embed_jax.evals.task import DOCUMENT, QUERY, Embed, Outcome, Task, Use, mean_outcome
from embed_jax.head_scores import check_similarity
from embed_jax.maxsim import SIMILARITIES_OF_TOKENS
from embed_jax.retrieval.fusion import Run
from embed_jax.retrieval.maxsim import maxsim_search
from embed_jax.retrieval.passages import passage_search
from embed_jax.retrieval.topk import dense_search


def open_task(
    data: str,
    split: str = "test",
    *,
    name: str = "",
    k: str = "10,100",
    similarity: str = "",
    ignore_identical_ids: bool = False,
    passage_words: int = 0,
    passage_overlap: int = 0,
) -> RetrievalTask:
    """Opens a retrieval task by BEIR's and mteb's protocol.

    The main score is nDCG at the cut-off 10, or at the lowest without it.

    Args:
        data: a file, a directory or a data set of the hub; see `open_retrieval_task`.
        split: the split to read.
        name: the task's name, in tables and for prompts made for it.
        k: cut-offs, separated by commas.
        similarity: one of SIMILARITIES, or of a model of several heads a sum such as "dense + 0.3 *
            sparse"; the model's own if empty.
        ignore_identical_ids: see `evaluate_retrieval`.
        passage_words: cut documents into passages of this many words and take each document's best;
            0: whole documents, of which a model reads no more than its limit.
        passage_overlap: how many words a passage shares with the one before it.

    Raises:
        InputError: for data that cannot be read, judgements of unknown ids, or options out of
            range.
    """
    ks = cut_offs(k)
    if similarity:
        check_similarity(similarity)
    if passage_words < 0 or not 0 <= passage_overlap < max(passage_words, 1):
        sizes = f"{passage_words} and {passage_overlap}"
        raise InputError(
            f"passage_words, passage_overlap: expected 0 or more, and less than it, found {sizes}"
        )
    return make_retrieval_task(
        open_retrieval_task(data, split),
        name=name,
        ks=ks,
        similarity=similarity,
        ignore_identical_ids=ignore_identical_ids,
        passage_words=passage_words,
        passage_overlap=passage_overlap,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class RetrievalTask(Task):
    """A retrieval task, whose results can be reranked between search and scores.

    Attributes:
        corpus: documents by id.
        queries: queries by id.
        qrels: {query id: {document id: relevance}}.
        search: finds each judged query's best documents, `(search, depth) -> run`: at least as many
            as the largest cut-off.
        search_by: makes the search of a model from its embeddings.
        score: scores a run.
    """

    corpus: TextsById
    queries: TextsById
    qrels: Qrels
    search: Callable[[SearchTexts, int], Run]
    search_by: Callable[[Embed], SearchTexts]
    score: Callable[[Run], Outcome]


def make_retrieval_task(
    data: SearchTask,
    *,
    name: str = "",
    ks: Sequence[int] = (10, 100),
    similarity: str = "",
    ignore_identical_ids: bool = False,
    passage_words: int = 0,
    passage_overlap: int = 0,
) -> RetrievalTask:
    """Makes a task of data that are read; see `open_task`.

    Args:
        data: corpus, queries and relevance judgements.
        name: the task's name, in tables and for prompts made for it.
        ks: cut-offs.
        similarity: one of SIMILARITIES, or of a model of several heads a sum such as "dense + 0.3 *
            sparse"; the model's own if empty.
        ignore_identical_ids: see `evaluate_retrieval`.
        passage_words: see `open_task`.
        passage_overlap: see `open_task`.

    Raises:
        InputError: see `check_qrels`.
    """
    corpus, queries, qrels = data
    check_qrels(corpus, queries, qrels)

    def search(search_texts: SearchTexts, depth: int) -> Run:
        return search_task(
            search_texts,
            corpus,
            queries,
            qrels,
            ks=[*ks, depth],
            ignore_identical_ids=ignore_identical_ids,
        )

    def search_by(embed: Embed) -> SearchTexts:
        return search_with(
            embed,
            functools.partial(Use, name, "Retrieval"),
            similarity=similarity or embed.similarity,
            passage_words=passage_words,
            passage_overlap=passage_overlap,
        )

    def score(run: Run) -> Outcome:
        main = 10 if 10 in ks else min(ks)
        notes = list(filter(None, [small_corpus(len(corpus), main)]))
        return mean_outcome(f"ndcg@{main}", score_run(run, qrels, ks=ks).per_query, notes=notes)

    return RetrievalTask(
        name,
        "Retrieval",
        "queries",
        [(queries[query],) for query in qrels],
        lambda embed: score(search(search_by(embed), max(ks))),
        corpus=corpus,
        queries=queries,
        qrels=qrels,
        search=search,
        search_by=search_by,
        score=score,
    )


def search_with(
    embed: Embed,
    use: Callable[[str], Use],
    *,
    similarity: str,
    passage_words: int = 0,
    passage_overlap: int = 0,
) -> SearchTexts:
    """Returns the search for whole documents, or for their best passages, by embeddings.

    Args:
        embed: embeds texts.
        use: what it is told of texts of a side.
        similarity: one of SIMILARITIES, or of SIMILARITIES_OF_TOKENS for vectors of tokens.
        passage_words: see `open_task`.
        passage_overlap: see `open_task`.

    Raises:
        InputError: for passages of vectors of tokens.
    """
    embed_queries = functools.partial(embed, use=use(QUERY))
    embed_documents = functools.partial(embed, use=use(DOCUMENT))
    if similarity in SIMILARITIES_OF_TOKENS:
        if passage_words:
            raise InputError("passage_words: not for late interaction, which reads whole documents")
        return functools.partial(
            maxsim_search, embed_queries, embed_documents, mean=similarity == "mean_maxsim"
        )
    if not passage_words:
        return functools.partial(
            dense_search, embed_queries, embed_documents, similarity=similarity
        )
    return functools.partial(
        passage_search,
        embed_queries,
        embed_documents,
        similarity=similarity,
        words=passage_words,
        overlap=passage_overlap,
    )


def cut_offs(text: str) -> list[int]:
    """Reads cut-offs in a text, such as [10, 100] of "100,10".

    Raises:
        InputError: for a number that is not from 1 up.
    """
    numbers = str(text).split(",")
    if not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
        raise InputError(f"k: expected numbers from 1 up, separated by commas, found {text!r}")
    return sorted({int(number) for number in numbers})
