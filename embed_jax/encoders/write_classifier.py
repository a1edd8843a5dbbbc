"""Writes a cross-encoder's directory, which sentence-transformers and transformers read.

Whole or not at all.
"""

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

# What sentence-transformers from version 6 on wants to know of a Transformer that classifies
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
    """Writes a directory that sentence-transformers' CrossEncoder, `read_classifier` and transformers read.

    The limit and the activation stand where every version of sentence-transformers looks for them.
    Tensors have the parameters' dtypes. What is there before is treated as by `write_model`.

    Args:
        spec, params: as in `build_classifier`.
        tokenizer: what writes the tokenizer's files.
        max_length, activation, prompt, lower_case: see SavedClassifier.
        shard_bytes: a larger model is written as shards of at most this many bytes.

    Raises:
        InputError: the directory cannot be written, or holds something that is no model.
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
    """transformers' name of a tensor.

    The head's stand beside the backbone, whose names begin with its prefix.
    """
    return name if name.startswith(("classifier.", "pre_classifier.")) else prefix + name
