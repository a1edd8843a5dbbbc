"""Settings of a Transformer module's texts: sentence_bert_config.json of versions 2 to 6."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from embed_jax.encoders import json_fields
from embed_jax.encoders.weights import read_json, write_json
from embed_jax.errors import InputError
from embed_jax.registry import unknown
from embed_jax.types import LONGEST_FIRST, TRUNCATIONS

# The first that is there counts; version 2 named the file after the kind of model
FILES = (
    "sentence_bert_config.json",
    "sentence_roberta_config.json",
    "sentence_distilbert_config.json",
    "sentence_camembert_config.json",
    "sentence_albert_config.json",
    "sentence_xlm-roberta_config.json",
    "sentence_xlnet_config.json",
)
CONFIG, MODEL, PROCESSOR = ("config_kwargs", "model_kwargs", "processor_kwargs")
OLDER = {
    "config_args": CONFIG,
    "model_args": MODEL,
    "tokenizer_args": PROCESSOR,
}  # before version 5
OF_LOADING = {
    "trust_remote_code",
    "revision",
    "token",
    "cache_dir",
    "local_files_only",
    "use_auth_token",
}
WITHOUT_EFFECT = {  # on what is computed in float32
    MODEL: {
        "attn_implementation",
        "dtype",
        "torch_dtype",
        "device_map",
        "add_pooling_layer",
        "use_safetensors",
        "low_cpu_mem_usage",
    },
    PROCESSOR: {"use_fast", "padding_side"},
}
TASKS = {  # of version 6: what the model's forward gives, and what the module makes it
    "feature-extraction": ("last_hidden_state", "token_embeddings"),
    "sequence-classification": ("logits", "scores"),
    "text-generation": ("logits", "causal_logits"),
    "fill-mask": ("logits", "token_embeddings"),
}
FORMATS = ("flat", "structured")  # of a message: see ChatFormat
OF_TOKENS = ("query_length", "document_length", "query_expansion")  # of multi-vector models
# These, and fields of inputs other than plain texts; null or empty if not used.
UNSUPPORTED = (*OF_TOKENS, "tokenizer_name_or_path")
FIELDS = (
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
    "processing_kwargs",
    CONFIG,
    MODEL,
    PROCESSOR,
    *OLDER,
    *UNSUPPORTED,
)


@dataclasses.dataclass(frozen=True)
class ChatFormat:
    """The form in which the tokenizer's chat template gets a pair of texts.

    Attributes:
        structured: whether a message's content is a list of parts, not a string; None: whichever
            of the two the template takes.
        options: variables of the template, such as {"add_generation_prompt": True}.
    """

    structured: bool | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Fields of the file.

    Attributes:
        max_length: tokens after which a text is cut; 0: not set.
        lower_case: whether texts are put into lower case.
        changes: values that replace those of config.json, by field.
        chat: for pairs that are put into the tokenizer's chat template; None: they are not.
        truncation: what other pairs lose over the limit; see `Tokenizer.encode_pairs`.
        of_tokens: the fields OF_TOKENS that are set.
    """

    max_length: int = 0
    lower_case: bool = False
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    chat: ChatFormat | None = None
    truncation: str = LONGEST_FIRST
    of_tokens: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_text_config(
    directory: Path,
    task: str = "feature-extraction",
    *,
    pairs: bool = False,
    of_tokens: bool = False,
) -> TextConfig:
    """Reads a Transformer's settings of texts; the defaults if it has no such file.

    Args:
        directory: the Transformer's directory.
        task: the purpose of the Transformer, one of TASKS.
        pairs: whether it reads pairs of texts, which may be put into a chat template.
        of_tokens: whether the model may have the fields OF_TOKENS.

    Raises:
        InputError: a field that is unknown or has a value that is not supported.
    """
    path = next((directory / name for name in FILES if (directory / name).is_file()), None)
    if path is None:
        return TextConfig()
    config = read_json(path, json_fields.TEXT_CONFIG)
    for name, value in config.items():
        if name not in FIELDS:
            raise InputError(f"{path}: {unknown('field', name, FIELDS)}")
        if name in UNSUPPORTED and value and not (of_tokens and name in OF_TOKENS):
            raise InputError(f"{path}: {name}: expected none, found {value!r}")
    chat = _check_task(path, config, task, pairs)
    groups = {
        OLDER.get(name, name): dict(config[name] or {})
        for name in (*OLDER, CONFIG, MODEL, PROCESSOR)
        if name in config
    }
    groups = {
        name: {key: group[key] for key in group.keys() - OF_LOADING}
        for name, group in groups.items()
    }
    for name, kinds in ((CONFIG, json_fields.CONFIG), (PROCESSOR, json_fields.PROCESSOR)):
        if name in groups:
            groups[name] = json_fields.check_fields(f"{path}: {name}.", groups[name], kinds)
    length = groups.get(PROCESSOR, {}).pop("model_max_length", None) or config.get("max_seq_length")
    for name, known in WITHOUT_EFFECT.items():
        for key in sorted(groups.get(name, {}).keys() - known):
            raise InputError(
                f"{path}: {name}: {key}: not supported; accepted: {', '.join(sorted(known))}"
            )
    changes, truncation = groups.get(CONFIG, {}), _truncation(path, config)
    return TextConfig(
        length or 0,
        bool(config.get("do_lower_case")),
        changes,
        chat,
        truncation,
        {name: config[name] for name in OF_TOKENS if config.get(name)},
    )


