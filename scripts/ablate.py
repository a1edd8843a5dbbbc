"""Runs a table of training runs, each row with several seeds, and prints it: ours as mean ± sd, beside the paper's.

TABLE.py is a Python file; its docstring says what the table is and how to launch it. It defines

  EXPERIMENT = "simcse"                            module of experiments/
  CONFIG = "configs/simcse/unsup_bert_base.py"     with :CUT if wanted
  ROWS = {"p = 0.0": {"model.dropout": 0.0}, ...}  the config fields in which a row differs
  METRICS = ("best",)                              what is shown; `best` is the best value of config.eval.metric
  PAPER = {"p = 0.0": {"best": (71.1, "Gao et al. 2021, Table 3")}, ...}   optional: published numbers
  SCALE = 100                                      optional: what ours are multiplied by when shown
  X, LINES = "data.limit", "model.dropout"         optional, for --plot: against what; a line for each value of what

The metrics of a run are those last written to its metrics.jsonl; `best`; of comparison.json "test/ndcg@10" and so on,
with "test/before/..." and "test/bm25/..."; the numbers of results.json; with --evaluate "evaluated/ndcg@10" and so on.
Runs that are over are not run again: the same command goes on with a table that was stopped.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import shlex
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, RunError, exit_with_one_line, require
from embed_jax.registry import unknown
from scripts.ablate_runs import Run, Table, perform, plan, read_table
from scripts.commands import Parser, print_table, write_json, written_whole

EXAMPLES = """examples:
  python -m scripts.ablate dropout.py --output dropout.json
  python -m scripts.ablate dropout.py --rows "p = 0.0,p = 0.1" --seeds 0 --config.train.steps=20 --workdir runs/try
  python -m scripts.ablate data_size.py --plot data_size.png
  python -m scripts.ablate negatives.py --evaluate "--task retrieval --data scifact"
"""
PICTURES = (".png", ".pdf", ".svg")


def main() -> None:
    args = parse(sys.argv[1:])
    table = read_table(args.table)
    if args.plot:
        require("matplotlib", "plots")
        if not table.x:
            raise InputError(f"{table.file}: --plot needs X, the config field to draw the metrics against")
    runs = plan(table, args.rows, args.seeds, args.overrides, args.workdir, args.evaluate)
    with contextlib.ExitStack() as stack:
        output = stack.enter_context(written_whole(args.output)) if args.output else None
        picture = stack.enter_context(written_whole(args.plot)) if args.plot else None
        for number, run in enumerate(runs, 1):
            print(f"[{number}/{len(runs)}] {run.row}, seed {run.seed}: ", end="", flush=True)
            print(perform(run), flush=True)
        print()
        show(table, runs)
        if output:
            write_json(output, results(args, table, runs))
        if picture:
            plot(table, runs, picture, args.plot.suffix[1:])
    if failed := sum(bool(run.error) for run in runs):
        raise RunError(f"{failed} of {len(runs)} runs failed; the same command runs them again")
    for metric in table.metrics:
        if not any(metric in run.metrics for run in runs):
            raise InputError(f"{table.file}: METRICS: " + unknown("metric", metric, runs[0].metrics))


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.ablate", __doc__, EXAMPLES)
    parser.add_argument("table", type=Path, metavar="TABLE.py")
    parser.add_argument("--rows", help="some of the rows, separated by commas (default: all)")
    parser.add_argument("--seeds", default="0,1,2", help="values of config.train.seed (default: 0,1,2)")
    parser.add_argument("--workdir", type=Path, help="where the runs go, as ROW/SEED (default: runs/ablate/TABLE)")
    parser.add_argument(
        "--evaluate", type=shlex.split, default=[], help="options of scripts.evaluate, which then judges each model"
    )
    parser.add_argument("--output", type=Path, help="JSON file with every run's numbers")
    parser.add_argument("--plot", type=Path, help=f"picture of the metrics against X ({', '.join(PICTURES)})")
    parser.usage = parser.format_usage().removeprefix("usage: ").rstrip() + " [--config.FIELD=VALUE ...]"
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
    if args.plot and args.plot.suffix not in PICTURES:
        parser.error(f"--plot: expected a name that ends in {', '.join(PICTURES)}, found {str(args.plot)!r}")
    args.workdir = args.workdir or Path("runs", "ablate", args.table.stem)
    return args


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n - 1) of at least one value; of one, nan."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def show(table: Table, runs: Sequence[Run]) -> None:
    """Prints the table, with the paper's numbers where it has them, and where those stand."""
    rows, sources = [], {}
    published = [metric for metric in table.metrics if any(metric in entry for entry in table.paper.values())]
    for row in dict.fromkeys(run.row for run in runs):
        own = [run for run in runs if run.row == row]
        cells = [row]
        for metric in table.metrics:
            values = [run.metrics[metric] for run in own if metric in run.metrics]
            mean, sd = spread(values) if values else (math.nan, math.nan)
            cells.append("-" if not values else table.shown(mean) + f" ± {table.shown(sd)}" * (len(values) > 1))
            if metric in published:
                value, source = table.paper.get(row, {}).get(metric, ("-", None))
                cells.append(str(value))
                sources |= {source: None} if source else {}
        errors = "; ".join(f"seed {run.seed}: {run.error}" for run in own if run.error)
        rows.append([*cells, f"{sum(not run.error for run in own)}/{len(own)}", errors])
    header = ["row", *(name for metric in table.metrics for name in (metric, *["paper"] * (metric in published)))]
    failed = any(run.error for run in runs)
    print_table([*header, "runs", "error"][: None if failed else -1], [row[: None if failed else -1] for row in rows])
    for source in sources:
        print(f"paper: {source}")


