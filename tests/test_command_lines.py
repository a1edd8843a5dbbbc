"""Every command line that a README, a config or a command shows can be parsed."""

import ast
import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from embed_jax import __main__ as console
from embed_jax import config_file, packaged
from embed_jax.errors import exit_with_one_line

ROOT = Path(__file__).parent.parent
START = r"(?:python -m (?:scripts|experiments)\.\w+|(?:python -m embed_jax|embed-jax) \w+)"
# Words for something of one's own, and what stands there in the test.
PLACEHOLDERS = {"D": "8", "F": "8", "DIR": "directory", "N": "4", "$M": "--model=DIR"}


def texts():
    """Yields (path, text) of READMEs, and of docstrings and strings of configs and commands."""
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
    """Returns the commands of a text.

    They are whole lines, or stand between backticks.
    """
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


def split_words(line: str) -> list[str]:
    """Returns the module that a command line runs, and its arguments."""
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line, comments=True)]
    words = words[2:] if words[0] == "python" else words
    if words[0] in ("embed-jax", "embed_jax"):
        part, name = ("experiments", words[2]) if words[1] == "train" else ("scripts", words[1])
        assert part == "experiments" or name in console.COMMANDS
        words = [f"{part}.{name}", *words[3 if part == "experiments" else 2 :]]
    return words


@pytest.mark.parametrize("line", LINES, ids=lambda line: f"{LINES[line]}: {line[:60]}")
def test_shown_command_line_parses(line, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("embed_jax.errors.require", lambda module: None)
    module, *arguments = split_words(line)
    if module.startswith("experiments."):
        packaged.check_experiment(module.partition(".")[2])
        config_file.load_config([module, *arguments])
    else:
        importlib.import_module(packaged.main_module(module)).parse(arguments)


# ---- those that finish in seconds are run --------------------------------------------------------

RUN = {  # a command line of scripts/README.md or embed_jax/data/README.md: the file that it writes
    "python -m scripts.encode --model runs/mine/model --input texts.txt --output "
    "vectors.npy": "vectors.npy",
    "python -m scripts.evaluate run --model runs/mine/model --task sts --data stsb/test.tsv": "",
    "python -m scripts.audit --data pairs.jsonl": "",
    "python -m scripts.pairs groups --input tickets.jsonl --output pairs.jsonl": "pairs.jsonl",
    "python -m scripts.pairs clicks --input clicks.tsv --corpus corpus.jsonl --output "
    "pairs.jsonl": ("pairs.jsonl"),
    "python -m scripts.mine --pairs pairs.jsonl --corpus corpus.jsonl --strategy bm25 --output "
    "mined.jsonl": ("mined.jsonl"),
    "python -m scripts.merge --models runs/a/model,runs/b/model --output runs/merged": (
        "runs/merged/model.safetensors"
    ),
}


@pytest.fixture
def workplace(tmp_path, tiny_model, sentences, monkeypatch):
    """A working directory with a model and files of the names that the READMEs use."""
    for name in ("a", "b", "mine"):
        shutil.copytree(tiny_model, tmp_path / "runs" / name / "model")
    texts = sentences[:24]
    pairs = [{"anchor": f"what is {text}", "positive": text} for text in texts]
    records = {
        "pairs.jsonl": pairs,
        "corpus.jsonl": [{"_id": f"d{n}", "text": text} for n, text in enumerate(texts)],
        "tickets.jsonl": [{"text": text, "group": n // 2} for n, text in enumerate(texts)],
    }
    for name, rows in records.items():
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "texts.txt").write_text("\n".join(texts) + "\n")
    clicks = [f"query {n}\td{n}\t3" for n in range(len(texts))]
    (tmp_path / "clicks.tsv").write_text("\n".join(["query\tdoc_id\tclicks", *clicks]) + "\n")
    scored = [f"{n % 5}\t{text}\t{texts[n // 2]}" for n, text in enumerate(texts)]
    (tmp_path / "stsb").mkdir()
    (tmp_path / "stsb" / "test.tsv").write_text(
        "\n".join(["score\tsentence1\tsentence2", *scored]) + "\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("embed_jax.runtime.enable_compilation_cache", lambda: None)
    return tmp_path


@pytest.mark.parametrize("line", RUN)
def test_shown_command_line_runs(line, workplace, monkeypatch, capsys):
    assert any(shown.split("  #")[0].strip() == line for shown in LINES), "not in a README"
    module, *arguments = split_words(line)
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    with pytest.raises(SystemExit) as ended:
        exit_with_one_line(importlib.import_module(packaged.main_module(module)).main)
    out, err = capsys.readouterr()
    assert ended.value.code == 0, err
    assert out and (workplace / RUN[line]).exists()
