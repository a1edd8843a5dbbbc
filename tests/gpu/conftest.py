"""Collects what the GPU checks measure, and prints it as a table at the end."""

import jax
import pytest

ROWS = pytest.StashKey[list]()


def pytest_configure(config):
    config.stash[ROWS] = []


def pytest_collection_modifyitems(items):
    if jax.default_backend() != "gpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="there is no GPU"))


@pytest.fixture
def report(request):
    """`report(quantity, value, limit)` adds a row to the table and requires value <= limit."""

    def add(quantity: str, value: float, limit: float) -> None:
        request.config.stash[ROWS].append((request.node.name, quantity, float(value), limit))
        assert value <= limit, f"{quantity}: {value:.3g} is above {limit:.3g}"

    return add


def pytest_terminal_summary(terminalreporter, config):
    rows = config.stash[ROWS]
    if not rows:
        return
    terminalreporter.section(f"checks on {jax.devices()[0].device_kind}, jax {jax.__version__}")
    width = max(len(name) for name, *_ in rows)
    terminalreporter.write_line(f"{'check':{width}}  {'quantity':40}  {'value':>9}  {'limit':>9}")
    for name, quantity, value, limit in rows:
        terminalreporter.write_line(f"{name:{width}}  {quantity:40}  {value:9.2e}  {limit:9.2e}")
