"""The decoders' families: their config.json, their tensors' names, and well-known sizes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

from embed_jax.encoders.decoder import FULL, SLIDING, Decoder, DecoderConfig
from embed_jax.encoders.decoder_shapes import (
    GEMMA2_DEFAULT,
    GEMMA3_DEFAULT,
    GEMMA_DEFAULT,
    LLAMA_DEFAULT,
    QWEN2_DEFAULT,
    QWEN3_DEFAULT,
    SHAPES,
    WINDOW,
)
from embed_jax.encoders.family import Family, check_switches, read_fields
from embed_jax.encoders.json_fields import OBJECT, check_fields
from embed_jax.encoders.layers import activation
from embed_jax.encoders.rope import Rope, read_rope, write_rope
from embed_jax.errors import InputError, warn
from embed_jax.registry import unknown

FIELDS = {  # our field -> transformers'
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "head_size": "head_dim",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "activation": "hidden_act",
    "rms_norm_eps": "rms_norm_eps",
    "attention_dropout": "attention_dropout",
    "hidden_dropout": "hidden_dropout",
    "initializer_range": "initializer_range",
    "tied": "tie_word_embeddings",
}
BIASED = FIELDS | {"qkv_bias": "attention_bias", "output_bias": "attention_bias"}
GEMMA_FIELDS = BIASED | {"activation": "hidden_activation", "query_scalar": "query_pre_attn_scalar"}
NULLABLE = {"pad_token_id": "pad_token_id"}
KINDS = {FULL: "full_attention", SLIDING: "sliding_attention"}


@dataclasses.dataclass(frozen=True)
class Form:
    """The fields of a family's config.json, and the defaults that it leaves out.

    Attributes:
        default: the values of absent fields, and of those that the family fixes.
        fields: our field -> transformers'.
        nullable: the same for fields that may be null.
        head_size: the size of a head if head_dim is absent; 0: hidden_size / num_attention_heads.
        window: whether the family has the field sliding_window.
        switched: whether it also has use_sliding_window, which is false if absent.
        layer_types: (config.json, number of layers) -> kinds of layers if the field layer_types is
            absent; None: the family has no such field, and all layers are of one kind.
        local: whether sliding layers have their own rotary positions. Such a family also has the
            field use_bidirectional_attention, with which half the window lies on either side.
        supported: the only supported value of some fields.
    """

    default: DecoderConfig
    fields: Mapping[str, str]
    nullable: Mapping[str, str] = dataclasses.field(default_factory=lambda: NULLABLE)
    head_size: int = 0
    window: bool = False
    switched: bool = False
    layer_types: Callable[[Mapping[str, Any], int], tuple[str, ...]] | None = None
    local: bool = False
    supported: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_config(form: Form, config_json: Mapping[str, Any]) -> DecoderConfig:
    """Reads the fields of a config.json of transformers.

    Raises:
        InputError: a field is missing, or has a value that is not supported.
    """
    check_switches(config_json, form.supported)
    values = read_fields(config_json, form.fields)
    values = {
        "num_kv_heads": values["num_heads"],
        "head_size": form.head_size or values["hidden_size"] // values["num_heads"],
        **values,
        **{
            name: config_json[hf_name]
            for name, hf_name in form.nullable.items()
            if hf_name in config_json
        },
        **_read_ropes(form, config_json),
        **_read_windows(form, config_json, values["num_layers"]),
    }
    config = dataclasses.replace(form.default, **values)
    activation(config.activation)
    if config.head_size % 2:
        raise InputError(f"config.json: expected heads of an even size, found {config.head_size}")
    if config.num_heads % config.num_kv_heads:
        raise InputError(
            f"config.json: {config.num_kv_heads} heads of keys cannot serve {config.num_heads} of "
            "queries"
        )
    return config


def write_config(form: Form, config: DecoderConfig) -> dict[str, Any]:
    """Returns config.json's fields as in transformers 5; rotary positions also as in version 4."""
    fields = {
        hf_name: getattr(config, name) for name, hf_name in {**form.fields, **form.nullable}.items()
    }
    if not config.hidden_dropout:
        del fields["hidden_dropout"]
    return fields | _write_ropes(form, config) | _write_windows(form, config)


