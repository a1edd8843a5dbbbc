"""The model that a run trains: loaded or initialised as a config says, or its shapes without weights."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
from jax.sharding import Mesh

from embed_jax.config import Experiment, Lora, Model
from embed_jax.data.tokenize import load_tokenizer
from embed_jax.encoders.adapter import check_writable
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.heads import Dense, Normalize
from embed_jax.encoders.hub import resolve
from embed_jax.encoders.int8 import quantize_kernel, quantize_layers
from embed_jax.encoders.lora import adapted_modules, init_lora, merge_lora, split_trainable
from embed_jax.encoders.read import read_model, sharding_rules
from embed_jax.encoders.settings import EncodingSettings
from embed_jax.encoders.shrink import keep_layers, layer_numbers
from embed_jax.encoders.spec import EncoderSpec, LoraSpec, random_spec
from embed_jax.errors import InputError
from embed_jax.parallel.loading import by_rules, sharded_put
from embed_jax.pretrained import check_length, tokenizer_of, with_family
from embed_jax.registry import called
from embed_jax.sentence import SentenceEncoder
from embed_jax.types import BASE, Encoder, Params, Put, Rules


@dataclasses.dataclass(frozen=True)
class TrainingModel:
    """The model of a run before its first step.

    Attributes:
        encoder: the encoder that is trained; it may have a head that the result drops.
        params: of `encoder`; shapes in an abstract model.
        spec: of the model that comes out.
        tokenizer: transformers' tokenizer, or what stands for it in an abstract model.
        sentence: the model that comes out, which shares `params`; None in an abstract model.
        max_length: tokens of the longest training text.
    """

    encoder: Encoder
    params: Params
    spec: EncoderSpec
    tokenizer: Any
    sentence: SentenceEncoder | None
    max_length: int

    def split(self) -> tuple[Params, dict[str, Params]]:
        """Returns the parameters to train, and {BASE: the frozen ones} if there is an adapter."""
        trained, frozen = split_trainable(self.params, self.spec)
        return trained, {BASE: frozen} if frozen else {}


def longest_text(config: Experiment) -> int:
    """Returns the largest `max_length` of a run's data sets, in tokens."""
    sources = vars(config.mixture.sources).values()
    return max([config.data.max_length, *(source.max_length for source in sources)])


def initial_model(config: Experiment, *, mesh: Mesh | None = None) -> TrainingModel:
    """Loads or initialises the model that a config names, with the adapter to train.

    Args:
        config: its `model.name` "random:SHAPE" makes random weights of a known shape for `model.tokenizer`. A model
            that has the adapter of `lora` goes on with it; one with another adapter is refused. Without a rank, an
            adapter that the model has is merged into it.
        mesh: where to put parameters that are read from files, split as training needs them; None: on the host.

    Raises:
        InputError: for a model, tokenizer or setting that cannot be used.
    """
    model, lora, longest = config.model, config.lora, longest_text(config)
    key = jax.random.key(config.train.seed)
    if model.name.startswith("random:"):
        if not model.tokenizer:
            raise InputError(
                "config.model.tokenizer: random weights need a directory with tokenizer files, found ''"
            )
        shape = model.name.removeprefix("random:")
        tokenizer = load_tokenizer(
            _tokenizer(model),
            longest,
            special_tokens=shape != "static",
            append_eos=model.append_eos,
        )
        spec = random_spec(shape, vocab_size=tokenizer.vocab_size, pooling=model.pooling or "mean")
        check_length(longest, spec.backbone, "config.data.max_length")
        params = store_frozen(build_encoder(spec).init(key), lora)
        settings, pooler = EncodingSettings(), {}
    else:
        directory = resolve(model.name)
        put = None if mesh is None else _put_function(sharding_rules(directory), mesh, lora)
        saved = with_family(read_model(directory, put=put), model.name)
        spec, params = saved.spec, saved.params
        check_length(longest, spec.backbone, "config.data.max_length")
        tokenizer = tokenizer_of(
            saved,
            max(saved.max_length, longest),
            _tokenizer(model) if model.tokenizer else None,
            model.append_eos,
        )
        # Sizes and layers are those that this run trains: `describe_result` notes them.
        settings = dataclasses.replace(saved.settings, matryoshka_dims=(), adaptive_layers=False)
        pooler = saved.pooler
    dtype = compute_dtype(model.compute_dtype)
    encoder, spec, params = _trained_encoder(config, spec, params, key, dtype)
    sentence = SentenceEncoder(
        spec,
        params,
        tokenizer,
        settings,
        pooler=pooler,
        compute_dtype=dtype,
        devices=config.train.devices,
    )
    return TrainingModel(encoder, params, spec, tokenizer.hf, sentence, longest)


def model_before(config: Experiment) -> SentenceEncoder:
    """Returns the model that a run starts from, without the adapter to train, to compare the result with."""
    return initial_model(dataclasses.replace(config, lora=Lora())).sentence


def abstract_model(config: Experiment, shape: str) -> TrainingModel:
    """Returns the shapes of the model of a run: nothing is read or allocated.

    Args:
        shape: a name of `encoders.spec.known_shapes()`, whatever `config.model.name` is.
    """
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
    **options: Any,
) -> tuple[Encoder, EncoderSpec, Params]:
    """Returns the encoder to train, what comes out of it, and the parameters at the start."""
    model = config.model
    spec, params = apply_changes(spec, params, model, key)
    spec, params = add_adapter(spec, params, config.lora, jax.random.fold_in(key, 4))
    training, params = _with_mlp(spec, params, key) if model.mlp else (spec, params)
    encoder = build_encoder(
        training,
        compute_dtype=dtype,
        remat=model.remat,
        same_mask_columns=model.same_mask_columns,
        **options,
    )
    return encoder, training if model.mlp == "kept" else spec, params


