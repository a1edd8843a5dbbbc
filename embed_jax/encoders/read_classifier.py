"""Reads cross-encoders: sentence-transformers' layouts of versions 2 to 6, or Hugging Face's."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from embed_jax.encoders import json_fields, module_files, modules
from embed_jax.encoders.base import base_name, find_base, is_adapter, read_backbone
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.classifier import LOGIT_SOFTCAPS, classifier_family, classifier_spec
from embed_jax.encoders.decoder import DecoderConfig
from embed_jax.encoders.heads import LogitScore
from embed_jax.encoders.model_kind import first_architecture
from embed_jax.encoders.read import READ_HEAD, read_first, read_heads
from embed_jax.encoders.read_adapter import is_classifier_adapter, read_adapter, read_saved_modules
from embed_jax.encoders.read_settings import SETTINGS, named_prompts, read_optional, shortest_limit
from embed_jax.encoders.saved import SavedClassifier
from embed_jax.encoders.spec import EncoderSpec
from embed_jax.encoders.stack import ADAPTER
from embed_jax.encoders.text_config import ChatFormat, TextConfig, read_text_config
from embed_jax.encoders.token_heads import OUTPUT_LAYER
from embed_jax.encoders.weights import open_tensors, params_from_tensors
from embed_jax.errors import InputError
from embed_jax.types import Params, param_dtype

TRUE_TOKEN, FALSE_TOKEN = "yes", "no"  # of a language model whose files name none


@dataclasses.dataclass(frozen=True)
class _Scorer:
    """The content of a cross-encoder's modules; `transformer` has the weights below an adapter."""

    spec: EncoderSpec
    params: Params
    texts: TextConfig
    config: Mapping[str, Any]
    base: str
    transformer: Path
    output_layer: np.ndarray | None = None

    @property
    def positions(self) -> int:
        """The most tokens that the backbone takes."""
        backbone: Any = self.spec.backbone
        return backbone.max_length


def read_classifier(directory: Path) -> SavedClassifier:
    """Reads a model that scores pairs of texts, from one of these layouts.

    - transformers' *ForSequenceClassification, also as sentence-transformers' only module, or
      PEFT's adapter of one;
    - a Transformer that is a language model and a LogitScore; a plain directory of a language model
      gets the tokens "yes" and "no", as in sentence-transformers;
    - Transformer, Pooling and heads, of which the last is a Dense that gives "scores".

    Raises:
        InputError: see `read_model`; or there are no weights of a classifier, or the activation is
            not supported.
    """
    directory = Path(directory)
    folders = modules.read_modules(directory)
    settings = read_optional(directory / SETTINGS, json_fields.SETTINGS)
    plain = not (directory / "modules.json").is_file()
    kinds, first = [kind for kind, _ in folders], directory / folders[0][1]
    if modules.LOGIT_SCORE in kinds or plain and _is_language_model(first):
        scorer = _read_language_model(first, None if plain else directory / folders[1][1])
    elif kinds == ["Transformer"]:
        scorer = _read_form(first)
    else:
        scorer = _read_modules(directory, folders)
    labels = build_encoder(scorer.spec).dim
    place = first if (first / "tokenizer_config.json").is_file() else scorer.transformer
    tokenizer = read_optional(place / "tokenizer_config.json", json_fields.TOKENIZER)
    return SavedClassifier(
        spec=scorer.spec,
        params=scorer.params,
        max_length=shortest_limit(scorer.texts, tokenizer, scorer.positions),
        activation=modules.read_score_activation(directory, settings, scorer.config, labels),
        prompt=named_prompts(settings).get(settings.get("default_prompt_name") or "", ""),
        lower_case=scorer.texts.lower_case,
        tokenizer_directory=place,
        chat=ChatFormat() if plain else scorer.texts.chat,
        output_layer=scorer.output_layer,
        base=scorer.base,
        truncation=scorer.texts.truncation,
    )


def _read_form(transformer: Path) -> _Scorer:
    """Reads transformers' class of the family, or an adapter of it in PEFT's format."""
    texts = read_text_config(transformer, "sequence-classification", pairs=True)
    base, place = base_name(transformer), transformer
    if is_adapter(transformer):
        base, place = find_base(transformer)
    backbone, _, config = read_backbone(place, texts.changes)
    family, spec = classifier_family(backbone.family), classifier_spec(backbone, config)
    tensors = open_tensors(place)
    out = f"{family.tensors[f'heads/{len(spec.heads) - 1}']}.weight"
    adapter: Params = {}
    if place != transformer:
        lora, adapter[ADAPTER] = read_adapter(transformer, backbone, base, place, classifier=family)
        saved = read_saved_modules(transformer, family)
        tensors = {
            name: value
            for name, value in tensors.items()
            if family.without_prefix(name) not in saved
        } | saved
        if out in saved:  # the base may have no classifier, or one of other labels
            labels = {"id2label": None, "num_labels": len(saved[out])}
            spec = classifier_spec(backbone, {**config, **labels})
        spec = dataclasses.replace(spec, lora=lora)
    if out not in tensors:
        raise InputError(
            f"{transformer}: no weights of a classifier ({out}): it is not a sequence "
            f"classification model such as {family.architecture}"
        )
    shapes = jax.eval_shape(build_encoder(spec).init, jax.random.key(0))
    shapes = {**shapes["backbone"], "heads": shapes["heads"]}
    tree = params_from_tensors(family, shapes, tensors, transformer)
    heads = tree.pop("heads")
    params = {"backbone": tree, "heads": heads, **adapter}
    return _Scorer(spec, params, texts, config, base, place)


