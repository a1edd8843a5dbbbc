"""Changes to a text that roughly keep its meaning; a config names them in `data.augment`.

    crop(rate=0.1)
    delete_words(rate=0.1)
    delete_words(rate=0.1, protected='no not never')
    crop(rate=0.1) | repeat_words(rate=0.32)

Words are separated by white space: in a language that writes none, a text is one word and is not
changed. A changed text has single blanks between its words. No augmentation empties a text.
"""

from __future__ import annotations

import ast
import fnmatch
import functools
import re
import unicodedata
from collections.abc import Callable, Collection, Sequence

import numpy as np

from embed_jax.errors import InputError
from embed_jax.registry import called

Augmentation = Callable[[str, np.random.Generator], str]
Change = Callable[[list[str], np.random.Generator], Sequence[str]]

# Without these words a text means something else: the opposite, or another number.
NEGATIONS = """no not never nor neither none nobody nothing nowhere non without cannot hardly barely
scarcely rarely seldom unless except *n't aint arent cant couldnt didnt doesnt dont hadnt hasnt
havent isnt mightnt mustnt neednt shouldnt wasnt werent wont wouldnt""".split()
NUMBERS = """*[0-9]* zero one two three four five six seven eight nine ten eleven twelve thirteen
fourteen fifteen sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty
ninety hundred* thousand* million* billion* trillion* dozen* half third quarter double twice
thrice""".split()
PROTECTED = tuple(NEGATIONS + NUMBERS)


def crop(rate: float) -> Augmentation:
    """Keeps a random contiguous span of (1 - rate) n of the n words (SimCSE, Table 1).

    All such spans have the same chance. The words at both ends are lost, whatever they are: a crop
    cannot protect negations and numbers as `delete_words` does.

    >>> crop(0.5)("a b c d", np.random.default_rng(0))
    'b c'

    Args:
        rate: the share of the words that is lost, 0 to 1, exact on average; at least one stays.
    """
    _check_rate(rate)

    def change(words: list[str], rng: np.random.Generator) -> Sequence[str]:
        size = max(len(words) - _round_randomly(rate * len(words), rng), 1)
        start = int(rng.integers(len(words) - size + 1))
        return words[start : start + size]

    return _change_words(change)


def delete_words(rate: float, protected: str | Collection[str] = PROTECTED) -> Augmentation:
    """Deletes a random share of the words that are not protected (SimCSE, Table 1).

    >>> delete_words(1.0)("they did not sell 3 of them, I don't know why", np.random.default_rng(0))
    "not 3 don't"

    Args:
        rate: the share of these words that is deleted, 0 to 1, exact on average; at least one word
            of the text stays.
        protected: words that stay, with wildcards such as "*" as in file names. A word of the text
            is protected if any part of it between punctuation is ("well-known": "well", "known"),
            in upper or lower case. A string is split at blanks; "" protects no word.
    """
    _check_rate(rate)
    spared = _make_matcher(protected)

    def change(words: list[str], rng: np.random.Generator) -> Sequence[str]:
        free = [index for index, word in enumerate(words) if not spared(word)]
        return _remove_words(words, free, _round_randomly(rate * len(free), rng), rng)

    return _change_words(change)


def delete_one_word(protected: str | Collection[str] = PROTECTED) -> Augmentation:
    """Deletes one word that is not protected, if there is one (SimCSE, Tables 1 and 2).

    >>> delete_one_word("a b")("a b c", np.random.default_rng(0))
    'a b'

    Args:
        protected: see `delete_words`.
    """
    spared = _make_matcher(protected)

    def change(words: list[str], rng: np.random.Generator) -> Sequence[str]:
        free = [index for index, word in enumerate(words) if not spared(word)]
        return _remove_words(words, free, 1, rng)

    return _change_words(change)


def repeat_words(rate: float) -> Augmentation:
    """Writes some words twice: ESimCSE (Wu et al., COLING 2022), on words instead of sub-words.

    Of n words, d different ones are repeated, where d is uniform in 0, 1, ..., max(2, floor(rate
    n)).

    >>> repeat_words(1.0)("a b c", np.random.default_rng(0))
    'a a b b c c'

    Args:
        rate: ESimCSE's dup_rate, 0 to 1, where the paper has 0.32. With 0, no word is repeated.
    """
    _check_rate(rate)

    def change(words: list[str], rng: np.random.Generator) -> Sequence[str]:
        most = max(2, int(rate * len(words))) if rate else 0
        places = rng.choice(len(words), size=int(rng.integers(most + 1)), replace=False)
        times = np.ones(len(words), int)
        times[places] = 2
        return [word for word, count in zip(words, times, strict=True) for _ in range(count)]

    return _change_words(change)


