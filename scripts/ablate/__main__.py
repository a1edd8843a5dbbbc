"""Runs a table of training runs over several seeds and prints mean ± sd beside the paper's numbers.

TABLE.py is a Python file; its docstring says what the table is and how to launch it. It defines

  EXPERIMENT = "simcse"                            module of experiments/
  CONFIG = "configs/simcse/unsup_bert_base.py"     optionally with :CUT
  ROWS = {"p = 0.0": {"model.dropout": 0.0}, ...}  the config fields in which a row differs
  METRICS = ("best",)                              columns; `best` is the best config.eval.metric
  PAPER = {"p = 0.0": {"best": (71.1, "Gao et al. 2021, Table 3")}, ...}
                                                   optional: published numbers
  SCALE = 100                                      optional: factor for our numbers when shown
  X, LINES = "data.limit", "model.dropout"         optional; for --plot: the axis, and a line for
                                                   each value; for --curves: a panel for each X.
                                                   X may be a metric with "/": what a row costs

The metrics of a run are those last written to its metrics.jsonl; `best`; of comparison.json
"test/ndcg@10" and so on, with "test/before/..." and "test/bm25/..."; the numbers of results.json
and of sparse.json ("sparse/ndcg@10", "sparse/flops"); with --evaluate "evaluated/ndcg@10" and so
on.
Finished runs are not run again: the same command continues a table that was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, RunError, exit_with_one_line, require
from embed_jax.registry import unknown
from embed_jax.train.ablation import (
    AblationRun,
    Table,
    perform_run,
    plan_runs,
    read_ablation,
    spread,
)

from ..commands import PARENT, PICTURES, Parser, check_picture, print_table, whole_file, write_json
from .plots import plot_against_metric, plot_against_step, plot_against_x

EXAMPLES = """examples:
  python -m scripts.ablate dropout.py --output dropout.json
  python -m scripts.ablate dropout.py --rows "p = 0.0,p = 0.1" --seeds 0 \\
      --config.train.steps=20 --workdir runs/try
  python -m scripts.ablate data_size.py --plot data_size.png --curves overfitting.png
  python -m scripts.ablate configs/sparse/tables/flops.py --plot flops.png
  python -m scripts.ablate negatives.py --evaluate "--task retrieval --data scifact"
