"""The loop's order and decisions, with steps that cost nothing."""

import json
import os
import shutil
import signal
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from embed_jax.config import Experiment, Optim
from embed_jax.config_file import override
from embed_jax.errors import InputError, RunError
from embed_jax.parallel.mesh import make_mesh, replicate
from embed_jax.train import loop
from embed_jax.train.optim import make_optimizer
from embed_jax.train.selection import Best, warn_of_overfitting
from embed_jax.train.step import init_state, make_train_step
from embed_jax.types import Batch, TokenBatch


def made_batch(index: int, rows: int = 1) -> Batch:
    sentence = np.full((1, rows, 4), 2, np.int32)
    sentence[..., :2] = 0
    tokens = TokenBatch(sentence * 0, sentence, sentence * 0, sentence < 2, sentences=2)
    text_hash = np.full((1, 2, 1, 2), index + 1, np.uint32)
    return Batch(
        {"encoder": tokens}, np.ones((1, 2, 1), bool), text_hash, np.array([[index]], np.int32)
    )


def toy_objective(params, batch, key, frozen):
    """Pulls w to the batch's number, which is in its hashes."""
    target = batch.text_hash.astype(jnp.float32).mean()
    values = (params["encoder"]["w"] - target) ** 2
    return values.mean(), ({"accuracy": values.mean() * 0}, jnp.ones(1, bool))


@pytest.fixture
def run(tmp_path):
    """`run(scores or None, **fields) -> Result`.

    w grows by 1 per step, and `scores[w]` is the metric "a/m".
    """

    def step(state, batch, key):
        params = jax.tree.map(lambda leaf: leaf + 1, state.params)
        metrics = {
            "loss": 5.0 / (state.step + 1),
            "grad_norm": jnp.float32(1),
            "finite": jnp.ones(1, bool),
        }
        return state.replace(step=state.step + 1, params=params), metrics

    def start(
        scores=None,
        *,
        steps=8,
        step_fn=None,
        optim=None,
        batches=None,
        workdir=tmp_path,
        name="a/m",
        **fields,
    ):
        fields = {
            "tracking__wandb": "disabled",
            "checkpoint__keep": 5,
            "train__log_every": 100,
        } | fields
        optimizer = make_optimizer(optim or Optim(), steps)
        mesh = make_mesh(1)
        params = replicate({"encoder": {"w": jnp.zeros(3)}, "loss": {}}, mesh)
        return loop.run(
            override(Experiment(), **fields),
            workdir,
            state=replicate(init_state(params, optimizer), mesh),
            step_fn=step_fn(optimizer) if step_fn else jax.jit(step, donate_argnums=0),
            batches=batches
            or (lambda start, state: ((index, made_batch(index)) for index in range(start, steps))),
            num_steps=steps,
            learning_rate=lambda step: 1.0,
            evaluate=scores
            and (lambda state: {name: scores(float(state.params["encoder"]["w"][0]))}),
            save_model=lambda state, directory: directory.write_text(
                str(float(state.encoder["w"][0]))
            ),
            mesh=mesh,
        )

    return start


def lines_of(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def training(optimizer):
    return make_train_step(toy_objective, optimizer)


# ---- evaluation and the choice of the model ------------------------------------------------------


def test_evaluated_before_the_first_step_every_n_and_at_the_end(run, tmp_path):
    run(lambda w: w, steps=7, eval__every=3)
    lines = lines_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(8))
    assert {line["step"]: line["a/m"] for line in lines if "a/m" in line} == {
        0: 0,
        3: 3,
        6: 6,
        7: 7,
    }


@pytest.mark.parametrize(
    ("every", "steps", "evaluated"),
    [(0, 3, [0, 1, 2, 3]), (0, 20, [*range(0, 21, 2)]), (0, 24, [*range(0, 25, 2)]),
     (-1, 20, [0, 20]), (8, 20, [0, 8, 16, 20])],
)  # fmt: skip
def test_a_tenth_of_the_run_unless_the_config_says_how_often(every, steps, evaluated):
    assert [n for n in range(steps + 1) if loop.is_evaluated(n, every, steps)] == evaluated


def test_the_best_model_is_kept_and_not_the_last(run, tmp_path):
    result = run({0: 0.1, 2: 0.5, 4: 0.3, 6: 0.2, 8: 0.4}.get, eval__every=2, eval__metric="a/m")
    assert (result.best.step, result.best.value, result.finished) == (2, 0.5, True)
    assert (tmp_path / "model").read_text() == "2.0" and int(result.state.step) == 8


