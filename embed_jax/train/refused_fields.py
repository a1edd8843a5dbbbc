"""The fields of a config that a kind of model has no use for."""

from __future__ import annotations

from collections.abc import Iterable

from embed_jax.config import Experiment, flatten
from embed_jax.errors import InputError

# Of models that give each text a vector only; cross-encoders and late interaction refuse them.
EMBEDDER_FIELDS = (
    "model.query",
    "model.layers",
    "model.pooling",
    "model.sparse",
    "model.start_words",
    "model.mlp",
    "model.token_head",
    "model.guide",
    "model.teacher",
    "model.append_eos",
)
EMBEDDER_LOSS_FIELDS = ("loss.mlm", "queue.size")  # the same of what is minimised


def refuse_fields(config: Experiment, fields: Iterable[str], reason: str) -> None:
    """Raises an InputError for a field that is set and that the run has no use for.

    Args:
        config: the run's settings.
        fields: such as "model.pooling".
        reason: why the field is refused, for the message: "not for a cross-encoder".
    """
    values = flatten(config)
    for field in fields:
        if values[field]:
            raise InputError(f"config.{field}: {reason}, found {values[field]!r}")
