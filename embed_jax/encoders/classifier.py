"""Sequence classification: a backbone with a head on the first token's state.

The logits are those of transformers' *ForSequenceClassification. A cross-encoder is such a
classifier whose input is a pair of texts.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from embed_jax.encoders.bert import BertConfig
from embed_jax.encoders.build import build_encoder
from embed_jax.encoders.family import Family
from embed_jax.encoders.heads import Dense
from embed_jax.encoders.layers import dropout
from embed_jax.encoders.spec import Backbone, EncoderSpec
from embed_jax.errors import InputError
from embed_jax.registry import lookup, unknown
from embed_jax.types import Encoder, Params, TokenBatch


@dataclasses.dataclass(frozen=True)
class ClassifierSpec:
    """A classifier: out(activation(dense(x))) of the first token's last state x.

    Attributes:
        backbone: the transformer's frozen dataclass; `family` names the code in the registry.
        num_labels: L, how many logits a sentence has.
        activation: between the two linear maps; one of layers.ACTIVATIONS.
        dropout: rate before `out` when a dropout key is given.
        dropout_first: whether x is dropped out too, before `dense`.
    """

    backbone: BertConfig
    num_labels: int = 1
    activation: str = "tanh"
    dropout: float = 0.1
    dropout_first: bool = False


def build_classifier(spec: ClassifierSpec, **options: Any) -> Encoder:
    """Builds the classifier that `spec` describes, as pure functions.

    >>> from embed_jax.encoders.spec import find_shape
    >>> classifier = build_classifier(ClassifierSpec(find_shape("tiny"), num_labels=3))
    >>> params = jax.eval_shape(classifier.init, jax.random.key(0))
    >>> params["classifier"]["out"]["kernel"].shape
    (32, 3)

    Args:
        spec: the backbone and its head.
        **options: compute_dtype, remat, attention, unroll; see `build_encoder`. The head is float32
            always.

    Returns:
        An encoder whose `apply` gives logits `[S, L]`; its params are {"backbone": as in
        `build_encoder`, "classifier": {"dense", "out"}}.

    Raises:
        InputError: see `build_encoder`.
    """
    first_token = build_encoder(EncoderSpec(spec.backbone, "cls"), **options)
    size = spec.backbone.hidden_size
    dense = Dense(size, size, activation=spec.activation)
    out = Dense(size, spec.num_labels, activation="identity")

    def init(key: PRNGKeyArray) -> Params:
        keys = jax.random.split(key, 3)
        head = {"dense": dense.init(keys[1]), "out": out.init(keys[2])}
        return {"backbone": first_token.init(keys[0])["backbone"], "classifier": head}

    def apply(
        params: Params, tokens: TokenBatch, key: PRNGKeyArray | None = None, read=None
    ) -> Float[Array, "S L"]:
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        x = first_token.apply({"backbone": params["backbone"], "heads": {}}, tokens, keys[0], read)
        if spec.dropout_first:
            x = dropout(x, spec.dropout, keys[1])
        x = dense.apply(params["classifier"]["dense"], x)
        return out.apply(params["classifier"]["out"], dropout(x, spec.dropout, keys[2]))

    return dataclasses.replace(first_token, init=init, apply=apply, dim=spec.num_labels)


# ---- Hugging Face: config.json and tensor names --------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Form:
    """The settings of a family's head.

    Attributes:
        architecture: transformers' class.
        dense, out: names of the head's two linear maps in the files.
        activation, dropout_first: see ClassifierSpec.
        rates: fields of config.json for the dropout rate; the first that is set counts.
        default_rate: the dropout rate if none is set.
    """

    architecture: str
    dense: str = "classifier.dense"
    out: str = "classifier.out_proj"
    activation: str = "tanh"
    dropout_first: bool = True
    rates: tuple[str, ...] = ("classifier_dropout", "hidden_dropout_prob")
    default_rate: float = 0.1


_FORMS = {
    "bert": _Form(
        "BertForSequenceClassification", "pooler.dense", "classifier", dropout_first=False
    ),
    "roberta": _Form("RobertaForSequenceClassification"),
    "xlm-roberta": _Form("XLMRobertaForSequenceClassification"),
    "mpnet": _Form("MPNetForSequenceClassification", rates=("hidden_dropout_prob",)),
    "electra": _Form("ElectraForSequenceClassification", activation="gelu"),
    "distilbert": _Form(
        "DistilBertForSequenceClassification",
        "pre_classifier",
        "classifier",
        activation="relu",
        dropout_first=False,
        rates=("seq_classif_dropout",),
        default_rate=0.2,
    ),
}


def classifier_spec(backbone: Backbone, config: Mapping[str, Any]) -> ClassifierSpec:
    """Returns the spec of the classifier on `backbone` that a config.json describes.

    Raises:
        InputError: classifiers of this family are not supported, or the number of labels is not a
            whole number from 1.
    """
    form = _form(backbone.family)
    assert isinstance(backbone, BertConfig), "the families of _FORMS have it"
    labels = config.get("id2label") or {}
    # transformers leaves out what is its default.
    number = (
        len(labels) if isinstance(labels, Mapping) and labels else config.get("num_labels") or 2
    )
    if not isinstance(number, int) or number < 1:
        raise InputError(f"config.json: num_labels: expected a number from 1, found {number!r}")
    rates = [config[name] for name in form.rates if config.get(name) is not None]
    return ClassifierSpec(
        backbone,
        number,
        form.activation,
        float((rates or [form.default_rate])[0]),
        form.dropout_first,
    )


def classifier_config(spec: ClassifierSpec) -> dict[str, Any]:
    """Returns config.json's fields of a classifier, without its dtype; inverts `classifier_spec`.

    Where transformers has a single dropout rate for the head and the hidden states, it is that of
    the hidden states.
    """
    form, family = _form(spec.backbone.family), lookup("backbone", spec.backbone.family)
    labels = {str(number): f"LABEL_{number}" for number in range(spec.num_labels)}
    config: dict[str, Any] = {
        "architectures": [form.architecture],
        "model_type": spec.backbone.family,
    }
    config |= family.write_config(spec.backbone)
    config |= {
        "id2label": labels,
        "label2id": {label: int(number) for number, label in labels.items()},
    }
    return {form.rates[0]: spec.dropout} | config


def classifier_family(name: str) -> Family:
    """Returns the backbone's family with the head's tensors added to the names that are read.

    Their paths are "classifier/dense" and "classifier/out".
    """
    form, family = _form(name), lookup("backbone", name)
    head_tensors = (f"{form.dense}.weight", f"{form.out}.weight")
    return dataclasses.replace(
        family,
        architecture=form.architecture,
        tensors={**family.tensors, "classifier/dense": form.dense, "classifier/out": form.out},
        ignored=tuple(
            rule
            for rule in family.ignored
            if not any(re.fullmatch(rule, tensor) for tensor in head_tensors)
        ),
    )


def _form(name: str) -> _Form:
    if name not in _FORMS:
        raise InputError(unknown("family of classifiers", name, _FORMS))
    return _FORMS[name]
