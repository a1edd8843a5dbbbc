"""run.json describes a run and its duration over all resumptions."""

import json
import platform

import pytest

from embed_jax.config import Experiment, Source
from embed_jax.config_file import override
from embed_jax.errors import InputError
from embed_jax.export.record import config_source, read_run
from embed_jax.train import workdir
from embed_jax.train.workdir import Chronicle, open_workdir

ABOUT = {"devices": 2, "hosts": 1, "versions": {"device": "cpu", "jax": "1"}}


@pytest.fixture
def clock(monkeypatch):
    """`clock(seconds)` lets this much time pass."""
    now = [50.0]
    monkeypatch.setattr(workdir.time, "monotonic", lambda: now[0])
    return lambda seconds: now.__setitem__(0, now[0] + seconds)


def spans(path):
    return [
        (session["start"], session["end"], session["seconds"])
        for session in json.loads(path.read_text())["sessions"]
    ]


def test_sessions_add_up_over_resumptions_and_start_anew_with_the_run(clock, tmp_path):
    path = tmp_path / "run.json"
    first = Chronicle(path, 0, resumed=False, **ABOUT)
    clock(2)
    first.write(0)
    clock(3)
    first.write(4)
    clock(9)  # and it is killed
    Chronicle(path, 4, resumed=True, **ABOUT).write(4)  # killed at once
    third = Chronicle(path, 4, resumed=True, **ABOUT | {"devices": 1})
    clock(1.5)
    third.write(9)
    assert spans(path) == [(0, 4, 5.0), (4, 9, 1.5)]
    assert [session["devices"] for session in json.loads(path.read_text())["sessions"]] == [2, 1]
    again = Chronicle(path, 0, resumed=False, **ABOUT)
    assert spans(path) == [(0, 4, 5.0), (4, 9, 1.5)], "nothing is written before it is asked for"
    again.write(0)
    assert spans(path) == [(0, 0, 0.0)]
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_other_hosts_write_nothing_and_an_older_run_has_no_file(tmp_path):
    Chronicle(None, 3, resumed=True, **ABOUT).write(4)
    assert not list(tmp_path.iterdir())
    Chronicle(tmp_path / "run.json", 3, resumed=True, **ABOUT).write(4)
    assert [span[:2] for span in spans(tmp_path / "run.json")] == [(3, 4)]


@pytest.mark.parametrize(
    "content", ["{", "[]", "{}", '{"sessions": [3]}', '{"sessions": [{"start": 1}]}']
)
def test_a_damaged_file_is_said_in_one_line(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(InputError, match="run.json: no record of a run's sessions") as error:
        Chronicle(tmp_path / "run.json", 3, resumed=True, **ABOUT)
    assert "\n" not in str(error.value)
    Chronicle(tmp_path / "run.json", 0, resumed=False, **ABOUT).write(1)  # is not read


def test_the_experiment_is_recorded(tmp_path):
    for name in ("nli", ""):
        Chronicle(tmp_path / "run.json", 0, resumed=False, experiment=name, **ABOUT).write(0)
        assert json.loads((tmp_path / "run.json").read_text())["experiment"] == name


@pytest.mark.slow
def test_a_command_records_its_experiment_and_the_card_reads_it(simcse_here, tmp_path):
    status, err = simcse_here(tmp_path / "run", "--config.train.steps=1")
    assert status == 0, err
    result = read_run(tmp_path / "run")
    (session,) = result.sessions
    assert result.experiment == "simcse" and session.seconds > 0
    assert (session.start, session.devices, session.hosts) == (0, 1, 1)
    assert session.versions["python"] == platform.python_version() and session.versions["jax"]
    settings = json.loads((tmp_path / "run" / "config.json").read_text())
    assert settings["tracking"]["experiment"] == "simcse" and "simcse" not in config_source(
        settings
    )


def test_a_run_may_become_longer_and_nothing_else(tmp_path):
    (tmp_path / "model").mkdir()

    def enter(**fields):
        with open_workdir(tmp_path, override(Experiment(), **fields)) as check_data:
            check_data({})
            return json.loads((tmp_path / "config.json").read_text())["train"]["steps"]

    assert enter(train__steps=10) == 10
    for fields, message in (
        ({"train__steps": 20}, "resumed unchanged .or --extend it to more steps or epochs.: use"),
        ({"train__steps": 5, "train__extend": True}, "train.steps was 10 and is 5 now"),
        ({"train__steps": 0, "train__extend": True}, "train.steps was 10 and is 0 now"),
        ({"train__steps": 20, "train__extend": True, "train__seed": 1}, "train.seed was 0"),
    ):
        with pytest.raises(InputError, match=message):
            enter(**fields)
    assert enter(train__steps=20, train__extend=True) == 20
    assert enter(train__steps=20) == 20, "and is resumed as any other"


def test_a_run_older_than_a_field_resumes_with_its_default_only(tmp_path):
    config = Experiment()
    config.mixture.sources.a = Source("a.tsv")
    with open_workdir(tmp_path, config) as check_data:
        check_data({})
        (tmp_path / "model").mkdir()
    file = tmp_path / "config.json"
    older = json.loads(file.read_text())
    del older["eval"]["patience"], older["mixture"]["sources"]["a"]["loss_weight"]
    file.write_text(json.dumps(older))
    config.eval.patience = 3
    with pytest.raises(InputError, match="config.eval.patience was 0 and is 3 now"):
        with open_workdir(tmp_path, config) as check_data:
            check_data({})
    config.eval.patience = 0
    with open_workdir(tmp_path, config) as check_data:
        check_data({})


def test_a_directory_is_locked_and_compared_before_the_data_are_read(tmp_path):
    run, config = tmp_path / "run", Experiment()
    with open_workdir(run, config) as check_data:
        with pytest.raises(InputError, match="in use by another run"), open_workdir(run, config):
            pytest.fail("the second run has begun")
        check_data({"texts": "first"})
    (run / "model").mkdir()
    with pytest.raises(InputError, match="config.train.seed was 0 and is 1 now"):
        with open_workdir(run, override(Experiment(), train__seed=1)):
            pytest.fail("the data would be read")
    with open_workdir(run, config) as check_data:
        with pytest.raises(InputError, match="data.texts was 'first' and is 'second' now"):
            check_data({"texts": "second"})


def test_nothing_is_left_of_a_run_that_ended_before_it_had_its_data(tmp_path):
    with pytest.raises(ZeroDivisionError), open_workdir(tmp_path / "new", Experiment()):
        raise ZeroDivisionError
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    with pytest.raises(ZeroDivisionError), open_workdir(tmp_path / "old", Experiment()):
        raise ZeroDivisionError
    assert (tmp_path / "old").exists()
    with open_workdir(tmp_path / "new", Experiment()) as check_data:
        check_data({})
    assert (tmp_path / "new" / "data.json").exists()
