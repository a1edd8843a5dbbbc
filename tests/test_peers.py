"""Tests skip without the libraries that they compare with, also where all are installed."""

import ast
import configparser
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from embed_jax.encoders import hub

ROOT = Path(__file__).parent.parent


def read_peers() -> set[str]:
    """Returns the names that the peers of setup.cfg are imported by."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    peers = setup["options.extras_require"]["peers"].split("\n")
    return {re.split(r"[^\w-]", line)[0].replace("-", "_") for line in peers if line}


def imported_tops(statement: ast.stmt) -> Iterator[tuple[int, str]]:
    """Yields (line, top package) of the imports in a statement."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.lineno, node.module.split(".")[0]


def skipped_tops(statement: ast.stmt) -> set[str]:
    """Returns the top packages without which a statement skips."""
    return {
        node.args[0].value.split(".")[0]
        for node in ast.walk(statement)
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "importorskip"
        if isinstance(node.args[0], ast.Constant)
    }


def unguarded_imports(
    body: Iterable[ast.stmt], peers: set[str], guarded: Iterable[str] = ()
) -> Iterator[tuple[int, str]]:
    """Yields (line, package) of imports of peers that no `pytest.importorskip` stands before.

    It stands before in the same function, in one around it, or at the top of the file.
    """
    guarded, functions = set(guarded), list[ast.FunctionDef | ast.ClassDef]()
    for statement in body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            functions.append(statement)  # runs after the statements around it
            continue
        for line, name in imported_tops(statement):
            if name in peers - guarded:
                yield line, name
        guarded |= skipped_tops(statement)
    for function in functions:
        yield from unguarded_imports(function.body, peers, guarded)


def test_peers_are_imported_only_where_a_test_skips_without_them():
    peers = read_peers()
    assert {"torch", "sentence_transformers"} <= peers
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for text in [path.read_text(encoding="utf-8")]
        if any(f"import {name}" in text or f"from {name}" in text for name in peers)
        for line, name in unguarded_imports(ast.parse(text).body, peers)
    ]
    assert not wrong, "write pytest.importorskip(...): " + ", ".join(wrong)


@pytest.mark.parametrize(
    ("source", "lines"),
    [
        ("import torch", [1]),
        ("def test():\n    from torch.nn import Linear", [2]),
        ("def test():\n    import torch\n    pytest.importorskip('torch')", [2]),
        ("def test():\n    for _ in 'ab':\n        import torch", [3]),
        ("def one():\n    pytest.importorskip('torch')\ndef two():\n    import torch", [4]),
        ("def test():\n    pytest.importorskip('torch.nn')\n    import torch, jax", []),
        ("def test():\n    import torch\npytest.importorskip('torch')", []),
        ("class Peer:\n    def run(self):\n        torch = pytest.importorskip('torch')", []),
    ],
)
def test_unguarded_imports_are_found(source, lines):
    assert [line for line, _ in unguarded_imports(ast.parse(source).body, {"torch"})] == lines


def test_the_packaged_weights_are_found_only_by_tests_that_ask_for_them():
    assert hub._packaged() is None


def test_the_packaged_weights_are_found_by_a_test_that_asks(minilm):
    assert hub.resolve(minilm).is_dir()
