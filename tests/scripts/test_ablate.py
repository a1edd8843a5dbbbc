"""A table of runs: each run once, the runs' numbers, visible failures, resumable."""

import contextlib
import fcntl
import json
import os
import signal
import statistics
import sys
import threading
import types
from pathlib import Path

import pytest

from embed_jax.errors import exit_with_one_line
from embed_jax.train import ablation as ablate_runs
from embed_jax.train.ablation_table import all_tables, read_ablation_table
from embed_jax.train.agreement import student_interval
from scripts.ablate import __main__ as ablate

ROOT = Path(__file__).parents[2]
CONFIG = """
from embed_jax.config import Experiment

def get_config(cut=""):
    config = Experiment()
    config.eval.metric = "sts/spearman"
    config.tracking.wandb = "disabled"
    return config
"""
TABLE = '''"""A table for tests."""

EXPERIMENT = "simcse"
CONFIG = "{config}"
ROWS = {"small": {"data.limit": 100}, "large": {"data.limit": 10000, "model.dropout": 0.5}}
'''
MORE = """
METRICS = ("best", "loss")
PAPER = {"small": 82.5}
SOURCE, CHECKED = "Gao et al. 2021, Table 3", "text"
SCALE = 100
X = "data.limit"
"""


def score(command):
    """Returns the stub's measurement: a number that depends on all its arguments."""
    fields = dict(argument.removeprefix("--config.").split("=", 1) for argument in command[4:-1])
    return int(fields["data.limit"]) / 1e5 + 0.001 * int(fields["train.seed"]) ** 2


@pytest.fixture
def table(run, tmp_path, monkeypatch):
    """`table(text, *arguments) -> (status, stdout, stderr)` with a stub for the experiments.

    `table.commands` has the commands that it was called with.
    """
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    (tmp_path / "config.py").write_text(CONFIG)
    commands, fails = [], {}

    def stub(command, log):
        commands.append(command)
        call.before(command, log)
        workdir = Path(command[-1].removeprefix("--workdir="))
        status, output = fails.get("/".join(workdir.parts[-2:]), (0, "model: there\n"))
        log.write_text("step 1\n" + output)
        if (status, output[:5]) == (0, "model"):
            (workdir / "model").mkdir(parents=True, exist_ok=True)
            value = score(command)
            lines = [
                {"step": step, "loss": 0.5, "sts/spearman": value - 0.01 * abs(step - 1)}
                for step in range(3)
            ]
            (workdir / "metrics.jsonl").write_text(
                "".join(json.dumps(line) + "\n" for line in lines)
            )
        return status

    def call(*arguments, text=TABLE + MORE):
        (tmp_path / "table.py").write_text(text.replace("{config}", str(tmp_path / "config.py")))
        commands.clear()
        with monkeypatch.context() as patch:
            patch.setattr(ablate_runs, "run_command", stub)
            return run(ablate, tmp_path / "table.py", f"--workdir={tmp_path}/runs", *arguments)

    call.commands, call.fails, call.before = commands, fails, lambda command, log: None
    return call


def test_means_and_deviations_beside_the_paper(table, tmp_path):
    status, out, err = table(f"--output={tmp_path}/table.json")
    assert status == 0, err
    expected = {row: [limit / 1e5 + 0.001 * seed**2 for seed in (0, 1, 2)] for row, limit in
              (("small", 100), ("large", 10000))}  # fmt: skip
    lines = [line.split("  ") for line in out.split("\n\n")[1].splitlines()]
    lines = [[cell.strip() for cell in line if cell.strip()] for line in lines]
    mean, sd = 100 * statistics.mean(expected["small"]), 100 * statistics.stdev(expected["small"])
    assert lines == [
        ["row", "best", "paper", "loss", "runs"],
        ["small", f"{mean:.2f} ± {sd:.2f}", "82.5", "50.00 ± 0.00", "3/3"],
        [
            "large",
            f"{100 * statistics.mean(expected['large']):.2f} ± {sd:.2f}",
            "-",
            "50.00 ± 0.00",
            "3/3",
        ],
        ["paper: Gao et al. 2021, Table 3 (numbers checked against its text)"],
    ]
    result = json.loads((tmp_path / "table.json").read_text())
    for row, values in expected.items():
        runs = result["rows"][row]["runs"]
        assert [run["metrics"]["best"] for run in runs] == pytest.approx(values), (
            "as measured, without SCALE"
        )
        assert [run["metrics"]["sts/spearman"] for run in runs] == pytest.approx(
            [v - 0.01 for v in values]
        )
        summary = result["rows"][row]["summary"]["best"]
        assert summary == {
            "mean": pytest.approx(statistics.mean(values)),
            "sd": pytest.approx(sd / 100),
            "low": pytest.approx(student_interval(values).low),
            "high": pytest.approx(student_interval(values).high),
            "n": 3,
        }
    assert result["rows"]["small"]["paper"] == 82.5 and result["source"].startswith("Gao")


