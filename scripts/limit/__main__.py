"""LIMIT: which pairs of documents can one vector find? Made data, and the experiment without texts.

After Weller et al. (2025). `data` writes the texts in BEIR's layout; scripts.evaluate makes the
same ones itself for `--data limit` and `--data limit:50000`. `critical` trains queries and
documents as free vectors and finds the largest number of documents of which every pair is found;
see embed_jax/data/sources/limit.py and embed_jax/evals/free_embeddings.py.
"""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from embed_jax.data.sources.limit import PEOPLE, QUERIES
from embed_jax.errors import InputError, exit_with_one_line, require

from ..commands import (
    PICTURES,
    Parser,
    check_picture,
    print_table,
    whole_file,
    write_json,
)

EXAMPLES = """examples:
  python -m scripts.limit data --output limit_small
  python -m scripts.limit data --documents 50000 --output limit_full
  python -m scripts.limit critical --dims 4-12 --seeds 3 --output critical.json --plot critical.png
  python -m scripts.evaluate searches --data limit --model bm25 \\
      --model sentence-transformers/all-MiniLM-L6-v2 --dims 32,128 --k 2,20"""


def main() -> None:
    args = parse(sys.argv[1:])
    args.run(args)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.limit", __doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    line = "texts: corpus, queries and judgements"
    data = commands.add_parser("data", help=line, description=line, allow_abbrev=False)
    data.add_argument(
        "--documents", type=int, default=PEOPLE, help="46, 50000 or others (default: %(default)s)"
    )
    data.add_argument(
        "--queries", type=int, default=QUERIES, help="of the 1,035 pairs (default: %(default)s)"
    )
    data.add_argument("--seed", type=int, default=0, help="of the texts (default: 0)")
    data.add_argument("--output", type=Path, required=True, help="a new directory")
    data.set_defaults(run=write_data)

    line = "critical n of free embeddings for each dimension"
    critical = commands.add_parser("critical", help=line, description=line, allow_abbrev=False)
    critical.add_argument(
        "--dims", required=True, help="dimensions, such as 4-12 or 4,8,16; 2 or more"
    )
    critical.add_argument(
        "--seeds", type=int, default=1, help="starts; one has to succeed (default: 1)"
    )
    critical.add_argument(
        "--failures", type=int, default=2, help="stop after this many n in a row (default: 2)"
    )
    critical.add_argument(
        "--steps", type=int, default=100_000, help="of training at most (default: %(default)s)"
    )
    critical.add_argument(
        "--patience", type=int, default=1000, help="steps without a lower loss (default: 1000)"
    )
    critical.add_argument("--output", type=Path, help="JSON file for the results")
    critical.add_argument("--plot", type=Path, help=f"picture ({', '.join(PICTURES)})")
    critical.set_defaults(run=find_critical)

    for command in (data, critical):
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    args = parser.parse_args(argv)
    if args.command == "critical":
        for option in ("seeds", "failures", "steps", "patience"):
            if getattr(args, option) < 1:
                parser.error(f"--{option}: expected 1 or more, found {getattr(args, option)}")
        check_picture(parser, "--plot", args.plot)
        args.dims = read_dims(args.dims)
    return args


def read_dims(text: str) -> list[int]:
    """Reads "2-4,8" as [2, 3, 4, 8].

    Raises:
        InputError: for another form, or a dimension below 2.
    """
    dims: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 2 <= first <= last:
            raise InputError(f"--dims: expected dimensions from 2, such as 4-12, found {text!r}")
        dims.update(range(first, last + 1))
    return sorted(dims)


def write_data(args: argparse.Namespace) -> None:
    """Writes the texts in BEIR's layout."""
    from embed_jax.data.sources.beir import write_beir
    from embed_jax.data.sources.limit import limit_task

    task = limit_task(args.documents, args.queries, args.seed)
    write_beir(args.output, task)
    print(f"{args.output}: {len(task[0])} documents, {len(task[1])} queries")


def find_critical(args: argparse.Namespace) -> None:
    """Finds critical n for each dimension; prints a table, writes it and draws a picture."""
    if args.plot:
        require("matplotlib")
    from embed_jax.evals.free_embeddings import (
        DEGREE,
        FreeTraining,
        critical_numbers,
        fit_polynomial,
    )
    from embed_jax.runtime import environment

    training = FreeTraining(steps=args.steps, patience=args.patience)
    with contextlib.ExitStack() as stack:
        output, plot = (
            stack.enter_context(whole_file(path)) if path else None
            for path in (args.output, args.plot)
        )
        began = time.perf_counter()
        rows = critical_numbers(
            args.dims,
            seeds=args.seeds,
            failures=args.failures,
            training=training,
            report=lambda line: print(line, file=sys.stderr, flush=True),
        )
        seconds = time.perf_counter() - began
        numbers = [row.documents for row in rows]
        fit = fit_polynomial(args.dims, numbers) if len(rows) >= DEGREE + 2 else None
        print_table(["d", "critical n"], [[str(row.dim), str(row.documents)] for row in rows])
        if fit:
            terms = " ".join(f"{value:+.4g} d^{power}" for power, value in enumerate(fit[0]))
            print(f"n = {terms}, R squared {fit[1]:.4f}")
        if output:
            content = {
                "training": {name: getattr(training, name) for name in FreeTraining.__annotations__}
                | {"seeds": args.seeds, "failures": args.failures},
                "critical": [vars(row) for row in rows],
                "polynomial": {"coefficients": fit[0], "r_squared": fit[1]} if fit else None,
                "seconds": round(seconds, 1),
                "versions": environment(),
            }
            write_json(output, content)
        if plot:
            from .plot import plot_critical

            plot_critical(args.dims, numbers, fit, plot, args.plot.suffix[1:])


if __name__ == "__main__":
    exit_with_one_line(main)
