"""Public data sets by short names: their sources, columns, splits and labels."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from embed_jax.data.pairs import NLI_LABELS, apply_to_record
from embed_jax.data.sources.base import Records
from embed_jax.errors import InputError
from embed_jax.registry import lookup, unknown

CARD = "see the data set's card"
SPLITS = {name: name for name in ("train", "validation", "test")}
TRAIN = {"train": "train"}
GLUE = "bed045762055580cd139bb533c9b6b67ee9556e7"
NLI_COLUMNS = {name: name for name in ("premise", "hypothesis", "label")}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A public data set, and the mapping of its records to ours.

    Attributes:
        source: its name for `open_records`: "tfds:NAME:VERSION", "hf:NAME:CONFIG@REVISION"; "@main"
            is the newest revision.
        columns: its names of columns -> ours; other columns are left out.
        splits: our names of splits -> its names.
        licence: its licence, as far as it is known.
        labels: the meaning of 0, 1, ... in `label`.
        scale: the smallest and the largest `score`.
    """

    source: str
    columns: Mapping[str, str]
    splits: Mapping[str, str]
    licence: str = CARD
    labels: tuple[str, ...] = ()
    scale: tuple[float, float] | None = None


_RECIPES = {
    # Its pairs without a majority of the annotators have the label -1.
    "snli": Recipe(
        "tfds:snli:1.1.0",
        NLI_COLUMNS,
        SPLITS,
        licence="CC BY-SA 4.0",
        labels=tuple(NLI_LABELS),
    ),
    # GLUE's copy, whose test data have no labels; TFDS needs TensorFlow for its own.
    "multinli": Recipe(
        f"hf:nyu-mll/glue:mnli@{GLUE}",
        NLI_COLUMNS,
        {
            "train": "train",
            "validation": "validation_matched",
            "validation_matched": "validation_matched",
            "validation_mismatched": "validation_mismatched",
        },
        licence=f"the Open American National Corpus's for the most part; {CARD}",
        labels=tuple(NLI_LABELS),
    ),
    # SNLI and MultiNLI with labels.
    "allnli": Recipe(
        "hf:sentence-transformers/all-nli:pair-class@main",
        NLI_COLUMNS,
        {"train": "train", "validation": "dev", "test": "test"},
        licence=f"those of SNLI and MultiNLI; {CARD}",
        labels=tuple(NLI_LABELS),
    ),
    "allnli_triplets": Recipe(
        "hf:sentence-transformers/all-nli:triplet@main",
        {"anchor": "anchor", "positive": "positive", "negative": "negative"},
        {"train": "train", "validation": "dev", "test": "test"},
        licence=f"those of SNLI and MultiNLI; {CARD}",
    ),
    # The benchmark's scores from 0 to 5, divided by 5; GLUE's copy has no scores in its test data.
    "stsb": Recipe(
        "hf:sentence-transformers/stsb@ab7a5ac0e35aa22088bdcf23e7fd99b220e53308",
        {"score": "score", "sentence1": "sentence1", "sentence2": "sentence2"},
        SPLITS,
        scale=(0.0, 1.0),
    ),
    # GLUE's test data have no labels.
    "qqp": Recipe(
        f"hf:nyu-mll/glue:qqp@{GLUE}",
        {"question1": "sentence1", "question2": "sentence2", "label": "label"},
        {"train": "train", "validation": "validation"},
        licence=f"Quora's terms; {CARD}",
        labels=("not duplicate", "duplicate"),
    ),
    "msmarco": Recipe(
        "hf:sentence-transformers/msmarco-bm25:triplet@6b1596a63475a7bf6d4d397d6b9f599ef3fc8d29",
        {"query": "anchor", "positive": "positive", "negative": "negative"},
        TRAIN,
        licence=f"MS MARCO's terms, for research that is not commercial; {CARD}",
    ),
    "natural_questions": Recipe(
        "hf:sentence-transformers/natural-questions@f9e894e1081e206e577b4eaa9ee6de2b06ae6f17",
        {"query": "anchor", "answer": "positive"},
        TRAIN,
        licence=f"CC BY-SA 3.0 as the original; {CARD}",
    ),
    # Titles of questions that were closed as duplicates.
    "stackexchange": Recipe(
        "hf:sentence-transformers/stackexchange-duplicates:title-title-pair@41ca605998207953ca9381b64cddbaa41f3136c3",
        {"title1": "anchor", "title2": "positive"},
        TRAIN,
        licence=f"CC BY-SA as Stack Exchange; {CARD}",
    ),
    # A million sentences of Wikipedia (Gao et al., 2021).
    "wiki1m": Recipe(
        "hf:princeton-nlp/datasets-for-simcse/wiki1m_for_simcse.txt@e145e8bb659b2aa2669f32ef79cb4cdef6c58fef",
        {"text": "text"},
        TRAIN,
        licence=f"CC BY-SA as Wikipedia; {CARD}",
    ),
}


def recipes() -> Mapping[str, Recipe]:
    """Returns all named data sets."""
    return types.MappingProxyType(_RECIPES)


def open_source(rest: str, split: str) -> Records:
    """Opens the raw records of a named data set, with our names of columns.

    The split syntax of its source works ("train[:10%]"). To find records without a label,
    `open_records` reads those of TFDS once (13 s for SNLI).

    Raises:
        InputError: there is no such data set or split, a column is missing, or the source cannot be
            read.
    """
    if rest not in _RECIPES:
        raise InputError(unknown("data set", rest, _RECIPES))
    recipe = _RECIPES[rest]
    name, bracket, part = split.partition("[")
    if name not in recipe.splits:
        raise InputError(f"{rest} has no split {name!r}; known: {', '.join(recipe.splits)}")
    kind, _, source = recipe.source.partition(":")
    records = lookup("source", kind)(source, recipe.splits[name] + bracket + part)
    if len(records):
        apply_to_record(lambda record: _check_columns(recipe, record), records[0], 0)
    ours, suspects = {ours: column for column, ours in recipe.columns.items()}, records.suspects
    names = {"label": recipe.labels} if recipe.labels else {}
    names |= {
        name: records.class_names[column]
        for name, column in ours.items()
        if column in records.class_names
    }
    return dataclasses.replace(
        records,
        decode=lambda value: _rename_columns(recipe.columns, records.decode(value)),
        class_names=names,
        suspects=suspects and (lambda names: suspects([ours.get(name, name) for name in names])),
    )


def _rename_columns(columns: Mapping[str, str], record: Mapping[str, Any]) -> dict[str, Any]:
    return {ours: record[column] for column, ours in columns.items()}


def _check_columns(recipe: Recipe, record: Mapping[str, Any]) -> None:
    missing = [name for name in recipe.columns if name not in record]
    if missing:
        raise InputError(f"{recipe.source}: no column {missing[0]!r}; found {', '.join(record)}")
