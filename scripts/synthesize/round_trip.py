"""The search that finds a query's passage again, for all commands of synthesize."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_jax.errors import require

from ..commands import OneLineParser, load_model, whole_file

if TYPE_CHECKING:
    from embed_jax.retrieval.round_trip import Search

Item = tuple[Mapping[str, Any], tuple[str, str]]  # a record, and its query and passage


def add_arguments(parser: OneLineParser) -> None:
    group = parser.add_argument_group("round trip")
    group.add_argument(
        "--keep-top", type=int, help="keep a query if its passage is among the N best"
    )
    group.add_argument("--model", help="search with this embedding model: directory or hub name")
    group.add_argument("--bm25", action="store_true", help="search by BM25")


def check(keep_top: int | None, model: str | None, bm25: bool, *, required: bool) -> str | None:
    """Returns a message about options that do not go together, or None."""
    if keep_top is None:
        return "--keep-top is missing" if required or model or bm25 else None
    if keep_top < 1:
        return f"--keep-top: expected 1 or more, found {keep_top}"
    if bool(model) == bm25:
        return "--keep-top needs one of --model and --bm25"
    return None


def open_search(model_name: str | None, bm25: bool) -> Callable[[Sequence[str]], Search] | None:
    """Returns a function that makes a search of passages; None without a model and BM25.

    The model is loaded at once.
    """
    if bm25:
        from embed_jax.retrieval.bm25 import bm25_searcher

        require("bm25s")
        return lambda passages: bm25_searcher(passages).search
    if not model_name:
        return None
    from embed_jax.retrieval.index import dense_searcher

    model = load_model(model_name)
    queries, documents = (
        functools.partial(side, show_progress=sys.stderr.isatty())
        for side in (model.encode_query, model.encode_document)
    )
    return lambda passages: (
        dense_searcher(queries, documents, passages, similarity=model.similarity_fn_name).search
    )


def write_kept(
    path: Path,
    items: Iterable[Item],
    passages: Sequence[str],
    k: int | None,
    search: Callable[[Sequence[str]], Search] | None,
) -> tuple[int, str]:
    """Writes the records that the round trip leaves.

    Returns:
        How many records there were, and a text about what became of them.
    """
    from embed_jax.retrieval.round_trip import round_trip_filter

    count = written = 0

    def count_items() -> Iterator[Item]:
        nonlocal count
        for item in items:
            count += 1
            yield item

    with whole_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        consistent = (
            round_trip_filter(count_items(), search(passages), k, passages, lambda item: item[1])
            if search and k
            else count_items()
        )
        for record, _ in consistent:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            written += 1
    return count, f", {written} kept, {count - written} dropped" if search else ""
