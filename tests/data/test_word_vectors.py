"""Word vectors read from text, and the tokenizer of such words."""

import gzip

import numpy as np
import pytest

from embed_jax.data.word_vectors import read_word_vectors, word_tokenizer
from embed_jax.errors import InputError

GLOVE = b"the 0.5 -1 2e-1\n, 1 2 3\n. . . 4 5 6\n"


@pytest.fixture
def write(tmp_path):
    def write(content, name="vectors.txt"):
        path = tmp_path / name
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write


@pytest.mark.parametrize(
    "content",
    [
        GLOVE,
        b"3 3\n" + GLOVE,
        GLOVE.replace(b"\n", b" \r\n"),
        GLOVE.replace(b" 0.5", b"\t0.5").rstrip(),
    ],
    ids=["GloVe", "word2vec", "blanks at the ends", "a tab, no last line's end"],
)
@pytest.mark.parametrize("name", ["vectors.txt", "vectors.txt.gz"])
def test_both_forms_are_read_packed_or_not(write, content, name):
    words, vectors = read_word_vectors(write(content, name))
    assert words == ["the", ",", ". . ."]
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, np.float32([[0.5, -1, 0.2], [1, 2, 3], [4, 5, 6]]))


def test_of_a_word_that_comes_again_the_first_counts(write):
    words, vectors = read_word_vectors(write(b"4 1\na 1\nb 2\na 3\nc 4\n"))
    assert words == ["a", "b", "c"]
    assert vectors[:, 0].tolist() == [1, 2, 4]


def test_bytes_that_are_no_text_and_blanks_that_are_none(write):
    words, _ = read_word_vectors(
        write("caf\xe9 1 2\na\xa0b 3 4\nc\u2028d 5 6\n".encode() + b"\xff\xfe 7 8\n")
    )
    assert words == ["caf\xe9", "a\xa0b", "c\u2028d", "\ufffd\ufffd"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ": empty, no words in it"),
        (b"0 3\n", ": empty, no words in it"),
        (b"a\n", ":1: expected a word and 1 numbers, found 1 fields"),
        (b"a 1 2\nb 1\n", ":2: expected a word and 2 numbers, found 2 fields"),
        (b"a 1 2\nb 1 2 3\n", ":2: expected a word and 2 numbers, found 4 fields"),
        (b"a 1 2\n\nb 1 2\n", ":2: expected a word and 2 numbers, found 0 fields"),
        (b"2 2\na 1 2\nb 1 x\n", ":3: not a number: 'x'"),
        (b"2 2\na 1 2\nb nan 2\n", ":3: the vector of 'b' is not finite"),
        (b"a 1\na nan\nb 1e39\n", ":3: the vector of 'b' is not finite"),
        (b"3 2\na 1 2\nb 1 2\n", ":1: says 3 words, but 2 follow: is the file whole?"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write, content, message):
    path = write(content)
    with pytest.raises(InputError) as error:
        read_word_vectors(path)
    assert str(error.value) == f"{path}{message}"


def test_a_file_that_is_cut_off_or_missing(tmp_path):
    path = tmp_path / "vectors.txt.gz"
    path.write_bytes(gzip.compress(GLOVE * 100)[:-20])
    with pytest.raises(InputError, match=r"vectors.txt.gz:\d+: damaged or cut-off gzip data"):
        read_word_vectors(path)
    with pytest.raises(InputError, match="no such file"):
        read_word_vectors(tmp_path / "none.txt")
    with pytest.raises(InputError, match="cannot be read: Is a directory"):
        read_word_vectors(tmp_path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the cat. The", ["the", "cat", "."]),
        ("z zebra zz thez", ["z"]),
        ("... .. .", ["...", "."]),
        ("cat\xa0the▁cat ▁a ▁", ["cat", "the", "cat"]),
        ("unknown words only", []),
        ("", []),
    ],
)
def test_words_that_are_not_known_leave_no_token(text, expected):
    words = ["the", "cat", "z", "t", "h", "e", ".", "...", "▁a", ". ."]
    ids = word_tokenizer(words, 10, lower_case=False).encode([text]).ids[0]
    assert [words[number] for number in ids] == expected


def test_lower_case_and_the_limit_count_known_words():
    tokenizer = word_tokenizer(["the", "cat"], 2, lower_case=True)
    encoded = tokenizer.encode(["xyz The CAT the"])
    assert [ids.tolist() for ids in encoded.ids] == [[0, 1]] and encoded.truncated == 1
