"""Training on tokens alone: what a run needs when `config.loss.name` is an objective on tokens and no loss."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from embed_jax.config import Experiment
from embed_jax.config import Source as SourceConfig
from embed_jax.data.chunks import in_pieces
from embed_jax.data.pipeline import Source
from embed_jax.data.sources import RecordFields
from embed_jax.data.tokenize import Tokenizer
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.token_heads import head_tensors, read_head
from embed_jax.encoders.token_objectives import build_token_objective, is_token_objective
from embed_jax.errors import InputError
from embed_jax.losses.base import About
from embed_jax.losses.compose import LossFunction
from embed_jax.parallel.distributed import is_first_host
from embed_jax.parallel.tokens import HEAD
from embed_jax.train.start import Start
from embed_jax.types import Auxiliary, Params, TrainState

# Fields that say something about embeddings, or about texts in columns.
OF_LOSSES = ("loss.mlm", "data.anchor_prompt", "data.candidate_prompt", "data.anchor_instruction",
             "data.candidate_instruction", "model.mlp", "model.guide", "model.teacher")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TokensAlone:
    """An objective on tokens, and its parameters as the model brings them along.

    Attributes:
        objective: their own; `init` makes fresh parameters.
        config: the backbone's.
        head: the parameters that stand in the model's directory, NumPy; None: there are none.
        fixed: whether they are not trained, as nothing of the model is beside an adapter.
    """

    objective: Auxiliary
    config: Any
    head: Params | None
    fixed: bool

    def init(self, key: PRNGKeyArray) -> Params:
        """Those to train, at the start."""
        if self.head is None:
            return self.objective.init(key)
        return {} if self.fixed else self.head

    @property
    def frozen(self) -> dict[str, Params]:
        """Those of a state's frozen parameters, by name."""
        return {HEAD: self.head} if self.fixed and self.head else {}

    def tensors(self, state: TrainState) -> dict[str, np.ndarray]:
        """A state's, under Hugging Face's names, to stand beside the model."""
        return head_tensors(self.config, {**state.frozen.get(HEAD, {}), **state.params["loss"]})


def tokens_alone(config: Experiment, start: Start) -> TokensAlone | None:
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
            raise InputError(
                f"config.{field}: {name!r} trains on tokens alone and has no use for it, found {value!r}"
            )
    for dataset, source in vars(config.mixture.sources).items():
        if source.loss or source.loss_weight != SourceConfig.loss_weight:
            raise InputError(
                f"config.mixture.sources.{dataset}: {name!r} is for all data sets, found a loss of its own"
            )
    try:
        objective = build_token_objective(name)(start.encoder, start.sentence.tokenizer.hf)
    except InputError as error:
        raise InputError(f"config.loss.name: {name!r}: {error}") from None
    fixed = bool(config.lora.rank)
    head, shapes = None, jax.eval_shape(objective.init, jax.random.key(0))
    if shapes and not config.model.name.startswith("random:"):
        head = read_head(resolve(config.model.name), start.encoder.config, shapes)
        if head is None and is_first_host():
            print(
                f"{config.model.name} has nothing that predicts tokens: what does starts at random"
            )
    if head is not None:
        dtype = jnp.bfloat16 if fixed and config.lora.base != "float32" else np.float32
        head = jax.tree.map(lambda leaf: np.array(leaf, dtype), head)
    return TokensAlone(objective, start.encoder.config, head, fixed)


def stand_in(name: str, objective: TokensAlone) -> LossFunction:
    """A loss that says what an objective on tokens needs: one text a record, and its parameters; never called."""
    return LossFunction(
        name, _no_loss, About(columns=(1, 1), init=lambda dim, key: objective.init(key))
    )


def _no_loss(*_: Any) -> Any:
    raise AssertionError("an objective on tokens has no embeddings to compare")


def cut_sources(sources: Mapping[str, Source], tokenizer: Tokenizer) -> dict[str, Source]:
    """The data sets with texts over their limit in pieces, instead of cut short."""
    found = {}
    for name, source in sources.items():
        pieces = cut_records(source.records, source, tokenizer)
        found[name] = dataclasses.replace(
            source, records=pieces, fields=RecordFields(lambda record: (record["text"],))
        )
    return found


def cut_records(
    records: Sequence[Mapping[str, Any]], like: Source, tokenizer: Tokenizer
) -> Sequence[Mapping[str, Any]]:
    """Records {"text"}: the pieces of the texts of records with the fields, and to the limit, of a data set."""
    return in_pieces(
        records, lambda record: like.fields.columns(record)[0], tokenizer.cut_at(like.max_length)
    )
