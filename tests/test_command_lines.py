"""Every command line that a README, a config or a command shows can be parsed."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest

from embed_jax import __main__ as console
from embed_jax import config_file, packaged

ROOT = Path(__file__).parent.parent
START = r"(?:python -m (?:scripts|experiments)\.\w+|(?:python -m embed_jax|embed-jax) \w+)"
# Words for something of one's own, and what stands there in the test.
PLACEHOLDERS = {"D": "8", "F": "8", "DIR": "directory", "N": "4", "$M": "--model=DIR"}


def texts():
    """(where, text) of all READMEs, and of the docstrings and examples of configs and commands."""
    for path in sorted(ROOT.glob("**/README.md")):
        if not {".venv", "runs", "build"} & set(path.relative_to(ROOT).parts):
            yield path, path.read_text(encoding="utf-8")
    for pattern in (
        "configs/**/*.py",
        "experiments/*.py",
        "scripts/**/*.py",
        "embed_jax/__main__.py",
    ):
        for path in sorted(ROOT.glob(pattern)):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield path, node.value
    for path in sorted((ROOT / "configs").rglob("*.yaml")):
        yield path, re.sub(r"(?m)^#", " ", path.read_text(encoding="utf-8"))


def command_lines(text: str) -> list[str]:
    """Returns the commands of a text: whole lines that start with one, and those between backticks."""
    text = re.sub(r"\\\n\s*", " ", text)
    lines = re.findall(rf"(?m)^[ $]*({START} .*)$", text)
    lines += [" ".join(line.split()) for line in re.findall(rf"`({START} [^`]+)`", text)]
    return lines


def shown() -> dict[str, str]:
    lines = {}
    for path, text in texts():
        for line in command_lines(text):
            # Without an option it is the name of a command.
            if " -" in line[9:] and not re.search(r"\.\.\.|--help|[{}]", line):
                lines.setdefault(line, path.relative_to(ROOT).as_posix())
    return lines


LINES = shown()


def test_command_lines_are_found():
    places = {place.split("/")[0] for place in LINES.values()}
    assert places >= {"README.md", "configs", "experiments", "scripts"} and len(LINES) > 60


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{LINES[line]}: {line[:60]}")
def test_shown_command_line_parses(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("embed_jax.errors.require", lambda module: None)
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
    words = words[2:] if words[0] == "python" else words
    if words[0] in ("embed-jax", "embed_jax"):
        part, name = ("experiments", words[2]) if words[1] == "train" else ("scripts", words[1])
        assert part == "experiments" or name in console.COMMANDS
        words = [f"{part}.{name}", *words[3 if part == "experiments" else 2 :]]
    module, *arguments = words
    if module.startswith("experiments."):
        packaged.check_experiment(module.partition(".")[2])
        config_file.load_config([module, *arguments])
    else:
        importlib.import_module(packaged.main_module(module)).parse(arguments)
