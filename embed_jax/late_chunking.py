"""Late chunking: chunks of a document as a model sees them that has read what is around them.

The steps that need no model; see `SentenceEncoder.encode_chunks`. After Günther et al. (2024),
arXiv 2409.04701.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from embed_jax.errors import InputError

Span = tuple[int, int]  # where a part of a text begins and ends, in characters


def join_chunks_that_fit(
    text: str, spans: Sequence[Span], offsets: Sequence[Span], room: int
) -> Iterator[tuple[str, list[Span]]]:
    """Cuts a document into parts that a model reads at once, of as many whole chunks as fit.

    >>> words = [(0, 3), (4, 7), (8, 11)]
    >>> list(join_chunks_that_fit("one two six", words, words, room=2))
    [('one two', [(0, 3), (4, 7)]), ('six', [(0, 3)])]

    Args:
        text: the document.
        spans: where its chunks begin and end, in order; they may overlap.
        offsets: where its tokens begin and end.
        room: tokens of a part, at most.

    Yields:
        The text of a part, and where chunks begin and end in it.

    Raises:
        InputError: a chunk has more tokens than there is room for.
    """
    starts = np.array([start for start, _ in offsets])
    first, end = np.searchsorted(starts, np.array(spans).reshape(-1, 2)).T
    begin = 0  # number of the first chunk of a part
    for number in range(1, len(spans) + 1):
        if end[number - 1] - first[number - 1] > room:
            raise InputError(
                f"chunk {number - 1}: {end[number - 1] - first[number - 1]} tokens, the model has "
                f"room for {room}; cut documents into smaller chunks"
            )
        if number < len(spans) and end[number] - first[begin] <= room:
            continue
        # A part that is the whole document is the text as it is, with the blanks around it.
        left = spans[begin][0] if begin else 0
        right = spans[number - 1][1] if number < len(spans) else len(text)
        yield text[left:right], [(a - left, b - left) for a, b in spans[begin:number]]
        begin = number


def tokens_of_chunks(
    spans: Sequence[Span], starts: Int[np.ndarray, " n"], added: Bool[np.ndarray, " n"]
) -> Bool[np.ndarray, "c n"]:
    """Marks for each chunk the tokens that its vector is the mean of.

    They are those that begin in it; what stands before the first chunk, such as [CLS] and a prompt,
    belongs to it, and what follows the last one to that.

    >>> starts, added = np.array([0, 0, 4, 0]), np.array([True, False, False, True])
    >>> tokens_of_chunks([(0, 3), (4, 7)], starts, added).astype(int).tolist()
    [[1, 1, 0, 0], [0, 0, 1, 1]]

    Args:
        spans: where the chunks begin and end.
        starts: where each token begins; below 0 for those of a prompt.
        added: marks the tokens that stand for no part of a text.

    Raises:
        InputError: no token begins in a chunk.
    """
    own = ~added & (starts >= 0)
    body = np.flatnonzero(own)
    members = np.array([own & (starts >= begin) & (starts < end) for begin, end in spans])
    numbers = np.arange(len(starts))
    members[0] |= numbers < (body[0] if len(body) else len(starts))
    members[-1] |= numbers > (body[-1] if len(body) else len(starts))
    empty = np.flatnonzero(~members.any(axis=1))
    if len(empty):
        begin, end = spans[empty[0]]
        raise InputError(f"chunk {begin}:{end}: no token begins in it")
    return members


def pool_chunks(
    states: Float[np.ndarray, "n d"], members: Bool[np.ndarray, "c n"]
) -> Float[np.ndarray, "c d"]:
    """Computes the mean of the token states of each chunk."""
    sums = members.astype(np.float32) @ states
    return sums / members.sum(axis=1, keepdims=True).astype(np.float32)
