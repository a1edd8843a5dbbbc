"""Every config file loads, is valid, has a small cut, and says how to launch it."""

import runpy
from pathlib import Path

import pytest

from embed_jax.config import Experiment, flatten, to_json
from embed_jax.config_file import load_config
from embed_jax.config_rules import ALIASES, FIELD_OF
from embed_jax.data.sources.recipes import recipes
from embed_jax.errors import InputError

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "configs").glob("*/*.py"))


@pytest.mark.parametrize("file", FILES, ids=str)
@pytest.mark.parametrize("cut", ["", ":small"])
def test_it_loads_and_names_its_launch_command(file, cut, monkeypatch):
    monkeypatch.chdir(ROOT)
    loaded, workdir = load_config(["experiments/x.py", f"--config={file}{cut}"])
    assert isinstance(loaded, Experiment)
    assert workdir == Path("runs") / (file.stem + cut.replace(":", "_"))
    text = file.read_text()
    assert f"--config={file}" in text and "python -m experiments." in text
    with pytest.raises(InputError, match="unknown cut 'tiny'"):
        load_config(["experiments/x.py", f"--config={file}:tiny"])


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
    loaded, workdir = load_config(line)
    assert loaded.optim.learning_rate == 1.0 and workdir == Path("there")
    for bad in (
        "optim.learning_rate=fast",
        "train.steps=1.5",
        "loss.symmetric=perhaps",
        "optim.schedule=step",
    ):
        with pytest.raises(InputError, match=bad.partition("=")[0]):
            load_config([*line, f"--config.{bad}"])


def test_a_broken_config_file_is_one_line(tmp_path):
    for content, message in (
        ("x = (", "SyntaxError"),
        ("y = 1", "defines no get_config"),
        ("def get_config(cut):\n    return 3", "returned int"),
        ("from embed_jax.config import Experiment\ndef get_config(cut):\n"
         "    e = Experiment()\n    e.optim.lr = 1\n    return "
         "e", "unknown config field 'optim.lr'"),
    ):  # fmt: skip
        file = tmp_path / "broken.py"
        file.write_text(content)
        with pytest.raises(InputError, match=message):
            load_config(["x.py", f"--config={file}"])


def test_get_config_needs_no_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    for file in FILES:
        assert isinstance(runpy.run_path(str(file))["get_config"](), Experiment), file
    file = tmp_path / "own.py"
    file.write_text(
        "from embed_jax.config import Experiment\ndef get_config():\n    return Experiment()\n"
    )
    assert load_config(["x.py", f"--config={file}"])[0] == Experiment()
    with pytest.raises(InputError, match="own.py: get_config.. has no cuts, found 'small'"):
        load_config(["x.py", f"--config={file}:small"])


def test_a_run_s_own_config_is_a_config_and_resumes_it(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, _ = load_config(["x.py", "--config=configs/nli/mixture.py", "--config.train.steps=3"])
    config.stages.later = Experiment()
    config.stages.later.data.max_length = 9
    file = tmp_path / "config.json"
    file.write_text(to_json(config))
    assert load_config(["x.py", f"--config={file}"]) == (config, Path("runs/config"))
    (tmp_path / "data.json").write_text("{}")
    again, workdir = load_config(["x.py", f"--config={file}", "--config.train.steps=5", "--extend"])
    assert workdir == tmp_path and (again.train.steps, again.train.extend) == (5, True)
    with pytest.raises(InputError, match="config.json: a run's config has no cuts"):
        load_config(["x.py", f"--config={file}:small"])


@pytest.mark.parametrize(
    "argument, meant",
    [
        ("--config.lr=1", "did you mean 'optim.learning_rate'"),
        ("--config.optim.lr=1", "did you mean 'optim.learning_rate'"),
        ("--config.train.learning_rate=1", "did you mean 'optim.learning_rate'"),
        ("--config.train.max-seq-length=9", "did you mean 'data.max_length'"),
        ("--lr=1e-5", r"did you mean --config.optim.learning_rate=1e-5\?$"),
        ("--batch_size=8", r"did you mean --config.batch.size=8\?$"),
        ("--epochs=3", r"did you mean --config.train.epochs=3\?$"),
        ("--warmup_ratio=0.1", r"did you mean --config.optim.warmup=0.1\?$"),
        ("--nonsense=1", "usage"),
    ],
)
def test_names_of_other_trainers_are_understood(argument, meant, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(InputError, match=meant) as error:
        load_config(["x.py", f"--config={FILES[0]}", argument])
    assert "\n" not in str(error.value)


def test_aliases_mean_fields_and_are_none_themselves():
    fields = flatten(Experiment())
    assert set(ALIASES) <= set(fields)
    names = [alias for aliases in ALIASES.values() for alias in aliases.split()]
    assert len(names) == len(set(names)) == len(FIELD_OF)


def test_scores_of_a_named_data_set_are_divided_by_their_largest(monkeypatch):
    monkeypatch.chdir(ROOT)
    largest = {name: recipe.scale[1] for name, recipe in recipes().items() if recipe.scale}
    for file in FILES:
        fields = flatten(load_config(["x.py", f"--config={file}"])[0])
        for name, value in fields.items():
            if name.endswith(".train") and value in largest:
                divisor = fields[name.removesuffix("train") + "score_max"]
                assert divisor == largest[value], f"{file}: {name}"


@pytest.mark.parametrize("field", ["data.validation_split=dev", "data.holdout=0.1"])
def test_a_mixture_has_no_validation_of_data_train(field, monkeypatch):
    monkeypatch.chdir(ROOT)
    line = ["x.py", "--config=configs/nli/mixture.py", f"--config.{field}"]
    with pytest.raises(InputError, match=f"config.{field.partition('=')[0]}: .*not of a mixture"):
        load_config(line)
