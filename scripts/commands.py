"""Shared parts of the commands: one-line usage errors, whole outputs, tables, results."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from embed_jax.atomic import plain_json, replaced
from embed_jax.errors import InputError
from embed_jax.snapshots import is_address

OPTION = re.compile(r"--[a-z][a-z0-9-]*")
PICTURES = (".png", ".pdf", ".svg")
# Of the dotted names of scripts and experiments: "embed_jax." in an installed package, "" in the
# repository.
PARENT = __package__.removesuffix("scripts")


class OneLineParser(argparse.ArgumentParser):
    """A parser whose usage errors are InputErrors; its texts name commands as they were started."""

    def __init__(self, *, prog: str, **options: Any):
        if sys.argv[0].startswith("embed-jax "):  # see embed_jax/__main__.py
            prog = installed_form(prog)
            for text in ("description", "epilog"):
                options[text] = installed_form(options.get(text) or "")
        super().__init__(prog=prog, **options)

    def add_subparsers(self, **options: Any) -> Any:
        return super().add_subparsers(**{"parser_class": _Subcommand} | options)

    def error(self, message: str) -> NoReturn:
        unknown, _, names = message.partition("unrecognized arguments: ")
        if not unknown and names:
            name = names.split()[0].partition("=")[0]
            near = difflib.get_close_matches(name, OPTION.findall(self.format_usage()), n=1)
            message += f"; did you mean {near[0]}?" if near else ""
        raise InputError(f"{message} (see {self.prog} --help)")


class _Subcommand(OneLineParser):
    """A subcommand's parser, which says what it does not know; else the first parser would."""

    def parse_known_args(self, *args: Any, **options: Any) -> Any:
        parsed, left = super().parse_known_args(*args, **options)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return parsed, left


class Parser(OneLineParser):
    """A parser that prints description and examples as they are written."""

    def __init__(self, module: str, description: str, examples: str):
        super().__init__(
            prog=f"python -m {module}",
            description=description,
            epilog=examples,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument("--debug", action="store_true", help="show the traceback of an error")


def installed_form(text: str) -> str:
    """Returns the text with the commands of the repository as those of the installed package."""
    text = text.replace("python -m scripts.", "embed-jax ")
    return text.replace("python -m experiments.", "embed-jax train ")


def launched_form(text: str) -> str:
    """Returns the text with commands in the form that the running one was started in."""
    return installed_form(text) if sys.argv[0].startswith("embed-jax ") else text


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yields a file beside `path` that replaces it when the block ends without an error.

    Raises:
        InputError: at once, before any work, if nothing can be written there.
    """
    with replaced(path) as beside:
        try:
            if path.is_dir():
                raise IsADirectoryError(0, "it is a directory")
            beside.touch()
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from None
        yield beside


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Writes JSON; a number that is not finite becomes null, since JSON has no nan."""
    path.write_text(
        json.dumps(plain_json(content), indent=1, allow_nan=False) + "\n", encoding="utf-8"
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Prints a table: rich's if it is installed and there is a terminal, else aligned text."""
    if sys.stdout.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.table import Table

            table = Table(*columns)
            for row in rows:
                table.add_row(*row)
            Console().print(table)
            return
    from embed_jax.evals.report import format_table

    print(format_table(columns, rows))


def check_picture(parser: OneLineParser, option: str, path: Path | None) -> None:
    """Exits with a one-line error for a file name without a picture's ending."""
    if path and path.suffix not in PICTURES:
        parser.error(
            f"{option}: expected a name that ends in {', '.join(PICTURES)}, found {str(path)!r}"
        )


def index_path(text: str) -> Path | str:
    """Returns the folder of an index, or an address such as "s3://bucket/index" as it is."""
    return text if is_address(text) else Path(text)


def index_name(path: Path | str) -> str:
    """Returns the last part of a folder or address of an index.

    >>> index_name("s3://bucket/indexes/dense")
    'dense'
    """
    return PurePosixPath(str(path)).name


def named(options: Sequence[str], option: str) -> dict[str, str]:
    """Reads values "NAME=VALUE" into a dict.

    Raises:
        InputError: for a value of another form, or a name that stands twice.
    """
    values: dict[str, str] = {}
    for text in options:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise InputError(f"--{option}: expected NAME=VALUE, found {text!r}")
        if values.setdefault(name, value) != value:
            raise InputError(f"--{option}: the name {name!r} stands twice")
    return values


def add_compute_dtype(parser: argparse._ActionsContainer, default: str | None = "float32") -> None:
    """Adds the option --compute-dtype; a default of None tells float32 from none given."""
    parser.add_argument(
        "--compute-dtype",
        choices=("float32", "bfloat16"),
        default=default,
        help="of the model's layers: bfloat16 is faster on accelerators and on processors with "
        "AMX (default: float32)",
    )


def add_server_options(parser: argparse._ActionsContainer) -> None:
    """Adds the options of requests to a server: its key, pace, and tries."""
    parser.add_argument("--key-variable", metavar="NAME", help="environment variable with the key")
    parser.add_argument("--no-key", action="store_true", help="send no key, as to a local server")
    parser.add_argument("--concurrency", type=int, default=4, help="parallel requests (default: 4)")
    parser.add_argument("--requests-per-minute", type=float, default=0, help="default: no limit")
    parser.add_argument(
        "--retries", type=int, default=5, help="tries after the first one (default: 5)"
    )
    parser.add_argument(
        "--first-wait", type=float, default=1.0, help="seconds before the second try (default: 1)"
    )
    parser.add_argument(
        "--timeout", type=float, default=120, help="seconds for an answer (default: 120)"
    )


def wrong_server_option(
    *,
    concurrency: int,
    requests_per_minute: float,
    retries: int,
    first_wait: float,
    timeout: float,
    no_key: bool,
    key_variable: str | None,
) -> str | None:
    """Returns a message about options of `add_server_options` that cannot be used, or None."""
    if concurrency < 1:
        return f"--concurrency: expected 1 or more, found {concurrency}"
    numbers = {
        "--requests-per-minute": requests_per_minute,
        "--retries": retries,
        "--first-wait": first_wait,
    }
    for option, value in numbers.items():
        if not 0 <= value < math.inf:
            return f"{option}: expected a number from 0 up, found {value}"
    if not 0 < timeout < 1e6:
        return f"--timeout: expected seconds above 0, found {timeout}"
    if no_key and key_variable:
        return "--no-key and --key-variable exclude each other"
    return None


def load_model(name: str, compute_dtype: str = "float32") -> Any:
    """Loads an embedding model by name or from a run's directory; keeps compiled programs."""
    from embed_jax import load
    from embed_jax.runtime import enable_compilation_cache

    enable_compilation_cache()
    return load(name, compute_dtype=compute_dtype)


def load_cross_encoder(name: str, compute_dtype: str = "float32") -> Any:
    """Loads a cross-encoder by name or from a run's directory; keeps compiled programs."""
    import embed_jax
    from embed_jax.runtime import enable_compilation_cache

    enable_compilation_cache()
    return embed_jax.load_cross_encoder(name, compute_dtype=compute_dtype)


def load_encoder(name: str) -> Any:
    """Loads a model like `load_model`, for commands that need a single encoder.

    Raises:
        InputError: for a model with routes.
    """
    model = load_model(name)
    if model.routes:
        raise InputError(f"{name}: has an encoder for each of {', '.join(model.routes)}, but one "
                         "encoder is needed; "
                         "embed_jax.load(...).encoders[ROUTE].save(...) writes one by "
                         "itself")  # fmt: skip
    return model