def test_every_run_gets_its_row_its_seed_and_the_command_lines_fields(table, tmp_path):
    status, out, _ = table("--seeds=3,5", "--config.train.steps=7", "--config.data.limit=50")
    assert status == 0 and "large: data.limit is 50 from the command line instead of 10000" in out
    assert len(table.commands) == 4
    assert table.commands[3] == [
        *(sys.executable, "-m", "experiments.simcse", f"--config={tmp_path}/config.py"),
        *(
            "--config.data.limit=50",
            "--config.model.dropout=0.5",
            "--config.train.steps=7",
            "--config.train.seed=5",
        ),
        f"--workdir={tmp_path}/runs/large/5",
    ]
    status, out, _ = table("--seeds=3", "--rows=small", f"--output={tmp_path}/table.json")
    assert "±" not in out and "1/1" in out, "one run has no deviation"
    assert (
        json.loads((tmp_path / "table.json").read_text())["rows"]["small"]["summary"]["best"]["sd"]
        is None
    )
    assert [command[-1] for command in table.commands] == [f"--workdir={tmp_path}/runs/small/3"]


def test_tables_of_one_file_name_have_their_own_runs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.py").write_text(CONFIG)
    started = []
    monkeypatch.setattr(
        ablate_runs, "run_command", lambda command, log: started.append(command[-1]) or 1
    )
    for family in ("nli", "llm"):
        file = tmp_path / family / "tables" / "pooling.py"
        file.parent.mkdir(parents=True)
        file.write_text(TABLE.replace("{config}", str(tmp_path / "config.py")))
        run(ablate, file, "--seeds=0", "--rows=small")
    assert started == [f"--workdir=runs/ablate/{name}_pooling/small/0" for name in ("nli", "llm")]


def test_a_failing_run_is_shown_and_the_others_run(table, tmp_path):
    output = "warning: a\nerror: loss not finite at step 3\nbye\n"
    table.fails |= {"small/1": (1, output), "large/0": (0, "SIGTERM: saved at step 1/3\n")}
    status, out, err = table(f"--output={tmp_path}/table.json")
    assert (status, err.count("\n")) == (1, 1) and "2 of 6 runs failed" in err
    assert len(table.commands) == 6
    small, large = out.split("\n\n")[1].splitlines()[1:3]
    assert "2/3" in small and "2/3" in large
    for told in ("small, seed 1: error: loss not finite at step 3", "0: stopped before its end"):
        assert out.count(told) == 1
    assert out.count("loss not finite") == out.count("stopped before its end") == 1
    rows = json.loads((tmp_path / "table.json").read_text())["rows"]
    assert [run["error"] for run in rows["small"]["runs"]] == [
        None,
        "error: loss not finite at step 3",
        None,
    ]
    assert rows["small"]["summary"]["best"]["n"] == 2

    # The same command goes on with what is missing.
    table.fails.clear()
    status, again, _ = table(f"--output={tmp_path}/table.json")
    assert status == 0 and len(table.commands) == 2 and again.count("finished before") == 4
    assert (
        json.loads((tmp_path / "table.json").read_text())["rows"]["small"]["summary"]["best"]["n"]
        == 3
    )


