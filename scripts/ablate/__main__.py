"""Runs a table of training runs over several seeds and prints mean ± sd beside the paper's numbers.

TABLE.py is a Python file; its docstring says what the table is and how to launch it. It defines

  EXPERIMENT = "simcse"                            module of experiments/
  CONFIG = "configs/simcse/unsup_bert_base.py:table"
  ROWS = {"p = 0.0": {"model.dropout": 0.0}, ...}  the config fields in which a row differs
  METRICS = ("best",)                              columns; `best` is the best config.eval.metric
  SCALE = 100                                      optional: factor for our numbers when shown
  PAPER = {"p = 0.0": 71.1, ...}                   optional: published numbers of the first metric,
  SOURCE, CHECKED = "Gao et al. 2021, Table 3", "text"
                                                   where they are, and whether they were checked
                                                   against its "text" or the authors' "repository"
  CLAIMS = {"dropout is needed": ("p = 0.1", ">", "p = 0.0")}
                                                   optional: what the paper's numbers say, or you
                                                   expect; each gets the verdict of our seeds
  FULL = "configs/simcse/unsup_bert_base.py"       optional: the paper's setting, for --full
  FULL_METRICS = ("test/recall@10",)               optional: its columns, if others than METRICS
  MINUTES, GPU_HOURS = 6, 20                       optional: what a seed of all rows costs, of
                                                   CONFIG on two cores and of FULL on one GPU
  X, LINES = "data.limit", "model.dropout"         optional; for --plot: the axis, and a line for
                                                   each value; for --curves: a panel for each X.
                                                   X may be a metric with "/": what a row costs,
                                                   or "by_size/": the size of a cut embedding

The metrics of a run are those last written to its metrics.jsonl; `best`, and `start`, the same
before the first step; of comparison.json "test/ndcg@10" and so on, with "test/before/..." and
"test/bm25/..."; the numbers of results.json and of sparse.json ("sparse/ndcg@10", "sparse/flops");
of by_size.json "by_size/LAYERS/SIZE", and "kept/LAYERS/SIZE", the share of the whole embedding's;
with --evaluate "evaluated/ndcg@10" and so on. Runs and table are one group in wandb. Finished runs
are not run again: the same command continues a table that was stopped, and two processes that
share a directory share the runs.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import itertools
import json
import os
import shlex
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from embed_jax.errors import InputError, RunError, exit_with_one_line, require, warn
from embed_jax.registry import unknown
from embed_jax.train.ablation import AblationRun, perform_runs, plan_runs
from embed_jax.train.ablation_table import BY_SIZE, Table, all_tables, read_ablation_table
from embed_jax.train.tracking import Wandb

from ..commands import PARENT, PICTURES, Parser, check_picture, print_table, whole_file, write_json
from .curves import plot_against_step, plot_alignment
from .plots import plot_against_metric, plot_against_size, plot_against_x, plot_rows
from .report import Report

EXAMPLES = """examples:
  python -m scripts.ablate --list
  python -m scripts.ablate dropout.py --output dropout.json
  python -m scripts.ablate dropout.py --results experiments/results/simcse_dropout
  python -m scripts.ablate dropout.py --rows "p = 0.0,p = 0.1" --seeds 0 \\
      --config.train.steps=20 --workdir runs/try
  python -m scripts.ablate data_size.py --plot data_size.png --curves overfitting.png
  python -m scripts.ablate configs/sparse/tables/flops.py --plot flops.png
  python -m scripts.ablate dropout.py --config.eval.geometry=true --alignment alignment.png
  python -m scripts.ablate negatives.py --evaluate "--task retrieval --data scifact"
  python -m scripts.ablate dropout.py --grid optim.learning_rate=1e-5,3e-5