def mask_span(
    rate: float, token: str = "[MASK]", protected: str | Collection[str] = PROTECTED
) -> Augmentation:
    """Replaces each word of a random span, except protected ones, by a token (a kind of cutoff).

    >>> mask_span(0.5)("a b c d", np.random.default_rng(0))
    'a [MASK] [MASK] d'

    Args:
        rate: the share of the words in the span, 0 to 1, exact on average; at least one word is not
            in it.
        token: the tokenizer's mask token: "[MASK]" for BERT, "<mask>" for RoBERTa.
        protected: see `delete_words`.
    """
    _check_rate(rate)
    if not isinstance(token, str) or not token.strip():
        raise InputError(f"token: expected a text such as '[MASK]', found {token!r}")
    spared = _make_matcher(protected)

    def change(words: list[str], rng: np.random.Generator) -> Sequence[str]:
        size = min(_round_randomly(rate * len(words), rng), len(words) - 1)
        start = int(rng.integers(len(words) - size + 1))
        span = range(start, start + size)
        return [
            token if index in span and not spared(word) else word
            for index, word in enumerate(words)
        ]

    return _change_words(change)


def augment_text(
    augment: Augmentation, text: str, *, seed: int, step: int, record: int, column: int
) -> str:
    """Changes a text for one step of training, as a function of the arguments only.

    Args:
        augment: the change.
        text: the text.
        seed: the run's seed; like the other numbers 0 or more.
        step: the step or the epoch; it makes the same text change in another way each time.
        record: the index of the text's record.
        column: the index of the text in its record.
    """
    sequence = np.random.SeedSequence(seed, spawn_key=(step, record, column))
    return augment(text, np.random.Generator(np.random.Philox(sequence)))


def build_augmentation(expression: str) -> Augmentation:
    """Builds the augmentation that an expression of a config names.

    >>> augmentation = build_augmentation("crop(rate=0.5) | delete_one_word()")
    >>> augmentation("a b c d", np.random.default_rng(0))
    'c'

    Args:
        expression: names of the registry, with arguments by name; with `|` between them they are
            applied from left to right. It is never evaluated as Python.

    Raises:
        InputError: a part of the expression cannot be used; the message names it and what is
            accepted.
    """
    source = " ".join(expression.split())
    try:
        tree = ast.parse(source, mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise _error(
            source, f"{getattr(error, 'msg', error)}; expected one such as 'delete_words(rate=0.1)'"
        ) from None
    steps = list(_steps(tree, source))

    def chain(text: str, rng: np.random.Generator) -> str:
        return functools.reduce(lambda changed, step: step(changed, rng), steps, text)

    return chain


def _steps(node: ast.expr, source: str) -> list[Augmentation]:
    text = ast.get_source_segment(source, node) or source
    match node:
        case ast.BinOp(op=ast.BitOr()):
            return _steps(node.left, source) + _steps(node.right, source)
        case ast.Name() | ast.Call(func=ast.Name()):
            try:
                return [called("augmentation", text)]
            except InputError as error:
                raise _error(text, str(error)) from None
    raise _error(
        text, "expected one such as delete_words(rate=0.1), or several with | between them"
    )


def _error(text: str, message: str) -> InputError:
    return InputError(f"config.data.augment: {text!r}: {message}")


def _change_words(change: Change) -> Augmentation:
    """Applies a change to the words of a text that has at least two."""

    def augmentation(text: str, rng: np.random.Generator) -> str:
        words = text.split()
        return " ".join(change(words, rng)) if len(words) > 1 else text

    return augmentation


def _round_randomly(value: float, rng: np.random.Generator) -> int:
    """Rounds up or down at random, so that the mean of the results is `value`.

    So a tenth of 4 words is 0.4 words on average.
    """
    return int(value + rng.random())


def _remove_words(
    words: list[str], free: list[int], count: int, rng: np.random.Generator
) -> Sequence[str]:
    """Removes `count` of the words at the positions `free`, but never all words."""
    count = min(count, len(free), len(words) - 1)
    gone = set(rng.choice(free, size=count, replace=False).tolist()) if count else ()
    return [word for index, word in enumerate(words) if index not in gone]


def _check_rate(rate: float) -> None:
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate <= 1:
        raise InputError(f"rate: expected a number from 0 to 1, found {rate!r}")


def _make_matcher(protected: str | Collection[str]) -> Callable[[str], bool]:
    """Returns a function that tells whether a word is protected; see `delete_words`."""
    if not isinstance(protected, Collection):
        raise InputError(f"protected: expected words separated by blanks, found {protected!r}")
    words = [
        _normalize_word(word)
        for word in (protected.split() if isinstance(protected, str) else protected)
    ]
    pattern = re.compile("|".join(map(fnmatch.translate, words)) or r"(?!)")

    @functools.lru_cache(1 << 16)
    def spared(word: str) -> bool:
        return any(
            pattern.match(part.strip("'")) for part in re.findall(r"[\w']+", _normalize_word(word))
        )

    return spared


def _normalize_word(word: str) -> str:
    """Returns a word in lower case, with the plain apostrophe and the digits 0 to 9."""
    word = unicodedata.normalize("NFKC", word).casefold().replace("\u2019", "'")
    return "".join(
        str(unicodedata.digit(letter)) if letter.isdecimal() else letter for letter in word
    )
