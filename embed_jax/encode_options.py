"""What every way of encoding takes, and what to say of arguments that are none of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict

from embed_jax.errors import InputError
from embed_jax.types import Params


class EncodeOptions(TypedDict, total=False):
    """What every way of encoding takes beside texts and prompt; see `SentenceEncoder.encode`."""

    dim: int
    layers: int
    normalize_embeddings: bool
    batch_tokens: int
    show_progress: bool
    params: Params


# Arguments that users of sentence-transformers know, or other functions take -> what to do instead.
INSTEAD = {
    "batch_size": "batches are counted in tokens: `batch_tokens`, or nothing for what is fast here",
    "show_progress_bar": "it is `show_progress`",
    "truncate_dim": "it is `dim`, which makes the embeddings length 1 again",
    "convert_to_numpy": "embeddings are NumPy arrays always",
    "convert_to_tensor": "embeddings are NumPy arrays always; `torch.from_numpy` makes a tensor of one",
    "precision": "embeddings are float32; `embed_jax.retrieval.quantize` makes them smaller",
    "output_value": "sentence embeddings alone are made",
    "device": "JAX's devices are all used",
    "instruction": "queries take one, documents have none",
}


def refuse_unknown(options: Mapping[str, Any]) -> None:
    """Raises an InputError for an argument that is known to be another thing here, a TypeError for any other.

    Options that are in EncodeOptions pass.
    """
    for name in options.keys() - EncodeOptions.__annotations__.keys():
        if name in INSTEAD:
            raise InputError(f"{name}: {INSTEAD[name]}")
        raise TypeError(
            f"encode: unexpected argument {name!r}; expected {', '.join(EncodeOptions.__annotations__)}"
        )
