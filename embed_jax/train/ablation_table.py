"""Tables of training runs as data: what a table's file defines, read and checked.

    table = read_ablation_table(Path("configs/simcse/tables/dropout.py"))
    print(table.title, list(table.rows), table.paper)

`python -m scripts.ablate --help` has the names that a file may define.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import runpy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, one_line
from embed_jax.packaged import config_path
from embed_jax.registry import unknown

CHECKED = ("text", "repository")  # against what a paper's numbers were checked, digit by digit
BY_SIZE = "by_size/"  # as X: the size of a cut embedding
Claim = tuple[str, str, str]  # a row, "<" or ">", and another row


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of training runs.

    Attributes:
        file: where it is defined.
        title: the first line of the file's docstring.
        experiment: module of `experiments`.
        config: config file with its cut, of the small form that two cores run.
        rows: by the row's name, the config fields in which it differs.
        metrics: columns; PAPER and CLAIMS are about the first.
        paper: the paper's numbers, by row.
        source: the paper and its table.
        checked: one of CHECKED; numbers from memory or from second hand are not shown.
        claims: what the paper's numbers say, or its author expects: which of two rows is better.
        full: config file of the paper's setting; empty: no such config.
        full_metrics: columns in the paper's setting; empty: those of `metrics`.
        minutes: of two cores for a seed of all rows.
        gpu_hours: of one current GPU for a seed of all rows in the paper's setting.
        scale: factor for our numbers when shown.
        x: for pictures, a config field, a metric or BY_SIZE.
        lines: for pictures, a config field.
    """

    file: Path
    experiment: str
    config: str
    rows: Mapping[str, Mapping[str, Any]]
    title: str = ""
    metrics: Sequence[str] = ("best",)
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    source: str = ""
    checked: str = ""
    claims: Mapping[str, Claim] = dataclasses.field(default_factory=dict)
    full: str = ""
    full_metrics: Sequence[str] = ()
    minutes: float = 0
    gpu_hours: float = 0
    scale: float = 1
    x: str = ""
    lines: str = ""

    @property
    def name(self) -> str:
        """The name of its results: "simcse_dropout" of configs/simcse/tables/dropout.py."""
        family = self.file.parent.parent.name if self.file.parent.name == "tables" else ""
        return f"{family}_{self.file.stem}".strip("_")

    def in_full(self) -> Table:
        """Returns the table in the paper's setting: its config and columns.

        Raises:
            InputError: the table has no such config.
        """
        if not self.full:
            raise InputError(f"{self.file}: it has no FULL, the config of the paper's setting")
        metrics = self.full_metrics or self.metrics
        return dataclasses.replace(self, config=self.full, metrics=metrics)

    def format_value(self, value: float, sign: str = "") -> str:
        """Formats a number with SCALE, to four decimals of the measured one; `sign` may be "+"."""
        return f"{self.scale * value:{sign}.{max(4 - round(math.log10(self.scale)), 0)}f}"


def all_tables() -> list[Path]:
    """Returns the files of all tables that the project has, by name."""
    return sorted(config_path(Path("configs")).glob("*/tables/*.py"))