"""


def main() -> None:
    args = parse(sys.argv[1:])
    table = read_ablation(args.table)
    if args.plot or args.curves:
        require("matplotlib")
    if args.plot and not table.x:
        raise InputError(
            f"{table.file}: --plot needs X, the config field or metric to draw the metrics against"
        )
    runs = plan_runs(
        table, args.rows, args.seeds, args.overrides, args.workdir, args.evaluate, parent=PARENT
    )
    with contextlib.ExitStack() as stack:
        plot_x = plot_against_metric if "/" in table.x else plot_against_x
        draw = {plot_x: args.plot, plot_against_step: args.curves}
        pictures = {
            function: stack.enter_context(whole_file(path))
            for function, path in draw.items()
            if path
        }
        with whole_file(args.output) if args.output else contextlib.nullcontext() as output:
            for position, run in enumerate(runs, 1):
                print(f"[{position}/{len(runs)}] {run.row}, seed {run.seed}: ", end="", flush=True)
                print(perform_run(run), flush=True)
            print()
            show(table, runs)
            if output:
                write_json(output, results(args, table, runs))
        failed = sum(bool(run.error) for run in runs)
        failure = f"{failed} of {len(runs)} runs failed; the same command runs them again"
        if failed == len(runs):
            raise RunError(failure)
        for function, picture in pictures.items():
            function(table, runs, picture, draw[function].suffix[1:])
    if failed:
        raise RunError(failure)
    for metric in table.metrics:
        if not any(metric in run.metrics for run in runs):
            raise InputError(
                f"{table.file}: METRICS: " + unknown("metric", metric, runs[0].metrics)
            )


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.ablate", __doc__, EXAMPLES)
    parser.add_argument("table", type=Path, metavar="TABLE.py")
    parser.add_argument("--rows", help="some of the rows, separated by commas (default: all)")
    parser.add_argument(
        "--seeds", default="0,1,2", help="values of config.train.seed (default: 0,1,2)"
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        help="directory of the runs, as ROW/SEED (default: runs/ablate/TABLE)",
    )
    parser.add_argument(
        "--evaluate",
        type=shlex.split,
        default=[],
        help="options of scripts.evaluate run, which then judges each model",
    )
    parser.add_argument("--output", type=Path, help="JSON file with every run's numbers")
    parser.add_argument(
        "--plot", type=Path, help=f"picture of the metrics against X ({', '.join(PICTURES)})"
    )
    parser.add_argument(
        "--curves",
        type=Path,
        help="picture of metrics and training loss against the step: where overfitting begins",
    )
    parser.usage = (
        parser.format_usage().removeprefix("usage: ").rstrip() + " [--config.FIELD=VALUE ...]"
    )
    args, rest = parser.parse_known_args(argv)
    args.overrides = {}
    for argument in rest:
        field, equals, value = argument.removeprefix("--config.").partition("=")
        if not argument.startswith("--config.") or not equals:
            parser.error(f"unknown argument {argument!r}")
        if field == "train.seed":
            parser.error("--config.train.seed: the seeds are those of --seeds")
        args.overrides[field] = value
    args.rows = args.rows and list(dict.fromkeys(row.strip() for row in args.rows.split(",")))
    seeds = args.seeds.split(",")
    if not all(seed.strip().isdecimal() for seed in seeds):
        parser.error(f"--seeds: expected numbers separated by commas, found {args.seeds!r}")
    args.seeds = list(dict.fromkeys(map(int, seeds)))
    for option, path in (("--plot", args.plot), ("--curves", args.curves)):
        check_picture(parser, option, path)
    args.workdir = args.workdir or Path("runs", "ablate", args.table.stem)
    return args


def show(table: Table, runs: Sequence[AblationRun]) -> None:
    """Prints the table, with the paper's numbers and their sources where there are any."""
    rows: list[list[str]] = []
    sources: dict[str, None] = {}
    published = [
        metric for metric in table.metrics if any(metric in entry for entry in table.paper.values())
    ]
    for row in dict.fromkeys(run.row for run in runs):
        own = [run for run in runs if run.row == row]
        cells = [row]
        for metric in table.metrics:
            values = [run.metrics[metric] for run in own if metric in run.metrics]
            mean, sd = spread(values) if values else (math.nan, math.nan)
            cells.append(
                "-"
                if not values
                else table.format_value(mean) + f" ± {table.format_value(sd)}" * (len(values) > 1)
            )
            if metric in published:
                value, source = table.paper.get(row, {}).get(metric, ("-", None))
                cells.append(str(value))
                sources |= {source: None} if source else {}
        errors = "; ".join(f"seed {run.seed}: {run.error}" for run in own if run.error)
        rows.append([*cells, f"{sum(not run.error for run in own)}/{len(own)}", errors])
    header = [
        "row",
        *(
            name
            for metric in table.metrics
            for name in (metric, *["paper"] * (metric in published))
        ),
    ]
    failed = any(run.error for run in runs)
    print_table(
        [*header, "runs", "error"][: None if failed else -1],
        [row[: None if failed else -1] for row in rows],
    )
    for source in sources:
        print(f"paper: {source}")


def results(args: argparse.Namespace, table: Table, runs: Sequence[AblationRun]) -> dict[str, Any]:
    """Returns all numbers as measured, without SCALE."""
    rows = {}
    for row in dict.fromkeys(run.row for run in runs):
        own = [run for run in runs if run.row == row]
        summary = {}
        for metric in dict.fromkeys(metric for run in own for metric in run.metrics):
            values = [run.metrics[metric] for run in own if metric in run.metrics]
            summary[metric] = dict(
                zip(("mean", "sd", "n"), (*spread(values), len(values)), strict=True)
            )
        rows[row] = {
            "config": dict(table.rows[row]),
            "summary": summary,
            "paper": {metric: list(entry) for metric, entry in table.paper.get(row, {}).items()},
            "runs": [
                {
                    "seed": run.seed,
                    "workdir": str(run.workdir),
                    "error": run.error or None,
                    "metrics": run.metrics,
                }
                for run in own
            ],
        }
    return {
        "table": str(table.file),
        "experiment": table.experiment,
        "config": table.config,
        "overrides": args.overrides,
        "metrics": list(table.metrics),
        "scale": table.scale,
        "rows": rows,
    }


if __name__ == "__main__":
    exit_with_one_line(main)
