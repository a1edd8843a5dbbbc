"""Supervised sentence embeddings: natural language inference, graded similarity, several data sets.

    python -m experiments.nli --config=configs/nli/sup_simcse_bert_base.py --workdir=runs/sup_simcse

Pairs of premise and hypothesis with a label become what the loss needs: a loss of labels
("softmax", Reimers and Gurevych 2019) gets the pairs as they are; a loss without labels
("info_nce", Gao, Yao, Chen 2021) gets triplets of a premise, a hypothesis that it entails and one
that contradicts it. Losses of scores ("cosine_mse", "cosent", "angle") train on graded pairs.
Several data sets, each with its loss: `config.mixture`; one after the other: `config.stages`.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from embed_jax import config as configs
from embed_jax.data.nli import nli_triplets
from embed_jax.data.pairs import NLI, kind_of
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import record_fields
from embed_jax.data.stream import RecordStream
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.runtime import say
from embed_jax.train import loop
from embed_jax.train.evaluation import report_sts, sts_evaluators, sts_tests
from embed_jax.train.fit import fit
from embed_jax.train.launch import launch
from embed_jax.train.objective import training_loss
from embed_jax.train.sources import open_mixture, read_validation


def run(config: configs.Experiment, workdir: Path) -> loop.Result:
    # Data: one set or several, each in the form that its loss needs.
    sources, validation = read_data(config)

    # Evaluation: STS on the development set picks the best model.
    evaluators = sts_evaluators(config)

    tests = sts_tests(config)  # fail early: needed only at the end

    # Training.
    result = fit(config, workdir, sources=sources, evaluators=evaluators, validation=validation)

    # Afterwards, once, on test.
    if result.finished and tests:
        report_sts(tests, config, workdir, result.unchanged)
    return result


def read_data(config: configs.Experiment) -> tuple[dict[str, RecordSource], Sequence]:
    """Reads the data sets by name, and validation records if there is a single one."""
    sources = open_mixture(config)
    loss = training_loss(config)
    needs = {name: loss.of_dataset.get(name, loss.about).needs for name in sources}
    trained = {
        name: prepare_source(source, needs[name], config.train.seed, name)
        for name, source in sources.items()
    }
    if not config.data.validation_split:
        return trained, []
    ((name, only),) = sources.items()
    held_out = prepare_source(
        dataclasses.replace(only, records=read_validation(config.data)),
        needs[name],
        config.train.seed,
        "validation",
    )
    return trained, held_out.records


def prepare_source(
    source: RecordSource, needs: Sequence[str], seed: int, name: str
) -> RecordSource:
    """Makes triplets of labelled inference pairs for a loss without labels; keeps other data."""
    if kind_of(source.records[0]) != NLI or {"label", "score"} & set(needs):
        return source
    if isinstance(source.records, RecordStream):
        raise InputError(f"{name}: triplets need all records together, found a stream")
    try:
        triplets, report = nli_triplets(source.records, seed)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None
    say(f"{name}: {report}")
    if not triplets:
        raise InputError(f"{name}: no premise has both an entailed and a contradicted hypothesis")
    return dataclasses.replace(source, records=triplets, fields=record_fields(triplets))


def main() -> None:
    launch(run, "nli")


if __name__ == "__main__":
    exit_with_one_line(main)
