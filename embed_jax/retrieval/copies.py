"""Copies of a passage: the rule by which mining, filtering and the audit recognise positives.

Two texts are equal after Unicode NFKC and with each run of white space as one blank. A passage with
a title (see `TitledText`) is also recognised without it. One text is a copy of another as well if
it contains it, upper and lower case alike: a passage with its title in front, a cut of a longer
one. Contained texts have `CONTAINED_MIN` characters or more: a short answer such as "in 1990"
occurs in many passages that don't answer the query.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
from jaxtyping import Bool, Int

from embed_jax.data.pairs import TitledText, normal_form
from embed_jax.data.tokenize import Tokenizer
from embed_jax.errors import InputError

CONTAINED_MIN = 20
TOKENIZED = 8192  # texts at a time

Fold = Callable[[Sequence[str]], Sequence[Hashable]]  # texts with equal results are copies


def contains(text: str, other: str) -> bool:
    """Tells whether one of two normal forms in lower case contains the other.

    See the module's docstring.
    """
    if len(text) < len(other):
        text, other = other, text
    return len(other) >= CONTAINED_MIN and other in text


def token_fold(tokenizer: Tokenizer) -> Fold:
    """Makes the fold of a model's tokenizer: texts of equal token ids are copies.

    An uncased tokenizer makes "Apple" and "apple" copies, one that strips accents "resume" and
    "résumé" too.
    """
    backend = type(tokenizer.backend).from_str(tokenizer.backend.to_str())
    backend.no_truncation()

    def fold(texts: Sequence[str]) -> list[Hashable]:
        keys: list[Hashable] = []
        for start in range(0, len(texts), TOKENIZED):
            block = list(map(str, texts[start : start + TOKENIZED]))
            encodings = backend.encode_batch_fast(block, add_special_tokens=False)
            keys += [np.array(encoding.ids, np.int32).tobytes() for encoding in encodings]
        return keys

    return fold


class PassageIndex:
    """Finds the rows of a corpus that are copies of a text.

    Attributes:
        same: for each row, the first row of the same text.

    Args:
        corpus: passages; a `TitledText` is also found by its text without the title.
        fold: makes more texts equal, see `token_fold`.

    Raises:
        InputError: for an empty passage.
    """

    same: Int[np.ndarray, " N"]

    def __init__(self, corpus: Sequence[str], fold: Fold | None = None):
        self._corpus, self._fold = corpus, fold
        blank = next((row for row, text in enumerate(corpus) if not text.strip()), None)
        if blank is not None:
            raise InputError(f"passage {blank} of the corpus is empty")
        keys = self.keys(corpus)
        first: dict[Hashable, int] = {}
        for row, key in enumerate(keys):
            first.setdefault(key, row)
        self.same = np.fromiter((first[key] for key in keys), np.int64, len(keys))
        self._rows: dict[Hashable, list[int]] = {key: [row] for key, row in first.items()}
        titled = {row: text.body for row, text in enumerate(corpus) if isinstance(text, TitledText)}
        bodies = self.keys(list(titled.values()))
        for row, key in zip(titled, bodies, strict=True):
            rows = self._rows.setdefault(key, [])
            if int(self.same[row]) not in rows:
                rows.append(int(self.same[row]))
        self._lower = functools.lru_cache(maxsize=1 << 16)(self._lower_forms)

    def rows_of(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns for each text the rows equal to it, with or without a title.

        The row with the whole text comes first.
        """
        return [self._rows.get(key, []) for key in self.keys(texts)]

    def keys(self, texts: Sequence[str]) -> Sequence[Hashable]:
        """Returns keys that are equal for equal texts."""
        forms = [normal_form(text) for text in texts]
        return forms if self._fold is None else self._fold(forms)

    def copies(self, rows: Iterable[int], texts: Sequence[str]) -> Bool[np.ndarray, " n"]:
        """Tells for each row whether it contains one of the texts or is contained in one.

        Texts are compared with and without their titles.
        """
        lower = {form.casefold() for text in texts for form in _forms(text)}
        return np.array(
            [
                any(contains(form, other) for form in self._lower(row) for other in lower)
                for row in rows
            ],
            bool,
        )

    def _lower_forms(self, row: int) -> tuple[str, ...]:
        return tuple(form.casefold() for form in _forms(self._corpus[row]))


def _forms(text: str) -> tuple[str, ...]:
    """Returns the normal forms of a text, with and without its title."""
    if isinstance(text, TitledText):
        return normal_form(text), normal_form(text.body)
    return (normal_form(text),)
