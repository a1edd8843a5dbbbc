"""The training loop: one function that takes functions."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, cast

import jax
import numpy as np

from embed_jax.config import Experiment, as_dict
from embed_jax.errors import InputError, RunError
from embed_jax.parallel.distributed import wait_for_hosts
from embed_jax.parallel.mesh import split_groups
from embed_jax.registry import unknown
from embed_jax.runtime import environment, is_first_host
from embed_jax.train.checkpoint import Checkpoints, read_state
from embed_jax.train.data import BatchesFrom
from embed_jax.train.selection import Best, judge_evaluation
from embed_jax.train.speed import model_flops_utilization, training_flops_per_token
from embed_jax.train.step import TrainStep
from embed_jax.train.termination import handle_signals
from embed_jax.train.tracking import MetricsFile, Progress, Wandb
from embed_jax.train.workdir import Chronicle
from embed_jax.types import BASE, Batch, TrainState

EVALUATIONS = 10  # in a run whose config does not say how often


@dataclasses.dataclass(frozen=True)
class Result:
    """The result of a run: the last state, and the best evaluation (-inf without evaluations)."""

    state: TrainState
    best: Best
    finished: bool

    @property
    def unchanged(self) -> str:
        """Says that the resulting model is the one that the run started from; "" if it is not."""
        best = self.best
        if not self.finished or best.step != 0 or best.last_step <= 0:
            return ""
        return (
            f"the best step is 0: no later evaluation reached its {best.value:.4f} "
            f"({best.last_value:.4f} at the last step, {best.last_step}), "
            "so the result is the model that the run started from, unchanged"
        )


def run(
    config: Experiment,
    workdir: Path,
    *,
    state: TrainState,
    step_fn: TrainStep,
    batches: BatchesFrom,
    num_steps: int,
    learning_rate: Callable[[int], Any],
    evaluate: Callable[[TrainState], dict[str, float]] | None,
    save_model: Callable[[TrainState, Path], None],
    mesh: jax.sharding.Mesh,
) -> Result:
    """Trains from the newest checkpoint in `workdir` (or from `state`) to `num_steps`.

    The order of a step is what makes a resume exact: take batch n, step, write the line of step n,
    evaluate, choose the best model, save; the line is on disk before the checkpoint that counts it.
    With several hosts each of them runs this, all evaluate and write checkpoints, and the first one
    writes the rest.

    Args:
        config: the run's settings.
        workdir: the run's directory.
        state: a state before the first step; also the abstract state for restoring.
        step_fn: `(state, batch, key) -> (state, metrics)`, see `train.step`.
        batches: `(start, state) -> iterator of (index, batch)` from index `start` on; where it ends
            before `num_steps`, it is asked again, with the state as it is then.
        num_steps: of the whole run.
        learning_rate: of a step, for the log.
        evaluate: `state -> {name: value}`, called before the first step, every `eval.every`, and at
            the end.
        save_model: writes a state's encoder as a model directory; called with `workdir/model`.
        mesh: the device mesh.

    Returns:
        The result; `finished` is False if SIGTERM or Ctrl-C ended the run early, its state saved.

    Raises:
        InputError: if `eval.metric` is not evaluated, or is not a number at step 0.
        RunError: if the loss is not finite, naming step and rows; what was saved stays as it was.
    """
    if config.eval.metric and evaluate is None:
        raise InputError(
            f"config.eval.metric: {config.eval.metric!r} is to pick the model, but nothing is "
            "evaluated"
        )
    key = jax.random.key(config.train.seed)
    model_directory = workdir / "model"
    flops_per_token = training_flops_per_token(state.params["encoder"], state.frozen.get(BASE))
    trace = (
        [int(step) for step in config.train.profile.split(":")]
        if config.train.profile
        else [-1, -1]
    )

    with contextlib.ExitStack() as stack:
        # Where we are.
        checkpoints = stack.enter_context(
            Checkpoints(workdir / "checkpoints", config.checkpoint.keep)
        )
        restored = checkpoints.restore(state)
        best = Best()
        if restored is not None:
            state, notes = restored
            best = Best(**notes["best"])
        elif config.train.from_checkpoint:
            state = read_state(Path(config.train.from_checkpoint), state)
            if int(state.step) >= num_steps:
                raise InputError(
                    f"config.train.from_checkpoint: {config.train.from_checkpoint} is of step "
                    f"{int(state.step)}, expected fewer than the run's {num_steps} steps"
                )
        start = int(state.step)
        if config.train.extend and best.stopped and start < num_steps:
            best = dataclasses.replace(best, stopped=False, stale=0)
        log_file = workdir / "metrics.jsonl" if is_first_host() else None
        metrics_file = MetricsFile(log_file, start if restored is not None else -1)
        stack.callback(metrics_file.close)
        versions = environment()
        chronicle = Chronicle(
            workdir / "run.json" if is_first_host() else None,
            start,
            resumed=restored is not None,
            experiment=config.tracking.experiment,
            devices=mesh.size,
            hosts=jax.process_count(),
            versions=versions,
        )
        tracker = Wandb(
            config.tracking.wandb if is_first_host() else "disabled",
            config.tracking.project,
            config.tracking.name,
            workdir,
            {**as_dict(config), "environment": versions},
        )
        stack.callback(tracker.close)
        progress = Progress(start, num_steps, config.train.log_every, quiet=not is_first_host())
        stack.callback(progress.close)
        terminated = stack.enter_context(handle_signals(progress.say))
        if restored is not None:
            progress.say(f"resuming {workdir} at step {start}/{num_steps}")
        elif start:
            progress.say(f"from {config.train.from_checkpoint} at step {start}/{num_steps}")

        clock, waited = time.monotonic(), 0.0  # of the last line; for batches, since then
        losses: list[float] = []  # since the last evaluation

        def line_of(step: int, batch: Batch, metrics: Mapping[str, Any]) -> dict[str, float]:
            """Waits for a step's metrics, refuses a loss that is not finite, shows the progress."""
            nonlocal clock, waited
            _check_finite(step, batch, metrics, checkpoints)
            line = {name: float(value) for name, value in metrics.items() if name != "finite"}
            # A metric of a data set that the batch has nothing of is not a number.
            line = {name: value for name, value in line.items() if not math.isnan(value)}
            now = time.monotonic()
            num_tokens = sum(
                int(np.sum(view.sentence < view.sentences)) for view in batch.tokens.values()
            )
            slots = sum(view.sentence.size for view in batch.tokens.values())
            line["learning_rate"] = float(learning_rate(step - 1))
            line["tokens_per_second"] = num_tokens * jax.process_count() / max(now - clock, 1e-9)
            line["fill_rate"] = num_tokens / slots
            line["wait_seconds"] = waited
            mfu = model_flops_utilization(
                line["tokens_per_second"], flops_per_token, list(mesh.devices.flat)
            )
            if mfu is not None:
                line["mfu"] = mfu
            waiting = waited / max(now - clock, 1e-9)
            clock, waited = now, 0.0
            losses.append(line["loss"])
            progress.step(step, line["loss"], line["tokens_per_second"], waiting)
            return line

        def log(step: int, line: Mapping[str, float]) -> None:
            metrics_file.write(step, line)
            tracker.write(step, line)

        def evaluated(step: int) -> dict[str, float]:
            """Returns the evaluation's metrics; updates `best` and the saved model."""
            nonlocal best, losses, clock
            began = time.monotonic()
            assert evaluate is not None, "called only where there is something to evaluate"
            metrics = evaluate(state)
            progress.say(
                f"step {step}: "
                + "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            )
            if config.eval.metric:
                if config.eval.metric not in metrics:
                    raise InputError(
                        "config.eval.metric: " + unknown("metric", config.eval.metric, metrics)
                    )
                value = metrics[config.eval.metric]
                chosen, best = judge_evaluation(
                    best, value, step, _mean(losses), config, progress.say
                )
                if chosen:
                    save_model(state, model_directory)
            losses = []
            clock += time.monotonic() - began  # the evaluation's time is not the steps'
            return metrics

        def upcoming() -> Generator[tuple[int, Batch], None, None]:
            """Yields all batches to come, from a new source where one ends."""
            nonlocal waited
            index = start
            while index < num_steps:
                since = time.monotonic()
                with contextlib.closing(batches(index, state)) as some:
                    for index, batch in some:
                        waited += time.monotonic() - since
                        yield index, batch
                        since = time.monotonic()
                index += 1

        to_train = start < num_steps and not best.stopped
        if to_train:
            chronicle.write(start)
        if evaluate is not None and restored is None and start == 0:
            log(0, evaluated(0))

        pending: tuple[int, Batch, dict] | None = None
        if to_train:
            for index, batch in stack.enter_context(contextlib.closing(upcoming())):
                step = index + 1
                if index == max(trace[0], start) < trace[1]:
                    jax.profiler.start_trace(str(workdir / "profile"))
                state, metrics = step_fn(state, split_groups(batch, mesh), key)
                # JAX's type of a compiled function lacks it, and has no public counter.
                metrics["compilations"] = cast(Any, step_fn)._cache_size()
                if trace[0] < step == min(trace[1], num_steps):
                    jax.block_until_ready(state)
                    jax.profiler.stop_trace()
                if pending is not None:
                    log(
                        pending[0], line_of(*pending)
                    )  # the device works on step n while n - 1 is written
                pending = (step, batch, metrics)

                last = step == num_steps
                due_evaluation = evaluate is not None and is_evaluated(
                    step, config.eval.every, num_steps
                )
                due_save = last or (
                    config.checkpoint.every > 0 and step % config.checkpoint.every == 0
                )
                stop = terminated(step)
                if due_evaluation or due_save or stop:
                    # Nothing is evaluated or saved before the step is known to be sound.
                    line = line_of(*pending)
                    log(step, line | evaluated(step) if due_evaluation else line)
                    pending = None
                    if due_save or best.stopped or stop:
                        checkpoints.save(step, state, {"best": dataclasses.asdict(best)})
                    chronicle.write(step)
                if last or best.stopped or stop:
                    break

        # The end.
        step = int(state.step)
        finished = step == num_steps or best.stopped
        if not finished:
            progress.say(
                f"{terminated.signal}: saved at step {step}/{num_steps}; the same command resumes"
            )
        elif best.stopped:
            progress.say(
                f"no gain in {best.stale} evaluations: stopped at step {step}; best at step "
                f"{best.step}"
            )
        if finished and best.step < 0:  # no metric was asked for
            save_model(state, model_directory)
        wait_for_hosts("the model is written")
        result = Result(state, best, finished)
        if result.unchanged:
            progress.say(f"warning: {config.eval.metric}: {result.unchanged}")
    return result


def is_evaluated(step: int, every: int, num_steps: int) -> bool:
    """Tells whether a step is one of those after which a run evaluates.

    Args:
        step: the number of steps taken.
        every: `eval.every`: steps; 0: a tenth of the run, -1: only at the start and the end.
        num_steps: of the run.
    """
    if step in (0, num_steps):
        return True
    every = every or max(round(num_steps / EVALUATIONS), 1)
    return every > 0 and step % every == 0


def _mean(values: list[float]) -> list[float]:
    """Returns the mean in a list; [] before the first step, and right after a resume."""
    return [float(np.mean(values))] if values else []


def _check_finite(
    step: int, batch: Batch, metrics: Mapping[str, Any], checkpoints: Checkpoints
) -> None:
    """Raises a RunError that names the step and the records whose loss is not a number."""
    broken = [name for name in ("loss", "grad_norm") if not math.isfinite(float(metrics[name]))]
    if not broken:
        return
    # This host's own examples, as the batch has no others.
    finite = np.concatenate([np.asarray(shard.data) for shard in _own_shards(metrics["finite"])])
    records = list(map(str, np.asarray(batch.record).reshape(-1)[~finite]))
    if batch.dataset is not None:  # of a mixture
        sources = np.asarray(batch.dataset).reshape(-1)[~finite]
        records = [
            f"{record} of data set {source}"
            for record, source in zip(records, sources, strict=True)
        ]
    where = "every example's own loss is finite"
    if records:
        ending = f" and {len(records) - 8} more" if len(records) > 8 else ""
        where = f"records {', '.join(records[:8])}{ending}"
    saved = checkpoints.latest_step()
    saved_state = (
        "nothing was saved yet" if saved is None else f"the checkpoint of step {saved} is intact"
    )
    raise RunError(
        f"{' and '.join(broken)} not finite at step {step} ({where}); {saved_state}; "
        "a smaller config.optim.learning_rate or config.optim.clip_norm may help"
    )


def _own_shards(array: jax.Array) -> list[Any]:
    """A host's different parts of an array split along its first axis, in order."""
    parts = {shard.index[0].start or 0: shard for shard in array.addressable_shards}
    return [parts[start] for start in sorted(parts)]
