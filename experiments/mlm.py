"""Training on plain text: masked language modelling, masked next token (LLM2Vec), next token.

    python -m experiments.mlm --config=configs/mlm/bert_small.py --config.data.train=corpus.txt \
        --workdir=runs/mlm

Documents are cut into pieces of at most `data.max_length` tokens, so that every token of them is
trained on. The loss of held-out documents is logged beside the training loss. The result is a model
directory that the other experiments start from.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax import config as configs
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import RecordFields
from embed_jax.data.stream import RecordStream
from embed_jax.encoders.token_objectives import is_token_objective
from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.registry import REGISTRY
from embed_jax.train import loop
from embed_jax.train.evaluation import sts_evaluators
from embed_jax.train.fit import fit
from embed_jax.train.launch import launch
from embed_jax.train.sources import ONLY, read_records, read_validation, without_texts
from embed_jax.train.tokens import token_objective


def run(config: configs.Experiment, workdir: Path) -> loop.Result:
    if not is_token_objective(config.loss.name):
        known = ", ".join(REGISTRY["token_objective"])
        raise InputError(
            f"config.loss.name: expected an objective on tokens ({known}), found "
            f"{config.loss.name!r}"
        )
    # Data: documents, one per record, some of them held out.
    sources = {
        name: read_documents(settings, name)
        for name, settings in vars(config.mixture.sources).items()
    }
    validation: Sequence = []
    if not sources:
        source = read_documents(config.data)
        records = source.records
        if config.data.validation_split:
            validation = read_validation(config.data)
        elif config.data.holdout:
            records, validation = split_documents(records, config.data.holdout)
        sources[ONLY] = RecordSource(records, source.fields)

    # Training, on pieces of them. An STS file measures the embeddings meanwhile.
    return fit(
        config,
        workdir,
        sources=sources,
        evaluators=sts_evaluators(config),
        validation=validation,
        objective=token_objective,
    )


def read_documents(settings: configs.Data | configs.Source, name: str = ONLY) -> RecordSource:
    """Reads the texts that a config names."""
    records = read_records(settings)
    if "text" not in records[0]:
        raise InputError(
            f"{settings.train}: expected records with a text, found the fields "
            f"{', '.join(records[0])}"
        )
    fields = RecordFields(lambda record: (record["text"],))
    if settings.exclude:
        records = without_texts(records, fields.columns, settings.exclude, name)
    return RecordSource(records, fields, max_length=getattr(settings, "max_length", 0))


def split_documents(
    records: Sequence[Mapping[str, Any]], share: float
) -> tuple[list[Any], list[Any]]:
    """Splits records for training and validation by a hash of the text: equal ones together."""
    if isinstance(records, RecordStream):
        raise InputError(f"config.data.holdout: not for a stream, {records.name}")
    sides: tuple[list[Any], list[Any]] = ([], [])
    for record in records:
        digest = hashlib.blake2b(record["text"].strip().encode(), digest_size=8).digest()
        sides[int.from_bytes(digest, "big") < share * 2**64].append(record)
    for side, what in zip(sides, ("training", "validation"), strict=True):
        if not side:
            raise InputError(
                f"config.data.holdout: {share} of {len(records)} documents leaves none for {what}"
            )
    return sides


def main() -> None:
    launch(run, "mlm")


if __name__ == "__main__":
    exit_with_one_line(main)
