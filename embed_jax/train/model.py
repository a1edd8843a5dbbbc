"""The model that a run trains, loaded or initialised by its config, or only its shapes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from embed_jax.config import Experiment, Lora, Model
from embed_jax.cross_encoder import CrossEncoder
from embed_jax.data.tokenize import Tokenizer
from embed_jax.data.tokenizer_files import from_transformers
from embed_jax.embedding_model import TextEncoder
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.lora import split_trainable
from embed_jax.encoders.read import SavedModel, read_model, read_routes, sharding_rules
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.spec import EncoderSpec, random_spec
from embed_jax.encoders.static import StaticConfig
from embed_jax.encoders.towers import two_towers
from embed_jax.encoders.vocabulary import TokenWeights
from embed_jax.errors import InputError
from embed_jax.late_interaction import BoundLateInteraction, LateInteractionEncoder
from embed_jax.multi_head import MultiHeadEncoder
from embed_jax.pair_scores import BoundCrossEncoder
from embed_jax.pretrained import check_length, tokenizer_of, with_family
from embed_jax.routed import AnyEncoder, OneEncoder, RoutedEncoder
from embed_jax.sparse import SparseEncoder, encoder_class
from embed_jax.train.base_model import (
    compute_dtype,
    longest_text,
    random_model,
    tokenizer_directory,
)
from embed_jax.train.model_changes import (
    add_adapter,
    add_dense,
    add_vocabulary_head,
    apply_changes,
    dim_before_norm,
    put_function,
    store_frozen,
)
from embed_jax.train.refused_fields import refuse_fields
from embed_jax.types import BASE, Encoder, Params

Trained = AnyEncoder | CrossEncoder | LateInteractionEncoder | MultiHeadEncoder
TABLE = "token_weights"  # as `config.model.query`: queries of a sparse model without a transformer
TOWERS = ("query", "document")  # routes of a model with two towers


@dataclasses.dataclass(frozen=True)
class TrainingModel:
    """The model of a run before its first step.

    Attributes:
        encoder: the encoder that is trained; it may have a head that the result drops.
        params: of `encoder`; shapes in an abstract model.
        spec: of the model that comes out; of two towers, that of documents.
        tokenizer: transformers' tokenizer, or what stands for it in an abstract model.
        sentence: the model that comes out, which shares `params`; with two towers it has the routes
            "query" and "document". None in an abstract model.
        max_length: tokens of the longest training text.
    """

    encoder: Encoder
    params: Params
    spec: EncoderSpec
    tokenizer: Any
    sentence: Trained | None
    max_length: int

    @property
    def result(self) -> Trained:
        """Returns `sentence`, the model that comes out, of a model that is not abstract."""
        assert self.sentence is not None, "only shapes are asked of an abstract model"
        return self.sentence

    @property
    def embedder(self) -> AnyEncoder:
        """Returns the model that comes out, of a run that trains embeddings.

        Raises:
            InputError: for a cross-encoder, a late-interaction model or one of several heads.
        """
        if isinstance(self.result, CrossEncoder):
            raise InputError("a cross-encoder has no embeddings: use experiments.cross_encoder")
        if isinstance(self.result, LateInteractionEncoder):
            raise InputError(
                "a late-interaction model has many vectors for a text: use "
                "experiments.late_interaction"
            )
        if isinstance(self.result, MultiHeadEncoder):
            raise InputError(
                "a model of several heads has an embedding by each: use experiments.multi_head"
            )
        return self.result

    @property
    def has_towers(self) -> bool:
        """Tells whether queries have their own encoder."""
        return isinstance(self.sentence, RoutedEncoder)

    def bind(self, params: Params | None = None) -> Any:
        """Returns the model with these parameters as a function.

        `texts -> embeddings`, or `(queries, passages) -> scores` of a cross-encoder.
        """
        if isinstance(self.sentence, CrossEncoder):
            return BoundCrossEncoder(self.sentence, params)
        if isinstance(self.sentence, LateInteractionEncoder):
            return BoundLateInteraction(self.sentence, params)
        return TextEncoder(self.sentence, params)

    @property
    def tokenizers(self) -> dict[str, Tokenizer]:
        """Returns the tokenizers of the trained encoder by name.

        See `data.pipeline.make_batch_maker` for the names.
        """
        result = self.result
        if isinstance(result, LateInteractionEncoder):
            return {"encoder": result.tokenizers["document"], "query": result.tokenizers["query"]}
        if not isinstance(result, RoutedEncoder):
            return {"encoder": result.tokenizer}
        query, document = (result.encoders[route] for route in TOWERS)
        return {"encoder": document.tokenizer, "query": query.tokenizer}

    def split(self) -> tuple[Params, dict[str, Params]]:
        """Returns the parameters to train, and {BASE: the frozen ones} if there is an adapter."""
        if not self.has_towers:
            trained, frozen = split_trainable(self.params, self.spec)
        else:  # only the documents' tower has adapters
            document, frozen = split_trainable(self.params["document"], self.spec)
            trained = {**self.params, "document": document}
            frozen = {"document": frozen} if frozen else {}
        return trained, {BASE: frozen} if frozen else {}

    def merges_adapter(self, lora: Lora) -> bool:
        """Tells whether the model is saved with its adapter merged.

        An adapter to random weights has no base to refer to, and a model with routes is written as
        whole encoders.
        """
        if self.spec.lora is None:
            return False
        result = self.result
        return lora.merge or isinstance(result, RoutedEncoder) or not result.base


def initial_model(config: Experiment, *, mesh: Mesh | None = None) -> TrainingModel:
    """Loads or initialises the model that a config names, with the adapter to train.

    Args:
        config: its `model.name` "random:SHAPE" makes random weights of a known shape for
            `model.tokenizer`. A model that has the adapter of `lora` goes on with it; one with
            another adapter is refused. Without a rank, an adapter that the model has is merged into
            it. With `model.query`, or if `model.name` has the routes "query" and "document", there
            are two towers.
        mesh: where to put parameters that are read from files, split as training needs them; None:
            on the host.

    Raises:
        InputError: for a model, tokenizer or setting that cannot be used.
    """
    if config.model.heads:
        raise InputError(
            f"config.model.heads: for experiments.multi_head only, found {config.model.heads!r}"
        )
    routes = _saved_routes(config.model)
    if config.model.query or routes:
        return _two_towers(config, routes, mesh)
    return _one_encoder(config, mesh)


def _saved_routes(model: Model) -> Mapping[str, SavedModel] | None:
    """Reads the encoders of `model.name` by route; None if it has no routes.

    Raises:
        InputError: for routes other than "query" and "document", or beside `model.query`.
    """
    saved = None if model.name.startswith("random:") else read_routes(resolve(model.name))
    if saved is None:
        return None
    if model.query:
        raise InputError(
            f"config.model.query: {model.name} has its own encoders for queries and documents, "
            f"found {model.query!r}"
        )
    if set(saved.models) != set(TOWERS):
        raise InputError(
            f"config.model.name: expected one encoder, or the routes {' and '.join(TOWERS)}, "
            f"found {', '.join(saved.models)}"
        )
    return saved.models


def _two_towers(
    config: Experiment, routes: Mapping[str, SavedModel] | None, mesh: Mesh | None
) -> TrainingModel:
    """Returns the model with a tower for queries and one for documents.

    The settings of `config.model` are those of both towers if both start from one model; else, and
    `config.lora` always, of the documents' tower, except `compute_dtype`, `remat` and the tokenizer
    of random weights. Queries get a linear map to the size of documents if theirs differs.
    """
    refuse_fields(
        config,
        ("model.mlp", "model.same_mask_columns"),
        "not with two towers (config.model.query)",
    )
    routes = routes or {}
    model = dataclasses.replace(config.model, query="")
    document = _one_encoder(
        dataclasses.replace(config, model=model), mesh, saved=routes.get("document")
    )
    query_model = model
    if config.model.query != config.model.name:
        query_model = Model(
            name=config.model.query or config.model.name,
            tokenizer=model.tokenizer if config.model.query.startswith("random:") else "",
            compute_dtype=model.compute_dtype,
            remat=model.remat,
        )
    if config.model.query == TABLE:
        query = _token_weights(config, document)
    else:
        query = _one_encoder(
            dataclasses.replace(config, model=query_model, lora=Lora()),
            mesh,
            saved=routes.get("query"),
            dim=document.encoder.dim,
        )
    towers = {"query": query, "document": document}
    encoders = {}
    for route, tower in towers.items():
        assert isinstance(tower.sentence, OneEncoder), "a tower is one encoder"
        encoders[route] = tower.sentence
    sentence = RoutedEncoder(
        encoders, default_route="document", settings=encoders["document"].settings
    )
    return TrainingModel(
        two_towers(query.encoder, document.encoder),
        {route: tower.params for route, tower in towers.items()},
        document.spec,
        document.tokenizer,
        sentence,
        document.max_length,
    )


def _token_weights(config: Experiment, document: TrainingModel) -> TrainingModel:
    """Returns the tower of queries that have a table's weights, all 1 at the start.

    Raises:
        InputError: for documents whose embeddings are not sparse.
    """
    sentence = document.sentence
    if not isinstance(sentence, SparseEncoder):
        raise InputError(
            f"config.model.query: {TABLE!r} is for sparse models: set config.model.sparse"
        )
    backbone = StaticConfig(vocab_size=document.encoder.dim, hidden_size=1)
    spec = EncoderSpec(backbone, vocabulary=TokenWeights())
    encoder = build_encoder(spec)
    params = encoder.init(jax.random.key(0))
    tokenizer = from_transformers(
        sentence.tokenizer.hf, document.max_length, special_tokens=False, by_config=True
    )
    model = SparseEncoder(spec, params, tokenizer, sentence.settings, devices=config.train.devices)
    return TrainingModel(encoder, params, spec, tokenizer.hf, model, document.max_length)


def _one_encoder(
    config: Experiment, mesh: Mesh | None, *, saved: SavedModel | None = None, dim: int = 0
) -> TrainingModel:
    """Returns the model of one encoder.

    `saved` is the model as it was read; None: `config.model.name` is read or initialised. `dim` is
    the size of the embeddings, by a linear map where the model's own differs; 0: its own.
    """
    model, lora, longest = config.model, config.lora, longest_text(config)
    key = jax.random.key(config.train.seed)
    if model.name.startswith("random:"):
        spec, tokenizer = random_model(model, longest)
        params = store_frozen(build_encoder(spec).init(key), lora)
        settings = EncodingSettings()
        pooler: Mapping[str, np.ndarray] = {}
    else:
        if saved is None:
            directory = resolve(model.name)
            put = None if mesh is None else put_function(sharding_rules(directory), mesh, lora)
            saved = read_model(directory, put=put)
        saved = with_family(saved, model.name)
        spec, params = saved.spec, saved.params
        check_length(longest, spec.backbone, "config.data.max_length")
        tokenizer = tokenizer_of(
            saved,
            max(saved.max_length, longest),
            tokenizer_directory(model) if model.tokenizer else None,
            model.append_eos,
        )
        # Sizes and layers are those that this run trains: `describe_result` notes them.
        settings = dataclasses.replace(saved.settings, matryoshka_dims=(), adaptive_layers=False)
        pooler = saved.pooler
    if model.sparse:
        spec, params = add_vocabulary_head(config, spec, params, key)
        settings = dataclasses.replace(settings, similarity="dot")
    dtype = compute_dtype(model.compute_dtype)
    encoder, spec, params = _trained_encoder(config, spec, params, key, dtype, dim)
    sentence = encoder_class(spec)(
        spec,
        params,
        tokenizer,
        settings,
        pooler=pooler,
        compute_dtype=dtype,
        devices=config.train.devices,
    )
    return TrainingModel(encoder, params, spec, tokenizer.hf, sentence, longest)


def model_before(config: Experiment) -> AnyEncoder:
    """Returns the model that a run starts from, to compare the result with.

    It is without the adapter that is trained.
    """
    return initial_model(dataclasses.replace(config, lora=Lora())).embedder


def abstract_model(config: Experiment, shape: str) -> TrainingModel:
    """Returns the shapes of the model of a run: nothing is read or allocated.

    Args:
        config: the run's settings.
        shape: a name of `encoders.spec.known_shapes()`, whatever `config.model.name` is.
    """
    if config.model.query:
        raise InputError(
            "config.model.query: memory is planned for one encoder, not for two towers"
        )
    # "auto" means what an accelerator would compute in, although the shapes are made on a CPU.
    dtype = "bfloat16" if config.model.compute_dtype == "auto" else config.model.compute_dtype
    spec = random_spec(shape, pooling=config.model.pooling or "mean")
    made: dict[str, Any] = {}

    def initialise(key: jax.Array) -> Params:
        params = store_frozen(build_encoder(spec).init(key), config.lora)
        # One scan iteration at a time, as on an accelerator.
        made["encoder"], made["spec"], params = _trained_encoder(
            config, spec, params, key, dtype, unroll=1
        )
        return params

    params = jax.eval_shape(initialise, jax.random.key(0))
    tokenizer = SimpleNamespace(
        mask_token="[MASK]",
        mask_token_id=0,
        all_special_ids=(0,),
        get_vocab=lambda: {"[MASK]": 0},
    )
    return TrainingModel(
        made["encoder"], params, made["spec"], tokenizer, None, longest_text(config)
    )


def _trained_encoder(
    config: Experiment,
    spec: EncoderSpec,
    params: Params,
    key: jax.Array,
    dtype: str,
    dim: int = 0,
    **options: Any,
) -> tuple[Encoder, EncoderSpec, Params]:
    """Returns the encoder to train, what comes out of it, and the parameters at the start."""
    model = config.model
    spec, params = apply_changes(spec, params, model, key)
    if dim and (own_dim := build_encoder(spec).dim) != dim:
        projection = Dense(own_dim, dim, activation="identity")
        spec, params = add_dense(spec, params, projection, jax.random.fold_in(key, 6))
    spec, params = add_adapter(spec, params, config.lora, jax.random.fold_in(key, 4))
    training = spec
    if model.mlp:  # SimCSE's head
        size = dim_before_norm(spec)
        mlp = Dense(size, size, activation="tanh")
        training, params = add_dense(spec, params, mlp, jax.random.fold_in(key, 1))
    encoder = build_encoder(
        training,
        compute_dtype=dtype,
        remat=model.remat,
        same_mask_columns=model.same_mask_columns,
        **options,
    )
    return encoder, training if model.mlp == "kept" else spec, params
