"""Measures a run: evaluators and held-out loss while it trains, and a report on test data at its end."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from embed_jax.atomic import write_whole
from embed_jax.config import Experiment
from embed_jax.data.sources.files import find_file
from embed_jax.data.sources.sts import read_sts
from embed_jax.errors import InputError
from embed_jax.evals.geometry import geometry_evaluator, sts_texts
from embed_jax.evals.sts import sts_evaluator
from embed_jax.parallel.mesh import split_groups
from embed_jax.prompts import fill_template
from embed_jax.runtime import is_first_host, say
from embed_jax.sentence import load
from embed_jax.train.assembly import Assembly
from embed_jax.train.model import model_before
from embed_jax.types import Batch, TrainState

Evaluator = Callable[[Callable[[Sequence[str]], np.ndarray]], Mapping[str, float]]
"""`encode -> {metric: value}`"""


def evaluation(
    run: Assembly, evaluators: Mapping[str, Evaluator], validation: Sequence[Mapping[str, Any]] = ()
) -> Callable[[TrainState], dict[str, float]] | None:
    """Returns `state -> {"NAME/METRIC": value}`, or None if there is nothing to measure.

    Args:
        evaluators: by name.
        validation: held-out records, with the fields of the only data set: their mean loss without dropout is
            "validation/loss".
    """
    batches = run.data.held_out(validation)
    if not evaluators and not batches:
        return None
    held_out_loss = _mean_loss(run, batches)

    def evaluate(state: TrainState) -> dict[str, float]:
        measured = held_out_loss(state)
        for name, evaluator in evaluators.items():
            metrics = evaluator(run.encode(state))
            measured |= {f"{name}/{metric}": value for metric, value in metrics.items()}
        return measured

    return evaluate


def _mean_loss(run: Assembly, batches: Sequence[Batch]) -> Callable[[TrainState], dict[str, float]]:
    """Returns the objective without dropout, over fixed batches: `state -> {"validation/loss": ...}`."""

    def loss_of(params, batch, frozen, **at_step):
        return run.loss(params, batch, None, frozen, **at_step)

    compiled = jax.jit(loss_of)

    def evaluate(state: TrainState) -> dict[str, float]:
        totals: dict[str, float] = {}
        at_step = {"step": state.step} if run.objective.scheduled else {}
        for batch in batches:
            batch = split_groups(batch, run.mesh)
            loss, (metrics, _) = compiled(state.params, batch, state.frozen, **at_step)
            for name, value in {"loss": loss, **metrics}.items():
                totals[name] = totals.get(name, 0.0) + float(value) / len(batches)
        return {f"validation/{name}": value for name, value in totals.items()}

    return evaluate


def sts_evaluators(config: Experiment) -> dict[str, Evaluator]:
    """What `eval.sts` asks for while training: "sts", and "geometry" of its sentences' embeddings with `eval.geometry`.

    Raises:
        InputError: for a file that cannot be read.
    """
    if not config.eval.sts:
        return {}
    columns = read_sts(config.eval.sts)
    found: dict[str, Evaluator] = {"sts": _instructed(sts_evaluator(*columns), config)}
    if config.eval.geometry:
        found["geometry"] = geometry_evaluator(*sts_texts(*columns))
    return found


def _instructed(evaluate: Evaluator, config: Experiment) -> Evaluator:
    """An evaluator whose sentences have the instruction of the config, if there is one, on both sides of a pair."""
    if not config.eval.sts_instruction:
        return evaluate
    try:
        prompt = fill_template(config.data.template, config.eval.sts_instruction)
    except InputError as error:
        raise InputError(f"config.eval.sts_instruction: config.data.{error}") from None
    return lambda encode: evaluate(functools.partial(encode, prompt=prompt))


def sts_tests(config: Experiment) -> dict[str, Evaluator]:
    """The evaluators of `eval.test_sts`, files or directories with a test split, by name.

    Raises:
        InputError: for a file that cannot be read, or two of one name.
    """
    names, found = config.eval.test_sts, {}
    for name in names.split(",") if names else ():
        file = find_file(name.strip(), "test" if Path(name.strip()).is_dir() else "train")
        if _name(file) in found:
            raise InputError(
                f"config.eval.test_sts: {file} is the second one called {_name(file)!r}"
            )
        found[_name(file)] = _instructed(sts_evaluator(*read_sts(file)), config)
    return found


def report_sts(
    tests: Mapping[str, Evaluator], config: Experiment, workdir: Path
) -> dict[str, float]:
    """Spearman's correlation on test data, before and after training, and of the teacher if any; prints a table.

    Args:
        tests: of `sts_tests`.
        workdir: of the finished run; `results.json` is written there, with null for what is undefined.

    Returns:
        {"before/NAME": ..., "after/NAME": ..., "teacher/NAME": ...}, and their means over the files as NAME "average".
    """
    models = {
        "before": model_before(config),
        "after": load(str(workdir / "model")),
    }
    if config.model.teacher:
        models["teacher"] = load(config.model.teacher)
    found = {
        when: {name: one(model.encode)["spearman"] for name, one in tests.items()}
        for when, model in models.items()
    }
    for scores in found.values():
        scores["average"] = float(np.mean(list(scores.values())))
    flat = {
        f"{when}/{name}": score for when, scores in found.items() for name, score in scores.items()
    }
    say(f"{'Spearman':16}" + "".join(f"{when:>10}" for when in found))
    for name in found["after"]:
        say(f"{name:16}" + "".join(f"{scores[name]:10.4f}" for scores in found.values()))
    write_results(workdir, "sts", flat)
    return flat


def write_results(workdir: Path, task: str, metrics: Mapping[str, float]) -> None:
    """Writes `results.json`, with null for what is undefined; the first host does."""
    if is_first_host():
        finite = {name: score if math.isfinite(score) else None for name, score in metrics.items()}
        write_whole(
            workdir / "results.json", json.dumps({"task": task, "metrics": finite}, indent=1) + "\n"
        )


def _name(file: Path) -> str:
    """sts12 of sts12/test.tsv; stsb-dev of stsb/dev.tsv, since its test split may be there too."""
    split = file.name.split(".")[0]
    return (
        file.parent.name
        if split == "test"
        else f"{file.parent.name}-{split}"
        if file.parent.name
        else split
    )
