"""Bitext mining: is a sentence's translation its nearest neighbour in the other language?"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Int

from embed_jax.data.sources.tasks import read_bitext
from embed_jax.errors import InputError
from embed_jax.evals.task import Embed, Outcome, Task, Use, encode_columns, mean_outcome
from embed_jax.registry import unknown
from embed_jax.scores import SIMILARITIES, similarity_matrix, unit_length

KIND = "BitextMining"
BLOCK = 2**24  # similarities at a time


def open_task(
    data: str,
    split: str = "test",
    *,
    name: str = "",
    source: str = "",
    target: str = "",
    similarity: str = "",
) -> Task:
    """Opens a bitext mining task by mteb's protocol, from `source` to `target`.

    The main score is "f1". The other direction is another task, with the two names exchanged.

    Args:
        data: a file, a directory or a data set of the hub; see `read_bitext`.
        split: the split to read.
        name: the task's name, in tables and for prompts made for it.
        source: the language to search from; see `read_bitext`.
        target: the language to search in.
        similarity: one of SIMILARITIES; the model's own if empty.

    Raises:
        InputError: for data that cannot be read, or has other columns.
    """
    if similarity and similarity not in SIMILARITIES:
        raise InputError(unknown("similarity", similarity, SIMILARITIES))
    first, second = read_bitext(data, split, source, target)

    def evaluate(embed: Embed) -> Outcome:
        vectors = encode_columns(functools.partial(embed, use=Use(name, KIND)), first, second)
        return bitext_outcome(*vectors, similarity=similarity or embed.similarity)

    return Task(name, KIND, "sentences", list(zip(first, second, strict=True)), evaluate)


def bitext_outcome(
    first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "N D"], *, similarity: str = "cosine"
) -> Outcome:
    """Scores the search for each sentence's translation, row i of `second` for row i of `first`.

    Each row c of `second` is a class: retrieved for p_c sentences, rightly (h_c = 1) or not (h_c =
    0), it has precision h_c / p_c, recall h_c and F1 2 h_c / (1 + p_c), and the scores are the
    means over classes, which are scikit-learn's weighted averages. Agrees with mteb's
    AbsTaskBitextMining (2.26), whose main score is "f1". Of equally near neighbours the first one
    counts; mteb takes any.

    Args:
        first: embeddings of the sentences, [N, D].
        second: embeddings of their translations, [N, D].
        similarity: one of SIMILARITIES.

    Returns:
        Metrics "f1", "precision", "recall" and "accuracy", which equals recall. Items are the
        sentences.

    Raises:
        InputError: if there are no rows, or not as many on both sides.
    """
    if not len(first) or len(first) != len(second):
        raise InputError(
            f"bitext: expected as many sentences on both sides, found {len(first)} and "
            f"{len(second)}"
        )
    nearest = _nearest(first, second, similarity)
    right = (nearest == np.arange(len(first))).astype(np.float64)
    times = np.bincount(nearest, minlength=len(second))
    per_sentence = {"f1": 2 * right / (1 + times), "precision": right / np.maximum(times, 1)}
    return mean_outcome("f1", per_sentence | {"recall": right, "accuracy": right})


def _nearest(
    first: Float[np.ndarray, "N D"], second: Float[np.ndarray, "M D"], similarity: str
) -> Int[np.ndarray, " N"]:
    if similarity == "cosine":
        first, second, similarity = unit_length(first), unit_length(second), "dot"
    rows = max(BLOCK // len(second), 1)
    blocks = (first[start : start + rows] for start in range(0, len(first), rows))
    return np.concatenate(
        [similarity_matrix(block, second, similarity).argmax(axis=1) for block in blocks]
    )
