"""Rows of a batch for models that read a query together with a passage (cross-encoders).

The first column of an example is its query, each further one a passage; the model reads the pairs
(query, passage). A column keeps its number, so that losses find scores where they find embeddings
of texts: column 0 has no tokens, column k those of the pair of query and passage k.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from embed_jax.data.pairs import text_hash
from embed_jax.data.tokenize import TokenizedTexts

TokenizePairs = Callable[[Sequence[str], Sequence[str]], TokenizedTexts]
"""`(queries, passages) -> tokens` of pairs, such as `Tokenizer.encode_pairs`."""


def draw_negatives(
    rows: Sequence[Sequence[str | None]],
    keys: Sequence[Sequence[str | None]],
    *,
    number: int,
    seed: int,
    step: int,
) -> list[list[str | None]]:
    """Draws positives of other examples of a batch as further candidates of each example.

    Which ones is a function of the whole batch, the seed and the step: the same on any number of
    devices and hosts. Never drawn is a text that the example has itself, a positive of an example
    with an equal query, one of an example that shares an id or group, or a text twice.

    Args:
        rows: the texts of every example of the global batch: query, positive, negatives.
        keys: ids and groups of every example; "" or None: has none.
        number: how many to draw for each example.
        seed: of the run.
        step: of the batch.

    Returns:
        `number` texts for each example; None where the batch has fewer.

    >>> rows = [["a", "b"], ["c", "d"], ["a", "e"]]
    >>> draw_negatives(rows, [[], [], []], number=1, seed=0, step=0)[0]
    ['d']
    """
    hashes = [[text_hash(text) for text in row] for row in rows]
    positives_of: dict[tuple[int, int], set[tuple[int, int]]] = {}
    for query, positive, *_ in hashes:
        positives_of.setdefault(query, set()).add(positive)
    owners: dict[tuple[int, str], set[int]] = {}
    for example, values in enumerate(keys):
        for kind, key in enumerate(values):
            if key and key.strip():
                owners.setdefault((kind, key), set()).add(example)
    drawn = []
    for example, row in enumerate(hashes):
        excluded = {*row, *positives_of[row[0]]}
        related = {example}.union(
            *(owners.get((kind, key), ()) for kind, key in enumerate(keys[example]) if key)
        )
        texts: list[str | None] = []
        for other in np.random.default_rng([seed, step, example]).permutation(len(rows)):
            if len(texts) == number:
                break
            positive = hashes[other][1]
            if other not in related and positive not in excluded:
                excluded.add(positive)
                texts.append(rows[other][1])
        drawn.append(texts + [None] * (number - len(texts)))
    return drawn
