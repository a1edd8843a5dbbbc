import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.embedder import Embedder, endpoint_options, prompt_options
from embed_jax.evals.task import DOCUMENT, QUERY, Use


class Model:
    def __init__(self, prompts=None, default=None, template=""):
        self.prompts, self.default_prompt_name, self.template = prompts or {}, default, template
        self.routes = ()


@pytest.fixture
def recording():
    """Returns an embedder of vectors made from text and prompt, and the calls of its model."""
    calls = []

    def encode(texts, prompt_name="none"):
        calls.append((list(texts), prompt_name))
        return np.array([[len(text), len(prompt_name), 1.0] for text in texts])

    return Embedder(
        "made", encode, lambda use: {"prompt_name": use.side} if use.side else {}
    ), calls


def test_each_text_is_embedded_once_for_each_prompt(recording):
    embed, calls = recording
    first = embed(["a", "bb", "a"], Use("one", "STS"))
    again = embed(["ccc", "bb"], Use("two", "Clustering"))
    as_query = embed(["bb"], Use("two", "Retrieval", QUERY))
    assert calls == [(["a", "bb"], "none"), (["ccc"], "none"), (["bb"], "query")]
    assert first.tolist() == [[1, 4, 1], [2, 4, 1], [1, 4, 1]] and again.tolist() == [
        [3, 4, 1],
        [2, 4, 1],
    ]
    assert as_query.tolist() == [[2, 5, 1]] and embed.embedded == 4
    assert first.dtype == np.float32 and embed([], Use()).shape == (0, 3)


def test_vectors_come_back_as_they_were():
    vectors = np.random.default_rng(0).normal(size=(100, 7)).astype(np.float32)
    embed = Embedder("made", lambda texts: vectors[[int(text) for text in texts]], lambda use: {})
    for rows in ([5, 3, 99], range(100), range(99, -1, -1)):
        assert np.array_equal(embed([str(row) for row in rows], Use()), vectors[list(rows)])


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        (np.ones((1, 3)), r"made: expected 2 embeddings of 3 numbers, found shape \[1, 3\]"),
        (np.ones(2), r"made: expected 2 embeddings of D numbers, found shape \[2\]"),
        (
            np.array([[1, 2], [1, np.nan]]),
            "made: embeddings of 1 texts are not finite, such as of 'b'",
        ),
    ],
)
def test_what_is_no_embedding_is_refused(vectors, message):
    with pytest.raises(InputError, match=message):
        Embedder("made", lambda texts: vectors, lambda use: {})(["a", "b"], Use())


def test_another_dimension_than_before_is_refused():
    embed = Embedder("made", lambda texts: np.ones((len(texts), len(texts))), lambda use: {})
    embed(["a", "b"], Use())
    with pytest.raises(
        InputError, match=r"expected 1 embeddings of 2 numbers, found shape \[1, 1\]"
    ):
        embed(["c"], Use())


@pytest.mark.unchecked
def test_a_use_takes_the_nearest_prompt():
    model = Model(
        {"query": "q", "passage": "p", "STS": "s", "SciFact": "f"}, template="I: {instruction}"
    )
    options = prompt_options(model)
    assert options(Use("stsb", "STS")) == {"prompt_name": "STS"}
    assert options(Use("SciFact", "Retrieval", QUERY)) == {"prompt_name": "SciFact"}
    assert options(Use("nfcorpus", "Retrieval", QUERY)) == {"prompt_name": "query"}
    assert options(Use("nfcorpus", "Retrieval", DOCUMENT)) == {"prompt_name": "passage"}
    assert options(Use("banking", "Classification")) == {}
    assert options(Use("nfcorpus", "Retrieval", QUERY, "find")) == {"instruction": "find"}
    assert options(Use("nfcorpus", "Retrieval", DOCUMENT, "find")) == {"prompt_name": "passage"}


@pytest.mark.unchecked
def test_what_the_user_names_comes_first():
    model = Model({"query": "q", "a": "a", "b": "b"}, default="query")
    options = prompt_options(model, query_prompt_name="a", corpus_prompt_name="b", prompt_name="c")
    uses = [Use("x", "Retrieval", QUERY, "find"), Use("x", "Retrieval", DOCUMENT), Use("x", "STS")]
    assert [options(use)["prompt_name"] for use in uses] == ["a", "b", "c"]
    assert prompt_options(model)(Use("x", "Retrieval", DOCUMENT)) == {}  # the model's default
    assert prompt_options(Model())(Use("x", "Retrieval", DOCUMENT)) == {"prompt": ""}


def test_endpoints_are_told_the_kind_of_input():
    uses = [
        Use("x", "Retrieval", QUERY),
        Use("x", "Retrieval", DOCUMENT),
        Use("x", "Clustering"),
        Use("x", "STS"),
    ]
    assert [endpoint_options(use)["kind"] for use in uses] == [
        "query",
        "document",
        "clustering",
        "",
    ]
