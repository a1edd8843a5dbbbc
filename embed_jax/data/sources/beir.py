"""Retrieval data in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv.

Any of them may end in .gz.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from embed_jax.data.pairs import SearchTask, titled
from embed_jax.data.sources.files import finite, iter_json, iter_rows
from embed_jax.errors import InputError, warn

QRELS_HEADER = ("query-id", "corpus-id", "score")


def read_beir(directory: str | Path, split: str = "test") -> SearchTask:
    """Reads a retrieval task.

    Returns:
        corpus {id: title and text with a blank between}, as BEIR joins them; queries {id: text}
        that the split judges; relevance {query id: {document id: grade}}.

    Judgements are taken as trec_eval and mteb take them, and one warning counts what is odd: a
    judged document that isn't in the corpus stays among the judgements, and counts as not found if
    it is relevant; a grade below 0 is not relevant; what is listed twice identically counts once.
    Ids may be integers.

    Raises:
        InputError: a missing file or split, an unknown query, an id with two texts, a pair with two
            grades, a grade that is no integer, or if no judged document is in the corpus.
    """
    directory = Path(directory)
    if not directory.is_dir():
        layout = "corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv"
        raise InputError(f"{directory}: no such directory; BEIR's layout is {layout}")
    path = _existing(directory, f"qrels/{split}.tsv")
    odd: Counter[str] = Counter()
    corpus = _texts(_existing(directory, "corpus.jsonl"), odd, title=True)
    queries = _texts(_existing(directory, "queries.jsonl"), odd, title=False)
    judged = ((f"{path}:{line}", record) for line, record in iter_rows(path))
    return _task(corpus, queries, judged, odd, str(path), f"{path}:1")


def read_hub(name: str, split: str = "test") -> SearchTask:
    """`read_beir` of a data set of the hub in mteb's layout.

    Its configurations are "corpus" and "queries", each with a split of that name, and "default",
    the judgements.

    Args:
        name: "NAME[@REVISION]", or a copy's directory.
    """
    from embed_jax.data.sources.opening import open_raw

    name, _, revision = name.partition("@")

    def records(config: str, split: str) -> Iterator[tuple[str, Any]]:
        source = f"hf:{name}:{config}" + (f"@{revision}" if revision else "")
        for number, record in enumerate(open_raw(source, split)):
            yield f"{source}: record {number}", record

    odd: Counter[str] = Counter()
    corpus = _by_id(records("corpus", "corpus"), odd, title=True)
    queries = _by_id(records("queries", "queries"), odd, title=False)
    return _task(corpus, queries, records("default", split), odd, f"hf:{name}", f"hf:{name}")


def _task(
    corpus: dict[str, str],
    queries: dict[str, str],
    judged: Iterator[tuple[str, Mapping[str, Any]]],
    odd: Counter[str],
    source: str,
    header: str,
) -> SearchTask:
    """The task of (place, judgement) pairs.

    `header` is where their columns are named, `odd` counts oddities.
    """
    qrels: dict[str, dict[str, int]] = {}
    for where, record in judged:
        if set(record) != set(QRELS_HEADER):
            raise InputError(
                f"{header}: found the columns {', '.join(record)}; accepted: "
                f"{', '.join(QRELS_HEADER)}"
            )
        query, document = (_id(record, name, where) for name in QRELS_HEADER[:2])
        if query not in queries:
            raise InputError(f"{where}: the id {query!r} is not in queries.jsonl")
        number = finite(record["score"], f"{where}: score")
        if number != int(number):
            raise InputError(f"{where}: score: expected an integer, found {record['score']!r}")
        grades, grade = qrels.setdefault(query, {}), int(number)
        odd["judgements listed twice"] += document in grades
        odd["grades below 0, not relevant"] += grade < 0
        odd["judged documents that aren't in the corpus"] += document not in corpus
        if grades.setdefault(document, grade) != grade:
            raise InputError(
                f"{where}: query {query!r} and document {document!r} are judged twice, "
                f"{grades[document]} and {grade}"
            )
    if not qrels:
        raise InputError(f"{source}: empty, no judgements in it")
    if not any(document in corpus for grades in qrels.values() for document in grades):
        raise InputError(
            f"{source}: none of the judged documents is in the corpus, such as {document!r}"
        )
    if oddities := [f"{count} {what}" for what, count in odd.items() if count]:
        warn(f"{source}: {', '.join(oddities)}; scores are those of trec_eval")
    return corpus, {query: queries[query] for query in queries if query in qrels}, qrels


def open_source(rest: str, split: str) -> list[dict[str, str]]:
    """Training pairs of `beir:DIRECTORY`.

    Each query of the split with each document judged relevant to it.

    Documents of one query share a `group`, so none is a negative of another.
    """
    corpus, queries, qrels = read_beir(rest, split)
    return [
        {"anchor": queries[query], "positive": corpus[document], "group": query}
        for query, document in relevant(qrels)
        if document in corpus
    ]


def read_corpus(directory: str | Path) -> list[str]:
    """Only the documents, title and text.

    Raises:
        InputError: also for a document without either.
    """
    path = _existing(Path(directory), "corpus.jsonl")
    texts = _texts(path, Counter(), title=True)
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


def _texts(path: Path, odd: Counter[str], *, title: bool) -> dict[str, str]:
    records = ((f"{path}:{line}", record) for line, record in iter_json(path))
    texts = _by_id(records, odd, title=title)
    if not any(text.strip() for text in texts.values()):
        raise InputError(
            f"{path}: all texts are empty" if texts else f"{path}: empty, no records in it"
        )
    return texts


def _by_id(records: Iterator[tuple[str, Any]], odd: Counter[str], *, title: bool) -> dict[str, str]:
    """Texts of (place, record) pairs."""
    texts: dict[str, str] = {}
    for where, record in records:
        name, text = _id(record, "_id", where), _string(record, "text", where)
        if title and record.get("title"):
            text = titled(_string(record, "title", where), text)
        odd[f"{'documents' if title else 'queries'} listed twice"] += name in texts
        if texts.setdefault(name, text) != text:
            raise InputError(f"{where}: the id {name!r} stands twice, with different texts")
    return texts


def _id(record: Mapping[str, Any], field: str, where: str) -> str:
    """An id, which may be an integer in JSON and in data sets of the hub.

    Mteb makes a string of it too.
    """
    value = record.get(field)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return _string(record, field, where)


def _string(record: Mapping[str, Any], field: str, where: str) -> str:
    if field not in record:
        raise InputError(f"{where}: no field {field!r}; found {', '.join(record)}")
    if not isinstance(record[field], str):
        accepted = "a string or an integer" if field not in ("text", "title") else "a string"
        raise InputError(
            f"{where}: field {field!r} must be {accepted}, found {type(record[field]).__name__}"
        )
    return record[field]
