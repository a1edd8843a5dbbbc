"""The public list of a package: names imported from its modules when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def public_names(
    package: str, modules: Mapping[str, Sequence[str]]
) -> tuple[list[str], Callable[[str], Any], Callable[[], list[str]]]:
    """Makes a package's `__all__`, `__getattr__` and `__dir__`.

    Args:
        package: its `__name__`.
        modules: public names by the module that defines them. No name may be a module's: importing
            that module would take the name's place.
    """
    module_of = {name: module for module, names in modules.items() for name in names}

    def get(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return sorted(module_of), get, lambda: sorted(module_of)
