"""Tables of rerankers over shortlists that first stages found: quality, calibration, time.

`shortlist` searches a task, or a sample of its queries, and writes what it finds. scripts.annotate
scores the union of the shortlists, once for each reranker. `compare` reads shortlists and scores,
and says what each reranker makes of each shortlist; `table` puts comparisons into one table. So a
new table of the same rerankers costs no scoring, and a larger sample of the same seed contains the
smaller one.
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, exit_with_one_line, require

from .commands import (
    OneLineParser,
    Parser,
    add_compute_dtype,
    load_cross_encoder,
    load_model,
    named,
    whole_file,
    write_json,
)

EXAMPLES = """examples:
  python -m scripts.rerank shortlist --data scifact --first-stage bm25 --output bm25.trec
  python -m scripts.rerank shortlist --data scifact \\
      --first-stage sentence-transformers/all-MiniLM-L6-v2 --output minilm.trec
  python -m scripts.annotate --beir scifact --split test --run bm25.trec --run minilm.trec \\
      --model runs/reranker/model --activation identity --scores-only --output reranker.jsonl
  python -m scripts.rerank compare --data scifact --run BM25=bm25.trec --run MiniLM=minilm.trec \\
      --scores mine=reranker.jsonl --model mine=runs/reranker/model --output scifact.json
  python -m scripts.rerank table scifact.json nfcorpus.json --output table.md

