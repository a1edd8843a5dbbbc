import random
import threading
import zlib

import numpy as np
import pytest

from embed_jax.errors import InputError, RunError
from embed_jax.remote.ask import Retries
from embed_jax.remote.rerank import RERANK_FORMS, RerankEndpoint, rerank_scorer

KEY = "sk-not-to-be-seen-0123456789"
FAST = Retries(count=2, first=0.001, longest=0.002)
BASES = {"cohere": "", "jina": "/v1", "voyage": "/v1", "tei": ""}
PATHS = {
    "cohere": "/v2/rerank",
    "jina": "/v1/rerank",
    "voyage": "/v1/rerank",
    "tei": "/rerank",
}
PAIRS = [(f"query {n % 3}", f"document {n}") for n in (0, 3, 6, 9, 1, 4, 2, 5, 8)]


def value(query, document):
    return zlib.crc32(f"{query}|{document}".encode()) / 2**32


class Reranker:
    """A server's answers in all forms; `behave(results, number of the request)` changes them."""

    def __init__(self):
        self.requests = []
        self.lock = threading.Lock()
        self.behave = lambda results, number: results

    def __call__(self, path, headers, content):
        with self.lock:
            self.requests.append((path, headers, content))
            number = len(self.requests)
        is_tei = path == "/rerank"
        name = "score" if is_tei else "relevance_score"
        documents = content["texts" if is_tei else "documents"]
        results = [
            {"index": index, name: value(content["query"], document)}
            for index, document in enumerate(documents)
        ]
        random.Random(number).shuffle(results)
        answer = self.behave(results, number)
        if isinstance(answer, tuple) or is_tei:
            return answer
        # Voyage's answer; the others have "results".
        return {"data": answer} if "voyage" in content["model"] else {"results": answer}

    def sent(self):
        return [
            (content["query"], document)
            for _, _, content in self.requests
            for document in content.get("texts") or content["documents"]
        ]


@pytest.fixture
def reranker():
    return Reranker()


@pytest.fixture
def scorer(reranker, json_server, monkeypatch):
    """`scorer(interface="cohere", **options) -> score`, a `rerank_scorer`."""
    for form in RERANK_FORMS.values():
        if form.key_variable:
            monkeypatch.setenv(form.key_variable, KEY)
    base = json_server(reranker)

    def make(interface="cohere", batch_size=0, concurrency=4, **options):
        endpoint = RerankEndpoint(
            interface, f"{interface}-model", base_url=base + BASES[interface], **options
        )
        return rerank_scorer(endpoint, batch_size=batch_size, concurrency=concurrency, retries=FAST)

    return make


def scores_of(answers):
    return {
        pair: score
        for pairs, scores in answers
        for pair, score in zip(pairs, scores.tolist(), strict=True)
    }


@pytest.mark.parametrize("interface", RERANK_FORMS)
@pytest.mark.parametrize("batch_size", [0, 2])
def test_every_form_gives_each_pair_its_score(scorer, reranker, interface, batch_size):
    expected = {pair: value(*pair) for pair in PAIRS}
    assert scores_of(scorer(interface, batch_size)(iter(PAIRS))) == pytest.approx(expected)
    assert sorted(reranker.sent()) == sorted(PAIRS)
    assert len(reranker.requests) == (5 if batch_size else 3)
    for path, headers, content in reranker.requests:
        assert path == PATHS[interface]
        assert headers.get("Authorization") == (None if interface == "tei" else f"Bearer {KEY}")
        assert content.get("model") == (None if interface == "tei" else f"{interface}-model")