def _read_ropes(form: Form, config_json: Mapping[str, Any]) -> dict[str, Rope]:
    default = form.default
    if not form.local:
        return {"rope": read_rope(config_json, default.rope.theta)}
    by_kind = config_json.get("rope_parameters") or {}
    check_fields("config.json: rope_parameters.", by_kind, dict.fromkeys(KINDS.values(), OBJECT))
    full = {
        "rope_parameters": (by_kind.get(KINDS[FULL]) or {})
        | (config_json.get("rope_scaling") or {})
    }
    sliding = {
        "rope_parameters": by_kind.get(KINDS[SLIDING]),
        "rope_theta": config_json.get("rope_local_base_freq"),
    }
    assert default.local_rope is not None, "a family with local layers has waves for them"
    return {
        "rope": read_rope({**config_json, **full, "rope_scaling": None}, default.rope.theta),
        "local_rope": read_rope(
            {**config_json, **sliding, "rope_scaling": None}, default.local_rope.theta
        ),
    }


def _write_ropes(form: Form, config: DecoderConfig) -> dict[str, Any]:
    rope = write_rope(config.rope)
    older: dict[str, Any] = {"rope_theta": config.rope.theta}
    if config.rope.rope_type != "default":
        older["rope_scaling"] = rope
    if not form.local:
        return older | {"rope_parameters": rope}
    assert config.local_rope is not None, "a family with local layers has waves for them"
    older["rope_local_base_freq"] = config.local_rope.theta
    return older | {
        "rope_parameters": {KINDS[FULL]: rope, KINDS[SLIDING]: write_rope(config.local_rope)}
    }


