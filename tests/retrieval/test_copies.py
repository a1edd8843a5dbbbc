"""Texts that are copies of each other."""

import copy
import pickle

import pytest

from embed_jax.data.pairs import join_title, normal_form, retrieval_task
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.errors import InputError
from embed_jax.retrieval.copies import PassageIndex, contains, token_fold


def test_white_space_and_unicode_forms_do_not_count():
    text = "The caf\u00e9 \ufb01rst opened  in\u00a01990.\n"
    assert normal_form(text) == "The café first opened in 1990."
    assert normal_form("The cafe\u0301 first opened in 1990.") == normal_form(text)
    assert normal_form("plain") == "plain"


def test_a_titled_text_is_a_text_that_knows_its_body():
    passage = join_title("Paris", "is the capital.")
    assert passage == "Paris is the capital." and passage.body == "is the capital."
    for other in (pickle.loads(pickle.dumps(passage)), copy.deepcopy(passage)):
        assert (other, other.body) == (passage, passage.body)
    for title, text, joined in (
        ("", " a ", "a"),
        (None, "a", "a"),
        ("T", "", "T"),
        (" ", "a", "a"),
    ):
        assert join_title(title, text) == joined and type(join_title(title, text)) is str


def test_rows_are_found_with_and_without_title_the_whole_text_first():
    corpus = [
        join_title("A", "same body"),
        join_title("B", "same  body"),
        "other",
        "other ",
        "same body",
    ]
    index = PassageIndex(corpus)
    assert index.same.tolist() == [0, 1, 2, 2, 4]
    result = index.rows_of(["A same body", "same\u00a0body", "other", "body", "B"])
    assert result == [[0], [4, 0, 1], [2], [], []]
    with pytest.raises(InputError, match="passage 1 of the corpus is empty"):
        PassageIndex(["a", " \u00a0"])


def test_one_text_contains_the_other():
    long = "a sentence of more than twenty characters"
    assert contains(f"before {long} after", long) and contains(long, f"before {long} after")
    assert contains(long, long) and not contains(long, long.replace("twenty", "thirty"))
    assert not contains("in 1990", "it opened in 1990, and closed in 1991"), "too short to tell"
    corpus = [
        f"Title. {long.upper()}",
        join_title("Other", long),
        long[:25],
        "something else entirely",
    ]
    index = PassageIndex(corpus)
    assert index.copies(range(4), [long]).tolist() == [True, True, True, False]
    assert index.copies(range(4), [join_title("T", long)]).tolist() == [True, True, True, False]
    assert index.copies([], [long]).shape == (0,) and not index.copies([3], []).any()


def test_texts_that_the_tokenizer_cannot_tell_apart_are_equal(tiny_tokenizer):
    texts = ["A Dog runs.", "a dog  RUNS.", "a d\u00f6g runs.", "a cat runs."]
    fold = token_fold(load_tokenizer(tiny_tokenizer, 8))
    assert PassageIndex(texts, fold).same.tolist() == [0, 0, 0, 3]
    assert PassageIndex(texts).same.tolist() == [0, 1, 2, 3]
    assert PassageIndex(texts, fold).rows_of(["a dog runs."]) == [[0]]
    # Also where the model cuts: texts that begin alike are not copies.
    start = "a dog runs. " * 200
    assert PassageIndex([start + "a", start + "b"], fold).same.tolist() == [0, 1]


def test_a_held_out_positive_and_the_same_text_with_a_title_are_one_document():
    records = [{"anchor": "q", "positive": "the text"}]
    corpus, _, qrels = retrieval_task(
        records, [join_title("Title", "the  text"), join_title("T", "other")]
    )
    assert corpus == {"d0": "the text", "d1": "T other"} and qrels == {"q0": {"d0": 1}}