def test_a_run_is_over_with_its_settings_and_its_model(table, tmp_path):
    only = ("--rows=small", "--seeds=0")
    assert table(*only)[0] == 0 and len(table.commands) == 1
    assert table(*only)[0] == 0 and not table.commands
    (tmp_path / "runs/small/0/model").rmdir()
    assert table(*only)[0] == 0 and len(table.commands) == 1
    (tmp_path / "config.py").write_text(
        CONFIG.replace("    return", "    config.train.steps = 9\n    return")
    )
    assert table(*only)[0] == 0 and len(table.commands) == 1, (
        "the config's file says something else now"
    )
    assert table(*only, "--config.train.steps=10")[0] == 0 and len(table.commands) == 1


def test_metrics_are_the_last_and_the_best_that_the_training_chose(tmp_path):
    lines = [
        {"step": 0, "sts/spearman": 0.5, "loss": 2.0},
        {"step": 1, "loss": 1.0, "other": None},
        {"step": 2, "sts/spearman": 0.505, "sts/pearson": None},
        {"step": 3, "sts/spearman": 0.6, "sts/pearson": 0.1},
        {"step": 4, "sts/spearman": None, "sts/pearson": 0.2},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "results.json").write_text(
        json.dumps({"sts12": {"spearman": 0.7, "n": 3}, "ok": True, "x": [1]})
    )
    result = ablate_runs.read_metrics(tmp_path, "sts/spearman", 0.01)
    assert result == {
        "loss": 1.0,
        "sts/pearson": 0.2,
        "start": 0.5,
        "best": 0.6,
        "sts12/spearman": 0.7,
        "sts12/n": 3.0,
    }
    assert ablate_runs.read_metrics(tmp_path, "sts/spearman", 0.2)["best"] == 0.5
    assert "best" not in ablate_runs.read_metrics(tmp_path, "", 0.0)


def test_the_metrics_of_a_comparison(tmp_path):
    pytest.importorskip("matplotlib")
    from embed_jax.evals.comparison import Comparison
    from embed_jax.evals.search import score_run

    qrels = {"q": {"d": 1}}
    runs = {"bm25": {"q": {}}, "before": {"q": {"e": 2.0, "d": 1.0}}, "after": {"q": {"d": 1.0}}}
    results = {name: score_run(run, qrels, ks=(10,)) for name, run in runs.items()}
    Comparison({"d": "a", "e": "b"}, {"q": "a"}, qrels, runs, results).write(tmp_path)
    result = ablate_runs.read_metrics(tmp_path, "", 0.0)
    assert (result["test/ndcg@10"], result["test/bm25/ndcg@10"]) == (1.0, 0.0)
    assert result["test/before/mrr@10"] == 0.5
    assert set(result) == {
        f"test/{who}{name}" for name in results["after"].metrics for who in ("", "before/", "bm25/")
    }


def test_a_command_leaves_its_output_and_its_status(tmp_path):
    program = (
        "import sys; print('out', flush=True); print('error: bad', file=sys.stderr); sys.exit(2)"
    )
    assert ablate_runs.run_command([sys.executable, "-c", program], tmp_path / "log") == 2
    assert ablate_runs.last_error((tmp_path / "log").read_text().splitlines()) == "error: bad"
    assert ablate_runs.last_error(["Killed", " "]) == "Killed" and ablate_runs.last_error([])


def test_sigterm_ends_the_run_in_progress(tmp_path):
    program = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(print("saved", flush=True)))
