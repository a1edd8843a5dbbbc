"""Properties of augmentations over many random draws, and their settings in a config."""

import collections
import itertools

import numpy as np
import pytest

from embed_jax.data.augment import (
    augment_text,
    build_augmentation,
    crop,
    delete_one_word,
    delete_words,
    mask_span,
    repeat_words,
)
from embed_jax.errors import InputError
from embed_jax.registry import REGISTRY

WORDS = [f"w{letter}" for letter in "abcdefghijklmnopqrst"]
TEXT = " ".join(WORDS)
ALL = {
    "crop": crop,
    "delete_words": delete_words,
    "repeat_words": repeat_words,
    "mask_span": mask_span,
    "delete_one_word": lambda rate: delete_one_word(),
}


def draws(augment, text=TEXT, count=2000):
    rng = np.random.default_rng(0)
    return [augment(text, rng).split() for _ in range(count)]


def is_subsequence(words, of):
    rest = iter(of)
    return all(word in rest for word in words)


def test_the_registry_has_them_all():
    assert set(REGISTRY["augmentation"]) == set(ALL)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rate", [0, 0.1, 0.32, 0.9, 1])
def test_no_text_becomes_empty_and_one_word_stays(name, rate):
    augment, rng = ALL[name](rate), np.random.default_rng(0)
    for text in ("", " ", "word", " not\n", "你好世界", "🙂"):
        assert augment(text, rng) == text
    for text in (
        "a b",
        "word\tword",
        "naïve Ünïcödé 🙂 e\u0301te\u0301",
        "你好 世界",
        "no not 3",
        "... !",
    ):
        for _ in range(50):
            result = augment(text, rng)
            assert result.split() and set(result.split()) <= {*text.split(), "[MASK]"}
            assert result == " ".join(result.split())


@pytest.mark.parametrize("augment", [crop(0), delete_words(0), repeat_words(0), mask_span(0)])
def test_rate_0_changes_nothing(augment):
    assert set(map(tuple, draws(augment, count=50))) == {tuple(WORDS)}


def test_rate_1_leaves_one_word_and_any():
    for augment in (crop(1), delete_words(1)):
        result = draws(augment)
        assert {len(words) for words in result} == {1} and {
            word for words in result for word in words
        } == set(WORDS)
    assert {sum(word != "[MASK]" for word in words) for words in draws(mask_span(1))} == {1}


@pytest.mark.parametrize("text", [TEXT, " ".join(WORDS[:3])])
@pytest.mark.parametrize("rate", [0.1, 0.3, 0.55])
def test_the_share_that_goes_is_the_rate(text, rate):
    """The share is the rate, also in a text of three words, where it is less than a word.

    The tolerance is five standard errors of 8,000 draws.
    """
    size, count = len(text.split()), 8000
    error = 5 * 0.5 / size / np.sqrt(count)  # the number of words varies by at most one
    for augment, gone in (
        (crop(rate), lambda words: size - len(words)),
        (delete_words(rate), lambda words: size - len(words)),
        (mask_span(rate), lambda words: words.count("[MASK]")),
    ):
        share = np.mean([gone(words) for words in draws(augment, text, count)]) / size
        assert abs(share - rate) < error, augment


def test_every_word_goes_with_the_same_chance():
    counts = collections.Counter(itertools.chain(*draws(delete_words(0.3), count=8000)))
    assert max(abs(counts[word] / 8000 - 0.7) for word in WORDS) < 5 * np.sqrt(0.21 / 8000)
    counts = collections.Counter(itertools.chain(*draws(delete_one_word(), count=8000)))
    assert max(abs(counts[word] / 8000 - 0.95) for word in WORDS) < 5 * np.sqrt(0.0475 / 8000)


def test_a_crop_is_any_contiguous_span():
    result = draws(crop(0.25))
    starts = {WORDS.index(words[0]) for words in result}
    assert all(words == WORDS[WORDS.index(words[0]) :][:15] for words in result)
    assert starts == set(range(6))


@pytest.mark.parametrize("augment", [delete_words(0.4), delete_one_word(), delete_words(1)])
def test_the_order_of_the_rest_is_kept(augment):
    assert all(is_subsequence(words, WORDS) for words in draws(augment))


def test_delete_one_word_deletes_one():
    assert {len(words) for words in draws(delete_one_word())} == {19}
    assert draws(delete_one_word(), "no 1", 5) == [["no", "1"]] * 5


def test_repeated_words_stand_beside_themselves():
    """ESimCSE: the number of repeated words is uniform in 0 to max(2, rate n).

    A word stands at most twice.
    """
    for rate, most in ((0.32, 6), (0.05, 2), (1.0, 20)):
        result = draws(repeat_words(rate), count=9000)
        assert all([word for word, _ in itertools.groupby(words)] == WORDS for words in result)
        assert max(max(collections.Counter(words).values()) for words in result) == 2
        counts = np.bincount([len(words) - 20 for words in result], minlength=most + 1)
        assert len(counts) == most + 1
        assert np.abs(counts / 9000 - 1 / (most + 1)).max() < 5 * np.sqrt(1 / (most + 1) / 9000)
    assert max(len(words) for words in draws(repeat_words(0.1), "a b")) == 4


