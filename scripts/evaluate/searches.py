"""Several searches of one data set side by side, of any kind: evaluate searches."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, require

from ..commands import OneLineParser, named, print_table
from . import embedders
from .data import describe_evaluation

BM25 = "bm25"


def add_arguments(parser: OneLineParser) -> Callable[[argparse.Namespace], None]:
    """Adds the options of the command, and returns a function that checks them and splits lists."""
    parser.add_argument(
        "--data", required=True, help="a data set for retrieval, see evaluate --help"
    )
    parser.add_argument(
        "--split", default="test", help="which split of the data set (default: test)"
    )
    parser.add_argument(
        "--model",
        required=True,
        action="append",
        metavar="[NAME=]MODEL",
        help='"bm25", or a model that embeds: dense, sparse or of late interaction; repeatable',
    )
    parser.add_argument(
        "--dims",
        default="",
        help="sizes that dense embeddings are cut to as well, such as 32,128 (default: none)",
    )
    parser.add_argument(
        "--k", default="10,100", help="cut-offs, separated by commas (default: 10,100)"
    )
    parser.add_argument(
        "--metrics",
        default="",
        help="metrics of the table, such as ndcg@10,recall@100 (default: ndcg and recall at all "
        "cut-offs)",
    )
    parser.add_argument(
        "--ignore-identical-ids",
        action="store_true",
        help="leave out a document with the query's own id, as BEIR does: for ArguAna and Quora",
    )
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    embedders.add_arguments(parser)

    def check(args: argparse.Namespace) -> None:
        embedders.check_arguments(args, parser)
        if args.dim:
            parser.error("searches take several sizes: --dims instead of --dim")
        dims = args.dims.split(",") if args.dims else []
        if not all(dim.isdecimal() and int(dim) > 0 for dim in dims):
            parser.error(
                f"--dims: expected numbers from 1 up, separated by commas, found {args.dims!r}"
            )
        args.dims = sorted(set(map(int, dims)))
        args.model = named(
            [text if "=" in text else f"{text}={text}" for text in args.model], "model"
        )
        if BM25 in args.model.values():
            require("bm25s")

    return check


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Searches by each model; prints a table and returns the results."""
    from embed_jax.data.sources import open_retrieval_task
    from embed_jax.evals.retrieval import cut_offs, make_retrieval_task
    from embed_jax.evals.search import RANKING_METRICS
    from embed_jax.evals.searches import score_bm25, score_sizes, searches_table
    from embed_jax.evals.suite import named as task_name

    ks = cut_offs(args.k)
    metrics = [f"{metric}@{k}" for metric in ("ndcg", "recall") for k in ks]
    metrics = args.metrics.split(",") if args.metrics else metrics
    known = [f"{name}@{k}" for name in RANKING_METRICS for k in ks]
    if wrong := [name for name in metrics if name not in known]:
        raise InputError(f"--metrics: expected some of {', '.join(known)}, found {wrong[0]!r}")
    task = make_retrieval_task(
        open_retrieval_task(args.data, args.split),
        name=task_name("retrieval", args.data, args.split),
        ks=ks,
        ignore_identical_ids=args.ignore_identical_ids,
    )
    options = embedders.read_options(args)
    scores = []
    for name, model in args.model.items():
        if model == BM25:
            scores.append(score_bm25(task, name))
            continue
        embed = embedders.open_embedder(model, options, show_progress=True)
        scores += score_sizes(task, embed, name, args.dims)
    print(f"{args.data}: {len(task.qrels)} queries, {len(task.corpus)} documents")
    print_table(*searches_table(scores, metrics))
    for note in scores[0].outcome.notes:
        print(note)
    about = describe_evaluation("retrieval", "", args.data, args.split, options)
    return about | {
        "model": args.model,
        "queries": len(task.qrels),
        "documents": len(task.corpus),
        "searches": [each.to_json() for each in scores],
    }
