"""Fills a config: from its file and the command line, or from keyword arguments."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.config import NAMED, Experiment, flatten, named_parts
from embed_jax.config_fields import rules_of
from embed_jax.config_rules import meant_field, rules_by_field, unknown_field, validate
from embed_jax.errors import InputError
from embed_jax.packaged import config_path
from embed_jax.registry import unknown

EXTEND = "--extend"  # on the command line for --config.train.extend=True


def load_config(argv: Sequence[str]) -> tuple[Experiment, Path]:
    """Reads `--config=FILE[:CUT] [--config.x.y=v ...] [--workdir=DIR] [--extend]`.

    Args:
        argv: the command line, program name first. FILE is a Python file with `get_config`, or a
            run's `config.json`. `--help` prints all fields, `--help=PART` those of one part, with
            the values of FILE if there is one.

    Returns:
        The validated experiment and the work directory. Its default is runs/NAME of a Python file;
        of a run's `config.json` it is the run's own directory, so that the run is resumed.

    Raises:
        InputError: a missing file, a file without `get_config`, an unknown field or a value that
            the field does not accept.
    """
    program = argv[0]
    if not program.startswith("embed-jax "):
        program = f"python -m experiments.{Path(program).stem}"
    usage = (
        f"usage: {program} --config=FILE[:CUT] [--config.FIELD=VALUE ...] "
        f"[--workdir=DIR] [{EXTEND}] [--help[=PART]]"
    )
    arguments = _join_values(argv)[1:]
    files = [argument[9:] for argument in arguments if argument.startswith("--config=")]
    asked_help = [arg for arg in arguments if arg in ("-h", "--help") or arg.startswith("--help=")]
    if len(files) > 1 or not (files or asked_help):
        raise InputError(f"expected one --config=FILE, found {len(files)}; {usage}")
    named, _, cut = files[0].partition(":") if files else ("", "", "")
    file = Path(config_path(named))
    config = _read_file(file, cut) if files else Experiment()
    workdir = _default_workdir(file, cut)
    rules = rules_by_field(config)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        field = name.removeprefix("--config.")
        if argument == EXTEND:
            config.train.extend = True
        elif name == "--workdir" and equals:
            workdir = value
        elif name.startswith("--config.") and equals:
            if field not in rules:
                raise InputError(unknown_field(field, rules))
            _set(config, field, rules[field].read(value, f"config.{field}"))
        elif name != "--config" and argument not in asked_help:
            meant = meant_field(field.removeprefix("--"), rules)
            advice = f"; did you mean --config.{meant}={value or 'VALUE'}?" if meant else ""
            raise InputError(f"unknown argument {argument!r}{advice or '; ' + usage}")
    if asked_help:
        print(help_text(config, usage, asked_help[0].partition("=")[2]))
        raise SystemExit(0)
    validate(config)
    return config, Path(workdir)


def help_text(config: Experiment, usage: str, part: str = "") -> str:
    """Returns the text of `--help`: each field with its value, what it accepts and its help.

    Args:
        config: whose values to show.
        usage: the first lines.
        part: such as "optim"; "": all parts.

    Raises:
        InputError: for an unknown part.
    """
    parts = [field.name for field in dataclasses.fields(Experiment)]
    if part and part not in parts:
        raise InputError(f"--help: {unknown('part', part, parts)}")
    lines = [*textwrap.wrap(usage, 80, subsequent_indent="    ")]
    for name in [part] if part else parts:
        if name == "stages":
            lines += ["", "stages: NAME = Experiment(...), trained one after the other"]
            lines += ["  --config.stages.NAME.FIELD: any field, of a stage that the file has"]
            continue
        held = getattr(config, name)
        title = f"{name}: {(inspect.getdoc(type(held)) or name).splitlines()[0]}"
        lines += ["", *textwrap.wrap(title, 80, subsequent_indent="    ")]
        lines += _help_lines(held, f"{name}.")
    return "\n".join(lines)


def _help_lines(part: Any, path: str) -> list[str]:
    lines: list[str] = []
    for name, value in vars(part).items():
        kind = NAMED.get(f"{path}{name}")
        if kind is not None:
            for entry, named in (vars(value) or {"NAME": kind()}).items():
                lines += _help_lines(named, f"{path}{name}.{entry}.")
            continue
        rule = rules_of(type(part))[name]
        lines.append(f"  --config.{path}{name}={rule.show(value)}")
        text = f"{rule.help} Accepts {rule.describe()}."
        lines += textwrap.wrap(text, 80, initial_indent="      ", subsequent_indent="      ")
    return lines


def _set(config: Experiment, field: str, value: Any) -> None:
    """Sets a field by its dotted name."""
    *parents, leaf = field.split(".")
    part = functools.reduce(getattr, parents, config)
    setattr(part, leaf, value)


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
        return read_run_config(file)
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
            f"{file}: get_config returned {type(config).__name__}, expected "
            "embed_jax.config.Experiment"
        )
    return config


def read_run_config(file: Path) -> Experiment:
    """Reads the settings of a run from its `config.json`.

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
    stages = content.get("stages", {})
    for part, kind in NAMED.items():
        entries = functools.reduce(lambda held, name: held.get(name, {}), part.split("."), content)
        for name in entries if kind is not Experiment else ():
            named_parts(config, part)[name] = kind()
    _fill(config, {name: value for name, value in content.items() if name != "stages"}, place)
    for name, stage in stages.items():
        setattr(config.stages, name, _of_json(stage, f"{place}stages.{name}."))
    return config


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
    """Sets fields by dotted name with "__" for the dot, such as `optim__learning_rate=1e-5`.

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
        _set(config, path, value)
    validate(config)
    return config
