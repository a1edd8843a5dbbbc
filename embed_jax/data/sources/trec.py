"""Runs in TREC's form: lines `QUERY Q0 DOCUMENT RANK SCORE TAG`, each also .gz."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from embed_jax.data.sources.files import parse_number, raw_lines
from embed_jax.errors import InputError

FIELDS = ("query", "Q0", "document", "rank", "score", "tag")


def read_trec_run(path: str | Path, depth: int = 0) -> dict[str, dict[str, float]]:
    """Reads a run.

    As in trec_eval, ranks are those of the scores, and of equal scores the larger document id
    comes first; the column with ranks is not used.

    Args:
        path: the file; its columns stand between blanks or tabs.
        depth: the number of documents of a query that are returned, the best; 0: all.

    Returns:
        {query id: {document id: score}}, queries in the order of the file, documents best first.

    Raises:
        InputError: with file and line: the file cannot be read, a line has another number of
            fields, a score is not a number, or a document is listed twice; or the file is empty.
    """
    path = Path(path)
    run: dict[str, dict[str, float]] = {}
    for line_number, line in raw_lines(path):
        where = f"{path}:{line_number}"
        try:
            fields = line.decode("utf-8-sig" if line_number == 1 else "utf-8").split()
        except UnicodeDecodeError:
            raise InputError(f"{where}: invalid UTF-8") from None
        if not fields:
            continue
        if len(fields) != len(FIELDS):
            raise InputError(
                f"{where}: found {len(fields)} fields, expected {len(FIELDS)}: {' '.join(FIELDS)}"
            )
        query, _, document, _, score, _ = fields
        documents = run.setdefault(query, {})
        if document in documents:
            raise InputError(f"{where}: the document {document!r} of query {query!r} stands twice")
        documents[document] = parse_number(score, f"{where}: score")
    if not run:
        raise InputError(f"{path}: empty, no results in it")
    return {
        query: dict(
            sorted(documents.items(), key=lambda item: (item[1], item[0]), reverse=True)[
                : depth or None
            ]
        )
        for query, documents in run.items()
    }


def write_trec_run(path: Path, run: Mapping[str, Mapping[str, float]], tag: str) -> None:
    """Writes a run, which `read_trec_run` reads.

    Args:
        path: the file.
        run: {query id: {document id: score}}, documents best first.
        tag: the name of the search, without blanks.

    Raises:
        InputError: for an id or a tag that is empty or has blanks.
    """
    lines = []
    for query, documents in run.items():
        for rank, (document, score) in enumerate(documents.items(), 1):
            for name in (query, document, tag):
                if len(name.split()) != 1 or name != name.strip():
                    raise InputError(f"run: expected ids and a tag without blanks, found {name!r}")
            lines.append(f"{query} Q0 {document} {rank} {score} {tag}\n")
    path.write_text("".join(lines), encoding="utf-8")