def test_the_shape_of_requests(scorer, reranker):
    list(scorer("cohere")([("q", "a"), ("q", "")]))
    expected = {"model": "cohere-model", "query": "q", "documents": ["a", " "]}
    assert reranker.requests[-1][2] == expected
    list(scorer("jina", settings={"truncation": True})([("q", "a")]))
    expected = {"model": "jina-model", "query": "q", "documents": ["a"], "return_documents": False}
    assert reranker.requests[-1][2] == expected | {"truncation": True}
    list(scorer("tei", settings={"raw_scores": True})([("q", "a")]))
    assert reranker.requests[-1][2] == {"query": "q", "texts": ["a"], "raw_scores": True}
    list(scorer("cohere", key_variable="")([("q", "a")]))
    assert "Authorization" not in reranker.requests[-1][1]


FAULTS = {
    "one document is missing": lambda results: results[1:],
    "one is answered twice": lambda results: [*results[1:], results[1]],
    "an index beyond": lambda results: [*results[1:], {**results[0], "index": 9}],
    "an index below": lambda results: [*results[1:], {**results[0], "index": -1}],
    "no index": lambda results: [{"relevance_score": 1.0}],
    "not a number": lambda results: [{**results[0], "relevance_score": "high"}, *results[1:]],
    "nan": lambda results: (200, {}, b'{"results": [{"index": 0, "relevance_score": NaN}]}'),
    "no list": lambda results: (200, {}, b'{"detail": "none"}'),
    "not JSON": lambda results: (200, {}, b"<html>"),
    "overloaded": lambda results: (529, {}, b"{}"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_once_is_tried_again_and_told_if_it_stays(scorer, reranker, fault):
    pairs = [("q", "a"), ("q", "b")]
    reranker.behave = lambda results, number: FAULTS[fault](results) if number < 3 else results
    assert scores_of(scorer()(pairs)) == pytest.approx({pair: value(*pair) for pair in pairs})
    assert len(reranker.requests) == 3
    reranker.behave = lambda results, number: FAULTS[fault](results)
    with pytest.raises(RunError, match="1 requests got no answer, the first: 2 documents of the "):
        list(scorer()(pairs))


def test_requests_that_fail_do_not_stop_the_others(scorer, reranker):
    reranker.behave = lambda results, number: (500, {}, b"{}") if len(results) == 2 else results
    scores = {}
    with pytest.raises(RunError, match="1 requests .*'query 1'.*HTTP 500.*3 tries"):
        for pairs, values in scorer()(iter(PAIRS)):
            scores |= scores_of([(pairs, values)])
    assert scores == pytest.approx({pair: value(*pair) for pair in PAIRS if pair[0] != "query 1"})


@pytest.mark.parametrize("status", [400, 401, 404, 422])
def test_a_refusal_ends_it_at_once_in_the_servers_words_but_the_key(scorer, reranker, status):
    body = f'{{"message": "no {KEY} here"}}'.encode()
    reranker.behave = lambda results, number: (status, {}, body)
    with pytest.raises(InputError, match=rf"HTTP {status} .*no \*\*\* here"):
        list(scorer(concurrency=1)(iter(PAIRS)))
    assert len(reranker.requests) == 1


def test_bad_use_is_refused_before_anything_is_sent(scorer, reranker, monkeypatch):
    with pytest.raises(InputError, match="did you mean 'cohere'"):
        RerankEndpoint("cohre", "m")
    with pytest.raises(InputError, match="base URL: expected http"):
        RerankEndpoint("tei", "m")
    monkeypatch.delenv("CO_API_KEY")
    with pytest.raises(InputError, match="CO_API_KEY is not set"):
        RerankEndpoint("cohere", "m")
    with pytest.raises(InputError, match="NO_SUCH_KEY is not set"):
        RerankEndpoint("cohere", "m", key_variable="NO_SUCH_KEY")
    assert not list(scorer("tei")([])) and reranker.requests == []


def test_scores_are_an_array_in_the_order_of_the_documents(scorer):
    ((pairs, scores),) = scorer()([("q", "a"), ("q", "b")])
    assert pairs == [("q", "a"), ("q", "b")]
    np.testing.assert_allclose(scores, [value("q", "a"), value("q", "b")])
