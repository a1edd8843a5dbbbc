"""embed-jax: train, study and evaluate text-embedding models in JAX.

    model = embed_jax.load("sentence-transformers/all-MiniLM-L6-v2")
    queries, documents = model.encode_query(["..."]), model.encode_document(["...", "..."])
    model.similarity(queries, documents)

What it is made of is imported when it is asked for, so that `import embed_jax` costs nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from embed_jax.cross_encoder import CrossEncoder
    from embed_jax.cross_encoder import load as load_cross_encoder
    from embed_jax.routed import RoutedEncoder
    from embed_jax.sentence import SentenceEncoder
    from embed_jax.train.finetune import finetune

__version__ = "0.1.0"
__all__ = [
    "CrossEncoder",
    "RoutedEncoder",
    "SentenceEncoder",
    "finetune",
    "load",
    "load_cross_encoder",
]


# Names that users of sentence-transformers know -> what to do instead.
HINTS = {
    "SentenceTransformer": "embed_jax.load(name) gives a SentenceEncoder",
    "SentenceTransformerTrainer": "embed_jax.finetune trains a model, and python -m experiments.NAME",
    "SparseEncoder": "embedding models and cross-encoders are supported",
}


def load(
    name: str | Path, step: int = 0, *, max_length: int = 0, compute_dtype: str = "float32"
) -> SentenceEncoder | RoutedEncoder:
    """Loads an embedding model: a SentenceEncoder, or a RoutedEncoder where queries and documents have one each.

    Args:
        name: a directory (ours, sentence-transformers' or plain Hugging Face), a hub name, or the work directory of a
            run.
        step: of a run: the model as it was then; 0: the one that the run wrote, see `train.run.load_run`.
        max_length: cut texts at so many tokens; 0: the model's own limit.
        compute_dtype: "float32" or "bfloat16".

    Raises:
        InputError: if it can't be found or read, is of an unknown architecture or a cross-encoder, its tokenizer's
            vocabulary is larger than its table, `max_length` is more than the model has positions for, or the run has
            no checkpoint of that step.
    """
    if all((Path(name) / file).is_file() for file in ("config.json", "data.json")):
        from embed_jax.train.run import load_run

        return load_run(name, step, max_length=max_length, compute_dtype=compute_dtype)
    if step:
        from embed_jax.errors import InputError

        raise InputError(
            f"{name}: no work directory of a run (config.json, data.json), so it has no step {step}"
        )
    from embed_jax.routed import load as load_model

    return load_model(name, max_length=max_length, compute_dtype=compute_dtype)


def __dir__() -> list[str]:
    """Public names, those among them that are not imported yet; and the submodules imported so far."""
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # else any name would pass for one of ours

    def __getattr__(name: str) -> Any:
        if name == "RoutedEncoder":
            from embed_jax.routed import RoutedEncoder

            return RoutedEncoder
        if name == "SentenceEncoder":
            from embed_jax.sentence import SentenceEncoder

            return SentenceEncoder
        if name in ("CrossEncoder", "load_cross_encoder"):
            from embed_jax import cross_encoder

            return cross_encoder.CrossEncoder if name == "CrossEncoder" else cross_encoder.load
        if name == "finetune":
            from embed_jax.train.finetune import finetune

            return finetune
        hint = f": {HINTS[name]}" if name in HINTS else ""
        raise AttributeError(f"module 'embed_jax' has no attribute {name!r}{hint}")