print("ready", flush=True)
time.sleep(60)
"""

    def terminate():
        while "ready" not in (tmp_path / "log").read_text():
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    (tmp_path / "log").touch()
    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=terminate)
    thread.start()
    with pytest.raises(SystemExit) as exit:
        ablate_runs.run_command([sys.executable, "-c", program], tmp_path / "log")
    thread.join()
    assert exit.value.code == 143 and signal.getsignal(signal.SIGTERM) is before
    assert (tmp_path / "log").read_text() == "ready\nsaved\n"


def test_a_picture_of_metrics_against_a_field(table, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    drawn = []
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, path, **_: (drawn.append(figure), path.write_bytes(b"p"))
    )
    status, _, err = table(f"--plot={tmp_path}/a.png", text=TABLE + MORE)
    assert status == 0 and (tmp_path / "a.png").read_bytes() == b"p", err
    axes = drawn[0].axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_xscale()) == (
        "data.limit",
        "best",
        "log",
    )
    means = axes.get_lines()[0]
    assert list(means.get_xdata()) == [100, 10000]
    assert list(means.get_ydata()) == pytest.approx([0.1 + 0.5 / 3, 10 + 0.5 / 3])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["paper", "ours"]

    table(f"--plot={tmp_path}/a.png", text=TABLE + MORE + 'LINES = "model.dropout"\n')
    texts = [text.get_text() for text in drawn[1].axes[0].get_legend().get_texts()]
    assert texts == ["paper, model.dropout = -1.0", "model.dropout = -1.0", "model.dropout = 0.5"]


def test_a_picture_of_metrics_against_the_step(table, tmp_path):
    pytest.importorskip("matplotlib")
    status, _, err = table(f"--curves={tmp_path}/a.png", "--seeds=0")
    assert status == 0 and (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG"), err

    nothing = TABLE + 'METRICS = ("loss",)\n'
    status, out, err = table(
        f"--curves={tmp_path}/b.png", f"--output={tmp_path}/b.json", "--seeds=0", text=nothing
    )
    assert (status, err.count("\n")) == (
        2,
        1,
    ) and "nothing of METRICS is measured while training" in err
    assert (tmp_path / "b.json").exists() and not (tmp_path / "b.png").exists() and "0.5000" in out

    table.fails["small/1"] = (1, "error: no\n")
    status, _, err = table(f"--curves={tmp_path}/c.png", "--seeds=1", "--rows=small")
    assert status == 1 and "1 of 1 runs failed" in err and not (tmp_path / "c.png").exists()


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (
            TABLE,
            ["--config.data.limits=3"],
            "row 'small': unknown config field 'data.limits' (did you mean",
        ),
        (TABLE, ["--config.data.limit=few"], "row 'small': "),
        (TABLE, ["--config.train.seed=3"], "the seeds are those of --seeds"),
        (TABLE, ["--config.data.limit"], "unknown argument '--config.data.limit'"),
        (TABLE, ["--row=small"], "unknown argument '--row=small'"),
        (
            TABLE,
            ["--rows=smal"],
            "rows: unknown row 'smal' (did you mean 'small'?); known: large, small",
        ),
        (TABLE, ["--seeds=0,x"], "--seeds: expected numbers separated by commas, found '0,x'"),
        (TABLE, ["--plot=a.png"], "--plot needs X"),
        (TABLE + 'X = "data.size"', ["--plot=a.png"], "X: unknown config field 'data.size'"),
        (
            TABLE + MORE,
            ["--plot=a.jpeg"],
            "--plot: expected a name that ends in .png, .pdf, .svg, found 'a.jpeg'",
        ),
        (
            TABLE + MORE,
            ["--curves=a.jpeg"],
            "--curves: expected a name that ends in .png, .pdf, .svg, found 'a.jpeg'",
        ),
        (TABLE + MORE, ["--output=no/such/a.json"], "no/such/a.json: cannot be written"),
        ("ROWS = {", [], "table.py: SyntaxError: "),
        (
            "EXPERIMENT = 'simcse'\nCONFIG = 'a.py'",
            [],
            "table.py: ROWS: expected a dict, found None",
        ),
        (
            TABLE.replace("simcse", "simsce"),
            [],
            "table.py: EXPERIMENT: unknown experiment 'simsce'",
        ),
        (TABLE.replace("{config}", "no.py"), [], "row 'small': "),
        (
            TABLE.replace('"small"', '"a/b"'),
            [],
            "ROWS: expected names without '/' and ',', found 'a/b'",
        ),
        (
            TABLE.replace("100}", "None}"),
            [],
            "ROWS['small']: data.limit: expected a number, a bool or a string: None",
        ),
        (TABLE + "METRICS = 'best'", [], "METRICS: expected a tuple of names, found 'best'"),
        (TABLE + "SCALE = 0", [], "SCALE: expected a positive number, found 0"),
        (TABLE + "PAPER = {'medium': {}}", [], "PAPER: unknown row 'medium'; known: large, small"),
        (
            TABLE + "PAPER = {'small': '82.5'}",
            [],
            "PAPER['small']: expected a number, found '82.5'",
        ),
        (TABLE + "PAPER = {'small': 82.5}", [], "SOURCE: expected the paper and its table"),
        (
            TABLE + MORE.replace('"text"', '"memory"'),
            [],
            "CHECKED: expected one of text, repository",
        ),
        (
            TABLE + MORE + "CLAIMS = {'a': ('small', '<', 'big')}",
            [],
            "CLAIMS['a']: unknown row 'big'",
        ),
        (
            TABLE + MORE + "CLAIMS = {'a': ('small', '=', 'large')}",
            [],
            "CLAIMS['a']: expected (row, '<' or '>', row)",
        ),
        (
            TABLE + "PAPER = {'small': 2, 'large': 1}\nSOURCE, CHECKED = 'A', 'text'\n"
            "CLAIMS = {'a': ('small', '<', 'large')}",
            [],
            "CLAIMS['a']: the paper's numbers are 2 and 1",
        ),
        (TABLE + "CLAIM = {}", [], "unknown constant 'CLAIM' (did you mean 'CLAIMS'?)"),
        (TABLE, ["--full"], "it has no FULL"),
        (TABLE, ["--grid=optim.learning_rate"], "--grid: expected FIELD=VALUE,VALUE"),
        (TABLE, ["--grid=optim.lr=1"], "unknown config field 'optim.lr'"),
    ],
)
@pytest.mark.unchecked
def test_bad_input_is_one_line_before_any_run(table, tmp_path, text, arguments, message):
    status, _, err = table(*arguments, text=text)
    assert (status, err.count("\n")) == (2, 1) and message in err, err
    assert not table.commands and not (tmp_path / "runs").exists()


def test_the_paper_s_setting_has_its_own_columns(table, tmp_path):
    full = f'FULL, FULL_METRICS = "{tmp_path}/config.py", ("loss",)'
    status, out, err = table("--full", text=TABLE + 'METRICS = ("best", "loss")\n' + full)
    assert status == 0, err
    assert "loss" in out and "best" not in out.split("\n\n")[1]


def test_best_of_a_config_without_a_metric_is_refused_before_any_run(table, tmp_path):
    status, _, err = table("--config.eval.metric=", text=TABLE)
    assert (status, err.count("\n")) == (2, 1) and not table.commands
    assert "METRICS: 'best' is of config.eval.metric, which" in err


def test_a_metric_that_no_run_has_is_said(table):
    status, out, err = table(text=TABLE + 'METRICS = ("best", "sts/spearmen")')
    assert status == 2 and "0.0027 ± 0.0021" in out
    warning, error = err.splitlines()  # after the first run, and at the end
    assert warning.startswith("warning: ") and error.startswith("error: ")
    for line in (warning, error):
        assert "METRICS: unknown metric 'sts/spearmen' (did you mean 'sts/spearman'?)" in line


def test_the_paper_s_claims_are_judged_by_our_seeds(table, tmp_path):
    claims = MORE.replace("82.5}", '82.5, "large": 90}') + (
        'CLAIMS = {"more is better": ("small", "<", "large")}\n'
        'ROWS["again"] = {"data.limit": 50}\nPAPER["again"] = 82.4\n'
    )
    status, out, err = table(f"--results={tmp_path}/results", text=TABLE + claims)
    assert status == 0, err
    assert "Kendall's tau of our rows with the paper's: 1.00 [1.00, 1.00], 3 seeds" in out
    assert "more is better: holds (+9.90 [+9.90, +9.90], 3 seeds)" in out
    page = (tmp_path / "results/README.md").read_text()
    assert page.startswith("# A table for tests\n\n`python -m scripts.ablate ")
    assert "| large | 10.17 ± 0.21 | 90 |" in page and "* more is better: holds" in page
    assert ", x100; " in page and "`best`: the best `sts/spearman` of a run's evaluations." in page
    assert (tmp_path / "results/table.png").read_bytes().startswith(b"\x89PNG")
    first = (tmp_path / "results/table.json").read_bytes()
    table(f"--results={tmp_path}/results", text=TABLE + claims)
    assert (tmp_path / "results/table.json").read_bytes() == first and not table.commands

    status, out, _ = table("--seeds=0", text=TABLE + claims)
    assert "more is better: cannot tell (+9.90, one seed)" in out


def test_a_claim_without_numbers_names_its_source(table):
    claims = 'CLAIMS = {"more is better": ("small", "<", "large")}\n'
    status, out, err = table("--seeds=0,1", text=TABLE + claims + 'SOURCE = "A 2020, in words"\n')
    assert status == 0, err
    assert "paper: A 2020, in words\nmore is better: holds" in out and "checked" not in out
    status, out, _ = table("--seeds=0,1", text=TABLE + claims)  # one's own hypothesis
    assert status == 0 and "more is better: holds (+0.0990 [" in out and "paper" not in out


def test_the_table_and_its_pictures_are_a_run_of_the_rows_group(table, tmp_path, monkeypatch):
    logged = []

    class Run:
        log = staticmethod(logged.append)
        finish = staticmethod(lambda: logged.append("finished"))

    def init(**arguments):
        logged.append(arguments)
        return Run

    wandb = types.SimpleNamespace(
        init=init, Table=lambda columns, data: (columns, data), Image=lambda path: path
    )
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    status, _, err = table(
        *("--config.tracking.wandb=offline", "--seeds=0"),
        *(f"--results={tmp_path}/results", f"--plot={tmp_path}/a.pdf"),
    )
    assert status == 0, err
    arguments, content, end = logged
    assert (arguments["name"], arguments["mode"]) == ("table", "offline") and end == "finished"
    assert os.environ["WANDB_RUN_GROUP"] == "table"
    header, rows = content["table"]
    assert header[:3] == ["row", "best", "paper"] and [row[0] for row in rows] == ["small", "large"]
    assert content["picture/table"] == f"{tmp_path}/results/table.png"
    assert set(content) == {"table", "picture/table"}, "wandb shows no PDF"


def test_validation_chooses_a_row_s_setting_of_a_grid(table, tmp_path):
    status, out, err = table("--seeds=0", "--grid=data.limit=10,300", "--rows=small,large")
    assert status == 0 and len(table.commands) == 4, err
    lines = [line.split("  ") for line in out.splitlines() if line.startswith(("small ", "large "))]
    assert all("data.limit=300" in map(str.strip, line) for line in lines) and len(lines) == 2
    assert (tmp_path / "runs/data.limit=300/small/0/model").is_dir()


def test_two_processes_share_the_runs_of_a_table(table, tmp_path):
    """A run that another process has comes last; here it is finished when its lock is free."""
    lock = tmp_path / "runs/small/0.lock"
    lock.parent.mkdir(parents=True)
    order = []
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def release(command, log):
            order.append(command[-1].split("runs/")[1])
            fcntl.flock(held, fcntl.LOCK_UN)

        table.before = release
        status, out, err = table("--seeds=0")
    assert status == 0, err
    assert order == ["large/0", "small/0"] and out.index("large, seed") < out.index("small, seed")


def test_every_table_of_the_project_can_be_planned(tmp_path, monkeypatch):
    """Configs of all rows, of the small and of the paper's setting, are read without a fault."""
    monkeypatch.chdir(ROOT)
    tables = [read_ablation_table(file) for file in all_tables()]
    assert len({table.name for table in tables}) == len(tables) >= 5
    for planned in [*tables, *(table.in_full() for table in tables if table.full)]:
        runs = ablate_runs.plan_runs(planned, None, [0], {}, tmp_path)
        assert [run.row for run in runs] == list(planned.rows)


