"""Evaluates embedding models: one task, a suite of them, or a comparison of what was found.

Tasks of all of MTEB's kinds by its protocols, and more (see below), each score with a 95 % bootstrap interval over its
items. A suite runs a list of tasks, writes a JSON file for each and goes on where it was stopped. --compare tells which
differences of two models the data can tell from chance, --leaderboard puts models beside each other, --diagnose looks
for the usual faults of a search, --sweep measures compressed embeddings.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_jax.errors import exit_with_one_line
from embed_jax.registry import REGISTRY

from . import embedders, evaluate_diagnose, evaluate_suite, evaluate_sweep
from .commands import Parser, load_model, print_table, write_json, written_whole

if TYPE_CHECKING:
    from embed_jax.evals.results import Result

EXAMPLES = f"""data (a file, a directory with SPLIT.tsv, .csv or .jsonl, each also .gz, tfds:NAME or hf:NAME):
  sts             score, sentence1, sentence2 and optionally subset
  retrieval       a directory in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), or python_docs
  classification  text, label (a directory with a train split too)
  clustering      text, label
  pairs           sentence1, sentence2, label (1 or 0)
  reranking       JSONL: query, positive (list), negative (list)
  bitext          two columns named by language
  summarization   JSONL: text, human_summaries, machine_summaries, relevance (lists)
  transfer        text, label: SentEval's protocol
  instructions    BEIR's layout with instructions: how a search follows them
  passkey         lengths in words, such as 256,1024: documents are made

{embedders.MODELS}
examples:
  python -m scripts.evaluate --model sentence-transformers/all-MiniLM-L6-v2 --task sts --data stsb/test.tsv
  python -m scripts.evaluate --model runs/simcse/model --task sts --data sts12,sts13,sts14,sts15,sts16,stsb,sick_r
  python -m scripts.evaluate --model runs/quickstart/model --task retrieval --data python_docs --baseline bm25 \\
      --output results.json
  python -m scripts.evaluate --model runs/a/model --task classification --data banking77 --set samples_per_label=16
  python -m scripts.evaluate --model runs/a,runs/b --suite configs/suites/english.yaml --data DIRECTORY --output results
  python -m scripts.evaluate --compare results/runs_a results/runs_b
  python -m scripts.evaluate --leaderboard results
  python -m scripts.evaluate --model runs/a --task retrieval --data scifact --diagnose --pairs pairs.tsv
  python -m scripts.evaluate --model sentence-transformers/all-MiniLM-L6-v2 --task retrieval --data scifact --sweep \\
      --dims 384,256,128 --precisions float32,int8,int4,binary,pq64,pq32,pq16 --rescore 0,4,4:int8 --keep 0.95 \\
      --output sweep.json --plot sweep.png