def _read_language_model(transformer: Path, folder: Path | None) -> _Scorer:
    """Reads a language model and its LogitScore.

    Args:
        transformer: the language model's directory.
        folder: the LogitScore's; None: the directory is a plain one.
    """
    read = read_first(
        transformer, "Transformer", folder is None, None, "text-generation", pairs=True
    )
    backbone = read.backbone
    if not isinstance(backbone, DecoderConfig):
        raise InputError(
            f"{transformer / 'config.json'}: model_type {backbone.family!r}: expected a language "
            "model, of whose tokens the logits are"
        )
    softcap = read.config.get("final_logit_softcapping", LOGIT_SOFTCAPS.get(backbone.family))
    if folder is None:
        true, false = (_token_id(transformer, token) for token in (TRUE_TOKEN, FALSE_TOKEN))
        head = LogitScore(backbone.hidden_size, true, false, softcap or 0.0)
    else:
        head = module_files.read_logit_score(folder, backbone.hidden_size, softcap or 0.0)
    if max(head.token_ids) >= backbone.vocab_size:
        raise InputError(
            f"{folder}: token {max(head.token_ids)}: expected one of the model's "
            f"{backbone.vocab_size}"
        )
    table, output_layer = read.params["backbone"]["embeddings"]["token"], None
    if not backbone.tied:
        name = OUTPUT_LAYER["lm_head"]
        table = output_layer = open_tensors(read.transformer).get(name)
        if table is None or table.shape != (backbone.vocab_size, backbone.hidden_size):
            raise InputError(
                f"{read.transformer}: tensor {name!r}: expected the shape "
                f"{(backbone.vocab_size, backbone.hidden_size)}, found "
                f"{'none' if table is None else table.shape}"
            )
    rows = np.array(table[list(head.token_ids)], param_dtype(table.dtype))
    spec = EncoderSpec(backbone, "last_token", (head,), lora=read.lora)
    params = {**read.params, "heads": {"0": {"rows": rows}}}
    return _Scorer(spec, params, read.texts, read.config, read.base, read.transformer, output_layer)


def _read_modules(directory: Path, folders: Sequence[tuple[str, str]]) -> _Scorer:
    """Reads a Transformer, a pooling and heads."""
    *others, (kind, folder) = folders
    if kind != "Dense" or folders[0][0] != "Transformer":
        kinds = ", ".join(kind for kind, _ in folders)
        raise InputError(
            f"{directory / 'modules.json'}: found {kinds}; expected a Transformer only, or with a "
            f"{modules.LOGIT_SCORE}, or with a Pooling and heads of which the last is a Dense that "
            f"gives {module_files.SCORES!r}"
        )
    read = read_first(directory / folders[0][1], "Transformer", False, None, pairs=True)
    readers = {**READ_HEAD, "Dropout": module_files.read_dropout}
    fields, params, _ = read_heads(directory, others[1:], readers=readers)
    last, last_params = module_files.read_dense(directory / folder, module_files.SCORES)
    params["heads"][str(len(fields["heads"]))] = last_params
    spec = EncoderSpec(
        read.backbone, **{**fields, "heads": (*fields["heads"], last)}, lora=read.lora
    )
    params = {**read.params, **params}
    return _Scorer(spec, params, read.texts, read.config, read.base, read.transformer)


def _is_language_model(directory: Path) -> bool:
    if is_adapter(directory) and not is_classifier_adapter(directory):
        _, directory = find_base(directory)
    config = read_optional(directory / "config.json", json_fields.CONFIG)
    return first_architecture(config).endswith("ForCausalLM")


def _token_id(directory: Path, token: str) -> int:
    """Returns the id of a token of a plain language model's tokenizer."""
    from tokenizers import Tokenizer

    path = directory / "tokenizer.json"
    number = Tokenizer.from_file(str(path)).token_to_id(token) if path.is_file() else None
    if number is None:
        raise InputError(
            f"{path}: expected a tokenizer with the token {token!r}, whose logit is the score of a "
            f"language model without a {modules.LOGIT_SCORE}"
        )
    return number