def test_the_list_of_tables(run, monkeypatch):
    monkeypatch.chdir(ROOT)
    status, out, _ = run(ablate, "--list")
    assert status == 0 and len(out.splitlines()) == 1 + len(all_tables())
    assert "configs/nli/tables/objectives.py" in out


def test_a_table_that_cannot_be_read_does_not_hide_the_others(run, monkeypatch, tmp_path):
    (tmp_path / "broken.py").write_text(TABLE + "SCALE = 0")
    (tmp_path / "sound.py").write_text(TABLE)
    monkeypatch.setattr(ablate, "all_tables", lambda: sorted(tmp_path.glob("*.py")))
    status, out, err = run(ablate, "--list")
    assert status == 2 and "sound.py" in out and err.count("\n") == 1
    assert "broken.py: SCALE: expected a positive number" in err


def test_the_list_says_how_far_results_agree(tmp_path):
    file = tmp_path / "table.json"
    assert ablate.read_results(file) == "no"
    verdicts = {"a": "holds", "b": "cannot tell", "c": "holds"}
    content = {"tau": {"mean": 2 / 3}, "verdicts": {k: {"verdict": v} for k, v in verdicts.items()}}
    file.write_text(json.dumps(content))
    assert ablate.read_results(file) == "tau 0.67, holds: 2, cannot tell: 1"
    file.write_text(json.dumps({"tau": None, "verdicts": {}}))
    assert ablate.read_results(file) == "yes"


