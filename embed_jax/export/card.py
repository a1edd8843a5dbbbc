"""A model's card: README.md with the metadata that the Hugging Face hub reads.

Its sections are: usage, the model, training data and settings, scores, and how to train it again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from embed_jax.cross_encoder import CrossEncoder
from embed_jax.export.record import TrainingRun, config_source, hub_model
from embed_jax.export.scores import Scores
from embed_jax.export.usage import loads_in_sentence_transformers, usage
from embed_jax.sentence import SentenceEncoder
from embed_jax.types import num_params

KINDS = {
    "sts": ("semantic-similarity", "Semantic Similarity"),
    "retrieval": ("information-retrieval", "Retrieval"),
}
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
MANY = 5  # tasks
UNSET = (None, "", 0, -1)
FAIR = (
    "Scores are fractions; in brackets the 95 % bootstrap interval over the test items. It covers "
    "the choice of these items only: not another seed, another data set or other texts, and two "
    "overlapping intervals do not say that two models are equal."
)


@dataclasses.dataclass(frozen=True)
class CardContent:
    """The content of a card that is not in the model itself.

    Attributes:
        name: the name in the card, by which the model is loaded: on the hub, or its directory's.
        format: "sentence-transformers", "huggingface", or "" for a directory of neither format.
        onnx: the ONNX files, as (path in the directory, precision).
        run: the run that trained the model, if it is known.
        step: the step of the run that the model is from; 0: the step that the run chose.
        base: the model that this one is a copy or an adapter of, if there is no run.
        scores: the model's scores.
        licence: the hub's name of the licence, such as "apache-2.0"; "": not set.
        languages: ISO 639 codes.
    """

    name: str
    format: str = "sentence-transformers"
    onnx: tuple[tuple[str, str], ...] = ()
    run: TrainingRun | None = None
    step: int = 0
    base: str = ""
    scores: tuple[Scores, ...] = ()
    licence: str = ""
    languages: tuple[str, ...] = ()


def model_card(model: SentenceEncoder | CrossEncoder, about: CardContent) -> str:
    """Returns the text of README.md, which depends on the arguments only."""
    sections = [
        f"# {about.name.split('/')[-1]}",
        _introduction(model, about),
        usage(model, about.name, about.format, about.onnx),
        "## Model\n\n" + _table(("", ""), _facts(model, about)),
        *([_describe_training(about.run, about.step)] if about.run else []),
        _describe_evaluation(about.scores, about.run),
        *([_describe_retraining(about.run)] if about.run else []),
    ]
    return f"---\n{metadata(model, about)}---\n\n" + "\n\n".join(filter(None, sections)) + "\n"


def metadata(model: SentenceEncoder | CrossEncoder, about: CardContent) -> str:
    """Returns the card's YAML block, in the hub's terms.

    See modelcard.md in https://github.com/huggingface/hub-docs.
    """
    from huggingface_hub import EvalResult, ModelCardData

    crossing = isinstance(model, CrossEncoder)
    base = hub_model(_base(about))
    datasets = [
        data.hub
        for run in (about.run.stages() if about.run else ())
        for data in run.datasets
        if data.hub
    ]
    results = [
        EvalResult(
            task_type=KINDS.get(scores.task, (scores.task, ""))[0],
            task_name=KINDS.get(scores.task, (scores.task, scores.task))[1],
            dataset_type=scores.name.lower(),
            dataset_name=scores.name,
            dataset_split=scores.split or None,
            metric_type=metric,
            metric_name=metric,
            metric_value=round(value, 6),
        )
        for scores in about.scores
        for metric, value in _select_metrics(scores, about.scores).items()
    ]
    kinds = (
        ["cross-encoder", "reranker"] if crossing else ["sentence-similarity", "feature-extraction"]
    )
    is_loadable = loads_in_sentence_transformers(model) and about.format == "sentence-transformers"
    data = ModelCardData(
        language=list(about.languages) or None,
        license=about.licence or None,
        library_name="sentence-transformers"
        if is_loadable
        else "transformers"
        if about.format == "huggingface"
        else None,
        pipeline_tag="text-ranking" if crossing else "sentence-similarity",
        tags=[
            *(["sentence-transformers"] if is_loadable else []),
            "embed-jax",
            *kinds,
            *(["onnx"] if about.onnx else []),
        ],
        base_model=base or None,
        base_model_relation=_relation(model, about) if base else None,
        datasets=sorted(set(datasets)) or None,
        model_name=about.name.split("/")[-1] if results else None,
        eval_results=results or None,
    )
    return data.to_yaml(line_break="\n") + "\n"


def _relation(model: SentenceEncoder | CrossEncoder, about: CardContent) -> str | None:
    if isinstance(model, SentenceEncoder) and model.spec.lora:
        return "adapter"
    return "finetune" if about.run else None


def _base(about: CardContent) -> str:
    return about.run.base if about.run else about.base


def _link_model(model: str) -> str:
    """Returns a model's name for readers: a link to the hub, or the end of a path."""
    if model.startswith("random:"):
        return f"random weights of the shape {model.removeprefix('random:')}"
    if hub_model(model):
        return f"[{model}](https://huggingface.co/{model})"
    return f"`{model.rstrip('/').split('/')[-1]}`, a directory"


