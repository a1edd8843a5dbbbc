"""A release gate: may this search be served? Exit status 0 if it may, 1 if not.

A YAML file has queries with the documents that they must find, documents that must never be served,
and thresholds of recall@K, MRR@K, nDCG@K and the p95 of a query's milliseconds; see
embed_jax/evals/gate_spec.py. With --baseline a paired test on the same queries says whether the new
search is worse, and how often it would notice a loss of that size. An index of another model, of an
older corpus, or without a document that is expected, is refused with status 2.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, exit_with_one_line

from .commands import Parser, index_path, print_table, whole_file, write_json
from .evaluate.pipelines import roles

EXAMPLES = """examples:
  python -m scripts.gate configs/gates/shop.yaml --pipeline configs/pipelines/bm25.yaml
  python -m scripts.gate configs/gates/scifact.yaml --index indexes/dense --output gate.json \\
      --html gate.html
  python -m scripts.gate configs/gates/scifact.yaml --index indexes/words --index indexes/dense \\
      --rerank runs/reranker/model --baseline gate.json"""


def main() -> int:
    args = parse(sys.argv[1:])
    with contextlib.ExitStack() as stack:
        files = {
            name: stack.enter_context(whole_file(path))
            for name, path in (("json", args.output), ("html", args.html))
            if path is not None
        }
        report = run(args)
        if "json" in files:
            write_json(files["json"], report.to_json())
        if "html" in files:
            from embed_jax.evals.gate_html import gate_html

            files["html"].write_text(gate_html(report), encoding="utf-8")
    print_report(report)
    return 0 if report.passed else 1


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.gate", __doc__, EXAMPLES)
    parser.add_argument("cases", type=Path, help="YAML file of the gate")
    parser.add_argument(
        "--index", action="append", default=[], type=index_path, help="may be repeated"
    )
    parser.add_argument(
        "--model", action="append", default=[], help="of each --index (default: that of the index)"
    )
    parser.add_argument(
        "--fusion", default="rrf", choices=("rrf", "convex"), help="of several (default: rrf)"
    )
    parser.add_argument("--rerank", default="", help="a model or a score file, after --index")
    parser.add_argument(
        "--shortlist", type=int, default=100, help="documents that are reranked (default: 100)"
    )
    parser.add_argument("--pipeline", type=Path, help="YAML file of a pipeline, over the corpus")
    parser.add_argument(
        "--models", default="", metavar="ROLE=MODEL", help="other models of the pipeline"
    )
    parser.add_argument("--indexes", type=Path, help="folder to keep the pipeline's indexes in")
    parser.add_argument(
        "--corpus", type=Path, help="documents, which the indexes must have (default: the gate's)"
    )
    parser.add_argument(
        "--baseline", type=Path, help="JSON of an earlier gate, or a run in TREC's form"
    )
    parser.add_argument(
        "--timed-queries", type=int, default=50, help="queries that are timed (default: 50)"
    )
    parser.add_argument("--output", type=Path, help="JSON file for the report")
    parser.add_argument("--html", type=Path, help="HTML file for the report")
    args = parser.parse_args(argv)
    if bool(args.index) == bool(args.pipeline):
        parser.error("expected --index, once or more, or --pipeline")
    if not args.index and (args.model or args.rerank):
        parser.error("--model, --rerank: only with --index")
    if not args.pipeline and (args.models or args.indexes):
        parser.error("--models, --indexes: only with --pipeline")
    for option in ("shortlist", "timed_queries"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')}: expected 1 or more, found "
                         f"{getattr(args, option)}")  # fmt: skip
    return args


def run(args: argparse.Namespace) -> Any:
    """Reads the gate, opens the search, and returns the report."""
    from embed_jax.data.sources.beir import read_documents
    from embed_jax.evals.gate import read_baseline, run_gate
    from embed_jax.evals.gate_spec import read_gate
    from embed_jax.packaged import config_path
    from embed_jax.runtime import enable_compilation_cache

    enable_compilation_cache()
    spec = read_gate(config_path(args.cases))
    if args.corpus is not None:
        fields = dict.fromkeys(name for case in spec.cases for name in case.where or ())
        corpus, metadata = read_documents(args.corpus, list(fields))
        spec = dataclasses.replace(spec, corpus=corpus, fields=metadata)
    baseline = None if args.baseline is None else read_baseline(args.baseline, spec)
    with tempfile.TemporaryDirectory() as directory:
        if args.pipeline is None:
            pipeline, ids, searched = open_indexes(
                args.index, args.model, args.rerank, args.fusion, spec.corpus
            )
            pipeline = dataclasses.replace(pipeline, shortlist=args.shortlist)
        else:
            if spec.corpus is None:
                raise InputError(
                    f"--pipeline: needs documents: {args.cases} names no corpus, and --corpus is "
                    "not given"
                )
            pipeline, searched = build_pipeline(
                config_path(args.pipeline),
                roles(args.models, "models"),
                spec.corpus,
                spec.fields,
                args.indexes or Path(directory),
            )
            ids = spec.corpus
        return run_gate(
            pipeline,
            spec,
            ids=ids,
            baseline=baseline,
            timed_queries=args.timed_queries,
            searched=searched,
        )


def open_indexes(
    paths: Sequence[Path | str],
    names: Sequence[str],
    reranker: str,
    fusion: str,
    corpus: Mapping[str, str] | None,
) -> tuple[Any, Collection[str], dict[str, Any]]:
    """Opens indexes with their models, and refuses those that are stale.

    Returns:
        The pipeline, the ids of the documents, and what the indexes were made of.

    Raises:
        InputError: an index is of another model than the queries', or of other documents than the
            corpus or another index.
    """
    from embed_jax.corpus_index import Models, cut_corpus
    from embed_jax.retrieval.pipeline_spec import ChunkSpec
    from embed_jax.retrieval.text_chunks import document_of

    from .search.stages import open_stages

    models = Models()
    pipeline, indexes = open_stages(paths, names, reranker, fusion, models)
    documents: dict[str, set[str]] = {}
    for (name, index), path in zip(indexes.items(), paths, strict=True):
        stored = dict(index.identity)
        chunks = stored.get("chunks")
        documents[name] = set(map(document_of, index.ids) if chunks else index.ids)
        if corpus is not None:
            texts = corpus
            if chunks:
                texts = cut_corpus(corpus, models.load(stored["name"]), ChunkSpec(**chunks))
            check_fresh(path, index, texts)
    first = next(iter(documents))
    for name, ids in documents.items():
        if different := ids ^ documents[first]:
            raise InputError(
                f"the indexes {first} and {name} have other documents: {len(different)} are in one "
                f"only, such as {min(different)!r}"
            )
    searched = {
        name: {**index.identity, "documents": len(index)} for name, index in indexes.items()
    }
    return pipeline, documents[first], searched


def check_fresh(path: Path | str, index: Any, texts: Mapping[str, str]) -> None:
    """Raises an InputError if an index is of other texts."""
    changes = dataclasses.asdict(index.changes(texts))
    if any(changes.values()):
        counts = ", ".join(f"{len(ids):,} {what}" for what, ids in changes.items())
        raise InputError(
            f"{path}: a stale index: since it was built, documents of the corpus were {counts}; "
            "bring it up to date with scripts.index"
        )


def build_pipeline(
    file: Path,
    models: Mapping[str, str],
    corpus: Mapping[str, str],
    fields: Mapping[str, Mapping[str, Any]],
    folder: Path,
) -> tuple[Any, dict[str, Any]]:
    """Opens a pipeline over a corpus; its indexes are built, or brought up to date."""
    from embed_jax.pipelines import open_pipeline
    from embed_jax.retrieval.filters import select_documents
    from embed_jax.retrieval.pipeline_spec import read_pipeline

    opened = open_pipeline(read_pipeline(file).with_models(models), corpus, folder)
    pipeline = opened.pipeline
    if fields:
        names = list(corpus)
        every = [fields.get(name, {}) for name in names]

        def select(where: Mapping[str, Any]) -> set[str]:
            marks = select_documents(every, where)
            return {name for name, is_in in zip(names, marks, strict=True) if is_in}

        pipeline = dataclasses.replace(pipeline, select=select)
    searched = {
        name: {**index.identity, "documents": len(index)} for name, index in opened.indexes.items()
    }
    return pipeline, searched


def print_report(report: Any) -> None:
    """Prints the table, what failed, and the verdict."""
    from embed_jax.evals.gate_html import describe_power

    print_table(*report.rows())
    for check in report.checks:
        for problem in check.problems:
            print(f"{check.name}: {problem}")
    if report.baseline is not None:
        print(describe_power(report))
    print(f"{report.spec.name}: {'passed' if report.passed else 'failed'}")


if __name__ == "__main__":
    exit_with_one_line(main)