def test_no_such_table(refused, tmp_path):
    assert "none.py: no such file" in refused(ablate, tmp_path / "none.py")


@pytest.mark.slow
def test_a_table_of_a_real_experiment(run, tmp_path, tiny_model, sentences, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(str(ROOT))
    from experiments import simcse

    def here(command, log):
        """Runs the experiment's command in this process."""
        monkeypatch.setattr(sys, "argv", ["experiments/simcse.py", *command[3:]])
        with (
            log.open("w") as file,
            contextlib.redirect_stdout(file),
            contextlib.redirect_stderr(file),
        ):
            with pytest.raises(SystemExit) as exit:
                exit_with_one_line(simcse.main)
        return exit.value.code

    monkeypatch.setattr(ablate_runs, "run_command", here)
    (tmp_path / "sentences.txt").write_text("\n".join(sentences))
    (tmp_path / "table.py").write_text(
        'EXPERIMENT, CONFIG = "simcse", "configs/simcse/unsup_bert_base.py:small"\n'
        'ROWS = {"fits": {"batch.size": 8}, "does not": {"batch.size": 400}}\n'
        'METRICS = ("loss", "positive_similarity")\n'
    )
    fields = {
        **{
            "model.name": tiny_model,
            "data.train": tmp_path / "sentences.txt",
            "eval.sts": "",
            "eval.metric": "",
        },
        **{
            "train.steps": 1,
            "data.max_length": 8,
            "train.devices": 1,
            "tracking.wandb": "disabled",
        },
    }
    arguments = [f"--config.{name}={value}" for name, value in fields.items()]
    status, out, err = run(
        ablate, tmp_path / "table.py", f"--workdir={tmp_path}/runs", "--seeds=0", *arguments
    )
    assert status == 1 and "1 of 2 runs failed" in err
    assert "seed 0: error: 200 records do not fill a batch of 400" in out
    last = json.loads((tmp_path / "runs/fits/0/metrics.jsonl").read_text().splitlines()[-1])
    line = next(line for line in out.split("\n\n")[1].splitlines() if line.startswith("fits"))
    assert f"{last['loss']:.4f}" in line and f"{last['positive_similarity']:.4f}" in line


def test_evaluate_calls_the_subcommand(table):
    table("--evaluate=--task sts --data stsb/test.tsv")
    module, subcommand, *options = table.commands[1][2:]
    assert (module, subcommand) == ("scripts.evaluate", "run")
    assert options[2:6] == ["--task", "sts", "--data", "stsb/test.tsv"]
