"""Summarisation: are machine summaries that people rate high similar to those people wrote?"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from embed_jax.data.sources.tasks import describe_split, read_summaries
from embed_jax.errors import InputError
from embed_jax.evals.metrics import pearson, spearman
from embed_jax.evals.task import Embed, Outcome, Task, Use, encode_columns, mean_outcome
from embed_jax.scores import pairwise_similarity

KIND = "Summarization"
CORRELATIONS = {"spearman": spearman, "pearson": pearson}


def open_task(data: str, split: str = "test", *, name: str = "") -> Task:
    """Opens a summarisation task by mteb's protocol.

    The main score is the mean over texts of rank correlations, "cosine_spearman". A text all of
    whose ratings or all of whose machine summaries are equal is left out, with a note, as in mteb.
    The summarised texts themselves are not embedded.

    Args:
        data: a file, a directory or a data set of the hub; see `read_summaries`.
        split: the split to read.
        name: the task's name, in tables and for prompts made for it.

    Raises:
        InputError: for data that cannot be read, or if no text is left.
    """
    records = list(zip(*read_summaries(data, split), strict=True))
    usable = [record for record in records if len(set(record[2])) > 1 and len(set(record[3])) > 1]
    if not usable:
        raise InputError(
            f"{describe_split(data, split)}: expected a text with summaries of different ratings, "
            f"found none among {len(records)}"
        )
    texts, human, machine, ratings = zip(*usable, strict=True)
    unusable = len(records) - len(usable)
    left_out = f"{unusable} of {len(records)} texts left out: all ratings or all summaries equal"
    notes = [left_out] if unusable else []

    def evaluate(embed: Embed) -> Outcome:
        vectors = encode_columns(functools.partial(embed, use=Use(name, KIND)), *human, *machine)
        sides = vectors[: len(human)], vectors[len(human) :]
        return summarization_outcome(*sides, ratings, own=embed.similarity, notes=notes)

    return Task(
        name,
        KIND,
        "texts",
        [(text, *written) for text, written in zip(texts, human, strict=True)],
        evaluate,
    )


def summarization_outcome(
    human: Sequence[Float[np.ndarray, "_ D"]],
    machine: Sequence[Float[np.ndarray, "_ D"]],
    ratings: Sequence[Sequence[float]],
    *,
    own: str = "cosine",
    notes: Sequence[str] = (),
) -> Outcome:
    """Correlates ratings of machine summaries with similarities to human ones, within each text.

    The similarity is max_h sim(machine summary, human summary h). Agrees with mteb's
    AbsTaskSummarization (2.26), whose main score is "cosine_spearman": the mean over texts. mteb's
    task SummEval averages p-values in with the correlations; SummEvalSummarization.v2 agrees with
    this function.

    Args:
        human: the embeddings of each text's human summaries.
        machine: the embeddings of each text's machine summaries.
        ratings: of each text's machine summaries, on any scale, not all equal.
        own: the model's similarity, reported beside cosine and dot product.
        notes: of the outcome.

    Returns:
        Metrics "cosine_spearman", "cosine_pearson", "dot_spearman", "dot_pearson" and so on. Where
        a text's cosines or dot products are all equal, it has no correlation, and stands with the
        mean of the others, with a note; nan if no text has one.
    """
    similarities = tuple(dict.fromkeys(["cosine", "dot", own]))
    values = np.full((len(similarities) * len(CORRELATIONS), len(human)), np.nan)
    for number, (written, made, rated) in enumerate(zip(human, machine, ratings, strict=True)):
        nearest = [_nearest(made, written, name) for name in similarities]
        values[:, number] = [
            correlate(np.asarray(rated), s) for s in nearest for correlate in CORRELATIONS.values()
        ]
    undefined = np.isnan(values).any(axis=0)
    if undefined.any():
        notes = [
            *notes,
            f"{undefined.sum()} of {len(human)} texts do not count: all similarities equal",
        ]
        counted = values[:, ~undefined]
        values[:, undefined] = counted.mean(axis=1, keepdims=True) if counted.size else np.nan
    names = [f"{similarity}_{name}" for similarity in similarities for name in CORRELATIONS]
    return mean_outcome("cosine_spearman", dict(zip(names, values, strict=True)), notes=notes)


def _nearest(
    machine: Float[np.ndarray, "M D"], human: Float[np.ndarray, "H D"], similarity: str
) -> Float[np.ndarray, " M"]:
    pairs = np.repeat(machine, len(human), axis=0), np.tile(human, (len(machine), 1))
    return pairwise_similarity(*pairs, similarity).reshape(len(machine), -1).max(axis=1)