def results(args: argparse.Namespace, table: Table, runs: Sequence[Run]) -> dict[str, Any]:
    """All numbers, as they were measured, without SCALE."""
    rows = {}
    for row in dict.fromkeys(run.row for run in runs):
        own = [run for run in runs if run.row == row]
        summary = {}
        for metric in dict.fromkeys(metric for run in own for metric in run.metrics):
            values = [run.metrics[metric] for run in own if metric in run.metrics]
            summary[metric] = dict(zip(("mean", "sd", "n"), (*spread(values), len(values)), strict=True))
        rows[row] = {
            "config": dict(table.rows[row]),
            "summary": summary,
            "paper": {metric: list(entry) for metric, entry in table.paper.get(row, {}).items()},
            "runs": [
                {"seed": run.seed, "workdir": str(run.workdir), "error": run.error or None, "metrics": run.metrics}
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


def plot(table: Table, runs: Sequence[Run], output: Path, form: str) -> None:
    """Draws each metric against the field X, a line for each value of LINES: means, standard deviations, runs."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(table.metrics), figsize=(5.5 * len(table.metrics), 4), layout="constrained", squeeze=False
    )
    xs = sorted({run.settings[table.x] for run in runs})
    numeric = not isinstance(xs[0], str | bool)
    at = {x: x if numeric else place for place, x in enumerate(xs)}
    for axes, metric in zip(panels[0], table.metrics, strict=True):
        for line in sorted({run.settings[table.lines] for run in runs}) if table.lines else [None]:
            own = [run for run in runs if metric in run.metrics and line in (None, run.settings.get(table.lines))]
            points = {at[x]: [run for run in own if run.settings[table.x] == x] for x in xs}
            points = {x: found for x, found in points.items() if found}
            if not points:
                continue
            values = [[table.scale * run.metrics[metric] for run in found] for found in points.values()]
            means, sds = zip(*map(spread, values), strict=True)
            label = "ours" if line is None else f"{table.lines} = {line}"
            (drawn, *_) = axes.errorbar(list(points), means, yerr=sds, fmt="o-", capsize=3, label=label)
            for x, found in zip(points, values, strict=True):
                axes.plot([x] * len(found), found, ".", color=drawn.get_color(), alpha=0.4)
            paper = {x: table.paper.get(found[0].row, {}).get(metric) for x, found in points.items()}
            paper = {x: entry[0] for x, entry in paper.items() if entry}
            style = {
                "color": drawn.get_color(),
                "mfc": "white",
                "label": "paper" if line is None else f"paper, {label}",
            }
            if paper:
                axes.plot(list(paper), list(paper.values()), "s--", **style)
        if numeric and xs[0] > 0 and xs[-1] >= 20 * xs[0]:
            axes.set_xscale("log")
        axes.set_xticks(list(at.values()), [f"{x:,}" if isinstance(x, int) else str(x) for x in xs])
        axes.minorticks_off()
        axes.set(xlabel=table.x, ylabel=metric)
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(fontsize=8)
    figure.savefig(output, dpi=120, format=form)
    pyplot.close(figure)


if __name__ == "__main__":
    exit_with_one_line(main)
