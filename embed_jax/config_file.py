"""Fills a config: from its file and the command line, or from keyword arguments."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.config import Experiment, Source, flatten
from embed_jax.config_rules import unknown_field, validate
from embed_jax.errors import InputError


def load(argv: Sequence[str]) -> tuple[Experiment, Path]:
    """Reads `--config=FILE[:CUT] [--config.x.y=v ...] [--workdir=DIR]`.

    Args:
        argv: the command line, program name first.

    Returns:
        The validated experiment and the work directory (default: runs/NAME of the config file).

    Raises:
        InputError: a missing file, a file without `get_config`, an unknown field or a value of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    program = Path(argv[0]).stem
    usage = f"usage: python -m experiments.{program} --config=FILE[:CUT] [--config.FIELD=VALUE ...] [--workdir=DIR]"
    argv = _join_values(argv)
    argv[1:] = sorted(
        argv[1:], key=lambda argument: not argument.startswith("--config=")
    )  # the file comes first
    if "--help" in argv or "-h" in argv:
        print(usage + "\n\nFields and defaults:")
        named = {f"mixture.sources.NAME.{name}": value for name, value in flatten(Source()).items()}
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
    known = flatten(_get_config(Path(file), cut))
    for argument in argv[1:]:
        field, equals, _ = argument.removeprefix("--config.").partition("=")
        if argument.startswith("--config.") and field not in known:
            raise InputError(unknown_field(field, known))
        if not argument.startswith(("--config.", "--config=", "--workdir=")) or not equals:
            raise InputError(f"unknown argument {argument!r}; {usage}")

    values = flags.FlagValues()
    # With the cut always given, a `get_config` without a default is called rightly too.
    argv = [
        f"--config={file}:{cut}" if argument.startswith("--config=") else argument
        for argument in argv
    ]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    flags.DEFINE_string(
        "workdir", f"runs/{Path(file).stem}{'_' + cut if cut else ''}", "", flag_values=values
    )
    try:
        values(list(argv))
        config = holder.value
    except (
        Exception
    ) as error:  # ml_collections and absl raise many kinds, with tracebacks in their texts
        last = next(line for line in reversed(str(error).splitlines()) if line.strip())
        raise InputError(f"{file}: {last.strip()}") from error
    validate(config)
    return config, Path(values.workdir)


def _join_values(argv: Sequence[str]) -> list[str]:
    """`--config FILE` as `--config=FILE`: both spellings are in use."""
    joined, rest = [argv[0]], list(argv[1:])
    while rest:
        argument = rest.pop(0)
        takes_value = argument.startswith(("--config", "--workdir")) and "=" not in argument
        joined.append(f"{argument}={rest.pop(0)}" if takes_value and rest else argument)
    return joined


def _get_config(file: Path, cut: str) -> Experiment:
    """Runs the config file's `get_config`, for its fields' names and for errors in one line."""
    import runpy

    if not file.is_file():
        raise InputError(f"config file not found: {file}")
    try:
        module = runpy.run_path(str(file))
    except Exception as error:
        raise InputError(f"{file}: {type(error).__name__}: {error}") from error
    if "get_config" not in module:
        raise InputError(f"{file}: defines no get_config(cut)")
    try:
        config = module["get_config"](cut)
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{file}:{cut}: {type(error).__name__}: {error}") from error
    if not isinstance(config, Experiment):
        raise InputError(
            f"{file}: get_config returned {type(config).__name__}, expected embed_jax.config.Experiment"
        )
    return config


def override(config: Experiment, **fields: Any) -> Experiment:
    """Sets fields by dotted name with "__" for the dot: `override(config, optim__learning_rate=1e-5)`.

    Raises:
        InputError: for an unknown field or a bad value.
    """
    known = flatten(config)
    for name, value in fields.items():
        path = name.replace("__", ".")
        if path not in known:
            raise InputError(unknown_field(path, known))
        *parents, leaf = path.split(".")
        part = config
        for parent in parents:
            part = getattr(part, parent)
        setattr(part, leaf, value)
    validate(config)
    return config
