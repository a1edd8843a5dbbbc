"""The usual faults of a search, each with its figure and what to do: evaluate --diagnose."""

from __future__ import annotations

import argparse
from typing import Any

from scripts.commands import Parser


def add_arguments(parser: Parser) -> Any:
    """The options of --diagnose."""
    group = parser.add_argument_group("diagnose")
    group.add_argument("--diagnose", action="store_true", help="look for the usual faults of a search")
    return group


def run(args: argparse.Namespace) -> dict[str, Any]:
    raise NotImplementedError