def test_without_a_metric_the_last_model_is_kept(run, tmp_path):
    run(lambda w: -w, eval__every=2)
    assert (tmp_path / "model").read_text() == "8.0"


@pytest.mark.parametrize(
    ("patience", "min_gain", "stopped_at", "best"),
    [
        (0, 0.0, 8, 6),
        (4, 0.0, 8, 6),
        (3, 0.0, 5, 3),  # of the equal ones at 2 and 3 the later, though that was no gain
        (1, 0.0, 3, 3),
        (2, 0.1, 4, 3),
        (5, 0.3, 7, 3),
        (2, 0.6, 2, 0),
    ],
)
def test_patience_and_least_gain(run, tmp_path, capsys, patience, min_gain, stopped_at, best):
    scores = {0: 0.1, 1: 0.2, 2: 0.5, 3: 0.5, 4: 0.4, 5: 0.45, 6: 0.55, 7: 0.52, 8: 0.51}
    fields = {
        "eval__every": 1,
        "eval__metric": "a/m",
        "eval__patience": patience,
        "eval__min_gain": min_gain,
    }
    result = run(scores.get, **fields)
    assert (int(result.state.step), result.best.step, result.finished) == (stopped_at, best, True)
    assert (tmp_path / "model").read_text() == f"{best:.1f}"
    assert ("stopped at step" in capsys.readouterr().out) == (stopped_at < 8)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    again = run(scores.get, **fields)  # a run that stopped early is over
    assert int(again.state.step) == stopped_at and again.best == result.best and again.finished
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("patience", [0, 1])
def test_a_metric_that_is_not_a_number_is_refused_at_step_0(run, tmp_path, patience):
    fields = {"eval__metric": "sts/m", "eval__sts": "dev.tsv", "eval__patience": patience}
    with pytest.raises(
        InputError, match=r"'sts/m' is not a number at step 0, on config.eval.sts=dev.tsv"
    ):
        run(lambda w: float("nan"), eval__every=4, name="sts/m", **fields)
    assert not lines_of(tmp_path) and not (tmp_path / "model").exists()


def test_a_metric_that_is_not_a_number_later_is_neither_gain_nor_loss(run, tmp_path, capsys):
    scores = {0: 0.1, 1: float("nan"), 2: float("nan"), 3: 0.2, 4: float("nan")}
    result = run(scores.get, steps=4, eval__every=1, eval__metric="a/m", eval__patience=1)
    assert (result.best.step, int(result.state.step)) == (3, 4)
    assert (tmp_path / "model").read_text() == "3.0"
    assert "a/m is not a number at step 2" in capsys.readouterr().out


@pytest.mark.parametrize("patience", [0, 2])
def test_a_model_that_training_did_not_better_is_told_plainly(run, tmp_path, capsys, patience):
    result = run({0: 0.5, 2: 0.4, 4: 0.45}.get, steps=4, eval__every=2, eval__metric="a/m",
                 eval__patience=patience)  # fmt: skip
    assert (result.best.step, (tmp_path / "model").read_text()) == (0, "0.0")
    output = capsys.readouterr().out
    assert "a/m: the best step is 0: no later evaluation reached its 0.5000" in output
    assert "(0.4500 at the last step, 4), so the result is the model that the run started" in output


def test_of_equal_models_the_later_one_is_kept(run, tmp_path, capsys):
    result = run(lambda w: 0.5, steps=4, eval__every=2, eval__metric="a/m")
    assert (result.best.step, (tmp_path / "model").read_text()) == (4, "4.0")
    assert not result.unchanged and "best step is 0" not in capsys.readouterr().out


@pytest.mark.parametrize("scores", [None, lambda w: w])
def test_a_metric_that_nothing_gives_is_refused_at_once(run, tmp_path, scores):
    with pytest.raises(InputError, match="config.eval.metric: "):
        run(scores, eval__metric="a/n")
    assert not (tmp_path / "metrics.jsonl").exists() or not lines_of(tmp_path)


def test_falling_loss_without_gain_is_told_once(run, capsys):
    run({0: 0.1, 1: 0.5}.get, steps=1, eval__every=1, eval__metric="a/m")
    run(lambda w: 0.5 if w == 1 else 0.4, eval__every=1, eval__metric="a/m")  # goes on after step 1
    warnings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert len(warnings) == 1
    # The losses of steps 2, 3 and 4 are 5/2, 5/3 and 5/4.
    assert (
        "falls (2.5000 to 1.2500) while a/m has not improved since step 1: overfitting"
        in warnings[0]
    )


