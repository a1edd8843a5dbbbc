"""The sections of a model card about its training."""

from __future__ import annotations

from collections.abc import Iterator

from embed_jax.export.card_scores import markdown_table
from embed_jax.export.record import TrainingRun, config_source

SETTINGS = {  # field of a config -> its name in a card, which has those that are set
    "loss.name": "loss",
    "loss.temperature": "temperature",
    "loss.margin": "margin",
    "loss.mlm": "weight of masked language modelling",
    "batch.size": "batch size",
    "optim.accumulate": "batches an update",
    "train.epochs": "epochs",
    "optim.name": "optimiser",
    "optim.learning_rate": "learning rate",
    "optim.schedule": "schedule",
    "optim.warmup": "warm-up, share of the steps",
    "optim.weight_decay": "weight decay",
    "optim.clip_norm": "gradient clipped at",
    "data.max_length": "tokens a text",
    "model.compute_dtype": "computed in",
    "model.teacher": "teacher",
    "data.teacher_vectors": "teacher's embeddings",
    "model.guide": "guide",
    "mine.strategy": "hard negatives by",
    "queue.size": "negatives of past batches",
    "lora.rank": "adapter's rank",
    "lora.alpha": "adapter's alpha",
    "lora.targets": "adapter on",
    "train.seed": "seed",
}
UNSET = (None, "", 0, -1)


def describe_training(run: TrainingRun, step: int) -> str:
    """Returns the section with the data and the settings of each stage of a run.

    Args:
        run: the last stage.
        step: of the checkpoint that the model is; 0: the end of the run.
    """
    rows = [
        (
            f"[{data.name}](https://huggingface.co/datasets/{data.hub})" if data.hub else data.name,
            data.split,
            f"{data.records:,}" if data.records else "",
            data.licence,
            f"`{data.loss}`",
        )
        for stage in run.stages()
        for data in stage.datasets
    ]
    parts = (
        ["## Training", markdown_table(("data", "split", "records", "licence", "loss"), rows)]
        if rows
        else ["## Training"]
    )
    stages = run.stages()
    for number, stage in enumerate(stages, 1):
        if len(stages) > 1:
            parts.append(f"### Stage {number}")
        parts.append(markdown_table(("", ""), list(_settings(stage, step if stage is run else 0))))
    return "\n\n".join(parts)


def _settings(run: TrainingRun, step: int) -> Iterator[tuple[str, str]]:
    rank = (run.config.get("lora") or {}).get("rank")
    for field, name in SETTINGS.items():
        part, _, leaf = field.partition(".")
        value = (run.config.get(part) or {}).get(leaf)
        if value in UNSET and field != "train.seed" or part == "lora" and not rank:
            continue
        if field == "train.epochs" and run.config["train"].get("steps"):
            continue
        yield (
            name,
            f"`{value}`"
            if isinstance(value, str)
            else f"{value:g}"
            if isinstance(value, float)
            else str(value),
        )
    if run.steps:
        yield "steps", f"{run.steps:,}"
    chosen = run.find_best()
    if step:
        yield "this model", f"of step {step:,}"
    elif chosen and run.unchanged:
        metric = run.config["eval"]["metric"]
        last = [line for line in run.log if line.get(metric) is not None][-1]
        yield (
            "this model",
            "of step 0: the model that the run started from, since no later evaluation was better "
            f"({metric} {chosen[1]:.4f}; {last[metric]:.4f} at step {last['step']:,})",
        )
    elif chosen:
        yield (
            "this model",
            f"of step {chosen[0]:,}, where {run.config['eval']['metric']} was best: "
            f"{chosen[1]:.4f}",
        )
    for metric, name, form in (
        ("tokens_per_second", "tokens a second (median)", "{:,.0f}"),
        ("mfu", "model FLOPs utilisation (median)", "{:.2f}"),
        ("wait_seconds", "seconds of a step spent on waiting for batches (median)", "{:.3f}"),
    ):
        if (value := run.median(metric)) is not None:
            yield name, form.format(value)
    if run.sessions:
        # It is above 0 if the run was resumed and its first sessions were not recorded.
        since = run.sessions[0].start
        of = f" from step {since:,} on" if since else ""
        yield "training time", f"{_format_duration(run.seconds)}{of}, evaluations included"
        yield "device", run.join_sessions("machine")
        yield "versions", run.join_sessions("software")


def _format_duration(seconds: float) -> str:
    """Formats a time in its two largest units, such as "3 h 25 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours:,} h {minutes} min"


def describe_retraining(run: TrainingRun) -> str:
    """Returns the section with the config and the command of each stage of a run."""
    stages = run.stages()
    parts = [
        "## Train it again",
        "Each file is the config of a run; what it does not name is as in embed-jax.",
    ]
    for number, stage in enumerate(stages, 1):
        name = "config" if len(stages) == 1 else f"config_{number}"
        config = stage.config
        if number > 1:  # from the model that the command before it writes
            config = config | {
                "model": config["model"] | {"name": f"runs/config_{number - 1}/model"}
            }
        parts.append(f"`{name}.py`:\n\n```python\n{config_source(config)}```")
        if stage.experiment == "":
            parts.append(
                "No experiment was launched: this was trained from Python, on data given there."
            )
            continue
        experiment = stage.experiment or "EXPERIMENT"
        parts.append(
            f"```bash\npython -m embed_jax train {experiment} --config={name}.py "
            f"--workdir=runs/{name}\n```"
        )
    if any(stage.experiment is None for stage in stages):
        parts.append(
            "EXPERIMENT is the one that it was trained with, such as `nli`, `retrieval` or "
            "`simcse`."
        )
    return "\n\n".join(parts)
