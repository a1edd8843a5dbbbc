"""python_docs: the documentation of the running Python's own standard library, a real task of code search.

A pair is the first sentence of a function's or method's docstring, and its source without the docstring. All pairs of
a module are on one side of the split, by a stable hash of the module's name, and no source stands on two sides.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import hashlib
import io
import os
import platform
import re
import sysconfig
import textwrap
import tokenize
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from embed_jax.data.pairs import Task
from embed_jax.data.pairs import retrieval_task as task_of_pairs
from embed_jax.errors import InputError, one_line

SPLITS = ("train", "validation", "test")  # 70, 10 and 20 % of the modules
MINIMUM = 3000  # pairs; a standard library gives 5,000 to 6,500
LEAST_WORDS = 3  # of a first sentence: "Constructor." asks for nothing
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
class Pair:
    """One function: `id` is "module:qualified.name", `anchor` its first sentence, `positive` its source."""

    id: str
    module: str
    anchor: str
    positive: str


def open_source(rest: str, split: str) -> list[dict[str, str]]:
    """The records (id, module, anchor, positive) of a split, from a TFDS data set that is made on first use."""
    if rest:
        raise InputError(f"python_docs takes no name after it, found {rest!r}")
    if split not in SPLITS:
        raise InputError(f"python_docs has no split {split!r}; known: {', '.join(SPLITS)}")
    source = prepared_builder().as_data_source(split=split)
    return [{name: text.decode() for name, text in record.items()} for record in source]


def retrieval_task(split: str) -> Task:
    """The split as search: corpus {id: source}, queries {id: sentence}, relevance {query id: {document id: 1}}.

    Functions that begin with the same sentence are all relevant to it.
    """
    return task_of_pairs(open_source("", split))


def fingerprint() -> str:
    """16 hex digits of the content of all splits: equal fingerprints mean comparable results."""
    digest = hashlib.sha256()
    for split in SPLITS:
        for record in open_source("", split):
            digest.update(repr(sorted(record.items())).encode())
    return digest.hexdigest()[:16]


def split_of(module: str) -> str:
    """The split that a module belongs to, the same everywhere and for ever."""
    share = int.from_bytes(hashlib.blake2b(module.encode(), digest_size=8).digest(), "big") / 2**64
    return "test" if share < 0.2 else "validation" if share < 0.3 else "train"


def extract_pairs(root: Path, minimum: int = MINIMUM) -> list[Pair]:
    """All pairs of a library directory, by module name; of equal sources only the first.

    Raises:
        InputError: if there are fewer than `minimum`.
    """
    by_source: dict[str, Pair] = {}
    for path in library_files(root):
        module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
        for pair in module_pairs(path, module):
            by_source.setdefault(pair.positive, pair)
    if len(by_source) < minimum:
        raise InputError(
            f"python_docs: {root} holds {len(by_source)} documented functions, at least {minimum} are needed: "
            "this Python was installed without (all of) its library's source"
        )
    return list(by_source.values())


def library_files(root: Path) -> list[Path]:
    """The Python files under `root` in a fixed order, without tests and installed packages."""
    paths = (
        path for path in root.rglob("*.py") if not LEFT_OUT & set(path.relative_to(root).parts[:-1])
    )
    return sorted(
        (path for path in paths if path.parent.name[:7] != "config-"), key=lambda path: path.parts
    )


def module_pairs(path: Path, module: str) -> Iterator[Pair]:
    """The pairs of one file; none if it is no valid Python, as some templates in the library are not."""
    try:
        with tokenize.open(path) as file:  # heeds a coding line
            source = file.read()
        with warnings.catch_warnings(action="ignore"):
            tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return
    lines = source.split(
        "\n"
    )  # not splitlines(), which also splits at form feeds, where ast does not
    count: dict[str, int] = {}
    for name, function in _functions(tree, ""):
        anchor = first_sentence(ast.get_docstring(function) or "")
        if len(anchor.split()) < LEAST_WORDS or len(function.body) < 2:
            continue
        docstring = function.body[0]
        if docstring.lineno == function.lineno or function.body[1].lineno <= docstring.end_lineno:
            continue  # the docstring shares a line with code
        begin = min([function.lineno, *(decorator.lineno for decorator in function.decorator_list)])
        code = (
            lines[begin - 1 : docstring.lineno - 1]
            + lines[docstring.end_lineno : function.end_lineno]
        )
        positive = textwrap.dedent("\n".join(code)).strip()
        count[name] = count.get(name, 0) + 1
        number = (
            f"#{count[name]}" if count[name] > 1 else ""
        )  # a property's setter, another platform's version
        yield Pair(f"{module}:{name}{number}", module, anchor, positive)


def first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, white space reduced to single blanks."""
    paragraph = " ".join(re.split(r"\n\s*\n", docstring.strip())[0].split())
    return SENTENCE_END.split(paragraph)[0]


def _functions(
    node: ast.AST, prefix: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield prefix + child.name, child
        named = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        yield from _functions(child, f"{prefix}{child.name}." if named else prefix)


def config_name(root: Path) -> str:
    """Python's version and a hash of the library's file sizes: another installation is another data set."""
    listing = repr(
        [(str(path.relative_to(root)), path.stat().st_size) for path in library_files(root)]
    )
    version = re.sub(r"[^0-9a-z.]", "", platform.python_version())
    return f"python{version}-{hashlib.blake2b(listing.encode(), digest_size=4).hexdigest()}"


def prepared_builder() -> Any:
    """The TFDS builder for the running Python, its data written on the first call; needs no network.

    The data go where TFDS keeps its own: EMBED_JAX_DATA, TFDS_DATA_DIR or ~/tensorflow_datasets.
    """
    import fcntl

    from embed_jax.data.sources.python_docs_builder import PythonDocs, download_config
    from embed_jax.data.sources.tfds import data_directory, quiet

    root, directory = Path(sysconfig.get_path("stdlib")), data_directory()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # One process writes, others wait and find it done.
        with (
            contextlib.redirect_stdout(io.StringIO()),
            quiet(),
            (directory / ".python_docs.lock").open("a") as lock,
        ):
            fcntl.flock(lock, fcntl.LOCK_EX)
            builder = PythonDocs(
                data_dir=os.fspath(directory), config=config_name(root), file_format="array_record"
            )
            if not builder.is_prepared():
                builder.download_and_prepare(
                    download_config=download_config(), file_format="array_record"
                )
    except OSError as error:
        found = one_line(error)
        raise InputError(
            f"python_docs: cannot be written to {directory}: {found}; set EMBED_JAX_DATA"
        ) from None
    return builder
