"""Every config file loads, is valid, has a small cut, and says how to launch it."""

from pathlib import Path

import pytest

from embed_jax.config import Experiment
from embed_jax.config_file import load
from embed_jax.errors import InputError

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").glob("*/*.py"))


@pytest.mark.parametrize("file", FILES, ids=str)
@pytest.mark.parametrize("cut", ["", ":small"])
def test_it_loads_and_names_its_launch_command(file, cut, monkeypatch):
    monkeypatch.chdir(ROOT)
    loaded, workdir = load(["experiments/x.py", f"--config={file}{cut}"])
    assert isinstance(loaded, Experiment)
    assert workdir == Path("runs") / (file.stem + cut.replace(":", "_"))
    text = file.read_text()
    assert f"--config={file}" in text and "python -m experiments." in text
    with pytest.raises(InputError, match="unknown cut 'tiny'"):
        load(["experiments/x.py", f"--config={file}:tiny"])


def test_an_override_has_the_field_s_type(monkeypatch):
    monkeypatch.chdir(ROOT)
    line = [
        "experiments/x.py",
        "--config",
        str(FILES[0]),
        "--config.optim.learning_rate=1",
        "--workdir",
        "there",
    ]
    loaded, workdir = load(line)
    assert loaded.optim.learning_rate == 1.0 and workdir == Path("there")
    for bad in (
        "optim.learning_rate=fast",
        "train.steps=1.5",
        "loss.symmetric=perhaps",
        "optim.schedule=step",
    ):
        with pytest.raises(InputError, match=bad.partition("=")[0]):
            load([*line, f"--config.{bad}"])


def test_a_broken_config_file_is_one_line(tmp_path):
    for content, message in (
        ("x = (", "SyntaxError"),
        ("y = 1", "defines no get_config"),
        ("def get_config(cut):\n    return 3", "returned int"),
        ("from embed_jax.config import Experiment\ndef get_config(cut):\n"
         "    e = Experiment()\n    e.optim.lr = 1\n    return e", "unknown config field 'optim.lr'"),
    ):  # fmt: skip
        file = tmp_path / "broken.py"
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            load(["x.py", f"--config={file}"])
