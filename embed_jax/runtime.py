"""The process that everything runs in: XLA flags, the compilation cache, versions, printing.

It imports nothing else of this package.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import jax

PACKAGES = (
    "embed-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "numpy",
)


def prepare_jax(*, deterministic: bool = False) -> None:
    """Sets up JAX for a run; call it before anything touches a device.

    Virtual CPU devices run their collectives one after the other: they share few threads, and two
    collectives at once, started in another order by each device, would wait for each other for
    ever.

    Args:
        deterministic: ask XLA for GPU kernels that give the same bits each time; on CPU they do so
            anyway.
    """
    enable_compilation_cache()
    flags = ["--xla_gpu_deterministic_ops=true"] if deterministic else []
    if os.environ.get("JAX_NUM_CPU_DEVICES"):
        flags.append("--xla_cpu_enable_concurrency_optimized_scheduler=false")
    os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), *flags]).strip()


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, in EMBED_JAX_CACHE or ~/.cache/embed-jax."""
    directory = os.environ.get("EMBED_JAX_CACHE") or str(Path.home() / ".cache" / "embed-jax")
    jax.config.update("jax_compilation_cache_dir", directory)


def is_first_host() -> bool:
    """Tells whether this process is the one that prints and writes logs and models."""
    return jax.process_index() == 0


def say(*lines: str) -> None:
    """Prints lines at once, on the first host only."""
    if is_first_host():
        print(*lines, sep="\n", flush=True)


def environment() -> dict[str, str]:
    """Returns what a run depends on besides its config: versions, device, git revision."""
    versions = {
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "cpus": str(_num_cpus()),
    }
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        revision = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            cwd=Path(__file__).parent,
        )
        versions["git"] = revision.stdout.strip()
    return versions


def _num_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
