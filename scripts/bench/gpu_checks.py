"""Checks of the bench of an accelerator: launched experiments, and the tests that need a GPU."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import RunError

from . import launches
from .measure import in_fresh_process, on_cpu

CHECK_SECONDS = 240


def run_gpu_tests() -> dict[str, Any]:
    """Runs the tests that need a GPU, where they are, and gives their table."""
    root = Path(__file__).parents[2]
    if not (root / "tests" / "gpu").is_dir() or not launches.is_installed("pytest"):
        return {"note": "no tests or no pytest here"}
    if on_cpu():
        return {"note": "no accelerator"}
    line = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"]
    # XLA's passes are on, as in use; tests/conftest.py turns them off where nothing says otherwise.
    variables = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "0", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    done = subprocess.run(
        line,
        cwd=root,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=CHECK_SECONDS,
        check=False,
    )
    lines = done.stdout.strip().splitlines() or done.stderr.strip().splitlines()[-1:] or ["nothing"]
    start = next((n for n, text in enumerate(lines) if "checks on" in text), len(lines) - 1)
    return {"note": "\n".join([lines[-1], *lines[start:-1]]), "failed": done.returncode != 0}


def launch_measures(
    families: Sequence[str], steps: int, folder: Path
) -> list[tuple[str, Callable[[], dict[str, Any]]]]:
    """Returns names and functions that launch each experiment, and one that compares the losses.

    The CPU's losses are computed meanwhile, by another process.

    Args:
        families: some of `launches.FAMILIES`.
        steps: of each run.
        folder: for the runs, and what they read.
    """
    missing = launches.missing_packages()
    if missing:
        note = {"note": f"not installed: {', '.join(missing)}"}
        return [("launch the experiments", lambda: note)]
    references: dict[str, list[float]] = {}

    def compute() -> None:
        arguments = {"folder": str(folder), "families": families, "steps": steps}
        function = launches.launch_references.__name__
        with contextlib.suppress(RunError):  # then nothing is compared
            references.update(
                in_fresh_process(launches.__name__, function, arguments, JAX_PLATFORMS="cpu")
            )

    beside = threading.Thread(target=compute, daemon=True)

    def run(family: str) -> dict[str, Any]:
        if not (folder / "model").exists():
            launches.write_material(folder)
            if not on_cpu():
                beside.start()
        offline = family == families[0] and launches.is_installed("wandb")
        wandb = "offline" if offline else "disabled"
        with contextlib.redirect_stdout(io.StringIO()):
            launch = launches.launch(
                family, folder, folder / family, steps, interrupt=True, wandb=wandb
            )
        return {"note": launch.describe(offline)}

    def compare() -> dict[str, Any]:
        if on_cpu():
            return {"note": "this is the CPU"}
        beside.join()
        lines = [
            f"{family} {100 * launches.largest_difference(folder / family, losses):.2g} %"
            for family, losses in references.items()
            if (folder / family / "metrics.jsonl").exists()
        ]
        return {"note": ", ".join(lines) or "the CPU's runs failed"}

    name = f"difference of the first {launches.COMPARED} losses to the CPU's"
    runs = [(f"launch {family}", functools.partial(run, family)) for family in families]
    return [*runs, (name, compare)]
