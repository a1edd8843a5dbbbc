"""Warnings point to the caller's line and are all made in one way."""

import ast
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import embed_jax
from embed_jax.errors import EmbedJaxWarning

ROOT = Path(embed_jax.__file__).parent.parent


def _line_of(call):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call()
    (warning,) = (record for record in caught if record.category is EmbedJaxWarning)
    return warning.filename, warning.lineno


@pytest.fixture(scope="module")
def model(tiny_model):
    return embed_jax.load(tiny_model, max_length=8)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.encode(["a cat and a dog and a house and a river"]),
        lambda model: model.encode_query("a cat and a dog and a house and a river"),
        lambda model: list(model.encode_blocks(["a cat and a dog and a house and a river"])),
        lambda model: model.encode(["a cat"], dim=8),
        lambda model: model.encode(["a cat"], layers=1),
    ],
)
def test_a_warning_is_at_the_callers_line(model, call):
    model._warned.clear()

    assert _line_of(lambda: call(model)) == (__file__, call.__code__.co_firstlineno)


def test_every_warning_is_made_by_the_helper():
    # `warnings.warn` needs a stack level that changes with each refactoring.
    files = [
        file
        for part in ("embed_jax", "scripts", "experiments")
        for file in (ROOT / part).rglob("*.py")
    ]
    calls = [
        f"{file.relative_to(ROOT)}:{node.lineno}"
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("warn", "warn_explicit")
        and isinstance(node.value, ast.Name)
        and node.value.id == "warnings"
    ]

    assert len(calls) == 1 and calls[0].startswith("embed_jax/errors.py")


@pytest.mark.parametrize("platform", ["cuda", "tpu,cuda"])
def test_a_platform_without_its_device_is_one_line(platform):
    program = "import jax; from embed_jax.errors import *; exit_with_one_line(jax.process_index)"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "JAX_PLATFORMS": platform},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 2
    assert re.fullmatch(f"error: JAX_PLATFORMS={platform}: JAX finds no .*\n", ended.stderr)