"""


def main() -> None:
    args = parse(sys.argv[1:])
    if args.suite:
        evaluate_suite.run(args)
        return
    modes = {
        "compare": evaluate_suite.compare,
        "leaderboard": evaluate_suite.leaderboard,
        "diagnose": evaluate_diagnose.run,
        "sweep": run_sweep,
    }
    run = next((function for mode, function in modes.items() if getattr(args, mode)), run_task)
    if args.output is None:
        run(args)
        return
    with written_whole(args.output) as beside:
        write_json(beside, run(args))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.evaluate", __doc__, EXAMPLES)
    parser.add_argument(
        "--model", help="what to judge, see below; several, separated by commas, with --suite"
    )
    parser.add_argument("--task", choices=list(REGISTRY["task"]), help="the kind of task")
    parser.add_argument(
        "--data",
        help="what to evaluate on, several separated by commas; with --suite: where paths begin",
    )
    parser.add_argument(
        "--split", default="test", help="which split of a directory or data set (default: test)"
    )
    parser.add_argument(
        "--output", type=Path, help="JSON file for the results; with --suite: their directory"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the task, such as seed=1; repeatable",
    )
    parser.add_argument(
        "--training",
        help="training data, separated by commas: test items that share 8 words in a row with them are counted, and "
        "the score without them is shown",
    )
    embedders.add_arguments(parser)
    retrieval = parser.add_argument_group("retrieval")
    retrieval.add_argument(
        "--k", default="10,100", help="cut-offs, separated by commas (default: 10,100)"
    )
    retrieval.add_argument("--baseline", choices=["bm25"], help="a row to compare with")
    retrieval.add_argument(
        "--ignore-identical-ids",
        action="store_true",
        help="leave out a document with the query's own id, as BEIR does: for ArguAna and Quora",
    )
    several = evaluate_suite.add_arguments(parser)
    diagnose = evaluate_diagnose.add_arguments(parser)
    sweep = evaluate_sweep.add_arguments(parser)
    args = parser.parse_args(argv)
    modes = {
        "--suite": args.suite,
        "--task": args.task,
        "--compare": args.compare and not args.suite,
        "--leaderboard": args.leaderboard,
    }
    chosen = [mode for mode, value in modes.items() if value]
    if len(chosen) != 1:
        parser.error(f"expected one of {', '.join(modes)}, found {' and '.join(chosen) or 'none'}")
    if args.task != "retrieval":
        _only_for(parser, args, "--task retrieval", [retrieval, sweep, diagnose])
    if not args.sweep:
        _only_for(parser, args, "--sweep", [sweep])
    if not args.diagnose:
        _only_for(parser, args, "--diagnose", [diagnose])
    if args.task:
        _only_for(parser, args, "--suite, --compare or --leaderboard", [several])
        for option in ("model", "data"):
            if not getattr(args, option):
                parser.error(f"--task needs --{option}")
    if args.set and not args.task:
        parser.error("--set is for --task")
    embedders.check_arguments(args, parser)
    evaluate_suite.check_arguments(args, parser)
    if args.sweep and args.dim:
        parser.error("--sweep takes several sizes: --dims instead of --dim")
    for mode in ("sweep", "diagnose"):
        if getattr(args, mode) and (args.baseline or args.k != parser.get_default("k")):
            parser.error(
                f"--{mode} measures nDCG@10 of the model: neither --k nor --baseline goes with it"
            )
    if args.sweep and args.diagnose:
        parser.error("expected one of --sweep, --diagnose, found both")
    if args.sweep:
        evaluate_sweep.check_arguments(args, parser)
    return args


def _only_for(parser: Parser, args: argparse.Namespace, mode: str, groups: Sequence[Any]) -> None:
    for action in (action for group in groups for action in group._group_actions):
        if getattr(args, action.dest) != action.default:
            parser.error(f"{action.option_strings[0]} is for {mode}")


def run_task(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluates on each data set; prints a table and returns the results."""
    from embed_jax.evals.suite import evaluate

    entries = task_entries(args)
    tasks = [entry.open() for entry in entries]
    training = evaluate_suite.training_texts(args)
    embed = embedders.open_embedder(args.model, args)
    line = embedders.published_line(args.model)
    if line:
        print(f"published: {line}")
    found = [
        evaluate(entry, args.model, embed, task=task, training=training)
        for entry, task in zip(entries, tasks, strict=True)
    ]
    baseline = bm25_results(args) if args.baseline else None
    if len(found) == 1:
        print_one(found[0], args, baseline)
    else:
        print_several(found)
    for result in found:
        for caution in result.cautions():
            print(f"{result.name}: {caution}")
    return results(args, found, baseline)


def task_entries(args: argparse.Namespace) -> list[Any]:
    """The tasks of --task and --data, with the options of the command line."""
    from embed_jax.errors import InputError
    from embed_jax.evals.suite import Entry, named

    options = dict(option(given) for given in args.set)
    if args.task == "retrieval":
        options = {"k": args.k, "ignore_identical_ids": args.ignore_identical_ids} | options
    data = args.data.split(",") if args.task != "passkey" else [args.data]
    names = [named(args.task, one, args.split) for one in data]
    if len(set(names)) < len(names):
        names = data
    if len(set(names)) < len(names):
        raise InputError(f"--data: expected different data sets, found {args.data}")
    return [
        Entry(args.task, one, args.split, name, "", options)
        for one, name in zip(data, names, strict=True)
    ]


