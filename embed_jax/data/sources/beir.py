"""Retrieval data in BEIR's layout: corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, each also .gz."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.atomic import write_whole
from embed_jax.data.pairs import SearchTask, join_title
from embed_jax.data.sources.files import iter_json, iter_rows, parse_number
from embed_jax.errors import InputError, warn

QRELS_HEADER = ("query-id", "corpus-id", "score")


def read_beir(directory: str | Path, split: str = "test") -> SearchTask:
    """Reads a retrieval task.

    Judgements are treated as by trec_eval and mteb, and one warning counts oddities: a judged
    document that is not in the corpus stays among the judgements, and counts as not found if it is
    relevant; a grade below 0 is not relevant; identical lines count once. Ids may be integers.

    Args:
        directory: where the files are.
        split: of the judgements; "validation" is also found as "dev", which is BEIR's name of it.

    Returns:
        corpus {id: title and text with a blank between}, as in BEIR; the split's queries {id:
        text}; relevance {query id: {document id: grade}}.

    Raises:
        InputError: a file or split is missing, a query is unknown, an id has two texts, a pair has
            two grades, a grade is not an integer, or no judged document is in the corpus.
    """
    directory = Path(directory)
    if not directory.is_dir():
        layout = "corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv"
        raise InputError(f"{directory}: no such directory; BEIR's layout is {layout}")
    path = _find_judgements(directory, split)
    odd: Counter[str] = Counter()
    corpus = _texts(_find_file(directory, "corpus.jsonl"), odd, title=True)
    queries = _texts(_find_file(directory, "queries.jsonl"), odd, title=False)
    judged = ((f"{path}:{line}", record) for line, record in iter_rows(path))
    return _task(corpus, queries, judged, odd, str(path), f"{path}:1")


def read_hub(name: str, split: str = "test") -> SearchTask:
    """Reads a retrieval task from a data set of the hub in mteb's layout; see `read_beir`.

    Its configurations are "corpus" and "queries", each with a split of that name, and "default"
    with the judgements.

    Args:
        name: "NAME[@REVISION]", or the directory of a copy.
        split: the split of the judgements, by the data set's own name of it.
    """
    from embed_jax.data.sources.opening import open_raw

    name, _, revision = name.partition("@")

    def records(config: str, split: str) -> Iterator[tuple[str, Any]]:
        source = f"hf:{name}:{config}" + (f"@{revision}" if revision else "")
        for index, record in enumerate(open_raw(source, split)):
            yield f"{source}: record {index}", record

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
    """Makes the task of (place, judgement) pairs.

    Args:
        corpus: the documents.
        queries: the queries.
        judged: the judgements, each with its place for errors.
        odd: counts of oddities, to which those of the judgements are added.
        source: the name of the data in messages.
        header: the place where the judgements' columns are named.
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
        number = parse_number(record["score"], f"{where}: score")
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


def write_beir(directory: str | Path, task: SearchTask, split: str = "test") -> None:
    """Writes a retrieval task in BEIR's layout, with empty titles; `read_beir` reads it.

    Args:
        directory: made if it does not exist.
        task: corpus, queries and judgements.
        split: names the judgements.

    Raises:
        InputError: for a directory that has files, or that cannot be made.
    """
    directory = Path(directory)
    try:
        (directory / "qrels").mkdir(parents=True, exist_ok=True)
        if any(path.is_file() for path in directory.rglob("*")):
            raise InputError(f"{directory}: expected an empty directory, or a new one")
        corpus, queries, qrels = task
        documents = ({"_id": name, "title": "", "text": text} for name, text in corpus.items())
        write_whole(directory / "corpus.jsonl", _json_lines(documents))
        query_records = ({"_id": name, "text": text} for name, text in queries.items())
        write_whole(directory / "queries.jsonl", _json_lines(query_records))
        rows = [
            (query, document, str(grade))
            for query, judged in qrels.items()
            for document, grade in judged.items()
        ]
        table = "".join("\t".join(row) + "\n" for row in (QRELS_HEADER, *rows))
        write_whole(directory / "qrels" / f"{split}.tsv", table)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {error.strerror}") from None


