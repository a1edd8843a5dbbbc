"""Retrieval data in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv; any of them may end in .gz."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embed_jax.data.pairs import Task, titled
from embed_jax.data.sources.files import finite, iter_json, iter_lines
from embed_jax.errors import InputError

QRELS_HEADER = ("query-id", "corpus-id", "score")


def read_beir(directory: str | Path, split: str = "test") -> Task:
    """Reads a retrieval task.

    Returns:
        corpus {id: title and text with a blank between}, as BEIR joins them; queries {id: text} that the split
        judges; relevance {query id: {document id: grade}}, grades from 0 up.

    Raises:
        InputError: a missing file or split, an unknown or doubled id, a grade that is no integer.
    """
    directory = Path(directory)
    if not directory.is_dir():
        layout = "corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv"
        raise InputError(f"{directory}: no such directory; BEIR's layout is {layout}")
    path = _existing(directory, f"qrels/{split}.tsv")
    corpus = _texts(_existing(directory, "corpus.jsonl"), title=True)
    queries = _texts(_existing(directory, "queries.jsonl"), title=False)
    judged = ((f"{path}:{line}", record) for line, record in iter_lines(path))
    return _task(corpus, queries, judged, str(path), f"{path}:1")


def read_hub(name: str, split: str = "test") -> Task:
    """`read_beir` of a data set of the hub in mteb's layout.

    Its configurations are "corpus" and "queries", each with a split of that name, and "default", the judgements.

    Args:
        name: "NAME[@REVISION]", or a copy's directory.
    """
    from embed_jax.data.sources import open_records

    name, _, revision = name.partition("@")

    def records(config: str, split: str) -> Iterator[tuple[str, Any]]:
        source = f"hf:{name}:{config}" + (f"@{revision}" if revision else "")
        for number, record in enumerate(open_records(source, split)):
            yield f"{source}: record {number}", record

    corpus = _by_id(records("corpus", "corpus"), title=True)
    queries = _by_id(records("queries", "queries"), title=False)
    return _task(corpus, queries, records("default", split), f"hf:{name}", f"hf:{name}")


def _task(
    corpus: dict[str, str],
    queries: dict[str, str],
    judged: Iterator[tuple[str, Mapping[str, Any]]],
    source: str,
    header: str,
) -> Task:
    """The task of (place, judgement) pairs; `header` is where their columns are named."""
    qrels: dict[str, dict[str, int]] = {}
    for where, record in judged:
        if set(record) != set(QRELS_HEADER):
            raise InputError(
                f"{header}: found the columns {', '.join(record)}; accepted: {', '.join(QRELS_HEADER)}"
            )
        query, document, grade = (record[name] for name in QRELS_HEADER)
        for name, known, what in ((query, queries, "queries"), (document, corpus, "corpus")):
            if name not in known:
                raise InputError(f"{where}: the id {name!r} is not in {what}.jsonl")
        number = finite(grade, f"{where}: score")
        if number < 0 or number != int(number):
            raise InputError(f"{where}: score: expected an integer from 0 up, found {grade!r}")
        if document in qrels.setdefault(query, {}):
            raise InputError(f"{where}: query {query!r} and document {document!r} are judged twice")
        qrels[query][document] = int(number)
    if not qrels:
        raise InputError(f"{source}: empty, no judgements in it")
    return corpus, {query: queries[query] for query in queries if query in qrels}, qrels


def open_source(rest: str, split: str) -> list[dict[str, str]]:
    """Training pairs of `beir:DIRECTORY`: each query of the split with each document judged relevant to it.

    Documents of one query share a `group`, so none is a negative of another.
    """
    corpus, queries, qrels = read_beir(rest, split)
    return [
        {"anchor": queries[query], "positive": corpus[document], "group": query}
        for query, document in relevant(qrels)
    ]


def read_corpus(directory: str | Path) -> list[str]:
    """The documents alone, title and text.

    Raises:
        InputError: also for a document without either.
    """
    path = _existing(Path(directory), "corpus.jsonl")
    texts = _texts(path, title=True)
    for name, text in texts.items():
        if not text.strip():
            raise InputError(f"{path}: the document {name!r} is empty")
    return list(texts.values())


def relevant(qrels: Mapping[str, Mapping[str, int]]) -> Iterator[tuple[str, str]]:
    """(query id, document id) of each judgement above 0."""
    for query, judged in qrels.items():
        yield from ((query, document) for document, grade in judged.items() if grade > 0)


def _existing(directory: Path, name: str) -> Path:
    for path in (directory / name, directory / f"{name}.gz"):
        if path.is_file():
            return path
    there = ""
    if name.startswith("qrels/"):
        splits = sorted({file.name.split(".")[0] for file in (directory / "qrels").glob("*.tsv*")})
        there = (
            f"; there are the splits {', '.join(splits)}"
            if splits
            else "; there are no qrels/*.tsv"
        )
    raise InputError(f"{directory / name}: no such file{there}")


def _texts(path: Path, *, title: bool) -> dict[str, str]:
    texts = _by_id(((f"{path}:{line}", record) for line, record in iter_json(path)), title=title)
    if not any(text.strip() for text in texts.values()):
        raise InputError(
            f"{path}: all texts are empty" if texts else f"{path}: empty, no records in it"
        )
    return texts


def _by_id(records: Iterator[tuple[str, Any]], *, title: bool) -> dict[str, str]:
    """Texts of (place, record) pairs."""
    texts: dict[str, str] = {}
    for where, record in records:
        name, text = _string(record, "_id", where), _string(record, "text", where)
        if title and record.get("title"):
            text = titled(_string(record, "title", where), text)
        if name in texts:
            raise InputError(f"{where}: the id {name!r} stands twice")
        texts[name] = text
    return texts


def _string(record: dict[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise InputError(f"{where}: no field {field!r}; found {', '.join(record)}")
    if not isinstance(record[field], str):
        raise InputError(
            f"{where}: field {field!r} must be a string, found {type(record[field]).__name__}"
        )
    return record[field]
