"""Measures a run: evaluators and held-out loss while it trains, test data at its end."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import jax
import numpy as np

from embed_jax.atomic import write_whole
from embed_jax.config import Experiment
from embed_jax.data.sources.files import find_file
from embed_jax.data.sources.sts import read_sts
from embed_jax.errors import InputError
from embed_jax.evals.comparison import Comparison, compare
from embed_jax.evals.geometry import geometry_evaluator, judged_texts, sts_texts
from embed_jax.evals.search import Qrels, TextsById, retrieval_evaluator
from embed_jax.evals.sts import sts_evaluator
from embed_jax.evals.task import NamedEvaluator
from embed_jax.parallel.mesh import split_groups
from embed_jax.prompts import fill_template
from embed_jax.registry import unknown
from embed_jax.routed import load_routed
from embed_jax.runtime import is_first_host, say
from embed_jax.sentence import load_sentence_encoder
from embed_jax.train.assembly import Assembly
from embed_jax.train.model import model_before
from embed_jax.train.prompts import given_prompts, training_encoders
from embed_jax.types import Batch, Evaluator, TrainState


def evaluation(
    run: Assembly, evaluators: Mapping[str, Evaluator], validation: Sequence[Mapping[str, Any]] = ()
) -> Callable[[TrainState], dict[str, float]] | None:
    """Returns `state -> {"NAME/METRIC": value}`, or None if there is nothing to measure.

    Args:
        run: the run.
        evaluators: by name.
        validation: held-out records, with the fields of the only data set: their mean loss without
            dropout is "validation/loss".
    """
    assert run.data is not None, "an abstract run has nothing to evaluate"
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
    """Returns the objective without dropout, over fixed batches.

    It is a function `state -> {"validation/loss": ...}`.
    """

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
    """Makes the evaluators of `eval.sts` for use while training.

    They are "sts", and with `eval.geometry` "geometry" of its sentences' embeddings.

    Raises:
        InputError: for a file that cannot be read.
    """
    if not config.eval.sts:
        return {}
    columns = read_sts(config.eval.sts)
    evaluators: dict[str, Evaluator] = {"sts": _instructed(sts_evaluator(*columns), config)}
    if config.eval.geometry:
        evaluators["geometry"] = geometry_evaluator(*sts_texts(*columns))
    return evaluators


def check_metric(
    config: Experiment, evaluators: Mapping[str, Evaluator], validation: Sized
) -> None:
    """Refuses an `eval.metric` that is not measured, before a model is loaded.

    Args:
        config: the run's settings.
        evaluators: by name; an attribute `metrics` lists the names of one's metrics.
        validation: held-out records, whose loss is "validation/loss".

    Raises:
        InputError: naming the field and what there is.
    """
    chosen = config.eval.metric
    name, _, metric = chosen.partition("/")
    names = [*evaluators, *(["validation"] if len(validation) else [])]
    if not chosen or name == "validation" and name in names:
        return
    if not names:
        raise InputError(
            f"config.eval.metric: {chosen!r} is to pick the model, but nothing is evaluated"
        )
    if name not in names:
        known = ", ".join(f"{name}/..." for name in names)
        raise InputError(f"config.eval.metric: nothing gives {chosen!r}; evaluated are {known}")
    metrics = getattr(evaluators[name], "metrics", (metric,))
    if metric not in metrics:
        full_names = [f"{name}/{metric}" for metric in metrics]
        raise InputError("config.eval.metric: " + unknown("metric", chosen, full_names))


def _instructed(evaluate: NamedEvaluator, config: Experiment) -> NamedEvaluator:
    """Returns an evaluator whose sentences have the instruction of the config, if there is one.

    Both sides of a pair have it.
    """
    if not config.eval.sts_instruction:
        return evaluate
    try:
        prompt = fill_template(config.data.template, config.eval.sts_instruction)
    except InputError as error:
        raise InputError(f"config.eval.sts_instruction: config.data.{error}") from None

    def instructed(encode: Callable[..., np.ndarray]) -> Mapping[str, float]:
        return evaluate(functools.partial(encode, prompt=prompt))

    return NamedEvaluator(instructed, evaluate.metrics)


def sts_tests(config: Experiment) -> dict[str, Evaluator]:
    """Makes the evaluators of `eval.test_sts`, files or directories with a test split, by name.

    Raises:
        InputError: for a file that cannot be read, or two of one name.
    """
    names = config.eval.test_sts
    evaluators: dict[str, Evaluator] = {}
    for name in names.split(",") if names else ():
        file = find_file(name.strip(), "test" if Path(name.strip()).is_dir() else "train")
        if _name(file) in evaluators:
            raise InputError(
                f"config.eval.test_sts: {file} is the second one called {_name(file)!r}"
            )
        evaluators[_name(file)] = _instructed(sts_evaluator(*read_sts(file)), config)
    return evaluators


def search_evaluators(
    config: Experiment, task: tuple[TextsById, TextsById, Qrels]
) -> dict[str, Evaluator]:
    """Makes the evaluators of a search task for use while training.

    They are "retrieval", and "geometry" if `eval.geometry` is set.

    Args:
        config: the run's settings.
        task: corpus, queries and relevance judgements.
    """
    query_prompt, corpus_prompt = given_prompts(config)
    evaluators: dict[str, Evaluator] = {
        "retrieval": retrieval_evaluator(
            *task,
            similarity=config.loss.similarity or "cosine",
            query_prompt=query_prompt,
            corpus_prompt=corpus_prompt,
            ignore_identical_ids=config.eval.ignore_identical_ids,
        )
    }
    if config.eval.geometry:
        evaluators["geometry"] = geometry_evaluator(
            *judged_texts(*task), query_prompt=query_prompt, corpus_prompt=corpus_prompt
        )
    return evaluators


def report_search(
    task: tuple[TextsById, TextsById, Qrels], config: Experiment, workdir: Path, unchanged: str = ""
) -> Comparison:
    """Searches test data with the model before, the model after and BM25; prints table and verdict.

    Args:
        task: corpus, queries and relevance judgements, which were used for no choice.
        config: the run's settings.
        workdir: of the finished run.
        unchanged: `Result.unchanged` of the run.
    """
    before = model_before(config)
    comparison = compare(
        training_encoders(config, before),
        training_encoders(config, load_routed(workdir / "model")),
        task,
        similarity=config.loss.similarity or "cosine",
        ignore_identical_ids=config.eval.ignore_identical_ids,
        data=f"{config.eval.retrieval or config.data.train or 'pairs'}, test",
        unchanged=unchanged,
    )
    say(
        "\n" + "\n\n".join((comparison.table(), comparison.examples(), comparison.verdict())) + "\n"
    )
    return comparison


def report_sts(
    tests: Mapping[str, Evaluator], config: Experiment, workdir: Path, unchanged: str = ""
) -> dict[str, float]:
    """Computes Spearman's correlation on test data, before and after training.

    The teacher's is computed too, if there is one. Prints a table.

    Args:
        tests: see `sts_tests`.
        config: the run's settings.
        workdir: of the finished run; `results.json` is written there, with null for undefined
            values.
        unchanged: `Result.unchanged` of the run.

    Returns:
        {"before/NAME": ..., "after/NAME": ..., "teacher/NAME": ...}, and their means over the files
        as NAME "average".
    """
    models = {
        "before": model_before(config),
        "after": load_routed(workdir / "model"),
    }
    if config.model.teacher:
        models["teacher"] = load_sentence_encoder(config.model.teacher)
    spearman = {
        when: {name: evaluate(model.encode)["spearman"] for name, evaluate in tests.items()}
        for when, model in models.items()
    }
    for scores in spearman.values():
        scores["average"] = float(np.mean(list(scores.values())))
    flat = {
        f"{when}/{name}": score
        for when, scores in spearman.items()
        for name, score in scores.items()
    }
    say(f"{'Spearman':16}" + "".join(f"{when:>10}" for when in spearman))
    for name in spearman["after"]:
        say(f"{name:16}" + "".join(f"{scores[name]:10.4f}" for scores in spearman.values()))
    if unchanged:
        say(f"{config.eval.metric}: {unchanged}")
    write_results(workdir, "sts", flat, unchanged)
    return flat


def write_results(
    workdir: Path, task: str, metrics: Mapping[str, float], unchanged: str = ""
) -> None:
    """Writes `results.json`, with null for undefined values, on the first host."""
    if is_first_host():
        finite = {name: score if math.isfinite(score) else None for name, score in metrics.items()}
        content = {"task": task, "metrics": finite, "unchanged": bool(unchanged)}
        write_whole(workdir / "results.json", json.dumps(content, indent=1) + "\n")


def _name(file: Path) -> str:
    """Names a test file: sts12 for sts12/test.tsv, stsb-dev for stsb/dev.tsv."""
    split = file.name.split(".")[0]
    return (
        file.parent.name
        if split == "test"
        else f"{file.parent.name}-{split}"
        if file.parent.name
        else split
    )
