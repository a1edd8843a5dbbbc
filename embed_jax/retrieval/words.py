"""Words of any script: what BM25 counts and what passages are measured in.

Words are runs of letters and digits with the combining marks among them, such as Hindi's vowel
signs. Scripts that are written without blanks between words (`UNSPACED`) have no such runs; there a
character is a base with its marks, and a pair of neighbouring characters stands for a word, as in
Lucene's CJK analysis: finding words would need a dictionary of each language.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterable

# Blocks of Unicode: Chinese characters, kana, Thai, Lao, Burmese, Khmer, Javanese, Tai scripts.
UNSPACED = (
    *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3038, 0x303C), (0x3040, 0x30FF)),
    *((0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0xFF66, 0xFF9F)),
    *((0x1B000, 0x1B16F), (0x20000, 0x323AF), (0x0E00, 0x0E7F), (0x0E80, 0x0EFF)),
    *((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0x1780, 0x17DD), (0x17E0, 0x17E9)),
    *((0x1950, 0x19DF), (0x1A20, 0x1AAF), (0xA980, 0xA9DF), (0xAA80, 0xAADF)),
)
JOINERS = "\u200c\u200d"  # of letters within a word, in Indic scripts and Persian


@functools.cache
def word_pattern() -> str:
    """Returns the regular expression of a word, or of a run of unspaced characters."""
    base, marks, other_marks = _classes()
    letter = rf"[^\W_{base}{marks}]"
    return rf"[{base}{marks}]+|{letter}+(?:[{other_marks}{JOINERS}]+{letter}*)*"


@functools.cache
def character_pattern() -> str:
    """Returns the regular expression of a character of the unspaced scripts, with its marks."""
    base, marks, _ = _classes()
    return rf"[{base}][{marks}]*|[{marks}]+"


def bigrams(word: str) -> list[str]:
    """Returns the pairs of neighbouring characters of a run in an unspaced script.

    Other words are returned whole, and so is a run of one character.
    """
    if word.isascii() or not re.match(character_pattern(), word):
        return [word]
    characters = re.findall(character_pattern(), word)
    return [a + b for a, b in zip(characters, characters[1:], strict=False)] or characters


@functools.cache
def _classes() -> tuple[str, str, str]:
    """Returns three character classes.

    They are letters and digits of the unspaced scripts, their marks, and all other marks.
    """
    unspaced = [code for start, end in UNSPACED for code in range(start, end + 1)]

    def is_mark(code: int) -> bool:
        return unicodedata.category(chr(code)) in ("Mn", "Mc")

    every = (code for code in range(0x300, 0x1F000) if not 0xFE00 <= code <= 0xFE0F)
    inside = set(unspaced)
    return (
        _class(unspaced, lambda code: chr(code).isalnum()),
        _class(unspaced, is_mark),
        _class(every, lambda code: code not in inside and is_mark(code)),
    )


def _class(codes: Iterable[int], accepted: Callable[[int], bool]) -> str:
    """Returns the inside of a character class of the accepted codes, as ranges."""
    ranges: list[list[int]] = []
    for code in filter(accepted, sorted(codes)):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return "".join(f"\\U{start:08x}-\\U{end:08x}" for start, end in ranges)
