"""Names that a config file may use, each bound to "module:attribute" and imported only when asked for.

Adding a backbone, a loss or a data set is its own file (or function) and one line here.
"""

from __future__ import annotations

import difflib
import importlib
from typing import Any

from embed_jax.errors import InputError

REGISTRY: dict[str, dict[str, str]] = {
    "backbone": {  # by config.json's model_type
        "bert": "embed_jax.encoders.bert:BERT",
        "roberta": "embed_jax.encoders.bert:ROBERTA",
        "xlm-roberta": "embed_jax.encoders.bert:XLM_ROBERTA",
        "mpnet": "embed_jax.encoders.bert:MPNET",
        "distilbert": "embed_jax.encoders.bert:DISTILBERT",
        "electra": "embed_jax.encoders.bert:ELECTRA",
    },
    "loss": {
        "info_nce": "embed_jax.losses.contrastive:in_batch_info_nce",
    },
    "source": {
        "python_docs": "embed_jax.data.sources.python_docs:open_source",
        "tfds": "embed_jax.data.sources.tfds:open_source",
        "hf": "embed_jax.data.sources.hf:open_source",
        "file": "embed_jax.data.sources.files:open_source",
    },
}


def lookup(kind: str, name: str) -> Any:
    """The registered object `name` of `kind`.

    Raises:
        InputError: for an unknown name; the message lists the known ones.
    """
    entries = REGISTRY[kind]
    if name not in entries:
        raise InputError(unknown(f"{kind}", name, entries))
    module, attribute = entries[name].split(":")
    return getattr(importlib.import_module(module), attribute)


def unknown(what: str, name: str, known) -> str:
    """One line that says `name` is no `what`, guesses the one meant, and lists those there are."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=1)
    guess = f" (did you mean {near[0]!r}?)" if near else ""
    return f"unknown {what} {name!r}{guess}; known: {', '.join(known)}"
