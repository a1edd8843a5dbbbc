"""Finds what is installed with the library: commands, experiments and config files.

In the repository, `scripts`, `experiments` and `configs` are folders beside `embed_jax`. An
installed package has them inside: `embed_jax.scripts`, `embed_jax.experiments`,
`embed_jax/configs`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from embed_jax.errors import InputError
from embed_jax.registry import unknown

PACKAGE = Path(__file__).parent


def folder(name: str) -> Path:
    """Returns the folder `scripts`, `experiments` or `configs`."""
    inside = PACKAGE / name
    return inside if inside.is_dir() else PACKAGE.parent / name


def package(name: str) -> str:
    """Returns the dotted name by which `scripts` or `experiments` is imported."""
    installed = f"embed_jax.{name}"
    return installed if importlib.util.find_spec(installed) is not None else name


def main_module(module: str) -> str:
    """Returns the module with a command's `main`: the one named, or `__main__` of a package."""
    spec = importlib.util.find_spec(module)
    return f"{module}.__main__" if spec and spec.submodule_search_locations else module


def config_path(path: str | Path) -> Path:
    """Returns a file of the working directory, or else the packaged file of that name.

    Args:
        path: `simcse/unsup_bert_base.py` and `configs/simcse/unsup_bert_base.py` name the same
            packaged file.
    """
    path = Path(path)
    if path.exists() or path.is_absolute():
        return path
    parts = path.parts[1:] if path.parts[:1] == ("configs",) else path.parts
    packaged = folder("configs").joinpath(*parts)
    return packaged if parts and ".." not in parts and packaged.is_file() else path


def experiments() -> list[str]:
    """Returns the names of the experiments, such as "nli"."""
    return sorted(
        file.stem for file in folder("experiments").glob("*.py") if file.stem != "__init__"
    )


def check_experiment(name: str) -> str:
    """Returns the name of an experiment unchanged.

    Raises:
        InputError: if there is no such experiment.
    """
    if name not in experiments():
        raise InputError(unknown("experiment", name, experiments()))
    return name