"""


def main() -> None:
    args = parse(sys.argv[1:])
    if args.list:
        list_tables()
        return
    table = read_ablation_table(args.table)
    table = table.in_full() if args.full else table
    workdir = args.workdir or Path("runs", "ablate", table.name)
    if args.plot or args.curves or args.alignment or args.results:
        require("matplotlib")
    if args.plot and not table.x:
        raise InputError(
            f"{table.file}: --plot needs X, the config field or metric to draw the metrics against"
        )
    os.environ.setdefault("WANDB_RUN_GROUP", table.name)
    by_setting = {
        setting: plan_runs(
            table,
            args.rows,
            args.seeds,
            args.overrides | fields,
            workdir / setting,
            args.evaluate,
            parent=PARENT,
        )
        for setting, fields in grid_settings(args.grid).items()
    }
    draw = {
        plot_of_x(table): args.plot,
        plot_against_step: args.curves,
        plot_alignment: args.alignment,
    }
    if args.results:
        args.results.mkdir(parents=True, exist_ok=True)
        draw[plot_rows] = args.results / "table.png"
    with contextlib.ExitStack() as pictures, contextlib.ExitStack() as files:
        drawn = {
            function: pictures.enter_context(whole_file(path))
            for function, path in draw.items()
            if path
        }
        outputs = [args.output, args.results and args.results / "table.json"]
        outputs = [files.enter_context(whole_file(path)) for path in outputs if path]
        page = args.results and files.enter_context(whole_file(args.results / "README.md"))
        performed = perform(table, list(itertools.chain(*by_setting.values())))
        runs, chosen = choose(by_setting) if args.grid else (performed, {})
        print()
        report = Report(table, runs, args.overrides, chosen)
        print_table(*report.cells(errors=False))  # they have been told above
        print(*report.remarks(), sep="\n", end="\n" * bool(report.remarks()))
        for output in outputs:
            write_json(output, report.as_json())
        if page:
            page.write_text(report.as_markdown(command_line(), "table.png"), encoding="utf-8")
        files.close()  # numbers are kept if a picture cannot be drawn
        failed = sum(bool(run.error) for run in performed)
        failure = (
            f"{failed} of {len(performed)} runs failed, for the reasons above; the same command "
            "runs only these"
        )
        if failed == len(performed):
            raise RunError(failure)
        for function, picture in drawn.items():
            function(table, runs, picture, draw[function].suffix[1:])
    track(report, workdir, [path for path in draw.values() if path])
    if failed:
        raise RunError(failure)
    for metric in table.metrics:
        if not any(metric in run.metrics for run in runs):
            raise InputError(
                f"{table.file}: METRICS: " + unknown("metric", metric, runs[0].metrics)
            )


def plot_of_x(table: Table) -> Callable[[Table, Sequence[AblationRun], Path, str], None]:
    """Returns the function that draws a table's metrics against its X."""
    if table.x == BY_SIZE:
        return plot_against_size
    return plot_against_metric if "/" in table.x else plot_against_x


def track(report: Report, workdir: Path, pictures: Sequence[Path]) -> None:
    """Sends the table and its pictures to wandb as a run of the rows' group, as the rows are."""
    settings = report.runs[0].settings
    tracker = Wandb(
        settings["tracking.wandb"],
        settings["tracking.project"],
        report.table.name,
        workdir,
        dict(report.overrides),
    )
    tracker.write_table(*report.cells(), pictures)
    tracker.close()


def perform(table: Table, runs: Sequence[AblationRun]) -> list[AblationRun]:
    """Performs the runs with a line about each, and returns them.

    It warns of metrics that the first run lacks, once: other rows may have them.
    """
    checked = False
    for position, (run, line) in enumerate(perform_runs(runs), 1):
        print(f"[{position}/{len(runs)}] {run.row}, seed {run.seed}: {line}", flush=True)
        if run.metrics and not checked:
            checked = True
            for metric in sorted(set(table.metrics) - run.metrics.keys()):
                warn(f"{table.file}: METRICS: {unknown('metric', metric, run.metrics)}")
    return list(runs)


def grid_settings(grid: Sequence[tuple[str, list[str]]]) -> dict[str, dict[str, str]]:
    """Returns the settings of a grid by name, which is their directory; one, "", without it."""
    fields = [field for field, _ in grid]
    return {
        ",".join(map("=".join, zip(fields, values, strict=True))): dict(
            zip(fields, values, strict=True)
        )
        for values in itertools.product(*(values for _, values in grid))
    }


def choose(
    by_setting: dict[str, list[AblationRun]],
) -> tuple[list[AblationRun], dict[str, str]]:
    """Chooses each row's setting by its mean `best`, the validation metric, over the seeds.

    Raises:
        InputError: if a row has no such metric.
    """
    chosen, runs = {}, []
    rows = dict.fromkeys(run.row for run in next(iter(by_setting.values())))
    for row in rows:
        means = {
            setting: statistics.fmean(values)
            for setting, own in by_setting.items()
            if (values := [r.metrics["best"] for r in own if r.row == row and "best" in r.metrics])
        }
        if not means:
            raise InputError(
                f"--grid: row {row!r} has no validation metric: set config.eval.metric"
            )
        chosen[row] = max(means, key=means.__getitem__)
        runs += [run for run in by_setting[chosen[row]] if run.row == row]
    return runs, chosen


