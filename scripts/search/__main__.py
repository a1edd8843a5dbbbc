"""Searches indexes of scripts.index: one or several fused, reranked, filtered, within a time.

With --budget-ms the stages are measured here (or taken from --costs), and the shortlist and the
candidates or probes of the search are chosen that fit and bring most of the documents that exact
search finds.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, exit_with_one_line

from ..commands import Parser, whole_file
from .budget import plan, print_plan
from .stages import open_stages, stored_texts

FORMATS = ("text", "json", "trec")
EXAMPLES = """examples:
  python -m scripts.search --index indexes/dense "how do I descale a kettle?"
  python -m scripts.search --index indexes/words --index indexes/dense --fusion rrf \\
      --rerank cross-encoder/ms-marco-MiniLM-L6-v2 --shortlist 50 "how do I descale a kettle?"
  python -m scripts.search --index indexes/dense --where '{"year": {"min": 2020}}' "kettles"
  python -m scripts.search --index indexes/dense --queries scifact --format trec --k 100 \\
      --output dense.trec
  python -m scripts.search --index indexes/dense --rerank runs/reranker/model --queries scifact \\
      --budget-ms 200
  python -m scripts.search --budget-ms 200 --costs encode=10,search=40,rerank=15 \\
      --documents 2000000"""


def main() -> None:
    args = parse(sys.argv[1:])
    if args.costs is not None and not args.index:
        print_plan(args.costs, args.budget_ms, args.shortlist, args.documents)
    elif args.output is None:
        run(args, None)
    else:
        with whole_file(args.output) as beside:
            run(args, beside)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.search", __doc__, EXAMPLES)
    parser.add_argument("query", nargs="*", help="queries")
    parser.add_argument("--index", action="append", default=[], type=Path, help="may be repeated")
    parser.add_argument(
        "--model",
        action="append",
        default=[],
        metavar="MODEL",
        help="model of the queries of each --index with one (default: that of the index)",
    )
    parser.add_argument("--queries", type=Path, help="JSONL with _id and text, or BEIR's directory")
    parser.add_argument("--k", type=int, default=10, help="results of a query (default: 10)")
    parser.add_argument(
        "--fusion", default="rrf", choices=("rrf", "convex"), help="of several (default: rrf)"
    )
    parser.add_argument(
        "--rerank", default="", help="a cross-encoder, a late-interaction model, or a score file"
    )
    parser.add_argument(
        "--shortlist", type=int, default=0, help="documents that are reranked (default: 100)"
    )
    parser.add_argument("--where", default="", help="a filter on fields, as JSON")
    parser.add_argument("--allowed", type=Path, help="file of ids that may be served, one a line")
    parser.add_argument("--format", default="text", choices=FORMATS, help="(default: text)")
    parser.add_argument("--output", type=Path, help="file for the results (default: printed)")
    budget = parser.add_argument_group("budget")
    budget.add_argument("--budget-ms", type=float, default=0, help="milliseconds of a query")
    budget.add_argument(
        "--costs", help="milliseconds by stage in place of measured ones: encode=,search=,rerank="
    )
    budget.add_argument(
        "--documents", type=int, default=0, help="how long the reranker would take for N documents"
    )
    args = parser.parse_args(argv)
    from embed_jax.evals.budget import parse_costs

    args.costs = parse_costs(args.costs) if args.costs else None
    for option, least in (("k", 1), ("shortlist", 0), ("budget_ms", 0), ("documents", 0)):
        if getattr(args, option) < least:
            parser.error(f"--{option.replace('_', '-')}: expected {least} or more, found "
                         f"{getattr(args, option)}")  # fmt: skip
    if args.costs is not None and not args.budget_ms:
        parser.error("--costs: for --budget-ms")
    if not args.index and args.costs is None:
        parser.error("--index: expected one or more")
    if args.index and not (args.query or args.queries):
        parser.error("expected queries, as arguments or as --queries FILE")
    return args


def run(args: argparse.Namespace, path: Path | None) -> None:
    """Searches, and prints or writes the results."""
    from embed_jax.data.sources.beir import read_queries
    from embed_jax.retrieval.search import check_queries, search
    from embed_jax.runtime import enable_compilation_cache

    enable_compilation_cache()
    queries = {f"q{number}": text for number, text in enumerate(args.query, 1)}
    if args.queries is not None:
        queries |= read_queries(args.queries)
    check_queries(list(queries.values()))
    where = parse_filter(args.where)
    allowed = None
    if args.allowed is not None:
        allowed = args.allowed.read_text(encoding="utf-8").splitlines()
    pipeline, indexes = open_stages(args.index, args.model, args.rerank, args.fusion)
    pipeline = dataclasses.replace(pipeline, shortlist=args.shortlist or 100)
    if args.budget_ms:
        pipeline = plan(
            pipeline,
            indexes,
            list(queries.values()),
            args.budget_ms,
            costs=args.costs,
            shortlist=args.shortlist,
            documents=args.documents,
            k=args.k,
        )
    searched = search(pipeline, list(queries.values()), args.k, allowed=allowed, where=where)
    run_of = dict(zip(queries, searched.results, strict=True))
    if args.format == "trec":
        from embed_jax.data.sources.trec import write_trec_run

        write_trec_run(path or Path("/dev/stdout"), run_of, "embed-jax")
        return
    stages = {name: dict(zip(queries, each, strict=True)) for name, each in searched.stages.items()}
    if args.format == "json":
        text = json.dumps(as_json(queries, run_of, stages, pipeline), ensure_ascii=False, indent=1)
    else:
        text = "\n".join(as_lines(queries, run_of, pipeline))
    if path is None:
        print(text)
    else:
        path.write_text(text + "\n", encoding="utf-8")


def parse_filter(text: str) -> dict[str, Any] | None:
    """Reads a filter on fields.

    Raises:
        InputError: it is not a JSON object.
    """
    if not text:
        return None
    try:
        where = json.loads(text)
    except ValueError:
        where = None
    if not isinstance(where, dict):
        raise InputError(f'--where: expected a JSON object such as {{"year": 2020}}, found {text}')
    return where


def as_json(
    queries: Mapping[str, str], run_of: Mapping[str, Any], stages: Mapping[str, Any], pipeline: Any
) -> list[dict[str, Any]]:
    """Returns the results with the score of every stage, and texts if they are stored."""
    return [
        {
            "id": name,
            "query": query,
            "results": [
                {
                    "id": document,
                    "score": score,
                    "stages": {
                        stage: rankings[name][document]
                        for stage, rankings in stages.items()
                        if document in rankings[name]
                    },
                    "text": text,
                }
                for (document, score), text in zip(
                    run_of[name].items(), stored_texts(pipeline, list(run_of[name])), strict=True
                )
            ],
        }
        for name, query in queries.items()
    ]


def as_lines(queries: Mapping[str, str], run_of: Mapping[str, Any], pipeline: Any) -> list[str]:
    """Returns the results to be read on a terminal."""
    lines = []
    for name, query in queries.items():
        lines.append(query)
        results = run_of[name]
        for (document, score), text in zip(
            results.items(), stored_texts(pipeline, list(results)), strict=True
        ):
            lines.append(f"  {score:8.4f}  {document}  {' '.join((text or '').split())[:80]}")
        if not results:
            lines.append("  nothing found")
    return lines


if __name__ == "__main__":
    exit_with_one_line(main)