def _read_windows(form: Form, config_json: Mapping[str, Any], layers: int) -> dict[str, Any]:
    """Returns the fields `causal`, `window` and `layer_types` of a DecoderConfig.

    Our window is a distance below which tokens are seen; transformers', where is_causal is false,
    is the largest distance that is seen.
    """
    halved = form.local and bool(config_json.get("use_bidirectional_attention"))
    causal = config_json.get("is_causal") is not False
    if causal and config_json.get("auto_map") and "is_causal" not in config_json:
        warn(
            "config.json names its own code (auto_map), which is not run: attention is read as "
            "causal; if that code "
            'attends both ways, as GritLM\'s does, write "is_causal": false there'
        )
    window = None
    if form.window and (not form.switched or config_json.get("use_sliding_window")):
        window = config_json.get("sliding_window", WINDOW)
    types = _read_types(form, config_json, layers, window)
    if window is None and SLIDING in types or window is not None and window < 1:
        raise InputError(
            f"config.json: sliding_window: expected a number of tokens, found {window!r}"
        )
    if window is None:
        return {"causal": causal and not halved, "window": 0, "layer_types": ()}
    window = (window // 2 + 1 if halved else window) + (not causal)
    return {"causal": causal and not halved, "window": window, "layer_types": types}


def _read_types(
    form: Form, config_json: Mapping[str, Any], layers: int, window: int | None
) -> tuple[str, ...]:
    if form.layer_types is None or (
        form.switched and window is None and config_json.get("layer_types") is None
    ):
        return ()
    if config_json.get("layer_types") is None:
        return form.layer_types(config_json, layers)
    kinds = {hf_name: kind for kind, hf_name in KINDS.items()}
    for name in config_json["layer_types"]:
        if name not in kinds:
            raise InputError(f"config.json: layer_types: {unknown('type', name, kinds)}")
    if len(config_json["layer_types"]) != layers:
        raise InputError(
            f"config.json: layer_types: expected {layers}, found {len(config_json['layer_types'])}"
        )
    return tuple(kinds[name] for name in config_json["layer_types"])


def _write_windows(form: Form, config: DecoderConfig) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    if form.local:
        fields["use_bidirectional_attention"] = not config.causal
    elif not config.causal:
        fields["is_causal"] = False
    if form.window:
        last = config.window - (not config.causal)  # see _read_windows
        last = 2 * last if form.local and not config.causal else last
        fields["sliding_window"] = last if config.window else None
    if form.switched:
        fields["use_sliding_window"] = bool(config.window)
    if form.layer_types is not None:
        fields["layer_types"] = [KINDS[kind] for kind in config.kinds]
    return fields


def _slide_last_layers(config_json: Mapping[str, Any], layers: int) -> tuple[str, ...]:
    """Returns kinds of layers that are all sliding after the first max_window_layers."""
    full = config_json.get("max_window_layers")
    return tuple(SLIDING if i >= (28 if full is None else full) else FULL for i in range(layers))


def _alternate_layer_types(
    config_json: Mapping[str, Any], layers: int, every: int
) -> tuple[str, ...]:
    """Returns kinds of layers of which one in `every` is not sliding."""
    every = config_json.get("sliding_window_pattern") or every
    return tuple(SLIDING if (i + 1) % every else FULL for i in range(layers))


def _family(form: Form, architecture: str, tensors: Mapping[str, str], read=read_config) -> Family:
    return Family(
        architecture=architecture,
        module=Decoder,
        shapes={
            name: shape for name, shape in SHAPES.items() if shape.family == form.default.family
        },
        read_config=functools.partial(read, form),
        write_config=functools.partial(write_config, form),
        tensors=tensors,
        prefixes=("model.language_model.", "language_model.model.", "model."),
        ignored=(
            r"(language_model\.)?lm_head\.weight",
            r"score\.weight",
            r"(layers\.\d+\.self_attn\.)?rotary_emb\..*inv_freq",
        ),
        # See bert.SHARDING.
        sharding=(
            (r"layers/(query|key|value|gate|up)/kernel", (None, "fsdp", "tensor")),
            (r"layers/(query|key|value|gate|up)/bias", (None, "tensor")),
            (r"layers/(output|down)/kernel", (None, "tensor", "fsdp")),
            (r"embeddings/token", (None, "fsdp")),
        ),
    )


def _read_gemma(form: Form, config_json: Mapping[str, Any]) -> DecoderConfig:
    """Reads Gemma's config.json; the models as first published say "gelu" for its approximation."""
    return read_config(
        form,
        {**config_json, "hidden_act": "gelu_pytorch_tanh"}
        if config_json.get("hidden_act") == "gelu"
        else config_json,
    )


TENSORS = {
    "embeddings/token": "embed_tokens",
    "layers/attention_norm": "layers.{}.input_layernorm",
    "layers/query": "layers.{}.self_attn.q_proj",
    "layers/key": "layers.{}.self_attn.k_proj",
    "layers/value": "layers.{}.self_attn.v_proj",
    "layers/query_norm": "layers.{}.self_attn.q_norm",
    "layers/key_norm": "layers.{}.self_attn.k_norm",
    "layers/output": "layers.{}.self_attn.o_proj",
    "layers/mlp_norm": "layers.{}.post_attention_layernorm",
    "layers/gate": "layers.{}.mlp.gate_proj",
    "layers/up": "layers.{}.mlp.up_proj",
    "layers/down": "layers.{}.mlp.down_proj",
    "norm": "norm",
}
AFTER_TENSORS = TENSORS | {
    "layers/attention_norm_after": "layers.{}.post_attention_layernorm",
    "layers/mlp_norm": "layers.{}.pre_feedforward_layernorm",
    "layers/mlp_norm_after": "layers.{}.post_feedforward_layernorm",
}

NO_SWITCH = {
    "use_bidirectional_attention": False
}  # what transformers makes of it depends on the padding

LLAMA = _family(Form(LLAMA_DEFAULT, BIASED | {"mlp_bias": "mlp_bias"}), "LlamaModel", TENSORS)
MISTRAL = _family(
    Form(dataclasses.replace(LLAMA_DEFAULT, family="mistral"), FIELDS, window=True),
    "MistralModel",
    TENSORS,
)
QWEN2 = _family(
    Form(
        QWEN2_DEFAULT,
        FIELDS,
        window=True,
        switched=True,
        layer_types=_slide_last_layers,
    ),
    "Qwen2Model",
    TENSORS,
)
QWEN3 = _family(
    Form(
        QWEN3_DEFAULT,
        BIASED,
        head_size=128,
        window=True,
        switched=True,
        layer_types=_slide_last_layers,
    ),
    "Qwen3Model",
    TENSORS,
)
GEMMA = _family(
    Form(GEMMA_DEFAULT, BIASED, head_size=256, supported=NO_SWITCH),
    "GemmaModel",
    TENSORS,
    _read_gemma,
)
GEMMA2 = _family(
    Form(
        GEMMA2_DEFAULT,
        GEMMA_FIELDS,
        NULLABLE | {"softcap": "attn_logit_softcapping"},
        head_size=256,
        window=True,
        layer_types=functools.partial(_alternate_layer_types, every=2),
        supported=NO_SWITCH,
    ),
    "Gemma2Model",
    AFTER_TENSORS,
)
GEMMA3 = _family(
    Form(
        GEMMA3_DEFAULT,
        GEMMA_FIELDS,
        head_size=256,
        window=True,
        layer_types=functools.partial(_alternate_layer_types, every=6),
        local=True,
        supported={"attn_logit_softcapping": None},
    ),
    "Gemma3TextModel",
    AFTER_TENSORS,
)
