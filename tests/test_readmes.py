"""README files: generated tables are up to date, links lead somewhere, code is Python.

`python tests/test_readmes.py` writes the tables between "begin table" and "end table" anew.
"""

import ast
import configparser
import importlib
import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from embed_jax import __main__ as console
from embed_jax import config_file
from embed_jax.errors import InputError
from embed_jax.losses.base import NEEDS
from embed_jax.registry import REGISTRY, lookup

ROOT = Path(__file__).resolve().parent.parent
FIELDS = ("Paper", "Expected", "Measured")
TABLE = re.compile(r"(<!-- begin table: ([\w ]+) -->\n)(.*?)(<!-- end table -->)", re.DOTALL)


def read_readmes() -> dict[Path, str]:
    """Returns the text of every README of the repository by its path."""
    ignored = {".venv", "runs", "build", "dist"}
    return {
        path: path.read_text(encoding="utf-8")
        for path in sorted(ROOT.rglob("README.md"))
        if not ignored & set(path.relative_to(ROOT).parts)
    }


# ---- tables --------------------------------------------------------------------------------------


def _table(head: Sequence[str], rows: Iterator[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _first_line(documented: object) -> str:
    """Returns the first paragraph of a docstring in one line, without the full stop at its end."""
    text = inspect.getdoc(documented) or ""
    return " ".join(text.split("\n\n")[0].split()).removesuffix(".")


def config_fields(path: Path) -> dict[str, str]:
    """Returns a config's title, and "Paper", "Expected" and "Measured" of its docstring.

    Raises:
        AssertionError: if one of them is missing.
    """
    text = inspect.cleandoc(ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "")
    fields = {"": text.split("\n", 1)[0].removesuffix(".")}
    for name in FIELDS:
        match = re.search(rf"^{name}: (.*?)(?=^\w+:|\Z)", text, re.DOTALL | re.MULTILINE)
        assert match, f"{path.relative_to(ROOT)}: the docstring has no paragraph '{name}: ...'"
        fields[name] = " ".join(match[1].split()).removesuffix(".")
    return fields


def _link(path: Path) -> str:
    name = path.relative_to(ROOT / "configs").as_posix()
    return f"[`{name}`]({name})"


def _epochs(count: float) -> str:
    return f"{count:g} epoch" + "s" * (count != 1)


def _cost(path: Path) -> str:
    """Returns model, length and number of batches of a config, stage by stage, and its cuts."""
    config, _ = config_file.load_config(["config", f"--config={path}"])
    stages = {"": config} | dict(vars(config.stages))
    lengths = [
        f"{name + ': ' if name else ''}"
        + (f"{stage.train.steps:,} steps" if stage.train.steps else _epochs(stage.train.epochs))
        + f" of {stage.batch.size}, {stage.data.max_length} tokens"
        for name, stage in stages.items()
    ]
    with pytest.raises(InputError, match="unknown cut") as refused:
        config_file.load_config(["config", f"--config={path}:no-such-cut"])
    cuts = re.search(r"known: ([\w., -]+)", str(refused.value))[1].split(", ")
    named = ", ".join(f"`:{cut}`" for cut in cuts)
    return f"{config.model.name}; {'; '.join(lengths)}" + (f"; {named}" if named else "")


def _configs() -> str:
    rows = []
    for path in sorted((ROOT / "configs").glob("*/*.py")):
        fields = config_fields(path)
        rows.append((_link(path), fields[""], *(fields[name] for name in FIELDS), _cost(path)))
    return _table(("config", "trains", "paper", "expected", "measured", "cost"), rows)


def _config_tables() -> str:
    rows = []
    for path in sorted((ROOT / "configs").glob("*/tables/*.py")):
        fields = config_fields(path)
        rows.append((_link(path), fields[""], *(fields[name] for name in FIELDS)))
    return _table(("table", "what", "paper", "expected", "measured"), rows)


def _losses() -> str:
    rows = []
    for name, target in REGISTRY["loss"].items():
        loss = lookup("loss", name)
        least, most = loss.about.columns
        texts = f"{least}" if least == most else f"{least}-{most}" if most else f"{least}+"
        needs = [need for need in NEEDS if need in loss.about.needs]
        if "similarity" in loss.parameters:
            needs.append("`similarity`")
        module = target.split(":")[0].rpartition(".")[2]
        rows.append(
            (
                f"`{name}`",
                _first_line(loss),
                texts,
                ", ".join(needs),
                "all" if loss.about.tiled else "dense",
                f"[`{module}`]({module}.py)",
            )
        )
    return _table(("loss", "value of an example", "texts", "needs", "forms", "module"), rows)


def _registered(kind: str, folder: str = "") -> str:
    """Returns the names of a kind with the first line of the module that each is bound to."""
    rows = []
    for name, target in REGISTRY[kind].items():
        module = target.split(":")[0]
        file = f"{folder}{module.rpartition('.')[2]}.py"
        text = _first_line(importlib.import_module(module))
        rows.append((f"`{name}`", text, f"[`{file}`]({file})"))
    return _table((kind, "what", "module"), rows)


def _backbones() -> str:
    """Returns the backbones by file, with the classes of transformers that they equal."""
    rows: dict[str, tuple[list[str], list[str]]] = {}
    for name, target in REGISTRY["backbone"].items():
        names, classes = rows.setdefault(target.split(":")[0].rpartition(".")[2], ([], []))
        names.append(f"`{name}`")
        classes.append(lookup("backbone", name).architecture)
    return _table(
        ("`model_type` of config.json", "transformers' class", "module"),
        (
            (" ".join(names), ", ".join(dict.fromkeys(classes)), f"[`{file}.py`]({file}.py)")
            for file, (names, classes) in rows.items()
        ),
    )


def _commands() -> str:
    rows = []
    for name, text in console.COMMANDS.items():
        file = (
            f"{name}.py" if (ROOT / "scripts" / f"{name}.py").is_file() else f"{name}/__main__.py"
        )
        rows.append((f"[`{name}`]({file})", text))
    return _table(("command", "what"), rows)


TABLES: dict[str, Callable[[], str]] = {
    "configs": _configs,
    "config tables": _config_tables,
    "losses": _losses,
    "backbones": _backbones,
    "tasks": lambda: _registered("task"),
    "sources": lambda: _registered("source", "sources/"),
    "commands": _commands,
}


def with_tables(text: str) -> str:
    """Returns a README's text with its generated tables as they should be."""
    return TABLE.sub(lambda match: f"{match[1]}\n{TABLES[match[2]]()}\n{match[4]}", text)


README = read_readmes()
NAMES = [path.relative_to(ROOT).as_posix() for path in README]


@pytest.mark.parametrize("name", [name for name in NAMES if "begin table" in README[ROOT / name]])
def test_generated_tables_are_up_to_date(name):
    text = README[ROOT / name]
    assert with_tables(text) == text, "run: python tests/test_readmes.py"


def test_every_table_is_shown_once():
    shown = [match[1] for text in README.values() for match in TABLE.findall(text)]
    assert sorted(shown) == sorted(TABLES)


# ---- links and code ------------------------------------------------------------------------------


def _anchors(text: str) -> set[str]:
    headings = re.findall(r"(?m)^#+ (.*)$", text)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name):
    path = ROOT / name
    for link in re.findall(r"\]\(([^)\s]+)\)", README[path]):
        if link.startswith("http"):
            continue
        file, _, heading = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{name}: {link} does not exist"
        assert not heading or heading in _anchors(README[target]), f"{name}: no heading {link}"


@pytest.mark.parametrize("name", NAMES)
def test_python_in_a_readme_compiles(name):
    for code in re.findall(r"```python\n(.*?)```", README[ROOT / name], re.DOTALL):
        compile(code, name, "exec")


@pytest.mark.parametrize("name", NAMES)
def test_shell_scripts_test_files_and_extras_exist(name):
    text = README[ROOT / name]
    for line in re.findall(r"bash ((?:scripts|\.ci)/[^`#\n]*)", text):
        words = [line.split()[0], *re.findall(r"(?:scripts|tests|\.ci)/\S*", line)]
        assert all((ROOT / word.rstrip(":")).exists() for word in words), f"{name}: bash {line}"
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for extras in re.findall(r"(?:embed-jax|\.|\.whl)\[([\w,]+)\]", text):
        assert set(extras.split(",")) <= set(setup["options.extras_require"]), f"{name}: [{extras}]"


def test_the_top_readme_is_short():
    lines = README[ROOT / "README.md"].splitlines()
    assert len(lines) <= 140


def test_pictures_are_small():
    for picture in (ROOT / "experiments" / "results").rglob("*.*"):
        assert picture.stat().st_size < 100_000, picture.name


if __name__ == "__main__":
    for path, text in README.items():
        if with_tables(text) != text:
            path.write_text(with_tables(text), encoding="utf-8")
            print(f"{path.relative_to(ROOT)}: tables written")
