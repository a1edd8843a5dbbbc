"""Texts of a test set that training has seen: n-grams of words shared with the training data.

What must not be concluded:

- No overlap is not "not seen". Paraphrases, translations, other spellings and what a model was
  pretrained on go unnoticed, and so does a text shorter than n words inside a longer training text.
- Overlap is not cheating. Set phrases, quotations and boilerplate are shared by chance, and a text
  may have been seen without its pair or label.
- The score without the overlapping items, less the score of all, is not what the leak brought:
  those items are not a random sample, they are longer, or easier, or of one source. Compare systems
  with each other on the same remaining items, and a model that has seen the texts with one that has
  not.
- Words are what stands between blanks and punctuation: in scripts without blanks (Chinese,
  Japanese, Thai) a clause is one word, and only copies of whole clauses are found.
"""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from embed_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Match:
    """The place where a test item was seen.

    Attributes:
        training_text: number of the first training text that shares an n-gram, from 0.
        words: the n-gram.
    """

    training_text: int
    words: str


@dataclasses.dataclass(frozen=True)
class Overlap:
    """The items of a test set that share an n-gram with the training texts.

    Attributes:
        flags: of each test item.
        matches: by number of the test item, of those that overlap.
        training_texts: how many there were.
    """

    flags: Bool[np.ndarray, " N"]
    matches: Mapping[int, Match]
    training_texts: int

    @property
    def share(self) -> float:
        """Share of the test items that overlap."""
        return float(self.flags.mean())

    def examples(self, count: int = 5) -> list[str]:
        """Returns lines to look at, of items evenly spread over those that overlap.

        They help to judge whether the items are copies.
        """
        items = sorted(self.matches)
        spread = items[:: max(len(items) // count, 1)][:count]
        matches = [(item, self.matches[item]) for item in spread]
        return [
            f"test item {item}, training text {match.training_text}: {match.words}"
            for item, match in matches
        ]


@dataclasses.dataclass(frozen=True)
class CleanScore:
    """A score of all items, of those that do not overlap, and how many there are of each."""

    all: float
    clean: float
    n_all: int
    n_clean: int


def find_overlap(
    test_texts: Sequence[str], training_texts: Iterable[str], *, n: int = 8
) -> Overlap:
    """Finds the test items that share n words in a row with a training text.

    See above for what that does not say.

    A text stands for the set of its n-grams of normalised words or, if it is shorter, for the whole
    of it, which must then be the whole of a training text too. Normalised: Unicode NFKC, lower
    case, punctuation and symbols count as blanks. n = 8 is what Radford et al. (2019, "Language
    Models are Unsupervised Multitask Learners", section 4) count; Brown et al. (2020, appendix C)
    take 13. A text without any word overlaps with nothing.

    Only the test set's n-grams are held, in a hash table of the strings themselves, so that nothing
    is found by a collision; training texts are read once, one at a time.

    Args:
        test_texts: one text an item. Of pairs, give both columns one after the other, and take
            `flags.reshape(2, -1)`.
        training_texts: e.g. of `iter_records`; all the texts of its records, not the anchors only.
        n: how many words in a row.

    Raises:
        InputError: if n < 1, there are no test or no training texts, or one is not a string.
    """
    if n < 1:
        raise InputError(f"n: expected 1 or more words, found {n}")
    items_by_gram: dict[str, list[int]] = {}
    n_test = n_training = 0
    for item, text in _numbered(test_texts, "test"):
        n_test += 1
        for gram in _ngrams(text, n):
            items_by_gram.setdefault(gram, []).append(item)
    matches: dict[int, Match] = {}
    for number, text in _numbered(training_texts, "training"):
        n_training += 1
        for gram in _ngrams(text, n):
            for item in items_by_gram.pop(gram, ()):  # found once is enough
                matches.setdefault(item, Match(number, gram))
    if not n_test or not n_training:
        raise InputError(
            f"found {n_test} test texts and {n_training} training texts (already read?), expected "
            "some"
        )
    flags = np.zeros(n_test, bool)
    flags[list(matches)] = True
    return Overlap(flags, matches, n_training)


def clean_score(
    flags: Sequence[bool] | Bool[np.ndarray, " N"],
    score: Sequence[float] | Float[np.ndarray, " N"] | Callable[[Int[np.ndarray, " M"]], float],
) -> CleanScore:
    """Computes the score without the overlapping items, beside that of all.

    Args:
        flags: of each item, whether it overlaps; `Overlap.flags`, or several of them joined by
            "or".
        score: of each item, of which the mean is taken; or a function of the numbers of the items
            it is to score, such as `lambda i: spearman(similarities[i], gold[i])`.

    Raises:
        InputError: if the lengths differ, or no item is left.
    """
    flags = np.asarray(flags, bool)
    left = np.flatnonzero(~flags)
    if not len(left):
        raise InputError(f"all {len(flags)} test items overlap, none is left to score")
    if callable(score):
        of = score
    else:
        per_item = np.asarray(score, np.float64)
        if per_item.shape != flags.shape:
            raise InputError(
                f"expected a score for each of {len(flags)} items, found shape {per_item.shape}"
            )

        def of(items: Int[np.ndarray, " M"]) -> float:
            return per_item[items].mean()

    return CleanScore(float(of(np.arange(len(flags)))), float(of(left)), len(flags), len(left))


class _Blanks(dict):
    """For `str.translate`: punctuation and symbols to blanks, looked up once each."""

    def __missing__(self, code: int) -> int:
        self[code] = 0x20 if unicodedata.category(chr(code))[0] in "PS" else code
        return self[code]


_BLANKS = _Blanks()


def normalized_words(text: str) -> list[str]:
    """Splits a text into words in lower case without punctuation, after Unicode NFKC.

    "Don't STOP!" becomes don, t, stop.
    """
    return unicodedata.normalize("NFKC", text).lower().translate(_BLANKS).split()


def _ngrams(text: str, n: int) -> Iterable[str]:
    """Returns the distinct n-grams, in the text's order, so that each run shows the same match."""
    words = normalized_words(text)
    if not words:
        return ()
    return dict.fromkeys(
        " ".join(words[start : start + n]) for start in range(max(len(words) - n, 0) + 1)
    )


def _numbered(texts: Iterable[str], name: str) -> Iterator[tuple[int, str]]:
    if isinstance(texts, str):
        raise InputError(f"{name} texts: expected several strings, found one")
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"{name} text {number}: expected a string, found {type(text).__name__}"
            )
        yield number, text