@pytest.mark.parametrize(
    ("losses", "warned"),
    [
        ([3, 2, 1], 1),
        ([2, 3, 2, 1], 1),
        ([3, 2], 0),
        ([1, 2, 3], 0),
        ([3, 2, 2], 0),
        ([3, 1, 2], 0),
        ([4, 3, 2, 3], 0),
    ],
)
def test_only_a_loss_that_falls_over_three_evaluations_is_told(losses, warned):
    messages = []
    best = warn_of_overfitting(Best(0.5, 7, losses=losses), "a/m", messages.append)
    assert len(messages) == best.warned == warned
    assert warn_of_overfitting(best, "a/m", messages.append) == best and len(messages) == warned


# ---- steps ---------------------------------------------------------------------------------------


def test_a_recompilation_shows_in_the_metrics(run, tmp_path):
    def batches(start, state):
        return (
            (index, made_batch(index, rows=3 if index == 4 else 1)) for index in range(start, 8)
        )

    run(batches=batches)
    assert [line["compilations"] for line in lines_of(tmp_path)] == [1, 1, 1, 1, 2, 2, 2, 2]


@pytest.mark.parametrize("every, slow_line", [(-1, 5), (5, 6)])
def test_the_wait_for_batches_is_in_the_metrics_and_shown(run, tmp_path, capsys, every, slow_line):
    """The line of a step is written after the next batch has come, or before an evaluation."""

    def batches(start, state):
        for index in range(start, 8):
            time.sleep(0.3 if index == 5 else 0)
            yield index, made_batch(index)

    run(lambda w: w, batches=batches, train__log_every=1, eval__every=every)
    waits = {line["step"]: line["wait_seconds"] for line in lines_of(tmp_path) if line["step"]}
    assert waits.pop(slow_line) >= 0.3 and max(waits.values()) < 0.3
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("step ")]
    shares = {
        int(line.split()[1].split("/")[0]): int(line.split("%")[0].split()[-1])
        for line in lines
        if "% waiting for data" in line
    }
    assert 50 < shares[slow_line] <= 100


@pytest.mark.parametrize("profile", ["5:7", "6:20", "0:6", "8:9"])
def test_a_trace_that_an_interruption_or_the_end_cuts_is_no_error(
    run, tmp_path, monkeypatch, profile
):
    calls = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda directory: calls.append("start"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: calls.append("stop"))
    run(steps=5)
    run(steps=8, train__profile=profile)  # from step 5 on
    assert calls == ([] if profile == "8:9" else ["start", "stop"])


def test_accumulation_updates_every_other_step_and_survives_an_interruption(run, tmp_path):
    """One run gets a SIGTERM in the middle of an accumulation, at step 3; the other gets none."""
    optim = Optim(learning_rate=0.1, accumulate=2, schedule="constant")
    seen = []

    def score(w):
        seen.append(w)
        return w

    whole = run(
        score, steps=6, optim=optim, step_fn=training, workdir=tmp_path / "whole", eval__every=1
    )
    changed = [after != before for before, after in zip(seen, seen[1:], strict=False)]
    assert changed == [False, True] * 3

    def interrupted(start, state):
        for index in range(start, 6):
            if (start, index) == (0, 2):
                os.kill(os.getpid(), signal.SIGTERM)
            yield index, made_batch(index)

    arguments = {
        "steps": 6,
        "optim": optim,
        "step_fn": training,
        "batches": interrupted,
        "workdir": tmp_path / "parts",
    }
    first = run(score, **arguments, eval__every=1)
    assert (int(first.state.step), first.finished) == (3, False)
    second = run(score, **arguments, eval__every=1)
    assert int(second.state.step) == 6 and second.finished
    for mine, reference in zip(
        jax.tree.leaves(second.state), jax.tree.leaves(whole.state), strict=True
    ):
        np.testing.assert_array_equal(mine, reference)
    assert [line["step"] for line in lines_of(tmp_path / "parts")] == list(range(7))


def test_the_first_ctrl_c_saves_and_a_second_one_interrupts(run, tmp_path, capsys):
    def interrupted(times):
        def batches(start, state):
            for index in range(start, 8):
                for _ in range(times if (start, index) == (0, 2) else 0):
                    os.kill(os.getpid(), signal.SIGINT)
                yield index, made_batch(index)

        return batches

    with pytest.raises(KeyboardInterrupt):
        run(batches=interrupted(2), workdir=tmp_path / "twice")
    capsys.readouterr()
    handler = signal.getsignal(signal.SIGINT)
    first = run(batches=interrupted(1))
    assert (int(first.state.step), first.finished) == (3, False)
    assert "Ctrl-C: saved at step 3/8; the same command resumes" in capsys.readouterr().out
    assert signal.getsignal(signal.SIGINT) is handler
    second = run(batches=interrupted(1))
    assert second.finished and [line["step"] for line in lines_of(tmp_path)] == list(range(1, 9))


