"""Unsupervised SimCSE: a sentence is its own positive under another dropout mask (Gao et al.).

    python -m experiments.simcse --config=configs/simcse/unsup_bert_base.py --workdir=runs/simcse

Each sentence is encoded twice in one batch; the two copies see different dropout, every other
sentence of the global batch is a negative. `data.augment` changes the second copy's words,
`loss.mlm` adds masked language modelling, and `queue.size` keeps earlier batches as negatives. With
`model.mlp="training"` the MLP over [CLS] is dropped from the result, as in the paper.
"""

from collections.abc import Callable
from pathlib import Path

from embed_jax import config as configs
from embed_jax.data.augment import augment_text, build_augmentation
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import RecordFields
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.train import loop
from embed_jax.train.evaluation import sts_evaluators
from embed_jax.train.fit import fit
from embed_jax.train.launch import launch
from embed_jax.train.sources import ONLY, read_records, read_validation, without_texts


def run(config: configs.Experiment, workdir: Path) -> loop.Result:
    # Data: sentences, one per record.
    if vars(config.mixture.sources):
        raise InputError(
            "config.mixture.sources: SimCSE trains on one data set, config.data.train; "
            f"found {', '.join(vars(config.mixture.sources))}"
        )
    records = read_records(config.data)
    if "text" not in records[0]:
        raise InputError(
            f"{config.data.train}: expected records with a text, found the fields "
            f"{', '.join(records[0])}"
        )
    if config.data.exclude:
        records = without_texts(records, lambda record: (record["text"],), config.data.exclude)
    validation = read_validation(config.data) if config.data.validation_split else []

    # Evaluation: STS on the development set picks the best model.
    evaluators = sts_evaluators(config)

    # Training: the same sentence twice, the second time changed if there is an augmentation.
    fields = RecordFields(lambda record: (record["text"], record["text"]))
    return fit(
        config,
        workdir,
        sources={ONLY: RecordSource(records, fields, augment=make_augmentation(config))},
        evaluators=evaluators,
        validation=validation,
    )


def make_augmentation(config: configs.Experiment) -> Callable[[str, int, int, int], str] | None:
    """Returns the change of the positives, a function of seed, step and record."""
    if not config.data.augment:
        return None
    change = build_augmentation(config.data.augment)

    def augment(text: str, column: int, record: int, step: int) -> str:
        if column == 0:
            return text
        return augment_text(
            change, text, seed=config.train.seed, step=step, record=record, column=column
        )

    return augment


def main() -> None:
    launch(run, "simcse")


if __name__ == "__main__":
    exit_with_one_line(main)
