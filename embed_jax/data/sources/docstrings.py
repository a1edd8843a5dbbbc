"""Reads a Python library's functions and their docstrings' first sentences from its source."""

from __future__ import annotations

import ast
import dataclasses
import hashlib
import platform
import re
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path

from embed_jax.errors import InputError

SPLITS = ("train", "validation", "test")  # 70, 10 and 20 % of the modules
MINIMUM = 3000  # pairs; a standard library gives 5,000 to 6,500
LEAST_WORDS = 3  # of a first sentence; "Constructor." is not a useful query
LEFT_OUT = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "lib-dynload",
    "__pycache__",
}
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z\"'`(])")


@dataclasses.dataclass(frozen=True)
class DocumentedFunction:
    """A function of a library.

    Attributes:
        id: "module:qualified.name".
        module: the module's name.
        anchor: the first sentence of the docstring.
        positive: the source without the docstring.
    """

    id: str
    module: str
    anchor: str
    positive: str


def choose_split(module: str) -> str:
    """Returns the split that a module belongs to, by a hash of its name."""
    share = int.from_bytes(hashlib.blake2b(module.encode(), digest_size=8).digest(), "big") / 2**64
    return "test" if share < 0.2 else "validation" if share < 0.3 else "train"


def extract_pairs(root: Path, minimum: int = MINIMUM) -> list[DocumentedFunction]:
    """Reads all pairs of a library directory, by module name; of equal sources only the first.

    Raises:
        InputError: there are fewer than `minimum`.
    """
    by_source: dict[str, DocumentedFunction] = {}
    for path in library_files(root):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for pair in module_pairs(path, module):
            by_source.setdefault(pair.positive, pair)
    if len(by_source) < minimum:
        raise InputError(
            f"python_docs: {root} holds {len(by_source)} documented functions, at least {minimum} "
            "are needed: this Python was installed without (all of) its library's source"
        )
    return list(by_source.values())


def library_files(root: Path) -> list[Path]:
    """Lists the Python files under `root` in a fixed order, without tests and other packages."""
    paths = (
        path for path in root.rglob("*.py") if not LEFT_OUT & set(path.relative_to(root).parts[:-1])
    )
    return sorted(
        (path for path in paths if path.parent.name[:7] != "config-"), key=lambda path: path.parts
    )


def module_pairs(path: Path, module: str) -> Iterator[DocumentedFunction]:
    """Yields the pairs of one file; invalid Python, as in templates of the library, has no pair."""
    try:
        with tokenize.open(path) as file:  # respects a coding line
            source = file.read()
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    # Not splitlines(), which also splits at form feeds, where ast does not.
    lines = source.split("\n")
    count: dict[str, int] = {}
    for name, function in _functions(tree, ""):
        anchor = first_sentence(ast.get_docstring(function) or "")
        if len(anchor.split()) < LEAST_WORDS or len(function.body) < 2:
            continue
        docstring = function.body[0]
        end = docstring.end_lineno or docstring.lineno
        if docstring.lineno == function.lineno or function.body[1].lineno <= end:
            continue  # the docstring shares a line with code
        begin = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        code = lines[begin - 1 : docstring.lineno - 1] + lines[end : function.end_lineno]
        positive = textwrap.dedent("\n".join(code)).strip()
        count[name] = count.get(name, 0) + 1
        # A repeated name is a property's setter, or another platform's version.
        suffix = f"#{count[name]}" if count[name] > 1 else ""
        yield DocumentedFunction(f"{module}:{name}{suffix}", module, anchor, positive)


def first_sentence(docstring: str) -> str:
    """Returns the first sentence of the first paragraph, with single blanks.

    >>> first_sentence("Opens a file. It may fail.")
    'Opens a file.'
    """
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip())[0].split())
    return SENTENCE_END.split(paragraph)[0]


def _functions(
    node: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}{child.name}."
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        yield from _functions(child, inner)


def config_name(root: Path) -> str:
    """Returns Python's version and a hash of the library's file sizes.

    So another installation is another data set.
    """
    listing = repr(
        [(str(path.relative_to(root)), path.stat().st_size) for path in library_files(root)]
    )
    version = re.sub(r"[^0-9a-z.]", "", platform.python_version())
    return f"python{version}-{hashlib.blake2b(listing.encode(), digest_size=4).hexdigest()}"
