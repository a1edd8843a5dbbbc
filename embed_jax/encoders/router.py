"""Reads and writes sentence-transformers' Router (versions 5 and 6) and Asym (versions 2 to 4).

They send texts of different kinds through different modules, called routes. A Router stands among
the modules of modules.json, first (then each route is its own encoder) or after the pooling (then
the backbone is shared); the modules before and after it are common to all routes. Its folder holds
a config and the routes' modules, each in a folder; a folder that several routes name is one module.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.encoders import modules
from embed_jax.encoders.json_fields import ROUTER, check_fields
from embed_jax.encoders.weights import read_json, write_json
from embed_jax.errors import InputError
from embed_jax.registry import unknown

CONFIG, OLDER_CONFIG = "router_config.json", "config.json"
PARAMETERS = ("default_route", "allow_empty_key", "route_mappings")
TEXT = "text"  # among the modalities of version 6


@dataclasses.dataclass(frozen=True)
class Routes:
    """The modules of each route.

    Attributes:
        modules: for each route all modules that a text passes, as (class name, folder), the
            backbone first.
        default: the route of texts without a task, or None.
        tasks: the route of each task whose route has another name; under None the route of all
            other tasks.
    """

    modules: Mapping[str, Sequence[tuple[str, str]]]
    default: str | None = None
    tasks: Mapping[str | None, str] = dataclasses.field(default_factory=dict)


def read_router(directory: Path) -> Routes | None:
    """Reads the routes of a model's directory; None for a model without a Router.

    Rules for other modalities than text are left out. As in versions 5 and 6, the default is the
    first route if none is named and `allow_empty_key` is not false; an Asym of versions 2 to 4 let
    such texts pass without a route.

    Raises:
        InputError: see `modules.read_modules`, for each route; or there is more than one Router, or
            one in a route; or the config does not list the modules of each route, or names a route
            that is not there.
    """
    path = directory / "modules.json"
    entries = modules.read_entries(path) if path.is_file() else []
    positions = [index for index, (kind, _) in enumerate(entries) if kind in modules.ROUTERS]
    if not positions:
        return None
    if len(positions) > 1:
        raise InputError(f"{path}: found {len(positions)} modules with routes, expected one")
    before, (_, folder), after = (
        entries[: positions[0]],
        entries[positions[0]],
        entries[positions[0] + 1 :],
    )
    path = directory / folder / CONFIG
    path = path if path.is_file() else directory / folder / OLDER_CONFIG
    types, structure, parameters = _read_config(path)
    route_modules: dict[str, Sequence[tuple[str, str]]] = {}
    for route, names in structure.items():
        kinds = [modules.parse_kind(path, types[name]) for name in names]
        if set(kinds) & set(modules.ROUTERS):
            raise InputError(f"{path}: structure: {route}: a route within a route is not supported")
        inner = [(Path(folder) / modules.check_folder(path, name)).as_posix() for name in names]
        route_modules[route] = [*before, *zip(kinds, inner, strict=True), *after]
        modules.check_order(path, route_modules[route])
    default = parameters.get("default_route")
    if default is None and parameters.get("allow_empty_key", True):
        default = next(iter(route_modules))
    tasks = _tasks(path, parameters.get("route_mappings") or {})
    for field, target in (
        ("default_route", default),
        *(("route_mappings", route) for route in tasks.values()),
    ):
        if target is not None and target not in route_modules:
            raise InputError(f"{path}: {field}: {unknown('route', target, route_modules)}")
    return Routes(route_modules, default, tasks)


def write_router(directory: Path, routes: Routes) -> None:
    """Writes the config of a Router that is the only module, in the model's own directory."""
    config = {
        "types": {
            folder: modules.format_class_path(kind)
            for route in routes.modules.values()
            for kind, folder in route
        },
        "structure": {
            name: [folder for _, folder in route] for name, route in routes.modules.items()
        },
        "parameters": {
            "default_route": routes.default,
            "allow_empty_key": routes.default is not None,
            "route_mappings": {str((task, None)): route for task, route in routes.tasks.items()},
        },
    }
    write_json(directory / CONFIG, config)
    modules.write_modules(directory, [("Router", "")])


def _read_config(path: Path) -> tuple[dict[str, str], dict[str, list[str]], dict[str, Any]]:
    """Reads a Router's config: class names by module, modules by route, and its parameters."""
    config = read_json(path)
    types, structure, parameters = (
        config.get(name) for name in ("types", "structure", "parameters")
    )
    if (
        not isinstance(types, dict)
        or not isinstance(structure, dict)
        or not structure
        or not all(
            isinstance(names, list) and all(isinstance(types.get(str(name)), str) for name in names)
            for names in structure.values()
        )
        or not isinstance(parameters, dict | None)
    ):
        raise InputError(
            f'{path}: expected "types" of modules, a "structure" of routes that names them, '
            'and "parameters"'
        )
    parameters = check_fields(f"{path}: parameters.", parameters or {}, ROUTER)
    for name in parameters.keys() - set(PARAMETERS):
        raise InputError(f"{path}: parameters: {unknown('field', name, PARAMETERS)}")
    return types, structure, parameters


def _tasks(path: Path, rules: Mapping[str, str]) -> dict[str | None, str]:
    """Returns the route of each task for texts, from rules (task, modality) -> route.

    A rule for texts goes before one for all modalities.
    """
    tasks: dict[str | None, str] = {}
    try:
        parsed = [(*ast.literal_eval(key), route) for key, route in rules.items()]
        for chosen_modality in (None, TEXT):
            tasks |= {
                task: route for task, modality, route in parsed if modality == chosen_modality
            }
    except (ValueError, SyntaxError, TypeError, AttributeError):
        raise InputError(
            f"{path}: route_mappings: expected routes by \"('task', 'modality')\", found {rules!r}"
        ) from None
    return tasks
