"""Compilation settings of the tests, which belong to tests/conftest.py."""

from pathlib import Path

import jax

TESTS = Path(__file__).parent


def test_only_conftest_sets_how_much_is_optimised():
    assert jax.config.read("jax_disable_most_optimizations")
    setters = [
        str(path.relative_to(TESTS))
        for path in TESTS.rglob("*.py")
        if path != Path(__file__) and "jax_disable_most_optimizations" in path.read_text()
    ]
    assert setters == [], "the setting of one test holds for every test after it"