def list_tables() -> None:
    """Prints all tables of the project: paper, rows, costs, and whether there are results."""
    rows, errors = [], []
    for file in all_tables():
        try:
            table = read_ablation_table(file)
        except InputError as error:
            errors.append(str(error))
            continue
        rows.append(
            [
                "/".join(file.parts[-4:]),
                table.source or "-",
                str(len(table.rows)),
                f"{table.minutes:g}" if table.minutes else "-",
                f"{table.gpu_hours:g}" if table.gpu_hours else "-",
                read_results(Path("experiments/results", table.name, "table.json")),
            ]
        )
    print_table(["table", "paper", "rows", "minutes, 2 cores", "GPU hours", "results"], rows)
    if errors:
        raise InputError("; ".join(errors))


def read_results(file: Path) -> str:
    """Returns a table's results in words: how far it agrees with its paper."""
    if not file.is_file():
        return "no"
    content = json.loads(file.read_text(encoding="utf-8"))
    words = [f"tau {content['tau']['mean']:.2f}"] if content["tau"] else []
    counted = collections.Counter(claim["verdict"] for claim in content["verdicts"].values())
    return ", ".join([*words, *(f"{what}: {number}" for what, number in counted.items())]) or "yes"


def command_line() -> str:
    """Returns the command as it was given."""
    return shlex.join(["python", "-m", "scripts.ablate", *sys.argv[1:]])


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.ablate", __doc__, EXAMPLES)
    parser.add_argument("table", type=Path, metavar="TABLE.py", nargs="?")
    parser.add_argument("--list", action="store_true", help="print all tables, and stop")
    parser.add_argument(
        "--full", action="store_true", help="the paper's setting, FULL, instead of CONFIG"
    )
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="FIELD=VALUE,VALUE",
        help="run each row with each value; the best config.eval.metric chooses a row's",
    )
    parser.add_argument("--rows", help="some of the rows, separated by commas (default: all)")
    parser.add_argument(
        "--seeds", default="0,1,2", help="values of config.train.seed (default: 0,1,2)"
    )
    parser.add_argument(
        "--workdir",
        type=Path,
        help="directory of the runs, as ROW/SEED (default: runs/ablate/FAMILY_TABLE)",
    )
    parser.add_argument(
        "--evaluate",
        type=shlex.split,
        default=[],
        help="options of scripts.evaluate run, which then judges each model",
    )
    parser.add_argument("--output", type=Path, help="JSON file with every run's numbers")
    parser.add_argument(
        "--results", type=Path, help="directory of table.json, README.md and table.png"
    )
    parser.add_argument(
        "--plot", type=Path, help=f"picture of the metrics against X ({', '.join(PICTURES)})"
    )
    parser.add_argument(
        "--curves",
        type=Path,
        help="picture of metrics and training loss against the step: where overfitting begins",
    )
    parser.add_argument(
        "--alignment",
        type=Path,
        help="picture of alignment and uniformity over training; needs config.eval.geometry",
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
    if not args.table and not args.list:
        parser.error("expected TABLE.py, or --list")
    args.grid = [read_grid(parser, text) for text in args.grid]
    args.rows = args.rows and list(dict.fromkeys(row.strip() for row in args.rows.split(",")))
    seeds = args.seeds.split(",")
    if not all(seed.strip().isdecimal() for seed in seeds):
        parser.error(f"--seeds: expected numbers separated by commas, found {args.seeds!r}")
    args.seeds = list(dict.fromkeys(map(int, seeds)))
    pictures = {"--plot": args.plot, "--curves": args.curves, "--alignment": args.alignment}
    for option, path in pictures.items():
        check_picture(parser, option, path)
    return args


def read_grid(parser: Parser, text: str) -> tuple[str, list[str]]:
    """Reads "FIELD=VALUE,VALUE", or exits with a line."""
    field, equals, values = text.partition("=")
    if not (field and equals and all(values.split(","))):
        parser.error(f"--grid: expected FIELD=VALUE,VALUE, found {text!r}")
    return field.removeprefix("config."), values.split(",")


if __name__ == "__main__":
    exit_with_one_line(main)
