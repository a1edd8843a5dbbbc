"""Fine-tuning from Python, over the same loop as the experiments."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from embed_jax.config import Experiment
from embed_jax.config_file import override
from embed_jax.data.pairs import CARRIED, rename_columns, retrieval_task, split_pairs
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import python_records, record_fields
from embed_jax.errors import InputError, RunError, require
from embed_jax.routed import AnyEncoder, load_routed

# Fields that finetune does not use: it is given the pairs, is one process, and trains one stage.
REFUSED = {
    "data.train": "the pairs are given",
    "data.split": "the pairs are given",
    "data.window": "the pairs are given",
    "data.validation_split": "hold pairs out with data__holdout",
    "data.augment": "it is for sentences, in experiments.simcse",
    "data.corpus": "use experiments.retrieval",
    "mine.corpus": "use experiments.retrieval",
    "mixture.": "use an experiment's command for several data sets",
    "eval.retrieval": "hold pairs out with data__holdout, or pass evaluators",
    "eval.retrieval_split": "hold pairs out with data__holdout, or pass evaluators",
    "eval.test_split": "hold pairs out with data__holdout, or pass evaluators",
    "eval.test_sts": "evaluate the model before and after yourself",
    "eval.dims": "use experiments.matryoshka",
    "eval.layers": "use experiments.matryoshka",
    "eval.baseline": "use experiments.matryoshka",
    "hosts.": "use an experiment's command for several hosts",
    "train.deterministic": "set XLA_FLAGS=--xla_gpu_deterministic_ops=true before Python starts",
}


def finetune(
    pairs: Any,
    model: str = "sentence-transformers/all-MiniLM-L6-v2",
    *,
    workdir: str | Path | None = None,
    evaluators: Mapping[str, Any] | None = None,
    **overrides: Any,
) -> AnyEncoder:
    """Fine-tunes a model on pairs of texts, with in-batch negatives, and returns it.

    With `data__holdout=0.1`, a tenth of the pairs is held out for validation and a tenth for test,
    so that no text is on two sides. The run then ends as the command's does: the model before, the
    model after and BM25 search the test pairs. `model.comparison` of the result has their scores
    with 95 % intervals, the paired difference (`gain()`) and the `verdict()`.

    Args:
        pairs: a list of (anchor, positive[, negative, ...]) tuples or of dicts, a pandas DataFrame
            or a `datasets.Dataset`; columns "anchor", "positive" and optionally "negative",
            "negative_1", ... or the list "negatives"; or "question", "answer" and the like, as in
            files; else the columns in their order.
        model: what to start from; see `embed_jax.load`.
        workdir: where checkpoints, metrics.jsonl and the model go; the same directory again
            resumes. None: a temporary directory, removed at the end.
        evaluators: name to `encode -> {metric: value}`, as in `embed_jax.evals`.
        overrides: config fields, "__" for the dot: `optim__learning_rate=1e-5`, `train__epochs=3`.
            A field that has no meaning here is refused.

    Returns:
        The model. Its `comparison` is an `embed_jax.evals.comparison.Comparison`, or None without
        `data__holdout`.

    Raises:
        InputError: for pairs or fields that cannot be used.
        RunError: if the run was stopped (SIGTERM, Ctrl-C); with `workdir` its state is saved.

    >>> model = finetune([("a question", "its answer"), ...], batch__size=2)  # doctest: +SKIP
    """
    for name in overrides:
        field = name.replace("__", ".")
        for refused, advice in REFUSED.items():
            if field == refused or refused.endswith(".") and field.startswith(refused):
                raise InputError(f"{name}: finetune has no use for it: {advice}")
    if workdir is not None:
        return _finetune(pairs, model, Path(workdir), evaluators or {}, overrides, keep=True)
    with tempfile.TemporaryDirectory(prefix="embed_jax_") as directory:
        return _finetune(pairs, model, Path(directory), evaluators or {}, overrides, keep=False)


def _finetune(
    pairs: Any,
    model: str,
    workdir: Path,
    evaluators: Mapping[str, Any],
    overrides: Mapping[str, Any],
    keep: bool,
) -> AnyEncoder:
    """Trains in a directory; see `finetune`.

    With `keep` the directory stays, and the comparison is written there.
    """
    from embed_jax.train.data import SourcesAt
    from embed_jax.train.evaluation import report_search, search_evaluators, sts_evaluators
    from embed_jax.train.fit import fit
    from embed_jax.train.mining import mined_sources
    from embed_jax.train.objective import training_loss
    from embed_jax.train.sources import ONLY, Sources, column_names, scaled, without_texts

    require("grain")
    config = override(Experiment(), tracking__wandb="disabled", model__name=model)
    sized = override(copy.deepcopy(config), **overrides)  # refuses unknown fields and bad values
    records: Sequence[Mapping[str, Any]] = python_records(pairs, column_names(sized.data.columns))
    records = records[: sized.data.limit or None]
    if len(records) < 2:
        raise InputError(f"pairs: expected at least 2, found {len(records)}")
    if sized.data.exclude:
        records = without_texts(records, record_fields(records).columns, sized.data.exclude)
    validation: Sequence[Mapping[str, Any]] = []
    tasks = {}
    if sized.data.holdout:
        require("bm25s")  # fail early: needed only at the end
        named = rename_columns(records, record_fields(records).columns, CARRIED)
        sides = split_pairs(named, sized.data.holdout)
        tasks = {side: retrieval_task(sides[side], []) for side in ("validation", "test")}
        records, validation = sides["train"], sides["validation"]
    most = min(32, len(records))
    # As many devices as have two examples each, so that a handful of pairs trains anywhere.
    config.train.devices = devices = overrides.get("train__devices") or max(
        min(jax.device_count(), most // 2), 1
    )
    config.batch.size = max(most // devices * devices, 2)
    config = override(config, **overrides)

    evaluators = {**sts_evaluators(config), **evaluators}
    if tasks:
        evaluators = search_evaluators(config, tasks["validation"]) | evaluators
    if config.mine.strategy or config.data.consistency:
        lists = "scores" in training_loss(config).about.needs
        sources: Sources | SourcesAt = mined_sources(records, [], config, workdir, lists=lists)
        validation = [] if lists else validation  # nothing scores the held-out pairs
    else:
        fields = scaled(record_fields(records), config.data.score_max)
        sources = {ONLY: RecordSource(records, fields)}
    result = fit(config, workdir, sources=sources, evaluators=evaluators, validation=validation)
    if not result.finished:
        advice = "the same call goes on" if keep else "without a workdir nothing of it is kept"
        raise RunError(f"stopped at step {int(result.state.step)}; {advice}")
    trained = load_routed(workdir / "model")
    if tasks:
        trained.comparison = report_search(tasks["test"], config, workdir, result.unchanged)
        if keep:
            trained.comparison.write(workdir)
    return trained