def write_text_config(directory: Path, config: TextConfig, task: str = "") -> None:
    """Writes the file.

    Args:
        directory: the Transformer's directory.
        config: the settings.
        task: the purpose of the Transformer, one of TASKS, which versions from 6 on need to be told
            for pairs of texts; "": the file is in a form that all versions from 3 on read.
    """
    fields: dict[str, Any] = {
        "max_seq_length": config.max_length,
        "do_lower_case": config.lower_case,
    }
    fields |= {CONFIG: dict(config.changes)} if config.changes else {}
    fields |= config.of_tokens
    if task:
        output, name = TASKS[task]
        forward = {"method": "forward", "method_output_name": output}
        modalities = {"text": forward}
        processing: dict[str, Any] = {}
        if config.truncation != LONGEST_FIRST:  # sentence-transformers' default
            processing["text"] = {"truncation": config.truncation}
        if config.chat is not None:
            modalities["message"] = forward | {"format": FORMATS[bool(config.chat.structured)]}
            if config.chat.options:
                processing["chat_template"] = dict(config.chat.options)
        fields |= {"processing_kwargs": processing} if processing else {}
        fields |= {"transformer_task": task, "modality_config": modalities}
        fields |= {"module_output_name": name}
    write_json(directory / FILES[0], fields)


def _truncation(path: Path, config: Mapping[str, Any]) -> str:
    """Returns what pairs over the limit lose.

    Raises:
        InputError: the tokenizer is to do something else than is supported.
    """
    options = (config.get("processing_kwargs") or {}).get("text") or {}
    if not isinstance(options, dict) or options.keys() - {"padding", "truncation"}:
        raise InputError(
            f"{path}: processing_kwargs: text: expected padding, truncation, found {options!r}"
        )
    truncation = options.get("truncation", True)
    if truncation is True:
        return LONGEST_FIRST
    if truncation not in TRUNCATIONS:
        raise InputError(
            f"{path}: processing_kwargs: text: {unknown('truncation', truncation, TRUNCATIONS)}"
        )
    return truncation


def _check_task(path: Path, config: Mapping[str, Any], task: str, pairs: bool) -> ChatFormat | None:
    """Checks that the Transformer gives the output of the task, and returns the form of pairs.

    Raises:
        InputError: it does not, or it reads anything but plain texts, or pairs in a chat template.
    """
    output, name = TASKS[task]
    for field, expected in (("transformer_task", task), ("module_output_name", name)):
        value = config.get(field)
        if value not in (None, expected):
            raise InputError(f"{path}: {field}: expected {expected!r}, found {value!r}")
    modalities, options = config.get("modality_config"), config.get("processing_kwargs") or {}
    if options and (not pairs or not options.keys() <= {"chat_template", "text"}):
        accepted = "chat_template, text" if pairs else "none"
        raise InputError(f"{path}: processing_kwargs: expected {accepted}, found {options!r}")
    if modalities is None:
        return None
    if "message" in modalities and not pairs:
        raise InputError(
            f"{path}: modality_config: message: texts in a chat template are not supported; "
            "accepted: text"
        )
    text, expected_text = (
        modalities.get("text"),
        {"method": "forward", "method_output_name": output},
    )
    if text != expected_text:
        raise InputError(f"{path}: modality_config: text: expected {expected_text}, found {text!r}")
    if "message" not in modalities:
        return None
    form = modalities["message"].get("format", "auto")
    if form not in (*FORMATS, "auto"):
        message = unknown("format", form, FORMATS)
        raise InputError(f"{path}: modality_config: message: {message}")
    chat = options.get("chat_template") or {}
    return ChatFormat(None if form == "auto" else form == FORMATS[True], chat)