def _tokenizer(model: Model) -> Path:
    """Returns the directory of the tokenizer that a config names: a path, or a model's name."""
    is_name = re.fullmatch(r"[\w.-]+/[\w.-]+", model.tokenizer)
    return resolve(model.tokenizer) if is_name else Path(model.tokenizer)


def _put_function(rules: Rules, mesh: Mesh, lora: Lora) -> Put:
    """Returns what places parameters as they are read: those to train in float32, frozen ones as configured."""
    eight_bits = bool(lora.rank) and lora.base == "int8"
    plain = sharded_put(
        by_rules(rules, mesh), "float32" if not lora.rank else "" if eight_bits else lora.base
    )

    def put(path, *about):
        leaf = plain(path, *about)
        is_kernel = re.fullmatch("backbone/layers/.*/kernel", path)
        return jax.jit(quantize_kernel)(leaf) if eight_bits and is_kernel else leaf

    return put


def store_frozen(params: Params, lora: Lora) -> Params:
    """Casts or quantises random parameters that an adapter freezes, as those read from files are."""
    if not lora.rank or lora.base == "float32":
        return params
    if lora.base == "int8":
        return quantize_layers(params)
    return {
        **params,
        "backbone": jax.tree.map(lambda leaf: leaf.astype(lora.base), params["backbone"]),
    }


def apply_changes(
    spec: EncoderSpec, params: Params, model: Model, key: jax.Array
) -> tuple[EncoderSpec, Params]:
    """Returns the model with the layers, pooling, attention, token head and dropout that the config names."""
    if model.layers:
        try:
            spec, params = keep_layers(spec, params, layer_numbers(model.layers))
        except InputError as error:
            raise InputError(f"config.model.{error}") from None
    if model.pooling and model.pooling != spec.pooling:
        spec = dataclasses.replace(spec, pooling=model.pooling)
    if model.attention:
        if not hasattr(spec.backbone, "causal"):
            raise InputError(f"config.model.attention: a {spec.backbone.family} encoder has one kind only, "
                             f"found {model.attention!r}")  # fmt: skip
        spec = _with_fields(spec, causal=model.attention == "causal")
    if model.token_head:
        try:
            head = called("token_head", model.token_head)(spec.backbone.hidden_size)
        except InputError as error:
            raise InputError(f"config.model.token_head: {error}") from None
        spec = dataclasses.replace(spec, token_head=head)
        params = {**params, "token_head": head.init(jax.random.fold_in(key, 5))}
    if model.dropout >= 0:
        if not hasattr(spec.backbone, "hidden_dropout"):
            raise InputError(
                f"config.model.dropout: a {spec.backbone.family} encoder has none, found {model.dropout}"
            )
        spec = _with_fields(spec, hidden_dropout=model.dropout, attention_dropout=model.dropout)
    return spec, params


def _with_fields(spec: EncoderSpec, **fields) -> EncoderSpec:
    return dataclasses.replace(spec, backbone=dataclasses.replace(spec.backbone, **fields))


def add_adapter(
    spec: EncoderSpec, params: Params, lora: Lora, key: jax.Array
) -> tuple[EncoderSpec, Params]:
    """Returns the model with the adapter to train; without a rank, an adapter that it has is merged."""
    if not lora.rank:
        return merge_lora(spec, params) if spec.lora else (spec, params)
    adapter = LoraSpec(
        lora.rank,
        lora.alpha,
        lora.dropout,
        tuple(name.strip() for name in lora.targets.split(",")),
        lora.rslora,
        lora.dora,
    )
    if spec.lora:
        if _adapter_identity(spec, params) != _adapter_identity(
            dataclasses.replace(spec, lora=adapter), params
        ):
            raise InputError(f"config.lora: the model has another adapter, {spec.lora}; give it the same settings, or "
                             "save the model with lora.merge first")  # fmt: skip
        return dataclasses.replace(
            spec, lora=dataclasses.replace(spec.lora, dropout=adapter.dropout)
        ), params
    spec = dataclasses.replace(spec, lora=adapter)
    try:
        if not lora.merge:
            check_writable(spec)
        return spec, {**params, "lora": init_lora(spec, params["backbone"], key)}
    except InputError as error:
        raise InputError(f"config.lora.targets: {error}") from None


def _adapter_identity(spec: EncoderSpec, params: Params) -> tuple:
    """Returns what makes two adapters of one model the same function of the same parameters."""
    lora = spec.lora
    return lora.rank, lora.alpha, lora.rslora, lora.dora, adapted_modules(spec, params["backbone"])


def _with_mlp(spec: EncoderSpec, params: Params, key: jax.Array) -> tuple[EncoderSpec, Params]:
    """Adds SimCSE's head, freshly initialised, after the pooling; a Normalize of the model stays last."""
    heads = tuple(head for head in spec.heads if not isinstance(head, Normalize))
    dim = build_encoder(dataclasses.replace(spec, heads=heads)).dim
    mlp, position = Dense(dim, dim, activation="tanh"), str(len(heads))
    end = (Normalize(),) if len(heads) < len(spec.heads) else ()
    params = {
        **params,
        "heads": {**params["heads"], position: mlp.init(jax.random.fold_in(key, 1))},
    }
    return dataclasses.replace(spec, heads=(*heads, mlp, *end)), params


def compute_dtype(name: str) -> str:
    """Resolves "auto": float32 on a CPU, bfloat16 on an accelerator."""
    if name != "auto":
        return name
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"
