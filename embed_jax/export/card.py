"""A model's card: README.md with the metadata that the Hugging Face hub reads.

Its sections are: usage, the model, training data and settings, scores, and how to train it again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from embed_jax.cross_encoder import CrossEncoder
from embed_jax.export.card_scores import describe_evaluation, markdown_table, select_metrics
from embed_jax.export.card_training import describe_retraining, describe_training
from embed_jax.export.record import TrainingRun, hub_model
from embed_jax.export.scores import Scores
from embed_jax.export.usage import loads_in_sentence_transformers, usage
from embed_jax.sentence import SentenceEncoder
from embed_jax.types import num_params

KINDS = {
    "sts": ("semantic-similarity", "Semantic Similarity"),
    "retrieval": ("information-retrieval", "Retrieval"),
}


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
        "## Model\n\n" + markdown_table(("", ""), _facts(model, about)),
        *([describe_training(about.run, about.step)] if about.run else []),
        describe_evaluation(about.scores, about.run),
        *([describe_retraining(about.run)] if about.run else []),
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
        for metric, value in select_metrics(scores, about.scores).items()
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
