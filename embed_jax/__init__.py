"""embed-jax: train, study and evaluate text-embedding models in JAX."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["SentenceEncoder", "finetune", "load"]


def __getattr__(name: str) -> Any:  # so that `import embed_jax` costs nothing
    if name in ("load", "SentenceEncoder"):
        import embed_jax.sentence

        return getattr(embed_jax.sentence, name)
    if name == "finetune":
        from embed_jax.train.finetune import finetune

        return finetune
    raise AttributeError(f"module 'embed_jax' has no attribute {name!r}")