scripts/reranking_table.sh trains rerankers and makes the whole table."""


def main() -> None:
    args = parse(sys.argv[1:])
    with whole_file(args.output) as beside:
        args.run_command(args, beside)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.rerank", __doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add_command(name: str, run: Any, line: str) -> OneLineParser:
        command = commands.add_parser(name, help=line, description=line, allow_abbrev=False)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run_command=run)
        return command

    command = add_command("shortlist", write_shortlist, "the first results of a search")
    add_task(command)
    command.add_argument("--first-stage", required=True, help='"bm25", or an embedding model')
    command.add_argument(
        "--depth", type=int, default=100, help="results of a query (default: %(default)s)"
    )
    command.add_argument(
        "--sample", type=int, default=0, help="search this number of queries (default: all)"
    )
    add_compute_dtype(command)
    command.add_argument("--seed", type=int, default=0, help="of the sample (default: 0)")
    command.add_argument("--output", required=True, type=Path, help="file in TREC's form")

    command = add_command("compare", write_comparison, "each reranker over each shortlist")
    add_task(command)
    command.add_argument(
        "--run",
        required=True,
        action="append",
        metavar="NAME=FILE",
        help="a first stage's shortlist; may be repeated",
    )
    command.add_argument(
        "--scores",
        required=True,
        action="append",
        metavar="NAME=FILE",
        help="a reranker's score file by scripts.annotate, best of logits; may be repeated",
    )
    command.add_argument(
        "--model",
        default=[],
        action="append",
        metavar="NAME=MODEL",
        help="the model of a score file: its milliseconds per query are measured, and the "
        "calibration if its scores are probabilities; may be repeated",
    )
    command.add_argument(
        "--timed-queries",
        type=int,
        default=5,
        help="queries for the time, the first ones (default: %(default)s)",
    )
    command.add_argument(
        "--depth", type=int, default=0, help="use the N best of each query (default: all)"
    )
    command.add_argument("--output", required=True, type=Path, help="JSON file for the results")

    command = add_command("table", write_table, "one Markdown table of comparisons")
    command.add_argument("comparisons", nargs="+", type=Path, help="files that compare wrote")
    command.add_argument("--output", required=True, type=Path, help="the .md file to write")

    args = parser.parse_args(argv)
    least_depth = int(args.command == "shortlist")
    for option, least in (("depth", least_depth), ("sample", 0), ("timed_queries", 1)):
        if getattr(args, option, least) < least:
            parser.error(
                f"--{option.replace('_', '-')}: expected {least} or more, found "
                f"{getattr(args, option)}"
            )
    return args


def add_task(command: OneLineParser) -> None:
    command.add_argument(
        "--data",
        required=True,
        help="a directory in BEIR's layout, python_docs, hf:NAME, or pool:DIRECTORY of reranking "
        "data, whose candidates are the corpus",
    )
    command.add_argument("--split", default="test", help="of the queries (default: test)")


def write_shortlist(args: argparse.Namespace, path: Path) -> None:
    """Searches and writes the run."""
    import functools

    from embed_jax.data.sources import open_retrieval_task
    from embed_jax.data.sources.trec import write_trec_run
    from embed_jax.evals.rerankers import sample_queries
    from embed_jax.evals.retrieval import make_retrieval_task
    from embed_jax.retrieval.bm25 import bm25_search
    from embed_jax.retrieval.topk import dense_search

    search: Any = bm25_search
    if args.first_stage == "bm25":
        require("bm25s")
    else:
        model = load_model(args.first_stage, args.compute_dtype)
        search = functools.partial(
            dense_search,
            model.encode_query,
            model.encode_document,
            similarity=model.similarity_fn_name,
        )
    task = open_retrieval_task(args.data, args.split)
    if args.sample:
        task = sample_queries(task, args.sample, args.seed)
    run = make_retrieval_task(task, ks=[args.depth]).search(search, args.depth)
    write_trec_run(path, run, args.first_stage.replace(" ", "_"))
    print(f"{args.output}: {len(run)} queries, up to {args.depth} results each")


def write_comparison(args: argparse.Namespace, path: Path) -> None:
    """Compares all rerankers over all shortlists, and writes the figures."""
    from embed_jax.data.sources import open_retrieval_task
    from embed_jax.data.sources.trec import read_trec_run
    from embed_jax.evals.rerankers import compare_rerankers, ms_per_query
    from embed_jax.pair_scores import BoundCrossEncoder
    from embed_jax.retrieval.annotate import read_score_file
    from embed_jax.runtime import environment

    runs = {name: read_trec_run(file, args.depth) for name, file in named(args.run, "run").items()}
    stored = {name: read_score_file(file) for name, file in named(args.scores, "scores").items()}
    models = {name: load_cross_encoder(file) for name, file in named(args.model, "model").items()}
    if unknown := models.keys() - stored.keys():
        raise InputError(f"--model: no --scores of the name {', '.join(sorted(unknown))}")
    task = open_retrieval_task(args.data, args.split)
    probabilistic = {name for name, model in models.items() if model.activation == "sigmoid"}
    content = compare_rerankers(task, runs, stored, probabilistic)
    for name, model in models.items():
        run = next(iter(runs.values()))
        content["ms_per_query"][name] = ms_per_query(
            BoundCrossEncoder(model), task, run, args.timed_queries
        )
    content["about"] = {
        "data": args.data,
        "split": args.split,
        "command": shlex.join(["python", "-m", "scripts.rerank", *sys.argv[1:]]),
        "scores": {name: scores.teacher for name, scores in stored.items()},
        "versions": environment(),
    }
    write_json(path, content)
    print(markdown_table([(args.output.stem, content)]), end="")


def write_table(args: argparse.Namespace, path: Path) -> None:
    """Writes and prints the Markdown table of several comparisons."""
    contents = []
    for file in args.comparisons:
        try:
            contents.append((file.stem, json.loads(file.read_text(encoding="utf-8"))))
        except (OSError, ValueError) as error:
            raise InputError(f"{file}: cannot be read as JSON: {error}") from None
        if "first_stages" not in contents[-1][1]:
            raise InputError(f"{file}: expected a file of `rerank compare`, found another")
    text = markdown_table(contents)
    path.write_text(text, encoding="utf-8")
    print(text, end="")


def markdown_table(contents: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """Returns a Markdown table with a row for each data set, first stage and reranker.

    Args:
        contents: a name and the result of `compare_rerankers` for each data set.
    """
    from embed_jax.evals.leaderboard import markdown

    def interval(values: Sequence[float], sign: str = "") -> str:
        mean, low, high = (f"{value:{sign}.3f}" for value in values)
        return f"{mean} [{low}, {high}]"

    header = ["data", "first stage", "reranker", "nDCG@10", "gain", "MRR@10", "ECE", "ms per query"]
    rows = []
    for data, content in contents:
        for first_stage, rerankers in content["first_stages"].items():
            for name, figures in rerankers.items():
                gain, error = figures.get("gain"), figures.get("calibration_error")
                time = content["ms_per_query"].get(name)
                rows.append(
                    [
                        data,
                        first_stage,
                        name,
                        interval(figures["ndcg@10"]),
                        interval([gain["ndcg@10"], *gain["interval"]], "+") if gain else "",
                        f"{figures['mrr@10'][0]:.3f}",
                        "" if error is None else f"{error:.3f}",
                        "" if time is None else f"{time:.0f}",
                    ]
                )
    return markdown(header, rows)


if __name__ == "__main__":
    exit_with_one_line(main)
