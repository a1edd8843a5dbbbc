"""Searches indexes of scripts.index: one or several fused, reranked, filtered, within a time.

With --budget-ms the stages are measured here (or taken from --costs), and the shortlist and the
candidates or probes of the search are chosen that fit and bring most of the documents that exact
search finds.

With --serve a page in the browser shows any two stages, or any two pipelines, side by side and why
documents moved; its models answer at /v1/embeddings (OpenAI's form) and /rerank (Cohere's and
Jina's).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, exit_with_one_line, warn

from ..commands import Parser, index_path, whole_file
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
      --documents 2000000
  python -m scripts.search --serve --index indexes/words --index indexes/dense \\
      --rerank runs/reranker/model
  python -m scripts.search --serve --pipeline configs/pipelines/bm25.yaml \\
      --pipeline configs/pipelines/dense.yaml --corpus scifact --indexes indexes/scifact
  python -m scripts.search --serve --endpoint sentence-transformers/all-MiniLM-L6-v2"""


def main() -> None:
    args = parse(sys.argv[1:])
    if args.serve:
        run_server(args)
    elif args.costs is not None and not args.index:
        print_plan(args.costs, args.budget_ms, args.shortlist, args.documents)
    elif args.output is None:
        run(args, None)
    else:
        with whole_file(args.output) as beside:
            run(args, beside)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.search", __doc__, EXAMPLES)
    parser.add_argument("query", nargs="*", help="queries")
    parser.add_argument(
        "--index", action="append", default=[], type=index_path, help="may be repeated"
    )
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
    page = parser.add_argument_group("page and endpoints")
    page.add_argument("--serve", action="store_true", help="serve a page in place of a search")
    page.add_argument(
        "--host", default="127.0.0.1", help="address to serve at (default: this machine only)"
    )
    page.add_argument("--port", type=int, default=8000, help="0: any free one (default: 8000)")
    page.add_argument(
        "--pipeline",
        action="append",
        default=[],
        type=Path,
        metavar="FILE",
        help="YAML file of a pipeline, see configs/pipelines, in place of --index; may be repeated",
    )
    page.add_argument("--corpus", type=Path, help="of --pipeline: BEIR's directory or JSONL")
    page.add_argument("--indexes", type=Path, help="of --pipeline: folder to keep indexes in")
    page.add_argument(
        "--endpoint",
        action="append",
        default=[],
        metavar="MODEL",
        help="another model for the endpoints, an embedder or a reranker; may be repeated",
    )
    args = parser.parse_args(argv)
    check_serving(parser, args)
    from embed_jax.evals.budget import parse_costs

    args.costs = parse_costs(args.costs) if args.costs else None
    for option, least in (("k", 1), ("shortlist", 0), ("budget_ms", 0), ("documents", 0)):
        if getattr(args, option) < least:
            parser.error(f"--{option.replace('_', '-')}: expected {least} or more, found "
                         f"{getattr(args, option)}")  # fmt: skip
    if args.costs is not None and not args.budget_ms:
        parser.error("--costs: for --budget-ms")
    if args.serve:
        return args
    if not args.index and args.costs is None:
        parser.error("--index: expected one or more")
    if args.index and not (args.query or args.queries):
        parser.error("expected queries, as arguments or as --queries FILE")
    return args


def check_serving(parser: Parser, args: argparse.Namespace) -> None:
    """Exits with a one-line error for options that do not go with --serve, or need it."""
    if not args.serve:
        for option in ("pipeline", "corpus", "indexes", "endpoint"):
            if getattr(args, option):
                parser.error(f"--{option}: for --serve")
        return
    for option in ("query", "queries", "output", "budget_ms", "costs"):
        if getattr(args, option):
            parser.error(f"--serve: expected no {option.replace('_', '-')}, the page asks for it")
    if not (args.index or args.pipeline or args.endpoint):
        parser.error("--serve: expected --index, --pipeline or --endpoint")
    if args.pipeline and args.index:
        parser.error("--pipeline: expected no --index beside it")
    if args.pipeline and args.where:
        parser.error("--where: for --index")
    if bool(args.pipeline) != bool(args.corpus and args.indexes):
        parser.error("--pipeline: goes with --corpus and --indexes")
    if not 0 <= args.port < 2**16:
        parser.error(f"--port: expected 0 to {2**16 - 1}, found {args.port}")


def run_server(args: argparse.Namespace) -> None:
    """Opens what is served, and serves it."""
    from embed_jax.corpus_index import Models
    from embed_jax.errors import require
    from embed_jax.runtime import enable_compilation_cache

    for library in ("starlette", "uvicorn", "jinja2"):
        require(library)
    from .serving import serve, serve_indexes, serve_pipelines

    enable_compilation_cache()
    models, allowed, searches = Models(), read_allowed(args.allowed), {}
    if args.index:
        searches["search"] = serve_indexes(
            args.index,
            args.model,
            args.rerank,
            args.fusion,
            models,
            shortlist=args.shortlist,
            allowed=allowed,
            where=parse_filter(args.where),
        )
    elif args.pipeline:
        searches = serve_pipelines(
            args.pipeline, args.corpus, args.indexes, models, allowed=allowed
        )
    serve(searches, args.endpoint, models, args.host, args.port)


def read_allowed(path: Path | None) -> list[str] | None:
    """Reads the ids that may be served, one a line; None: all may be.

    Raises:
        InputError: the file cannot be read.
    """
    if path is None:
        return None
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise InputError(f"--allowed: {path} cannot be read: {reason}") from None


def run(args: argparse.Namespace, path: Path | None) -> None:
    """Searches, and prints or writes the results."""
    from embed_jax.data.sources.beir import read_queries
    from embed_jax.retrieval.search import check_queries, search
    from embed_jax.retrieval.text_chunks import describe_absent, document_ids
    from embed_jax.runtime import enable_compilation_cache

    enable_compilation_cache()
    queries = {f"q{number}": text for number, text in enumerate(args.query, 1)}
    if args.queries is not None:
        queries |= read_queries(args.queries)
    check_queries(list(queries.values()))
    where = parse_filter(args.where)
    allowed = read_allowed(args.allowed)
    pipeline, indexes = open_stages(args.index, args.model, args.rerank, args.fusion)
    pipeline = dataclasses.replace(pipeline, shortlist=args.shortlist or 100)
    if allowed is not None and (
        strangers := describe_absent(allowed, document_ids(indexes.values()))
    ):
        warn(f"--allowed: {strangers}")
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