def option(given: str) -> tuple[str, Any]:
    """("seed", 1) of "seed=1"; values are read as in a suite's YAML."""
    import yaml

    from embed_jax.errors import InputError

    name, equals, value = given.partition("=")
    if not equals or not name:
        raise InputError(f"--set: expected NAME=VALUE, found {given!r}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError:
        return name, value


def print_one(result: Result, args: argparse.Namespace, baseline: Any) -> None:
    """A metric a row, a system a column."""
    outcome = result.outcome
    systems = {args.model: (outcome.metrics, outcome.intervals)}
    if baseline:
        systems[args.baseline] = baseline.metrics, baseline.intervals()
    print(f"{args.data}: {len(outcome.items)} {result.unit}")
    print_table(
        ["metric", *systems],
        [
            [
                metric,
                *(
                    cell(metrics[metric], intervals.get(metric))
                    for metrics, intervals in systems.values()
                ),
            ]
            for metric in outcome.metrics
        ],
    )


def print_several(found: Sequence[Result]) -> None:
    """A data set a row, a metric with an interval a column; last the average."""
    columns = list(dict.fromkeys(metric for result in found for metric in result.outcome.intervals))
    rows = [
        [
            result.name,
            str(len(result.outcome.items)),
            *(
                cell(result.outcome.metrics.get(metric), result.outcome.intervals.get(metric))
                for metric in columns
            ),
        ]
        for result in found
    ]
    average = averages(found)
    rows.append(["average", "", *(cell(average.get(metric), None) for metric in columns)])
    print_table(["data", found[0].unit, *columns], rows)


def averages(found: Sequence[Result]) -> dict[str, float]:
    """Means over data sets of the metrics that all have an interval of."""
    import numpy as np

    common = [
        name
        for name in found[0].outcome.intervals
        if all(name in one.outcome.intervals for one in found)
    ]
    return {
        name: float(np.mean([result.outcome.metrics[name] for result in found])) for name in common
    }


def bm25_results(args: argparse.Namespace) -> Any:
    """The RetrievalResult of BM25 on the same data."""
    from embed_jax.data.sources import open_retrieval_task
    from embed_jax.errors import InputError, require
    from embed_jax.evals.retrieval import cut_offs, evaluate_search
    from embed_jax.retrieval.bm25 import bm25_search

    require("bm25s")
    if "," in args.data:
        raise InputError("--baseline: expected a single data set")
    task = open_retrieval_task(args.data, args.split)
    return evaluate_search(
        bm25_search, *task, ks=cut_offs(args.k), ignore_identical_ids=args.ignore_identical_ids
    )


def run_sweep(args: argparse.Namespace) -> dict[str, Any]:
    """Measures compressed embeddings; prints a table and returns the results."""
    from embed_jax.data.sources import open_retrieval_task
    from embed_jax.errors import InputError

    task = open_retrieval_task(args.data, args.split)
    model = load_model(args.model)
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise InputError(
            f"{args.model}: --sweep is for similarity cosine or dot, found {model.similarity_fn_name!r}"
        )
    found = evaluate_sweep.sweep(args, model, *encoders(args, model), task)
    content = {"metrics": found["metrics"], "intervals": found["intervals"], "n": len(task[2])}
    return described(args) | content | found


def encoders(args: argparse.Namespace, model: Any) -> tuple[Callable, Callable]:
    """What embeds queries and what embeds documents, each with its prompt."""
    from embed_jax.evals.task import DOCUMENT, QUERY, Use

    encode, options = embedders.encoder(args, model), embedders.model_options(args, model)
    queries, corpus = (options(Use(kind="Retrieval", side=side)) for side in (QUERY, DOCUMENT))
    return functools.partial(encode, **queries), functools.partial(encode, **corpus)


def cell(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return ""
    return f"{value:.4f} [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else f"{value:.4f}"


def described(args: argparse.Namespace) -> dict[str, Any]:
    """What a results file says of its making."""
    from embed_jax.evals.suite import known_split
    from embed_jax.runtime import environment

    return {
        "task": args.task,
        "model": args.model,
        "data": args.data,
        "split": known_split(args.data.split(",")[0], args.split),
        "dim": args.dim or None,
        "layers": args.layers or None,
        "instruction": args.instruction,
        "versions": environment(),
    }


def results(args: argparse.Namespace, found: Sequence[Result], baseline: Any) -> dict[str, Any]:
    """What is written to --output: scores are fractions, n counts items; of several data sets DATA/METRIC."""
    content: dict[str, Any] = described(args)
    if len(found) == 1:
        content = found[0].to_json() | content
    else:
        flat: dict[str, Mapping[str, Any]] = {
            part: {
                f"{result.name}/{metric}": value
                for result in found
                for metric, value in getattr(result.outcome, part).items()
            }
            for part in ("metrics", "intervals")
        }
        flat["metrics"] = {
            **flat["metrics"],
            **{f"average/{name}": value for name, value in averages(found).items()},
        }
        content |= flat | {"n": sum(len(result.outcome.items) for result in found)}
    if baseline:
        content["baseline"] = {
            "name": args.baseline,
            "metrics": baseline.metrics,
            "intervals": baseline.intervals(),
        }
    return content


if __name__ == "__main__":
    exit_with_one_line(main)
