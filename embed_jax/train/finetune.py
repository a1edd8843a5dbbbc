"""Fine-tuning from Python, over the same loop as the experiments."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.data.pairs import as_pairs
from embed_jax.data.pipeline import Source
from embed_jax.data.sources import pair_columns, record_fields
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

    records = pair_records(pairs)
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


def pair_records(pairs: Any) -> list[Mapping[str, str]]:
    """Pairs in any of the forms that `finetune` takes, as records with anchor, positive, negative_1, ...

    Raises:
        InputError: naming the first row that is no pair of texts.
    """
    if hasattr(pairs, "to_dict") and hasattr(
        pairs, "columns"
    ):  # a DataFrame: what it lacks is NaN there, None here
        pairs = pairs.astype(object).where(pairs.notna(), None).to_dict("records")
    rows = list(pairs)
    if len(rows) < 2:
        raise InputError(f"pairs: expected at least 2, found {len(rows)}")
    columns = _columns(rows[0])
    records = []
    for number, row in enumerate(rows):
        try:
            (record,) = as_pairs([row], columns)
        except (
            KeyError,
            TypeError,
            ValueError,
        ):  # a field is missing, there is only one, or it is no row at all
            record = {}
        if (
            not record
            or isinstance(row, str)
            or not all(isinstance(text, str) for text in record.values())
        ):
            raise InputError(
                f"pairs[{number}]: expected an anchor, a positive and negatives, all strings, found {str(row)[:200]!r}"
            )
        records.append(record)
    if not any(text.strip() for record in records for text in record.values()):
        raise InputError(f"pairs: all texts are empty, in {len(records)} pairs")
    return records


def _columns(row: Any) -> Callable[[Any], Sequence[str | None]]:
    """Where the texts of rows like this one are: under names that are known, else in their order."""
    if not isinstance(row, Mapping):
        return tuple
    try:
        return pair_columns([row])
    except InputError:
        return lambda row: tuple(row.values())