def read_ablation_table(file: Path) -> Table:
    """Reads a table's file.

    Raises:
        InputError: if it cannot be run, or its definitions are not as expected.
    """
    file = config_path(file)
    if not file.is_file():
        raise InputError(f"{file}: no such file")
    try:
        defined = runpy.run_path(str(file))
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    except Exception as error:
        raise InputError(f"{file}: {type(error).__name__}: {one_line(error)}") from error
    fields = [field.name for field in dataclasses.fields(Table) if field.name not in BY_ITSELF]
    constants = [field.upper() for field in fields]
    for name in defined:
        meant = difflib.get_close_matches(name, constants, 1, 0.8) if name.isupper() else []
        if name not in constants and meant and meant[0] not in defined:
            raise InputError(f"{file}: {unknown('constant', name, constants)}")
    values = {name: defined[name.upper()] for name in fields if name.upper() in defined}
    for name, kind in KINDS.items():
        if name not in values:
            continue
        if isinstance(values[name], bool) or not isinstance(values[name], kind):
            raise InputError(
                f"{file}: {name.upper()}: expected {kind_name(kind)}, found {values[name]!r}"
            )
    for name in ("experiment", "config", "rows"):
        if not values.get(name):
            raise InputError(
                f"{file}: {name.upper()}: expected {kind_name(KINDS[name])}, found "
                f"{values.get(name)!r}"
            )
    table = Table(file, title=text.partition("\n")[0].removesuffix("."), **values)
    for name in ("metrics", "full_metrics"):
        if not all(isinstance(metric, str) for metric in getattr(table, name)):
            raise InputError(
                f"{file}: {name.upper()}: expected a tuple of names, found {getattr(table, name)!r}"
            )
    if not table.scale > 0:
        raise InputError(f"{file}: SCALE: expected a positive number, found {table.scale!r}")
    _check_rows(table)
    _check_paper(table)
    return table


BY_ITSELF = ("file", "title")
KINDS: dict[str, Any] = {
    **dict.fromkeys(("experiment", "config", "source", "checked", "full", "x", "lines"), str),
    **dict.fromkeys(("rows", "paper", "claims"), dict),
    **dict.fromkeys(("minutes", "gpu_hours", "scale"), (int, float)),
    **dict.fromkeys(("metrics", "full_metrics"), (tuple, list)),
}


def kind_name(kind: Any) -> str:
    """Returns what a message calls a type of KINDS."""
    names = {str: "a string", dict: "a dict", (int, float): "a positive number"}
    return names.get(kind, "a tuple of names")


def _check_rows(table: Table) -> None:
    for row, overrides in table.rows.items():
        if not isinstance(row, str) or not row.strip(". ") or set("/,\n") & set(row):
            raise InputError(
                f"{table.file}: ROWS: expected names without '/' and ',', found {row!r}"
            )
        if not isinstance(overrides, dict):
            raise InputError(
                f"{table.file}: ROWS[{row!r}]: expected a dict of config fields, found "
                f"{overrides!r}"
            )
        for field, value in overrides.items():
            if not isinstance(value, bool | int | float | str):
                raise InputError(
                    f"{table.file}: ROWS[{row!r}]: {field}: expected a number, a bool or a string: "
                    f"{value!r}"
                )


def _check_paper(table: Table) -> None:
    """Checks PAPER with its source, and CLAIMS against PAPER: a claim says what the numbers say."""
    for row, value in table.paper.items():
        if row not in table.rows:
            raise InputError(f"{table.file}: PAPER: " + unknown("row", row, table.rows))
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputError(f"{table.file}: PAPER[{row!r}]: expected a number, found {value!r}")
    if table.paper and not table.source:
        raise InputError(f"{table.file}: SOURCE: expected the paper and its table, found ''")
    if table.paper and table.checked not in CHECKED:
        raise InputError(
            f"{table.file}: CHECKED: expected one of {', '.join(CHECKED)}, against which the "
            f"paper's numbers were checked, found {table.checked!r}"
        )
    for name, claim in table.claims.items():
        where = f"{table.file}: CLAIMS[{name!r}]"
        if not isinstance(claim, tuple) or len(claim) != 3 or claim[1] not in ("<", ">"):
            raise InputError(f"{where}: expected (row, '<' or '>', row), found {claim!r}")
        for row in (claim[0], claim[2]):
            if row not in table.rows:
                raise InputError(f"{where}: " + unknown("row", row, table.rows))
        left, right = (table.paper.get(row) for row in (claim[0], claim[2]))
        if left is not None and right is not None and (left < right) != (claim[1] == "<"):
            raise InputError(f"{where}: the paper's numbers are {left} and {right}")
