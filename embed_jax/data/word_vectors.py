"""Reads word vectors in text form: word2vec's, with a first line "COUNT DIM", or GloVe's."""

from __future__ import annotations

import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from embed_jax.data.sources.files import raw_lines
from embed_jax.data.tokenize import Tokenizer
from embed_jax.data.tokenizer_files import from_transformers
from embed_jax.errors import InputError

BEGIN = "▁"  # stands before each word in the vocabulary


def read_word_vectors(path: Path) -> tuple[list[str], Float[np.ndarray, "V D"]]:
    """Reads the words of a file in its order, and their vectors.

    A word may contain blanks, as some of GloVe's do: the last D fields of a line are the numbers.
    If a word is repeated, its first vector is kept. Bytes that are not UTF-8 become U+FFFD, since
    word2vec cuts long words inside a character.

    Args:
        path: a file with fields separated by blanks; .gz is unpacked.

    Raises:
        InputError: with the line: the number of fields is wrong, a number is not finite, or the
            first line has another count; or the file is empty.
    """
    lines: dict[str, int] = {}  # of each word
    numbers = array.array("f")
    count = dim = seen = 0
    for line, raw in raw_lines(path):
        if line == 1:
            first = raw.split()
            if len(first) == 2 and all(field.isdigit() for field in first) and int(first[1]):
                count, dim = map(int, first)
                continue
            dim = max(len(first) - 1, 1)
        raw_word, *fields = raw.rsplit(None, dim) or [b""]
        end = raw_word.partition(b" ")[2].rpartition(b" ")[2]  # of a word with blanks
        if len(fields) < dim or _is_number(end):  # a number too few, or too many
            raise InputError(
                f"{path}:{line}: expected a word and {dim} numbers, found {len(raw.split())} fields"
            )
        seen += 1
        word = raw_word.decode("utf-8", errors="replace")
        try:
            vector = array.array("f", map(float, fields))
        except ValueError:
            wrong = next(field for field in fields if not _is_number(field))
            raise InputError(
                f"{path}:{line}: not a number: {wrong.decode(errors='replace')[:40]!r}"
            ) from None
        if word not in lines:
            lines[word] = line
            numbers.extend(vector)
    if not seen:
        raise InputError(f"{path}: empty, no words in it")
    if count and count != seen:
        raise InputError(f"{path}:1: says {count} words, but {seen} follow: is the file whole?")
    words, vectors = list(lines), np.frombuffer(numbers, np.float32).reshape(-1, dim)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        word = words[int(np.argmin(finite))]
        raise InputError(f"{path}:{lines[word]}: the vector of {word!r} is not finite")
    return words, vectors


def word_tokenizer(words: Sequence[str], max_length: int, *, lower_case: bool) -> Tokenizer:
    """Makes a tokenizer of whole words and runs of punctuation marks.

    A word's id is its index; unknown words have no token.

    Args:
        words: different words.
        max_length: the number of known words after which a text is cut.
        lower_case: whether texts are put into lower case first.
    """
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    # The library's model of whole words cannot leave out a word. That of byte pairs takes a known
    # word as it is, and of an unknown one leaves out each unknown character. Here these are all,
    # since it looks for "▁" and for the other characters with a line's end before them.
    model = models.BPE(
        vocab={BEGIN + word: index for index, word in enumerate(words)},
        merges=[],
        ignore_merges=True,
        continuing_subword_prefix="\n",
    )
    backend = Backend(model)
    if lower_case:
        backend.normalizer = normalizers.Lowercase()
    begin = pre_tokenizers.Metaspace(replacement=BEGIN, prepend_scheme="always")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), begin])
    return from_transformers(
        PreTrainedTokenizerFast(tokenizer_object=backend), max_length, special_tokens=False
    )


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