def test_a_masked_span_is_contiguous_and_as_long():
    for words in draws(mask_span(0.25, token="<mask>")):
        masked = [place for place, word in enumerate(words) if word == "<mask>"]
        assert len(words) == 20 and masked == list(range(masked[0], masked[0] + 5))
        assert all(word in ("<mask>", WORDS[place]) for place, word in enumerate(words))


SAID = (
    "She did not, or so they say, buy 3 cars; (Never!) don’t ask – it isn't no-one's "
    "twenty-five ½ ٣ Hundreds DON'T"
)
PROTECTED = [
    "not,",
    "3",
    "(Never!)",
    "don’t",
    "isn't",
    "no-one's",
    "twenty-five",
    "½",
    "٣",
    "Hundreds",
    "DON'T",
]


@pytest.mark.parametrize(
    "augment", [delete_words(0.5), delete_words(1), delete_one_word(), mask_span(0.9)]
)
def test_negations_and_numbers_survive(augment):
    left = collections.Counter()
    for words in draws(augment, SAID, 10_000):
        assert is_subsequence(PROTECTED, words)
        left.update(set(words))
    free = set(SAID.split()) - set(PROTECTED)
    assert all(left[word] < 10_000 for word in free), "and no other word is spared"


def test_other_words_may_be_protected():
    text = "not three wa wb"
    for protected in ("wa", ["wa"], "w[!b]"):
        assert {tuple(words) for words in draws(delete_words(1, protected), text, 20)} == {("wa",)}
    assert len({tuple(words) for words in draws(delete_words(1, ""), text, 100)}) == 4
    assert {tuple(words) for words in draws(delete_one_word("wa three WB"), text, 20)} == {
        ("three", "wa", "wb")
    }


def test_the_text_of_a_step_is_a_function_of_its_numbers():
    augment = build_augmentation("delete_words(rate=0.3) | repeat_words(rate=0.3)")
    place = {"seed": 0, "step": 0, "record": 0, "column": 0}
    expected = augment_text(augment, TEXT, **place)
    for other in range(100):  # whatever was made before
        augment_text(augment, TEXT, **place | {"record": other})
    assert augment_text(augment, TEXT, **place) == expected
    changed = [place | {name: value} for name in place for value in (1, 2**32 - 1)]
    texts = {expected, *(augment_text(augment, TEXT, **position) for position in changed)}
    assert len(texts) == 1 + len(changed)
    # No number of one place stands for another's.
    numbers = itertools.product(range(3), repeat=4)
    texts = [
        augment_text(augment, TEXT * 5, **dict(zip(place, position, strict=True)))
        for position in numbers
    ]
    assert len(set(texts)) == 81


def test_a_chain_goes_from_left_to_right():
    first, second, both = (
        crop(0.5),
        repeat_words(1.0),
        build_augmentation("crop(rate=0.5) | repeat_words(rate=1.0)"),
    )
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(20):
        assert both(TEXT, rng) == second(first(TEXT, same), same)
    assert build_augmentation("delete_one_word")("a b", rng) in ("a", "b")
    assert build_augmentation("mask_span(rate=1, token='<m>', protected='wa')")("wa wb", rng) in (
        "wa wb",
        "wa <m>",
    )


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "'': invalid syntax; expected one such as 'delete_words"),
        ("crop(rate=0.1) |", "'crop(rate=0.1) |': invalid syntax"),
        (
            "crop(rate=0.1) + crop(rate=0.1)",
            "expected one such as delete_words(rate=0.1), or several with |",
        ),
        (
            "delete_word(rate=0.1)",
            "unknown augmentation 'delete_word' (did you mean 'delete_words'?); known: crop,",
        ),
        ("crop(0.1)", "'crop(0.1)': expected arguments by name; known: rate"),
        ("crop()", "'crop()': crop needs the argument rate"),
        ("crop(share=0.1)", "unknown argument of crop 'share'; known: rate"),
        ("crop(rate=1.1)", "'crop(rate=1.1)': rate: expected a number from 0 to 1, found 1.1"),
        ("crop(rate=-0.1)", "rate: expected a number from 0 to 1, found -0.1"),
        ("crop(rate='a')", "rate: expected a number from 0 to 1, found 'a'"),
        ("crop(rate=True)", "rate: expected a number from 0 to 1, found True"),
        ("crop(rate=exit())", "rate: expected a number or a string in quotes"),
        ("crop(rate=1, **{})", "unknown argument of crop '**{}'"),
        ("crop(rate=1, rate=1)", "expected rate once, found it twice"),
        ("delete_one_word(protected=3)", "protected: expected words separated by blanks, found 3"),
        ("mask_span(rate=0.1, token='')", "token: expected a text such as '[MASK]', found ''"),
        ("__import__('os').system('true')", "expected one such as"),
    ],
)
@pytest.mark.unchecked
def test_what_cannot_be_used_is_one_line(expression, message):
    with pytest.raises(InputError) as raised:
        build_augmentation(expression)
    assert str(raised.value).startswith("config.data.augment: ") and "\n" not in str(raised.value)
    assert message in str(raised.value)
