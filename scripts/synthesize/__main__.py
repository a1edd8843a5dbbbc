"""Writes queries for passages by a language model; keeps those whose passage a search finds again.

generate asks a server for queries and writes pairs; filter takes pairs of any origin.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import exit_with_one_line

from ..commands import OneLineParser
from . import filter as filter_pairs
from . import generate, round_trip


def main() -> int:
    args = parse(sys.argv[1:])
    return args.run(args)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    layout: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    parser = OneLineParser(prog="python -m scripts.synthesize", description=__doc__, **layout)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, module, line in (
        ("generate", generate, "write queries for passages"),
        ("filter", filter_pairs, "keep pairs that a search finds again"),
    ):
        command = commands.add_parser(
            name, help=line, description=module.DESCRIPTION, epilog=module.EXAMPLES, **layout
        )
        check = module.add_arguments(command)
        command.add_argument("--output", required=True, type=Path, help="the .jsonl file to write")
        round_trip.add_arguments(command)
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
        command.set_defaults(run=module.run, check=check)
    args = parser.parse_args(argv)
    message = (
        args.check(args)
        or check_output(args.output, filter(None, (args.corpus, getattr(args, "pairs", None))))
        or round_trip.check(args.keep_top, args.model, args.bm25, required=args.what == "filter")
    )
    if message:
        commands.choices[args.what].error(message)
    args.fields = args.field.split(",")
    return args


def check_output(output: Path, inputs: Iterable[Path]) -> str | None:
    """Returns a message about an output that cannot be written, or None."""
    if output.suffix != ".jsonl" or output.is_dir():
        return f"--output: expected the name of a file that ends in .jsonl, found {str(output)!r}"
    if output.resolve() in [path.resolve() for path in inputs]:
        return f"--output: {output} is also the input"
    return None


if __name__ == "__main__":
    exit_with_one_line(main)
