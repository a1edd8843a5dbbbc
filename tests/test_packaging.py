"""An installed package has every module of the repository, and nothing beside `embed_jax`."""

import configparser
import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from embed_jax import __main__ as command
from embed_jax import config_file, packaged
from embed_jax.errors import EXTRAS, InputError, report, require

ROOT = Path(__file__).parent.parent
SOURCES = ("embed_jax", "scripts", "experiments", "configs")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel of this repository."""
    pytest.importorskip("setuptools", "77")
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    program = "from setuptools import build_meta; print(build_meta.build_wheel('dist'))"
    done = subprocess.run([sys.executable, "-c", program], cwd=tree, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(tree / "dist" / done.stdout.splitlines()[-1]) as archive:
        yield archive


def test_wheel_has_one_top_level_package(wheel):
    names = wheel.namelist()
    (top_level,) = [name for name in names if name.endswith("top_level.txt")]
    assert wheel.read(top_level).decode().split() == ["embed_jax"]
    assert {name.split("/")[0] for name in names if ".dist-info" not in name} == {"embed_jax"}
    (points,) = [name for name in names if name.endswith("entry_points.txt")]
    assert "embed-jax = embed_jax.__main__:main" in wheel.read(points).decode()


def test_wheel_has_every_module_and_config_and_no_results(wheel):
    expected = {
        (path if path.parts[0] == "embed_jax" else Path("embed_jax", path)).as_posix()
        for name in SOURCES
        for pattern in ("*.py", "*.yaml", "py.typed", "*.html", "*.css", "*.js", "*.svg")
        for path in (file.relative_to(ROOT) for file in (ROOT / name).rglob(pattern))
        if "results" not in path.parts
    }
    assert {name for name in wheel.namelist() if ".dist-info" not in name} == expected


def test_packages_of_setup_cfg_are_the_folders_with_modules():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    folders = {
        ".".join(file.relative_to(ROOT).parts[:-1])
        for name in ("embed_jax", "scripts", "experiments")
        for file in (ROOT / name).rglob("__init__.py")
    }
    expected = {
        name if name.startswith("embed_jax") else f"embed_jax.{name}" for name in folders
    } | {"embed_jax.configs"}
    assert set(setup["options"]["packages"].split()) == expected


@pytest.mark.parametrize("prefix", ["", "configs/"])
def test_configs_are_found_from_another_directory(prefix, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["embed-jax train simcse", f"--config={prefix}simcse/unsup_bert_base.py:small"]
    config, workdir = config_file.load_config(line)
    assert config.model.name == "random:tiny"
    assert workdir == Path("runs/unsup_bert_base_small")
    file = Path("simcse/unsup_bert_base.py")  # a file of the working directory comes first
    file.parent.mkdir()
    file.write_text(
        "from embed_jax.config import Experiment\n\n\ndef get_config(cut=''):\n    return "
        "Experiment()\n"
    )
    assert config_file.load_config(["x", f"--config={file}"])[0].model.name != "bert-base-uncased"
    assert packaged.config_path(f"{prefix}../setup.cfg") == Path(f"{prefix}../setup.cfg")


def test_every_command_has_a_module_and_a_line_of_help(capsys, monkeypatch):
    folder = packaged.folder("scripts")
    with_main = {
        path.stem if path.parent == folder else path.parent.name
        for path in folder.rglob("*.py")
        if "\ndef main(" in path.read_text(encoding="utf-8")
    }
    assert with_main == set(command.COMMANDS)
    monkeypatch.setattr(sys, "argv", ["embed-jax", "--help"])
    command.dispatch()
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in ["train", *command.COMMANDS])
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize(
    "line, message",
    [
        (["evalute"], r"unknown command 'evalute' \(did you mean 'evaluate'\?\)"),
        (["train", "simsce"], r"unknown experiment 'simsce' \(did you mean 'simcse'\?\)"),
        (["train", "simcse"], "usage: embed-jax train simcse --config=FILE"),
        (["encode", "--no-such"], r"\(see embed-jax encode --help\)"),
    ],
)
def test_mistakes_are_told_in_the_words_of_the_command(line, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["embed-jax", *line])
    with pytest.raises(InputError, match=message):
        command.dispatch()


def test_examples_name_the_installed_command(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["embed-jax", "encode", "--help"])
    with pytest.raises(SystemExit):
        command.dispatch()
    text = capsys.readouterr().out
    assert "usage: embed-jax encode" in text and "python -m" not in text


def test_both_names_of_a_package_are_importable():
    for name in ("scripts", "experiments"):
        assert importlib.import_module(packaged.package(name)).__path__


DISTRIBUTIONS = {"faiss": "faiss-cpu", "sklearn": "scikit-learn"}
# Imported by functions that are only reached after `require` of a caller.
REACHED = {
    "embed_jax/evals/mteb.py": {"torch"},
    "embed_jax/evals/mteb_tasks.py": {"datasets"},
    "embed_jax/export/onnx.py": {"onnx", "onnxruntime"},
    "embed_jax/export/onnx_graph.py": {"onnx"},
    "embed_jax/train/tracking.py": {"torch"},
    "scripts/bench/pairs.py": {"torch", "sentence_transformers"},
    "scripts/bench/peer_process.py": {"torch", "sentence_transformers"},
    "scripts/bench/train.py": {"torch", "sentence_transformers"},
    "scripts/bench/suite.py": {"datasets", "sentence_transformers"},
    "scripts/replicate/embedders.py": {"torch", "sentence_transformers"},
    "scripts/replicate/pairs.py": {"torch", "sentence_transformers"},
    "scripts/replicate/training.py": {"torch"},
}


def test_every_optional_library_is_in_its_extra():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for library, extra in EXTRAS.items():
        names = [
            line.split()[0].lower()
            for line in setup["options.extras_require"][extra].split("\n")
            if line
        ]
        distribution = DISTRIBUTIONS.get(library, library.replace("_", "-"))
        assert distribution in names or library in names, (library, extra)


def test_optional_libraries_are_required_before_their_import():
    wrong = []
    for name in ("embed_jax", "scripts", "experiments"):
        for file in (ROOT / name).rglob("*.py"):
            source, path = file.read_text(encoding="utf-8"), file.relative_to(ROOT).as_posix()
            imported = set(re.findall(r"^ +(?:import|from) (\w+)", source, re.MULTILINE)) & set(
                EXTRAS
            )
            required = set(re.findall(r'require\("(\w+)"\)', source))
            if "@picture_style()" in source:  # it requires what draws
                required.add("matplotlib")
            wrong += [
                f"{path}: {library}" for library in imported - required - REACHED.get(path, set())
            ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("library, extra", [("grain", "train"), ("datasets", "data")])
def test_a_missing_library_is_one_line_that_says_what_to_install(
    library, extra, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, library, None)
    line = f'package {library!r} is not installed: pip install "embed-jax[{extra}]"'
    with pytest.raises(InputError, match=f"^{re.escape(line)}$"):
        require(library)
    with pytest.raises(ModuleNotFoundError) as caught:
        importlib.import_module(library)
    assert report(caught.value) == 2  # also where nothing was asked for before
    assert capsys.readouterr().err == f"error: {line}\n"