def _introduction(model: SentenceEncoder | CrossEncoder, about: CardContent) -> str:
    if isinstance(model, CrossEncoder):
        what = (
            "A cross-encoder: it reads a query and a passage together and gives the pair a score, "
            "to rank passages."
        )
    else:
        what = (
            f"A text embedding model: it maps a text to {model.dim} numbers, for semantic "
            "similarity, search and clustering."
        )
    if about.run and about.run.unchanged and not about.step:
        start = _link_model(about.run.config["model"]["name"])
        return (
            f"{what} It is {start}, unchanged: embed-jax trained it, and no step of the training "
            "was better than the start."
        )
    how = "trained" if about.run else "written"
    source = f" It was {how} with embed-jax" + (
        f" from {_link_model(_base(about))}." if _base(about) else "."
    )
    return what + source


def _facts(model: SentenceEncoder | CrossEncoder, about: CardContent) -> Iterator[tuple[str, str]]:
    backbone = model.spec.backbone
    if _base(about):
        yield "base", _link_model(_base(about))
    yield (
        "architecture",
        f"{backbone.family}, {backbone.num_layers} layers of {backbone.hidden_size}",
    )
    yield "parameters", f"{num_params(model.params):,}"
    if model.max_length < 10**9:
        yield "longest text", f"{model.max_length:,} tokens; the rest is cut off"
    if isinstance(model, CrossEncoder):
        yield "labels", str(model.num_labels)
        yield (
            "scores",
            "the sigmoid of the logits"
            if model.activation == "sigmoid"
            else "the logits as they are",
        )
        if model.prompt:
            yield "before each query", f"`{model.prompt!r}`"
        return
    yield "dimensions", str(model.dim)
    heads = [type(head).__name__ for head in model.spec.heads]
    has_settings = about.format == "sentence-transformers" or about.onnx
    unkept = "; the files of this directory do not record it" if not has_settings else ""
    token_head = [type(model.spec.token_head).__name__] if model.spec.token_head else []
    yield "pooling", ", ".join([*token_head, model.spec.pooling, *heads]) + unkept
    yield "similarity", model.similarity_fn_name
    if model.matryoshka_dims:
        dims = ", ".join(map(str, model.matryoshka_dims))
        yield "may be cut to", f"{dims} numbers (Matryoshka); make them length 1 again"
    if model.adaptive_layers:
        yield "may be stopped early", "after any of its layers"
    if model.spec.lora:
        yield "adapter", f"rank {model.spec.lora.rank}, beside its base"
    for name, prompt in model.prompts.items():
        standard = ", unless another is named" if name == model.default_prompt_name else ""
        yield f"prompt `{name}`", (f"`{prompt!r}`" if prompt else "none") + standard
    if model.template:
        yield "instructions", f"`{model.template!r}`"
    if (any(model.prompts.values()) or model.template) and not model.include_prompt:
        yield "prompts in pooling", "left out"


def _describe_training(run: TrainingRun, step: int) -> str:
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
        ["## Training", _table(("data", "split", "records", "licence", "loss"), rows)]
        if rows
        else ["## Training"]
    )
    stages = run.stages()
    for number, stage in enumerate(stages, 1):
        if len(stages) > 1:
            parts.append(f"### Stage {number}")
        parts.append(_table(("", ""), list(_settings(stage, step if stage is run else 0))))
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


