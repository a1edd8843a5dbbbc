"""The examples in docstrings run, and give what they say."""

import doctest
import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
# tests/losses/test_public.py runs those of the losses and scores.
ELSEWHERE = ("embed_jax.losses", "embed_jax.scores")


def _modules_with_examples() -> list[str]:
    paths = sorted((ROOT / "embed_jax").rglob("*.py"))
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths}
    return [
        name
        for name, path in names.items()
        if ">>> " in path.read_text() and not name.startswith(ELSEWHERE)
    ]


@pytest.mark.parametrize("name", _modules_with_examples())
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    with np.printoptions(precision=4, suppress=True):
        result = doctest.testmod(module, extraglobs={"jax": jax, "jnp": jnp, "np": np})
    assert not result.failed
