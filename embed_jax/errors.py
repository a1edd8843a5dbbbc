"""The two errors that end a run, and the wrapper that makes one line and an exit status of them."""

from __future__ import annotations

import os
import sys
import traceback
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any

DEBUG_VARIABLE = "EMBED_JAX_DEBUG"
PACKAGE = os.path.dirname(__file__) + os.sep
WRAPPERS = (
    "contextlib",
    "functools",
    "jaxtyping._decorator",
    "threading",
)  # between two of our lines

# Import names of the optional libraries, and the extra of setup.cfg that brings each.
EXTRAS = {
    "array_record": "data",
    "bm25s": "search",
    "datasets": "data",
    "faiss": "search",
    "grain": "train",
    "jinja2": "serve",
    "lancedb": "lance",
    "matplotlib": "plots",
    "mteb": "peers",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "pyarrow": "data",
    "sentence_transformers": "peers",
    "sklearn": "eval",
    "starlette": "serve",
    "tensorflow_datasets": "train",
    "torch": "peers",
    "uvicorn": "serve",
    "wandb": "train",
}


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a field, an option. Exit status 2.

    The message is one line: what was found, where (file, line, field), what is accepted.
    """


class EmbedJaxWarning(UserWarning):
    """A warning of this package, at the line of the caller's code that caused it."""


class RunError(RuntimeError):
    """The work itself failed: a NaN loss, a full disk, a lost host. Exit status 1."""


def first_difference(stored: Mapping[str, Any], current: Mapping[str, Any]) -> str:
    """Returns the first setting that differs, in words; "" if all are equal.

    >>> first_difference({"model": "a", "dim": 8}, {"model": "b", "dim": 8})
    "model was 'a', is 'b'"
    """
    for name in (*current, *stored):
        before, now = stored.get(name), current.get(name)
        if before != now:
            return f"{name} was {before!r}, is {now!r}"
    return ""


def warn(message: str) -> None:
    """Warns at the line outside of this package that the call came from.

    Python shows, filters and counts a warning by its line, and a line of the package says nothing
    to its user. A call that began in the package, as in a thread, is at its outermost line.
    """
    frame: types.FrameType | None = sys._getframe(1)
    level, outermost = 1, 1
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            outermost = level
        elif not file.startswith("<") and frame.f_globals.get("__name__") not in WRAPPERS:
            break
        frame, level = frame.f_back, level + 1
    warnings.warn(message, EmbedJaxWarning, stacklevel=(outermost if frame is None else level) + 1)


def exit_with_one_line(main: Callable[[], int | None]) -> None:
    """Runs a command's `main` and exits.

    The status is 0, or with one line on stderr 2 (input) or 1 (work). `--debug` anywhere on the
    command line, or EMBED_JAX_DEBUG=1, keeps the traceback.
    """
    _show_warnings_in_one_line()
    # "PyTorch was not found": it is not needed.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if "--debug" in sys.argv:
        sys.argv.remove("--debug")
        os.environ[DEBUG_VARIABLE] = "1"
    try:
        sys.exit(main() or 0)
    except BaseException as error:
        sys.exit(report(error))


def report(error: BaseException) -> int:
    """Prints on stderr, in one line, how a run ended, and returns the exit status.

    With `--debug` it prints the whole traceback.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    if isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
        return 130
    if isinstance(error, BrokenPipeError):
        # The reader of our output (`| head`) went away: nothing is wrong with the work.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, ModuleNotFoundError):
        package = (error.name or "").split(".")[0]
        if package in EXTRAS:
            error = InputError(missing(package))
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(error)
    elif _lacks_platform(error):
        platforms = os.environ["JAX_PLATFORMS"]
        print(
            f"error: JAX_PLATFORMS={platforms}: JAX finds no such device here; unset it, "
            "or install JAX for the device, e.g. jax[cuda12]",
            file=sys.stderr,
        )
        return 2
    elif isinstance(error, InputError | RunError):
        print(f"error: {one_line(error)}", file=sys.stderr)
    else:
        what = f"{type(error).__name__}: {one_line(error)}"
        print(f"error: {what} (run with --debug for the traceback)", file=sys.stderr)
    return 2 if isinstance(error, InputError) else 1


def _lacks_platform(error: BaseException) -> bool:
    """Tells whether JAX failed to start the devices that JAX_PLATFORMS names."""
    if not os.environ.get("JAX_PLATFORMS"):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.endswith("xla_bridge.py")


def _show_warnings_in_one_line() -> None:
    """Our own warnings as "warning: ...", each text once; those of libraries as Python does."""
    shown: set[str] = set()
    before = warnings.showwarning

    def show(message, category, filename, *rest, **options) -> None:
        if not issubclass(category, EmbedJaxWarning):
            before(message, category, filename, *rest, **options)
        elif str(message) not in shown:
            shown.add(str(message))
            print(f"warning: {message}", file=sys.stderr)

    warnings.showwarning = show


def one_line(error: BaseException) -> str:
    """Returns the error's message with every run of white space made one blank."""
    return " ".join(str(error).split()) or type(error).__name__


def require(module: str) -> None:
    """Raises an InputError that says what to install if an optional library is missing.

    Args:
        module: its import name, one of EXTRAS, such as "faiss".
    """
    import importlib.util

    try:
        is_there = importlib.util.find_spec(module) is not None
    except ValueError:  # imported already, from nowhere that could be found again
        is_there = True
    if not is_there:
        raise InputError(missing(module))


def missing(module: str) -> str:
    """Returns the line that says which extra brings an optional library."""
    return f'package {module!r} is not installed: pip install "embed-jax[{EXTRAS[module]}]"'