def test_an_extended_run_goes_on_after_patience_and_is_exact_at_a_constant_rate(run, tmp_path):
    optim = Optim(learning_rate=0.1, schedule="constant")
    arguments = {"optim": optim, "step_fn": training, "eval__every": 2, "eval__metric": "a/m"}
    whole = run(lambda w: 0.5 + w, steps=8, workdir=tmp_path / "whole", **arguments)
    arguments |= {"workdir": tmp_path / "parts"}
    run(lambda w: 0.5 + w, steps=4, **arguments)
    longer = run(lambda w: 0.5 + w, steps=8, train__extend=True, **arguments)
    assert longer.best == whole.best
    for mine, reference in zip(
        jax.tree.leaves(longer.state), jax.tree.leaves(whole.state), strict=True
    ):
        np.testing.assert_array_equal(mine, reference)
    stopping = {"eval__every": 1, "eval__metric": "a/m", "eval__patience": 1, "workdir": tmp_path}
    assert int(run(lambda w: -w, steps=3, **stopping).state.step) == 1
    assert int(run(lambda w: -w, steps=3, **stopping, train__extend=True).state.step) == 2


# ---- checkpoints ---------------------------------------------------------------------------------


def test_each_resumption_adds_a_session_and_the_training_does_not_depend_on_it(run, tmp_path):
    def spans():
        return [
            (session["start"], session["end"])
            for session in json.loads((tmp_path / "run.json").read_text())["sessions"]
        ]

    run(checkpoint__every=4)
    assert spans() == [(0, 8)]
    first, losses = (
        (tmp_path / "run.json").read_bytes(),
        [line["loss"] for line in lines_of(tmp_path)],
    )
    run(checkpoint__every=4)
    assert (tmp_path / "run.json").read_bytes() == first, "nothing was left to train"
    for expected in ([(0, 8), (4, 8)], [(4, 8)]):
        shutil.rmtree(tmp_path / "checkpoints" / "8")
        run(checkpoint__every=4)
        assert spans() == expected and [line["loss"] for line in lines_of(tmp_path)] == losses
        (tmp_path / "run.json").unlink()


def test_a_damaged_newest_checkpoint_costs_only_its_own_steps(run, tmp_path, capsys):
    arguments = {"optim": Optim(learning_rate=0.1), "step_fn": training, "checkpoint__every": 2}

    def until_6(start, state):
        for index in range(start, 8):
            if (start, index) == (0, 5):
                os.kill(os.getpid(), signal.SIGTERM)
            yield index, made_batch(index)

    whole = run(**arguments, workdir=tmp_path / "whole")
    run(**arguments, batches=until_6, workdir=tmp_path / "parts")
    for path in (tmp_path / "parts" / "checkpoints" / "6").rglob("*"):
        if path.is_file() and path.parent.name == "d":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    capsys.readouterr()
    resumed = run(**arguments, batches=until_6, workdir=tmp_path / "parts")
    out, err = capsys.readouterr()
    assert "checkpoint 6 is damaged" in err and err.count("\n") == 1 and "at step 4/8" in out
    for mine, reference in zip(
        jax.tree.leaves(resumed.state), jax.tree.leaves(whole.state), strict=True
    ):
        np.testing.assert_array_equal(mine, reference)
    assert [line["step"] for line in lines_of(tmp_path / "parts")] == list(range(1, 9))


def test_a_broken_step_ends_the_run_before_it_is_saved(run, tmp_path):
    def step(state, batch, key):
        loss = jnp.where(state.step == 5, jnp.nan, 1.0)
        metrics = {"loss": loss, "grad_norm": loss, "finite": jnp.isfinite(loss)[None]}
        return state.replace(step=state.step + 1), metrics

    message = (
        r"loss and grad_norm not finite at step 6 \(records 5\); the checkpoint of step 4 is intact"
    )
    with pytest.raises(RunError, match=message):
        run(step_fn=lambda _: jax.jit(step), checkpoint__every=2)
    assert [line["step"] for line in lines_of(tmp_path)] == [1, 2, 3, 4, 5]
