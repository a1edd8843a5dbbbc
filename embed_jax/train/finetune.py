"""Fine-tuning from Python, over the same loop as the experiments."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.data.pipeline import Source
from embed_jax.data.sources import python_records, record_fields
from embed_jax.errors import InputError
from embed_jax.sentence import SentenceEncoder, load


def finetune(
    pairs: Any,
    model: str = "sentence-transformers/all-MiniLM-L6-v2",
    *,
    workdir: str | Path | None = None,
    evaluators: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> SentenceEncoder:
    """Fine-tunes a model on pairs of texts, with in-batch negatives, and returns it.

    Args:
        pairs: a list of (anchor, positive[, negative, ...]) tuples or of dicts, a pandas DataFrame or a
            `datasets.Dataset`; columns "anchor", "positive" and optionally "negative", "negative_1", ... or the list
            "negatives"; or "question", "answer" and the like, as in files; else the columns in their order.
        model: what to start from; see `embed_jax.load`.
        workdir: where checkpoints, metrics.jsonl and the model go; None: a temporary directory. The same directory
            again resumes.
        evaluators: name to `encode -> {metric: value}`, as in `embed_jax.evals`.
        overrides: config fields, "__" for the dot: `optim__learning_rate=1e-5`, `train__epochs=3`.

    Raises:
        InputError: for pairs or fields that cannot be used.

    >>> model = finetune([("a question", "its answer"), ...], batch__size=2)  # doctest: +SKIP
    """
    from embed_jax.train.fit import fit
    from embed_jax.train.sources import ONLY

    records = python_records(pairs)
    if len(records) < 2:
        raise InputError(f"pairs: expected at least 2, found {len(records)}")
    config = Experiment()
    config.tracking.wandb = "disabled"
    most = min(32, len(records))
    # As many devices as have two examples each, so that a handful of pairs trains anywhere.
    config.train.devices = devices = overrides.get("train__devices") or max(
        min(jax.device_count(), most // 2), 1
    )
    config.batch.size = max(most // devices * devices, 2)
    config = override(config, model__name=model, **overrides)
    workdir = Path(workdir or tempfile.mkdtemp(prefix="embed_jax_"))
    fit(
        config,
        workdir,
        sources={ONLY: Source(records, record_fields(records))},
        evaluators=evaluators or {},
    )
    return load(str(workdir / "model"))