def _describe_evaluation(scores_by_task: Sequence[Scores], run: TrainingRun | None) -> str:
    parts = []
    if scores_by_task:
        rows = [
            (
                f"{scores.name} {scores.split}".strip(),
                f"**{metric}**" if metric == scores.main else metric,
                _format_score(scores, metric),
                f"{scores.n:,} {scores.unit}".strip() if scores.n else "",
            )
            for scores in scores_by_task
            for metric in _select_metrics(scores, scores_by_task)
        ]
        rows += _experiment_rows(scores_by_task)
        parts += [_table(("task", "metric", "score", "of"), rows), FAIR]
        notes = [f"- {scores.name}: {note}" for scores in scores_by_task for note in scores.notes]
        parts += ["What must be known of these figures:\n\n" + "\n".join(notes)] if notes else []
    results = run.results if run else {}
    measured = results.get("metrics") or {}
    sides = [
        side
        for side in ("before", "after", "teacher")
        if any(name.startswith(f"{side}/") for name in measured)
    ]
    if "after" in sides:
        names = [name.partition("/")[2] for name in measured if name.startswith("after/")]
        rows = [
            (name, *(_format_number(measured.get(f"{side}/{name}")) for side in sides))
            for name in names
        ]
        what = "At the end of the training, on data that chose nothing"
        what += " (Spearman's correlation):" if results.get("task") == "sts" else ":"
        parts += [what, _table(("", *sides), rows)]
    parts += _describe_reranking(run.reranking) if run and run.reranking else []
    return "\n\n".join(["## Evaluation", *parts]) if parts else ""


def _describe_reranking(report: Mapping[str, Any]) -> list[str]:
    """Returns the paragraphs of reranking.json: the scores of both stages, and the gain."""
    first = report["first_stage"]
    rows = [
        (
            metric,
            *(
                f"{stage['metrics'][metric]:.4f} [{low:.4f}, {high:.4f}]"
                for stage in (first, report)
                for low, high in [stage["intervals"][metric]]
            ),
        )
        for metric in report["intervals"]
    ]
    about = (
        f"On test, once, at the end of the training: the first {report['depth']} results of each "
        f"of {report['n']:,} queries, as the first stage has them and reranked "
        f"({report['rerank_ms_per_query']:.1f} ms a query); in brackets the 95 % interval over "
        "queries:"
    )
    verdicts = [str(difference["verdict"]) for difference in report["differences"].values()]
    return [about, _table(("metric", first["model"], "reranked"), rows), *verdicts]


def _select_metrics(scores: Scores, scores_by_task: Sequence[Scores]) -> dict[str, float]:
    """Returns all metrics of a task, except those of its single experiments.

    If there are more than MANY tasks, it is only the main metric.
    """
    if len(scores_by_task) > MANY:
        return {scores.main: scores.metrics[scores.main]}
    single = {name for names in _experiments(scores).values() for name in names}
    return {name: value for name, value in scores.metrics.items() if name not in single}


def _experiments(scores: Scores) -> dict[str, list[str]]:
    """Returns metrics of repeated experiments, such as accuracy_1 to accuracy_10, by their mean."""
    repeats: dict[str, list[str]] = {}
    for name in scores.metrics:
        mean, _, number = name.rpartition("_")
        if number.isdigit() and mean in scores.metrics:
            repeats.setdefault(mean, []).append(name)
    return repeats


def _experiment_rows(scores_by_task: Sequence[Scores]) -> Iterator[tuple[str, str, str, str]]:
    """Returns a row of the table for each task's repeated experiments: their range of scores."""
    for scores in scores_by_task if len(scores_by_task) <= MANY else ():
        for mean, names in _experiments(scores).items():
            values = [scores.metrics[name] for name in names]
            extent = f"{_format_number(min(values))} to {_format_number(max(values))}"
            yield scores.name, f"{mean}, single experiments", extent, f"{len(names)} experiments"


def _format_score(scores: Scores, metric: str) -> str:
    if metric not in scores.intervals:
        return _format_number(scores.metrics[metric])
    low, high = scores.intervals[metric]
    return f"{scores.metrics[metric]:.4f} [{low:.4f}, {high:.4f}]"


def _format_number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _describe_retraining(run: TrainingRun) -> str:
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


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]] | Iterator[Sequence[str]]) -> str:
    """Returns a Markdown table; bars in cells are escaped, and line breaks become spaces."""

    def escape(cell: str) -> str:
        return " ".join(str(cell).split()).replace("|", "\\|")

    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(escape, line))} |" for line in lines)
