"""Fine-tuning from Python, over the same loop as the experiments."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.config import Experiment, override
from embed_jax.data.sources import pair_columns
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
            `datasets.Dataset`; columns "anchor", "positive" and optionally "negative", "negative_1", ...; without such
            names, the columns in their order.
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

    records = pair_records(pairs)
    config = Experiment()
    config.tracking.wandb = "disabled"
    config.batch.size = min(32, len(records))
    config = override(config, model__name=model, **overrides)
    workdir = Path(workdir or tempfile.mkdtemp(prefix="embed_jax_"))
    fit(config, workdir, records=records, columns=pair_columns(records), evaluators=evaluators or {})
    return load(str(workdir / "model"))


def pair_records(pairs: Any) -> Sequence[dict[str, str]]:
    """Pairs in any of the forms that `finetune` takes, as records."""
    if hasattr(pairs, "to_dict") and hasattr(pairs, "columns"):  # a DataFrame
        pairs = pairs.to_dict("records")
    rows = [dict(row) if isinstance(row, Mapping) else row for row in pairs]
    if len(rows) < 2:
        raise InputError(f"pairs: expected at least 2, found {len(rows)}")
    records = []
    for number, row in enumerate(rows):
        texts = row if isinstance(row, dict) else dict(enumerate(row))
        if not {"anchor", "positive"} <= texts.keys():
            names = ["anchor", "positive", *(f"negative_{k}" for k in range(1, len(texts) - 1))]
            texts = dict(zip(names, texts.values(), strict=False))
        if len(texts) < 2 or not all(isinstance(text, str) for text in texts.values()):
            raise InputError(
                f"pairs[{number}]: expected an anchor, a positive and negatives, all strings, found {row!r}"
            )
        records.append(texts)
    return records
