"""Training on tokens alone: what a run needs when `config.loss.name` is an objective on tokens and no loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from embed_jax.config import Experiment
from embed_jax.config import Source as SourceConfig
from embed_jax.data.chunks import in_pieces
from embed_jax.data.pipeline import Source
from embed_jax.data.sources import RecordFields
from embed_jax.data.tokenize import Tokenizer
from embed_jax.encoders.token_objectives import build_token_objective, is_token_objective
from embed_jax.errors import InputError
from embed_jax.losses.base import About
from embed_jax.losses.compose import LossFunction
from embed_jax.train.start import Start
from embed_jax.types import Auxiliary

# Fields that say something about embeddings, or about texts in columns.
OF_LOSSES = ("loss.mlm", "data.anchor_prompt", "data.candidate_prompt", "data.anchor_instruction",
             "data.candidate_instruction", "model.mlp", "model.guide", "model.teacher")  # fmt: skip


def tokens_alone(config: Experiment, start: Start) -> Auxiliary | None:
    """The objective on tokens that `config.loss.name` is, or None for a loss.

    Raises:
        InputError: for an objective that cannot be built, or beside settings that say how embeddings are trained.
    """
    name = config.loss.name
    if not is_token_objective(name):
        return None
    for field in OF_LOSSES:
        part, _, field_name = field.partition(".")
        value = getattr(getattr(config, part), field_name)
        if value:
            raise InputError(f"config.{field}: {name!r} trains on tokens alone and has no use for it, found {value!r}")
    for dataset, source in vars(config.mixture.sources).items():
        if source.loss or source.loss_weight != SourceConfig.loss_weight:
            raise InputError(
                f"config.mixture.sources.{dataset}: {name!r} is for all data sets, found a loss of its own"
            )
    try:
        return build_token_objective(name)(start.encoder, start.sentence.tokenizer.hf)
    except InputError as error:
        raise InputError(f"config.loss.name: {name!r}: {error}") from None


def stand_in(name: str, objective: Auxiliary) -> LossFunction:
    """A loss that says what an objective on tokens needs: one text a record, and its parameters; never called."""
    return LossFunction(name, _no_loss, About(columns=(1, 1), init=lambda dim, key: objective.init(key)))


def _no_loss(*_: Any) -> Any:
    raise AssertionError("an objective on tokens has no embeddings to compare")


def cut_sources(sources: Mapping[str, Source], tokenizer: Tokenizer) -> dict[str, Source]:
    """The data sets with texts over their limit in pieces, instead of cut short."""
    found = {}
    for name, source in sources.items():
        pieces = cut_records(source.records, source, tokenizer)
        found[name] = dataclasses.replace(source, records=pieces, fields=RecordFields(lambda record: (record["text"],)))
    return found


def cut_records(
    records: Sequence[Mapping[str, Any]], like: Source, tokenizer: Tokenizer
) -> Sequence[Mapping[str, Any]]:
    """Records {"text"}: the pieces of the texts of records with the fields, and to the limit, of a data set."""
    return in_pieces(records, lambda record: like.fields.columns(record)[0], tokenizer.cut_at(like.max_length))
