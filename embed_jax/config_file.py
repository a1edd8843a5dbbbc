"""Fills a config: from its file and the command line, or from keyword arguments."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.config import NAMED, Experiment, flatten, named_parts
from embed_jax.config_rules import meant_field, unknown_field, validate
from embed_jax.errors import InputError
from embed_jax.packaged import config_path

EXTEND = "--extend"  # on the command line for --config.train.extend=True


def load(argv: Sequence[str]) -> tuple[Experiment, Path]:
    """Reads `--config=FILE[:CUT] [--config.x.y=v ...] [--workdir=DIR] [--extend]`.

    Args:
        argv: the command line, program name first. FILE is a Python file with `get_config`, or a
            run's `config.json`.

    Returns:
        The validated experiment and the work directory. Its default is runs/NAME of a Python file;
        of a run's `config.json` it is the run's own directory, so that the run is resumed.

    Raises:
        InputError: a missing file, a file without `get_config`, an unknown field or a value of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    program = argv[0]
    if not program.startswith("embed-jax "):
        program = f"python -m experiments.{Path(program).stem}"
    usage = f"usage: {program} --config=FILE[:CUT] [--config.FIELD=VALUE ...] [--workdir=DIR] [{EXTEND}]"
    argv = _join_values(argv)
    argv = ["--config.train.extend=True" if argument == EXTEND else argument for argument in argv]
    argv[1:] = sorted(
        argv[1:], key=lambda argument: not argument.startswith("--config=")
    )  # the file comes first
    if "--help" in argv or "-h" in argv:
        print(usage + "\n\nFields and defaults:")
        named = {
            f"{part}.NAME.{name}": value
            for part, kind in NAMED.items()
            if kind is not Experiment
            for name, value in flatten(kind()).items()
        }
        for name, value in (flatten(Experiment()) | named).items():
            print(f"  --config.{name}={value}")
        print("  --config.stages.NAME.FIELD: any of these, for a stage that the file names NAME")
        raise SystemExit(0)
    named = [
        argument.removeprefix("--config=") for argument in argv if argument.startswith("--config=")
    ]
    if len(named) != 1:
        raise InputError(f"expected one --config=FILE, found {len(named)}; {usage}")
    file, _, cut = named[0].partition(":")
    file = str(config_path(file))
    config = _read_file(Path(file), cut)
    known = flatten(config)
    for argument in argv[1:]:
        field, equals, value = argument.removeprefix("--config.").partition("=")
        if argument.startswith("--config.") and field not in known:
            raise InputError(unknown_field(field, known))
        if not argument.startswith(("--config.", "--config=", "--workdir=")) or not equals:
            meant = meant_field(field.removeprefix("--"), known)
            advice = f"; did you mean --config.{meant}={value or 'VALUE'}?" if meant else ""
            raise InputError(f"unknown argument {argument!r}{advice or '; ' + usage}")

    values = flags.FlagValues()
    argv = [argument for argument in argv if not argument.startswith("--config=")]
    holder = config_flags.DEFINE_config_dataclass(
        "config", config, flag_values=values, sys_argv=argv
    )
    flags.DEFINE_string("workdir", _default_workdir(Path(file), cut), "", flag_values=values)
    try:
        values(list(argv))
        config = holder.value
    except (
        Exception
    ) as error:  # ml_collections and absl raise many kinds, tracebacks in their texts
        last = next(line for line in reversed(str(error).splitlines()) if line.strip())
        raise InputError(f"{file}: {last.strip()}") from error
    validate(config)
    return config, Path(values.workdir)


def _default_workdir(file: Path, cut: str) -> str:
    if file.name == "config.json" and (file.parent / "data.json").exists():
        return str(file.parent)
    return f"runs/{file.stem}{'_' + cut if cut else ''}"


def _join_values(argv: Sequence[str]) -> list[str]:
    """`--config FILE` as `--config=FILE`: both spellings are in use."""
    joined, rest = [argv[0]], list(argv[1:])
    while rest:
        argument = rest.pop(0)
        takes_value = argument.startswith(("--config", "--workdir")) and "=" not in argument
        joined.append(f"{argument}={rest.pop(0)}" if takes_value and rest else argument)
    return joined


def _read_file(file: Path, cut: str) -> Experiment:
    """The config that a Python file's `get_config` returns, or that a run's config.json holds."""
    import runpy

    if not file.is_file():
        raise InputError(f"config file not found: {file}")
    if file.suffix == ".json":
        if cut:
            raise InputError(f"{file}: a run's config has no cuts, found {cut!r}")
        return read_json(file)
    try:
        module = runpy.run_path(str(file))
    except Exception as error:
        raise InputError(f"{file}: {type(error).__name__}: {error}") from error
    if "get_config" not in module:
        raise InputError(f"{file}: defines no get_config(cut)")
    try:
        takes_cut = bool(inspect.signature(module["get_config"]).parameters)
        if cut and not takes_cut:
            raise InputError(f"{file}: get_config() has no cuts, found {cut!r}")
        config = module["get_config"](cut) if takes_cut else module["get_config"]()
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file}:{cut}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Experiment):
        raise InputError(
            f"{file}: get_config returned {type(config).__name__}, expected embed_jax.config.Experiment"
        )
    return config


def read_json(file: Path) -> Experiment:
    """The settings of a run, from its `config.json`.

    Raises:
        InputError: if the file is missing or damaged, or has an unknown field or a bad value.
    """
    try:
        config = _of_json(json.loads(file.read_text(encoding="utf-8")))
        validate(config)
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as error:
        # An InputError is a ValueError.
        raise InputError(f"{file}: no settings of a run: {error}") from None
    return config


def _of_json(content: dict[str, Any], place: str = "") -> Experiment:
    config = Experiment()
    for part, kind in NAMED.items():
        if kind is not Experiment:
            for name in _part_of(content, part):
                named_parts(config, part)[name] = kind()
    stages = content.get("stages", {})
    _fill(config, {name: value for name, value in content.items() if name != "stages"}, place)
    for name, stage in stages.items():
        setattr(config.stages, name, _of_json(stage, f"{place}stages.{name}."))
    return config


def _part_of(content: dict[str, Any], part: str) -> dict[str, Any]:
    """What config.json holds by name in a part; {} where the file is older than the part."""
    for name in part.split("."):
        content = content.get(name, {})
    return content


def _fill(settings: Any, content: dict[str, Any], place: str) -> None:
    for name, value in content.items():
        if name not in vars(settings):
            raise InputError(
                unknown_field(f"{place}{name}", [f"{place}{field}" for field in vars(settings)])
            )
        if isinstance(value, dict):
            _fill(getattr(settings, name), value, f"{place}{name}.")
        else:
            setattr(settings, name, value)


def override(config: Experiment, **fields: Any) -> Experiment:
    """Sets fields by dotted name with "__" for the dot: `override(config, optim__learning_rate=1e-5)`.

    Raises:
        InputError: for an unknown field or a bad value.
    """
    known = flatten(config)
    for name, value in fields.items():
        path = name.replace("__", ".")
        if path not in known:
            meant = meant_field(path, known).replace(".", "__")
            advice = f"; did you mean {meant}?" if meant else f": {unknown_field(path, known)}"
            raise InputError(f"unknown argument {name!r}{advice}")
        *parents, leaf = path.split(".")
        part = config
        for parent in parents:
            part = getattr(part, parent)
        setattr(part, leaf, value)
    validate(config)
    return config
