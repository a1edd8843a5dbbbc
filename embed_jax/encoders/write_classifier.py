"""Writes a cross-encoder's directory, whole or not at all, for sentence-transformers."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp

from embed_jax.encoders import modules
from embed_jax.encoders.classifier import ClassifierSpec, classifier_config, classifier_family
from embed_jax.encoders.weights import (
    SHARD_BYTES,
    read_json,
    tensors_from_params,
    write_json,
    write_tensors,
)
from embed_jax.encoders.write import SavesItself, replace_directory
from embed_jax.types import Params

# Fields that sentence-transformers needs from version 6 on for a Transformer that classifies
TASK = {
    "transformer_task": "sequence-classification",
    "modality_config": {"text": {"method": "forward", "method_output_name": "logits"}},
    "module_output_name": "scores",
}


def write_classifier(
    directory: Path,
    spec: ClassifierSpec,
    params: Params,
    *,
    tokenizer: SavesItself,
    max_length: int,
    activation: str,
    prompt: str = "",
    lower_case: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes a directory for sentence-transformers' CrossEncoder, `read_classifier`, transformers.

    The limit and the activation are where all versions of sentence-transformers look for them.
    Tensors have the parameters' dtypes. For earlier content of the directory see `write_model`.

    Args:
        directory: the directory to write.
        spec: the classifier's.
        params: the classifier's parameters; see `build_classifier`.
        tokenizer: writes the tokenizer's files.
        max_length: see SavedClassifier.
        activation: see SavedClassifier.
        prompt: see SavedClassifier.
        lower_case: see SavedClassifier.
        shard_bytes: a larger model is written as shards of at most this many bytes.

    Raises:
        InputError: the directory cannot be written, or holds anything but a model.
    """
    activation_class = modules.SCORE_ACTIVATIONS[activation]
    with replace_directory(directory) as temporary:
        family = classifier_family(spec.backbone.family)
        tensors = tensors_from_params(
            family, {**params["backbone"], "classifier": params["classifier"]}
        )
        write_tensors(
            temporary,
            {_full_name(name, family.prefixes[0]): value for name, value in tensors.items()},
            shard_bytes,
        )
        half = all(value.dtype == jnp.bfloat16 for value in tensors.values() if value.ndim > 1)
        about = {
            "dtype": "bfloat16" if half else "float32",
            "sentence_transformers": {"activation_fn": activation_class},
        }
        write_json(temporary / "config.json", classifier_config(spec) | about)
        tokenizer.save(temporary)
        limit = temporary / "tokenizer_config.json"
        write_json(limit, read_json(limit) | {"model_max_length": max_length})
        texts = {"max_seq_length": max_length, "do_lower_case": lower_case}
        write_json(temporary / "sentence_bert_config.json", TASK | texts)
        modules.write_modules(temporary, [("Transformer", "")])
        settings = {
            "model_type": "CrossEncoder",
            "prompts": {"query": prompt} if prompt else {},
            "default_prompt_name": "query" if prompt else None,
            "activation_fn": activation_class,
        }
        write_json(temporary / "config_sentence_transformers.json", settings)


def _full_name(name: str, prefix: str) -> str:
    """Returns transformers' name of a tensor: the backbone's have a prefix, the head's do not."""
    return name if name.startswith(("classifier.", "pre_classifier.")) else prefix + name