def _json_lines(records: Iterator[Mapping[str, str]]) -> str:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def open_source(rest: str, split: str) -> list[dict[str, str]]:
    """Makes training pairs of `beir:DIRECTORY`: each query with each document relevant to it.

    Documents of one query share a `group`, so none is a negative of another.
    """
    corpus, queries, qrels = read_beir(rest, split)
    return [
        {"anchor": queries[query], "positive": corpus[document], "group": query}
        for query, document in iter_relevant(qrels)
        if document in corpus
    ]


def read_corpus(directory: str | Path) -> list[str]:
    """Reads only the documents, as title and text.

    Raises:
        InputError: the file cannot be read, or a document is empty.
    """
    path = _find_file(Path(directory), "corpus.jsonl")
    texts = _texts(path, Counter(), title=True)
    for name, text in texts.items():
        if not text.strip():
            raise InputError(f"{path}: the document {name!r} is empty")
    return list(texts.values())


def read_documents(
    path: str | Path, fields: Sequence[str] = ()
) -> tuple[dict[str, str], dict[str, dict[str, Any]]]:
    """Reads documents, with their metadata.

    Args:
        path: a directory in BEIR's layout, or a JSONL file of documents in it.
        fields: names of the metadata; a document may lack some of them.

    Returns:
        Title and text by id; the fields that each document has by id.

    Raises:
        InputError: the file cannot be read, an id has two texts, or no document has a field.
    """
    path = Path(path)
    file = _find_file(path, "corpus.jsonl") if path.is_dir() else path
    texts, metadata = _texts(file, Counter(), title=True), {}
    missing = dict.fromkeys(fields)
    for line, record in iter_json(file) if fields else ():
        own = {name: record[name] for name in fields if record.get(name) is not None}
        metadata[_id(record, "_id", f"{file}:{line}")] = own
        missing = {name: None for name in missing if name not in own}
    if missing:
        raise InputError(f"{file}: no document has the field {next(iter(missing))!r}")
    return texts, metadata


def read_queries(path: str | Path) -> dict[str, str]:
    """Reads queries by id: a directory in BEIR's layout, or a JSONL file of queries in it.

    Raises:
        InputError: the file cannot be read, or an id has two texts.
    """
    path = Path(path)
    file = _find_file(path, "queries.jsonl") if path.is_dir() else path
    return _texts(file, Counter(), title=False)


def iter_relevant(qrels: Mapping[str, Mapping[str, int]]) -> Iterator[tuple[str, str]]:
    """Yields (query id, document id) of each judgement above 0."""
    for query, judged in qrels.items():
        yield from ((query, document) for document, grade in judged.items() if grade > 0)


def _find_judgements(directory: Path, split: str) -> Path:
    named = {file.name.split(".")[0] for file in (directory / "qrels").glob("*.tsv*")}
    if split == "validation" and "validation" not in named and "dev" in named:
        split = "dev"
    return _find_file(directory, f"qrels/{split}.tsv")


def _find_file(directory: Path, name: str) -> Path:
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
    """Reads the texts of (place, record) pairs by their ids."""
    texts: dict[str, str] = {}
    for where, record in records:
        name, text = _id(record, "_id", where), _string(record, "text", where)
        if title and record.get("title"):
            text = join_title(_string(record, "title", where), text)
        odd[f"{'documents' if title else 'queries'} listed twice"] += name in texts
        if texts.setdefault(name, text) != text:
            raise InputError(f"{where}: the id {name!r} stands twice, with different texts")
    return texts


def _id(record: Mapping[str, Any], field: str, where: str) -> str:
    """Reads an id as a string, as mteb does; in JSON and on the hub it may be an integer."""
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
