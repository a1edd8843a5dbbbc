import string

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.metrics import spearman
from embed_jax.evals.overlap import clean_score, find_overlap, normalized_words


def texts(rng, count, vocabulary=4):
    """Returns short texts of few words, some overlapping; with capitals and empty texts."""
    made = []
    for _ in range(count):
        words = [
            string.ascii_lowercase[w] for w in rng.integers(vocabulary, size=rng.integers(0, 9))
        ]
        ends = rng.choice(["", ",", "!", " -"], size=len(words))
        made.append(
            " ".join(
                (w.upper() if rng.random() < 0.3 else w) + end
                for w, end in zip(words, ends, strict=True)
            )
        )
    return made


def shares(test_text, training_text, n):
    """Computes the shares by their definition, comparing words one by one."""
    strip = str.maketrans(string.punctuation, " " * len(string.punctuation))
    test, training = (text.lower().translate(strip).split() for text in (test_text, training_text))
    if min(len(test), len(training)) < n:
        return bool(test) and test == training
    starts = [(i, j) for i in range(len(test) - n + 1) for j in range(len(training) - n + 1)]
    return any(all(test[i + k] == training[j + k] for k in range(n)) for i, j in starts)


def test_what_is_found_equals_a_double_loop():
    rng = np.random.default_rng(0)
    for trial in range(150):
        n = int(rng.integers(1, 6))
        test, training = texts(rng, rng.integers(1, 8)), texts(rng, rng.integers(1, 8))
        result = find_overlap(test, training, n=n)
        first = [
            next((j for j, seen in enumerate(training) if shares(text, seen, n)), None)
            for text in test
        ]
        assert result.flags.tolist() == [number is not None for number in first], trial
        assert {i: match.training_text for i, match in result.matches.items()} == {
            i: number for i, number in enumerate(first) if number is not None
        }
        for item, match in result.matches.items():
            for text in (test[item], training[match.training_text]):
                assert f" {match.words} " in f" {' '.join(normalized_words(text))} "


def test_more_training_texts_find_more_and_longer_ngrams_fewer():
    rng = np.random.default_rng(1)
    test, training = (
        [text for text in texts(rng, 30) if len(normalized_words(text)) >= 5],
        texts(rng, 20),
    )
    flags = [find_overlap(test, training, n=n).flags for n in range(1, 6)]
    assert all((longer <= shorter).all() for shorter, longer in zip(flags, flags[1:], strict=False))
    assert (
        find_overlap(test, training[:10], n=3).flags <= find_overlap(test, training, n=3).flags
    ).all()
    assert find_overlap(test, test).flags.all()


def test_order_case_and_punctuation_do_not_count():
    test = ["The cat, it's said, sat on the mat!", "a wholly different text", "CAF\u00c9"]
    training = ["x y z", "\u201cthe CAT it s said; sat on (the) mat\u201d he wrote", "cafe\u0301."]
    result, turned = find_overlap(test, training), find_overlap(test[::-1], training[::-1])
    assert result.flags.tolist() == [True, False, True] and turned.flags.tolist() == [
        True,
        False,
        True,
    ]
    assert result.share == 2 / 3
    assert result.examples() == [
        "test item 0, training text 1: the cat it s said sat on the",
        "test item 2, training text 2: caf\u00e9",
    ]
    assert len(result.examples(1)) == 1


def test_a_text_shorter_than_n_must_be_the_whole_training_text():
    assert find_overlap(["play chess"], ["Play chess!"]).flags.all()
    assert not find_overlap(["play chess"], ["we play chess every day in the old park"]).flags.any()
    assert not find_overlap(["", "?!"], ["", "..."]).flags.any()


def test_training_texts_are_read_once_and_only_the_test_set_is_held():
    import tracemalloc

    read = 0

    def stream():
        nonlocal read
        for number in range(3000):
            read += 1
            yield " ".join(f"w{number}-{word}" for word in range(40))
        yield "one two three four five six seven eight nine"

    tracemalloc.start()
    result = find_overlap(["zero one two three four five six seven eight"], stream())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read == result.training_texts - 1 == 3000
    assert result.matches[0].training_text == 3000
    assert peak < 200_000  # bytes; the training texts have a million letters


def test_the_clean_score_is_that_of_the_items_left():
    flags = np.array([True, False, False, True, False])
    scores = np.array([1.0, 0.5, 0.1, 1.0, 0.3])
    result = clean_score(flags, scores)
    assert result.all == pytest.approx(0.58) and result.clean == pytest.approx(0.3)
    assert (result.n_all, result.n_clean) == (5, 3)
    assert clean_score(flags, lambda i: scores[i].mean()) == result
    gold = np.array([5, 1, 2, 0, 3.0])
    assert clean_score(flags, lambda i: spearman(scores[i], gold[i])).clean == pytest.approx(-0.5)
    assert clean_score([False] * 5, scores).clean == clean_score(flags, scores).all


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: find_overlap(["a"], ["a"], n=0), "n: expected 1 or more words, found 0"),
        (lambda: find_overlap([], ["a"]), "found 0 test texts and 1 training texts"),
        (
            lambda: find_overlap(["a"], iter(())),
            r"1 test texts and 0 training texts \(already read\?\), expected some",
        ),
        (lambda: find_overlap("a", ["a"]), "test texts: expected several strings, found one"),
        (lambda: find_overlap(["a"], "a"), "training texts: expected several strings, found one"),
        (
            lambda: find_overlap(["a"], ["a", None]),
            "training text 1: expected a string, found NoneType",
        ),
        (
            lambda: clean_score([True, True], [1, 2]),
            "all 2 test items overlap, none is left to score",
        ),
        (
            lambda: clean_score([True, False], [1.0]),
            r"a score for each of 2 items, found shape \(1,\)",
        ),
    ],
)
@pytest.mark.unchecked
def test_bad_input_is_an_error_of_one_line(call, message):
    with pytest.raises(InputError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)
