"""Instruction following: does a changed instruction move the documents that it excludes?

FollowIR, Weller et al. (2024). Each query is asked twice, with its original instruction and with
one under which fewer documents are relevant. A model that follows instructions ranks the documents
that are no longer relevant lower than before; one that only matches words leaves them where they
were, or brings them nearer the top.

The instruction is part of the query's text, "QUERY INSTRUCTION", as in FollowIR and mteb, so that
models without a template for instructions can be compared with those that have one; the prompt for
such tasks stands before both.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.data.sources import open_retrieval_task
from embed_jax.data.sources.tasks import Row, describe_split, read_rows
from embed_jax.errors import InputError
from embed_jax.evals.search import Qrels, TextsById, score_run
from embed_jax.evals.task import (
    DOCUMENT,
    QUERY,
    Embed,
    Outcome,
    Task,
    Use,
    encode_columns,
    mean_outcome,
)
from embed_jax.registry import unknown
from embed_jax.retrieval.fusion import Run
from embed_jax.retrieval.topk import dense_search
from embed_jax.scores import SIMILARITIES, similarity_matrix

DEPTH = 1000  # mteb's
Lists = Mapping[str, Sequence[str]]  # document ids by query id


@dataclasses.dataclass(frozen=True)
class Instructed:
    """Queries with two instructions each.

    In pairs of fields the original comes first, then the changed.

    Attributes:
        corpus: documents by id.
        queries: texts with their instruction, by id.
        qrels: judgements of the same queries.
        excluded: of each query that has such: the documents that are relevant by the original
            instruction only.
        candidates: of each query: the documents that are ranked; None: all are.
    """

    corpus: TextsById
    queries: tuple[TextsById, TextsById]
    qrels: tuple[Qrels, Qrels]
    excluded: Mapping[str, Sequence[str]]
    candidates: tuple[Lists, Lists] | None


def open_task(data: str, split: str = "test", *, name: str = "", similarity: str = "") -> Task:
    """Opens a task of queries with changed instructions; the main score is "p-MRR".

    p-MRR, from -1 to 1, is over the queries whose instruction excludes documents. Other metrics are
    "ndcg@5" and "map@1000" of all queries with the original instructions, and with the changed
    ones, under "ndcg@5_changed" and "map@1000_changed".

    Args:
        data: "hf:NAME", a data set of the hub in mteb's layout, or a directory in BEIR's with
            `_id`, `text`, `instruction` and `changed_instruction` in queries.jsonl, and the
            judgements of the changed queries in qrels/SPLIT_changed.tsv. candidates.jsonl, if there
            is one, has the documents to be ranked for each query: `_id`, `documents`. A document is
            excluded if its grade falls to 0, or it is no longer judged. Documents that become
            relevant do not count for p-MRR; FollowIR has no such documents.
        split: the split to read.
        name: the task's name, in tables and for prompts made for it.
        similarity: one of SIMILARITIES; the model's own if empty.

    Raises:
        InputError: for data that cannot be read, ids that are unknown or lack their counterpart, or
            if no document is excluded.
    """
    if similarity and similarity not in SIMILARITIES:
        raise InputError(unknown("similarity", similarity, SIMILARITIES))
    instructed = (
        _read_hub(data.removeprefix("hf:"), split)
        if data.startswith("hf:")
        else _read_directory(data, split)
    )
    _check(instructed, describe_split(data, split) if data.startswith("hf:") else data)
    kind = "InstructionRetrieval" if instructed.candidates is None else "InstructionReranking"

    def evaluate(embed: Embed) -> Outcome:
        runs = _runs(
            instructed, embed, functools.partial(Use, name, kind), similarity or embed.similarity
        )
        moves = p_mrr(runs[0], runs[1], instructed.excluded)
        per_query = {"p-MRR": np.array(list(moves.values()))}
        for run, qrels, suffix in zip(runs, instructed.qrels, ("", "_changed"), strict=True):
            scores = score_run(run, qrels, ks=(5, DEPTH)).per_query
            per_query |= {
                f"{metric}{suffix}": scores[metric] for metric in ("ndcg@5", f"map@{DEPTH}")
            }
        return mean_outcome("p-MRR", per_query)

    items = [tuple(texts[query] for texts in instructed.queries) for query in instructed.excluded]
    return Task(name, kind, "queries", items, evaluate)


def p_mrr(original: Run, changed: Run, excluded: Lists) -> dict[str, float]:
    """Computes p-MRR of each query: how far a changed instruction moved its excluded documents.

    With the ranks R and R' of a document under the original and the changed instruction, from 1: R'
    / R - 1 if it rose or stayed (R' <= R), else 1 - R / R'; the mean over the query's excluded
    documents. From -1 over 0, when nothing moved, to 1. (Weller et al. 2024, section 3.)

    Args:
        original: {query id: {document id: score}}, *best first*: the order counts. A document that
            was not retrieved is ranked after all that were.
        changed: the same under the changed instruction.
        excluded: document ids, one at least, by query id.
    """
    moves = {}
    for query, documents in excluded.items():
        ranks = []
        for run in (original[query], changed[query]):
            place = {document: rank for rank, document in enumerate(run, 1)}
            ranks.append(np.array([place.get(document, len(run) + 1) for document in documents]))
        before, after = ranks
        moves[query] = float(
            np.mean(np.where(after <= before, after / before - 1, 1 - before / after))
        )
    return moves


def _runs(
    instructed: Instructed, embed: Embed, use: Callable[[str], Use], similarity: str
) -> list[Run]:
    """Searches under both instructions.

    Of equal scores the larger id comes first, as in trec_eval and mteb.
    """
    encode_query, encode_document = (
        functools.partial(embed, use=use(side)) for side in (QUERY, DOCUMENT)
    )
    queries = {
        (number, query): text
        for number, side in enumerate(instructed.queries)
        for query, text in side.items()
    }
    if instructed.candidates is None:
        scores_by_query = dense_search(
            encode_query, encode_document, instructed.corpus, queries, DEPTH, similarity=similarity
        )
    else:
        ranked = list(
            dict.fromkeys(
                candidate
                for side in instructed.candidates
                for names in side.values()
                for candidate in names
            )
        )
        row = {document: place for place, document in enumerate(ranked)}
        (documents,) = encode_columns(
            encode_document, [instructed.corpus[document] for document in ranked]
        )
        (vectors,) = encode_columns(encode_query, list(queries.values()))
        scores_by_query = {}
        for (number, query), vector in zip(queries, vectors, strict=True):
            names = instructed.candidates[number][query]
            scores = similarity_matrix(
                vector, documents[[row[candidate] for candidate in names]], similarity
            )[0]
            scores_by_query[number, query] = dict(zip(names, scores.tolist(), strict=True))
    runs: list[Run] = [{}, {}]
    for (number, query), scores in scores_by_query.items():
        runs[number][query] = dict(
            sorted(scores.items(), key=lambda item: item[::-1], reverse=True)
        )
    return runs


def _read_directory(directory: str, split: str) -> Instructed:
    corpus, _, original = open_retrieval_task(directory, split)
    _, _, changed = open_retrieval_task(directory, f"{split}_changed")
    rows = {row.text("_id"): row for row in read_rows(directory, "queries")}

    def add_instructions(qrels: Qrels, field: str) -> dict[str, str]:
        return {query: f"{rows[query].text('text')} {rows[query].text(field)}" for query in qrels}

    queries = (
        add_instructions(original, "instruction"),
        add_instructions(changed, "changed_instruction"),
    )
    excluded = {
        query: [
            document
            for document, grade in judged.items()
            if grade > 0 and changed[query].get(document, 0) <= 0 and document in corpus
        ]
        for query, judged in original.items()
        if query in changed
    }
    candidates = None
    if any(file.name.startswith("candidates.") for file in Path(directory).iterdir()):
        listed = {
            row.text("_id"): row.texts("documents") for row in read_rows(directory, "candidates")
        }
        candidates = listed, listed
    excluded = {query: documents for query, documents in excluded.items() if documents}
    return Instructed(corpus, queries, (original, changed), excluded, candidates)


def _read_hub(name: str, split: str) -> Instructed:
    """Reads a data set of the hub, where each query has two ids.

    The ids end with "-og" and "-changed".
    """
    corpus, queries, qrels = open_retrieval_task(f"hf:{name}", split)
    base, at, revision = name.partition("@")

    def rows(config: str) -> dict[str, Row]:
        return {
            row.text("query-id"): row
            for row in read_rows(f"hf:{base}:{config}{at}{revision}", config)
        }

    def halves(values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        original, changed = (
            {
                query.removesuffix(end): value
                for query, value in values.items()
                if query.endswith(end)
            }
            for end in ("-og", "-changed")
        )
        return original, changed

    instructions = rows("instruction")
    for query in queries:
        if query not in instructions:
            raise InputError(f"hf:{name}: the query {query!r} has no instruction")
    texts = {
        query: f"{text} {instructions[query].text('instruction')}"
        for query, text in queries.items()
    }
    candidates = halves(
        {query: row.texts("corpus-ids") for query, row in rows("top_ranked").items()}
    )
    listed = {query: row.texts("corpus-ids") for query, row in rows("qrel_diff").items()}
    original, changed = halves(qrels)
    excluded = {query: listed[query] for query in original if listed.get(query)}
    return Instructed(corpus, halves(texts), (original, changed), excluded, candidates)


def _check(instructed: Instructed, source: str) -> None:
    """Raises an InputError for unknown or unpaired ids, or if no document is excluded."""
    lists = [("excluded", instructed.excluded)]
    for number, qrels in enumerate(instructed.qrels):
        missing = [query for query in qrels if query not in instructed.qrels[1 - number]]
        if missing:
            other = ("changed", "original")[number]
            raise InputError(
                f"{source}: the query {missing[0]!r} has no judgements for its {other} instruction"
            )
        if instructed.candidates is not None:
            lists.append(("candidates", instructed.candidates[number]))
            missing = [query for query in qrels if not instructed.candidates[number].get(query)]
            if missing:
                raise InputError(f"{source}: candidates: the query {missing[0]!r} has none")
    for what, listed in lists:
        for query, documents in listed.items():
            missing = [document for document in documents if document not in instructed.corpus]
            if missing:
                raise InputError(
                    f"{source}: {what}: {missing[0]!r}, of query {query!r}, is not in the corpus"
                )
    if not instructed.excluded:
        raise InputError(
            f"{source}: no document is relevant by an original instruction and not by the changed "
            "one"
        )
