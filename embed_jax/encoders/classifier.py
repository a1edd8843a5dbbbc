"""Sequence classifiers of transformers, as encoders whose last head gives logits.

A cross-encoder is such a classifier whose input is a pair of texts. A family's classifier is one
entry of `FORMS`; a head of any other form is written as sentence-transformers' modules instead.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from typing import Any

from embed_jax.encoders.family import Family
from embed_jax.encoders.heads import Dense, Dropout, Head, LayerNorm
from embed_jax.encoders.pooling import check_pooling
from embed_jax.encoders.spec import Backbone, EncoderSpec
from embed_jax.errors import InputError
from embed_jax.registry import lookup, unknown


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """Settings of a classifier's head that config.json may change.

    Attributes:
        hidden_size: D, the size of the backbone's states.
        num_labels: L, the number of logits.
        pooling: one of pooling.POOLINGS.
        activation: after the first linear map; one of layers.ACTIVATIONS.
        bias: whether the first linear map has a bias.
        dropout: rate when a dropout key is given.
        eps: of the norm.
    """

    hidden_size: int
    num_labels: int
    pooling: str = "cls"
    activation: str = "tanh"
    bias: bool = True
    dropout: float = 0.1
    eps: float = 1e-5


@dataclasses.dataclass(frozen=True)
class HeadModule:
    """A module of a classifier's head.

    Attributes:
        make: makes our head.
        name: transformers' name of it; "" if it has no parameters.
        inside: whether it is part of the backbone's class, whose prefix its tensors then have.
    """

    make: Callable[[HeadOptions], Head]
    name: str = ""
    inside: bool = False


def hidden_layer(name: str, inside: bool = False) -> HeadModule:
    """Returns the linear map from states to as many numbers, with its activation."""

    def make(options: HeadOptions) -> Dense:
        size = options.hidden_size
        return Dense(size, size, options.bias, options.activation)

    return HeadModule(make, name, inside)


def logits_layer(name: str, bias: bool = True) -> HeadModule:
    """Returns the linear map that gives the logits."""

    def make(options: HeadOptions) -> Dense:
        return Dense(options.hidden_size, options.num_labels, bias, "identity")

    return HeadModule(make, name)


def norm_layer(name: str) -> HeadModule:
    """Returns a layer norm without bias."""
    return HeadModule(lambda options: LayerNorm(options.hidden_size, options.eps, bias=False), name)


DROPOUT = HeadModule(lambda options: Dropout(options.dropout))


@dataclasses.dataclass(frozen=True)
class ClassifierForm:
    """A family's sequence classifier in transformers.

    Attributes:
        architecture: transformers' class.
        modules: the head's modules, in order; the last gives the logits.
        defaults: HeadOptions that differ from those above where config.json does not say them.
        fields: config.json's fields for each option; the first that is set counts.
        prefix: of the backbone's tensors, as they are written; "": the family's first prefix.
    """

    architecture: str
    modules: tuple[HeadModule, ...]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fields: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    prefix: str = ""


RATES = {"dropout": ("classifier_dropout", "hidden_dropout_prob")}
POOLER = (hidden_layer("pooler.dense", inside=True), DROPOUT, logits_layer("classifier"))
CLASSIFICATION_HEAD = (
    DROPOUT,
    hidden_layer("classifier.dense"),
    DROPOUT,
    logits_layer("classifier.out_proj"),
)


def _decoder_form(architecture: str) -> ClassifierForm:
    score = logits_layer("score", bias=False)
    return ClassifierForm(architecture, (score,), {"pooling": "last_token"}, prefix="model.")


FORMS = {  # by the backbone's family
    "bert": ClassifierForm("BertForSequenceClassification", POOLER, fields=RATES),
    "roberta": ClassifierForm(
        "RobertaForSequenceClassification", CLASSIFICATION_HEAD, fields=RATES
    ),
    "xlm-roberta": ClassifierForm(
        "XLMRobertaForSequenceClassification", CLASSIFICATION_HEAD, fields=RATES
    ),
    "camembert": ClassifierForm(
        "CamembertForSequenceClassification", CLASSIFICATION_HEAD, fields=RATES
    ),
    "mpnet": ClassifierForm(
        "MPNetForSequenceClassification",
        CLASSIFICATION_HEAD,
        fields={"dropout": ("hidden_dropout_prob",)},
    ),
    "electra": ClassifierForm(
        "ElectraForSequenceClassification", CLASSIFICATION_HEAD, {"activation": "gelu"}, RATES
    ),
    "distilbert": ClassifierForm(
        "DistilBertForSequenceClassification",
        (hidden_layer("pre_classifier"), DROPOUT, logits_layer("classifier")),
        {"activation": "relu", "dropout": 0.2},
        {"dropout": ("seq_classif_dropout",)},
    ),
    "nomic_bert": ClassifierForm(
        "NomicBertForSequenceClassification", POOLER, {"dropout": 0.0}, RATES
    ),
    "deberta-v2": ClassifierForm(
        "DebertaV2ForSequenceClassification",
        (hidden_layer("pooler.dense"), DROPOUT, logits_layer("classifier")),
        {"activation": "gelu"},
        {
            "activation": ("pooler_hidden_act",),
            "dropout": ("cls_dropout", "hidden_dropout_prob"),
        },
    ),
    "new": ClassifierForm("NewForSequenceClassification", POOLER, fields=RATES),
    "modernbert": ClassifierForm(
        "ModernBertForSequenceClassification",
        (hidden_layer("head.dense"), norm_layer("head.norm"), DROPOUT, logits_layer("classifier")),
        {"activation": "gelu", "bias": False, "dropout": 0.0},
        {
            "pooling": ("classifier_pooling",),
            "activation": ("classifier_activation",),
            "bias": ("classifier_bias",),
            "dropout": ("classifier_dropout",),
            "eps": ("norm_eps",),
        },
    ),
    "llama": _decoder_form("LlamaForSequenceClassification"),
    "mistral": _decoder_form("MistralForSequenceClassification"),
    "qwen2": _decoder_form("Qwen2ForSequenceClassification"),
    "qwen3": _decoder_form("Qwen3ForSequenceClassification"),
    "gemma": _decoder_form("GemmaForSequenceClassification"),
    "gemma2": _decoder_form("Gemma2ForSequenceClassification"),
    "gemma3_text": _decoder_form("Gemma3TextForSequenceClassification"),
}

LOGIT_SOFTCAPS = {"gemma2": 30.0}  # of a language model's logits, where config.json has none


def make_classifier(backbone: Backbone, num_labels: int = 1) -> EncoderSpec:
    """Returns the spec of a new classifier on a backbone, with the head that its family has.

    A family without a classifier in transformers gets the mean of the states, a hidden layer with
    GELU, a layer norm and the logits.

    >>> from embed_jax.encoders.spec import find_shape
    >>> spec = make_classifier(find_shape("tiny"), num_labels=3)
    >>> spec.pooling, [type(head).__name__ for head in spec.heads]
    ('cls', ['Dense', 'Dropout', 'Dense'])

    Args:
        backbone: the transformer's frozen dataclass.
        num_labels: L, the number of logits of a text or a pair.
    """
    size = backbone.hidden_size
    if backbone.family in FORMS:
        return _spec(FORMS[backbone.family], backbone, {}, num_labels)
    hidden, logits = Dense(size, size, True, "gelu"), Dense(size, num_labels, True, "identity")
    return EncoderSpec(backbone, "mean", (hidden, LayerNorm(size), logits))


def classifier_spec(backbone: Backbone, config: Mapping[str, Any]) -> EncoderSpec:
    """Returns the spec of the classifier on `backbone` that a config.json describes.

    Raises:
        InputError: classifiers of this family are not supported, or a field has a value that is
            not.
    """
    form = _form(backbone.family)
    labels = config.get("id2label") or {}
    # transformers leaves out what is its default.
    number = (
        len(labels) if isinstance(labels, Mapping) and labels else config.get("num_labels") or 2
    )
    if not isinstance(number, int) or number < 1:
        raise InputError(f"config.json: num_labels: expected a number from 1, found {number!r}")
    values: dict[str, Any] = {}
    for option, fields in form.fields.items():
        stored = [config[field] for field in fields if config.get(field) is not None]
        values |= {option: stored[0]} if stored else {}
    try:
        check_pooling(str(values.get("pooling", "cls")))
    except InputError as error:
        raise InputError(f"config.json: {form.fields['pooling'][0]}: {error}") from None
    return _spec(form, backbone, values, number)


def has_form(spec: EncoderSpec) -> bool:
    """Tells whether a spec is a classifier as transformers has it for the family."""
    form = FORMS.get(spec.backbone.family)
    if form is None or not spec.heads or not isinstance(spec.heads[-1], Dense):
        return False
    own = {name: value for name, value in _options(spec).items() if name in form.fields}
    plain = dataclasses.replace(spec, lora=None)
    return plain == _spec(form, spec.backbone, own, spec.heads[-1].out_features)


def classifier_config(spec: EncoderSpec) -> dict[str, Any]:
    """Returns config.json's fields of a classifier, without its dtype; inverts `classifier_spec`.

    Where transformers has a single dropout rate for the head and the hidden states, it is that of
    the hidden states.
    """
    form, family = _form(spec.backbone.family), lookup("backbone", spec.backbone.family)
    options = {name: value for name, value in _options(spec).items() if name in form.fields}
    last = spec.heads[-1]
    labels = {str(number): f"LABEL_{number}" for number in range(last.dim(0))}
    return {form.fields[name][0]: value for name, value in options.items()} | {
        "architectures": [form.architecture],
        "model_type": spec.backbone.family,
        **family.write_config(spec.backbone),
        "id2label": labels,
        "label2id": {label: int(number) for number, label in labels.items()},
    }


def classifier_family(name: str) -> Family:
    """Returns the backbone's family with the head's tensors added to the names that are read.

    Their paths are those in an encoder's parameters, such as "heads/0".
    """
    form, family = _form(name), lookup("backbone", name)
    modules = {f"heads/{i}": module.name for i, module in enumerate(form.modules) if module.name}
    weights = [f"{module}.weight" for module in modules.values()]
    ignored = [
        rule for rule in family.ignored if not any(re.fullmatch(rule, weight) for weight in weights)
    ]
    return dataclasses.replace(
        family,
        architecture=form.architecture,
        tensors={**family.tensors, **modules},
        older=tuple({**table, **modules} for table in family.older),
        ignored=tuple(ignored),
    )


def full_name(family: str, tensor: str) -> str:
    """Returns transformers' name of a classifier's tensor: the backbone's have a prefix."""
    form = _form(family)
    outside = tuple(f"{module.name}." for module in form.modules if not module.inside)
    prefix = form.prefix or lookup("backbone", family).prefixes[0]
    return tensor if tensor.startswith(outside) else prefix + tensor


def _spec(
    form: ClassifierForm, backbone: Backbone, values: Mapping[str, Any], labels: int
) -> EncoderSpec:
    options = HeadOptions(backbone.hidden_size, labels, **{**form.defaults, **values})
    heads = tuple(module.make(options) for module in form.modules)
    return EncoderSpec(backbone, options.pooling, heads)


def _options(spec: EncoderSpec) -> dict[str, Any]:
    """Returns the options by which a head may differ from another of its family."""
    values: dict[str, Any] = {"pooling": spec.pooling}
    for head in spec.heads[:-1]:
        if isinstance(head, Dense):
            values |= {"activation": head.activation, "bias": head.bias}
        elif isinstance(head, LayerNorm):
            values["eps"] = head.eps
        elif isinstance(head, Dropout):
            values["dropout"] = head.rate
    return values


def _form(name: str) -> ClassifierForm:
    if name not in FORMS:
        raise InputError(unknown("family of classifiers", name, FORMS))
    return FORMS[name]
