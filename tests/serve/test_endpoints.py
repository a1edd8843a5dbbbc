"""Endpoints: the same numbers as the models, in the forms of clients, and clear refusals."""

import asyncio
import base64
import json

import numpy as np
import pytest
from starlette.testclient import TestClient

from embed_jax.remote.embedding_forms import INTERFACES
from embed_jax.remote.endpoint import EmbeddingEndpoint
from embed_jax.remote.rerank import RerankEndpoint
from embed_jax.serve.app import make_app
from embed_jax.serve.batching import Batcher

TEXTS = ["the cat and the dog", "red house by the river"]


@pytest.fixture(scope="module")
def app(dense_model, reranker):
    return make_app({}, embedders={"tiny": dense_model}, rerankers={"ce": reranker.score})


@pytest.fixture(scope="module")
def client(app):
    with TestClient(app, base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def address(app, start):
    return start(app)


def post(client, path, **content):
    response = client.post(path, json=content)
    assert response.status_code == 200, response.text
    return response.json()


def test_embeddings_are_the_models(client, dense_model):
    expected = dense_model.encode(TEXTS)
    answer = post(client, "/v1/embeddings", model="tiny", input=TEXTS)
    assert [each["index"] for each in answer["data"]] == [0, 1] and answer["model"] == "tiny"
    np.testing.assert_allclose([each["embedding"] for each in answer["data"]], expected, atol=1e-6)
    assert answer["usage"]["total_tokens"] == sum(
        len(ids) for ids in dense_model.tokenizer.encode(TEXTS).ids
    )
    (row,) = post(client, "/v1/embeddings", input=TEXTS[0], encoding_format="base64")["data"]
    vector = np.frombuffer(base64.b64decode(row["embedding"]), "<f4")
    np.testing.assert_allclose(vector, expected[0], atol=1e-6)
    (row,) = post(client, "/v1/embeddings", input=TEXTS[0], dimensions=8)["data"]
    np.testing.assert_allclose(row["embedding"], dense_model.encode(TEXTS[0], dim=8), atol=1e-6)
    (row,) = post(client, "/v1/embeddings", input=TEXTS[0], input_type="search_query")["data"]
    np.testing.assert_allclose(row["embedding"], dense_model.encode_query(TEXTS[0]), atol=1e-6)
    names = [each["id"] for each in client.get("/v1/models").json()["data"]]
    assert names == ["tiny", "ce"] and client.get("/health").text == "ok"


def test_rerank_is_the_models_best_first(client, reranker):
    documents = ["music", *TEXTS, "a blue train"]
    scores = reranker.score(["the cat"] * 4, documents)
    for path in ("/rerank", "/v1/rerank", "/v2/rerank"):
        answer = post(client, path, model="ce", query="the cat", documents=documents, top_n=3)
        order = [each["index"] for each in answer["results"]]
        assert order == np.argsort(-scores, kind="stable")[:3].tolist()
        got = [each["relevance_score"] for each in answer["results"]]
        np.testing.assert_allclose(got, scores[order], atol=1e-6)
    answer = post(client, "/rerank", query="the cat", documents=[{"text": "music"}],
                  return_documents=True)  # fmt: skip
    assert answer["results"][0]["document"] == {"text": "music"}


def test_clients_of_the_providers_forms_get_answers(address, dense_model, reranker, monkeypatch):
    monkeypatch.setenv("ANY_KEY", "none")
    embedder = EmbeddingEndpoint("openai", "tiny", base_url=f"{address}/v1", key_variable="ANY_KEY")
    answer = embedder.post({"model": "tiny", "input": TEXTS})
    vectors = INTERFACES["openai"].rows(answer)
    np.testing.assert_allclose(vectors, dense_model.encode(TEXTS), atol=1e-6)
    scores = reranker.score(["music"] * 2, TEXTS)
    for form, base in (("cohere", address), ("jina", f"{address}/v1")):
        endpoint = RerankEndpoint(form, "ce", base_url=base, key_variable="")
        np.testing.assert_allclose(endpoint.complete(("music", TEXTS)), scores, atol=1e-6)
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
    data = client.embeddings.create(model="tiny", input=TEXTS).data  # base64 on the wire
    np.testing.assert_allclose([d.embedding for d in data], dense_model.encode(TEXTS), atol=1e-6)
    data = client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=8).data
    assert len(data[0].embedding) == 8
    with pytest.raises(openai.NotFoundError, match="unknown model 'other'"):
        client.embeddings.create(model="other", input=TEXTS)
    with pytest.raises(openai.BadRequestError, match="expected a number from 1 to 32"):
        client.embeddings.create(model="tiny", input=TEXTS, dimensions=64)
    assert [model.id for model in client.models.list()] == ["tiny", "ce"]


def test_requests_at_once_are_encoded_in_one_call(dense_model):
    import httpx2

    class Counted:
        dim, matryoshka_dims, routes = dense_model.dim, (), ()
        tokenizer = dense_model.tokenizer
        encode_query = encode_document = None
        calls = []

        def encode(self, texts):
            self.calls.append(len(texts))
            return dense_model.encode(texts)

    app = make_app({}, embedders={"m": Counted()}, batcher=Batcher(wait=0.05))

    async def main():
        transport = httpx2.ASGITransport(app=app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await asyncio.gather(
                *(client.post("/v1/embeddings", json={"input": [text]}) for text in TEXTS * 25)
            )

    answers = asyncio.run(main())
    assert {answer.status_code for answer in answers} == {200}
    vectors = [answer.json()["data"][0]["embedding"] for answer in answers]
    np.testing.assert_allclose(vectors, dense_model.encode(TEXTS * 25), atol=1e-5)
    assert Counted.calls == [50]


WRONG = [  # path, body, status, what the message says
    ("/v1/embeddings", b"{not json", 400, "not JSON"),
    ("/v1/embeddings", b"[" * 100_000, 400, "not JSON"),
    ("/v1/embeddings", b"\xff\xfe", 400, "not JSON"),
    ("/v1/embeddings", [1], 400, "expected a JSON object, found a list with a number"),
    ("/v1/embeddings", {"input": "x" * 1_000_000}, 400, "input: has 1,000,000 characters"),
    ("/v1/embeddings", b" " * 9_000_000, 413, "more than 8,388,608 bytes"),
    ("/v1/embeddings", {}, 400, "input: expected a list of texts, found nothing"),
    ("/v1/embeddings", {"input": []}, 400, "input: expected a list of texts"),
    ("/v1/embeddings", {"input": ["a", ""]}, 400, "input[1]: expected a text, found an empty"),
    ("/v1/embeddings", {"input": ["a"] * 2049}, 400, "at most 2,048 texts, found 2,049"),
    ("/v1/embeddings", {"input": [[1, 2]]}, 400, "found token ids"),
    ("/v1/embeddings", {"input": ["a", 1]}, 400, "input[1]: expected a text, found a number"),
    ("/v1/embeddings", {"input": "a\0b"}, 400, "contains a NUL"),
    ("/v1/embeddings", b'{"input": "\\ud800"}', 400, "not valid Unicode"),
    ("/v1/embeddings", {"input": "a", "model": "no"}, 404, "unknown model 'no'; known: tiny"),
    ("/v1/embeddings", {"input": "a", "model": 3}, 404, "unknown model"),
    ("/v1/embeddings", {"input": "a", "dimensions": True}, 400, "dimensions: expected a number"),
    ("/v1/embeddings", {"input": "a", "dimensions": 33}, 400, "from 1 to 32, found 33"),
    ("/v1/embeddings", {"input": "a", "encoding_format": "hex"}, 400, "unknown encoding_format"),
    ("/v1/embeddings", {"input": "a", "encodingformat": 1}, 400, "did you mean 'encoding_format'"),
    ("/rerank", {"query": "a"}, 400, "documents: expected a list of texts"),
    ("/rerank", {"query": "", "documents": ["a"]}, 400, "query: expected a text"),
    ("/rerank", {"query": "a", "documents": ["a"], "top_n": 0}, 400, "top_n: expected a number"),
    ("/rerank", {"query": "a", "documents": [{"title": "b"}]}, 400, "documents[0]: expected"),
]


@pytest.mark.parametrize("path, body, status, message", WRONG, ids=lambda value: str(value)[:40])
def test_wrong_requests_are_refused_in_openais_form(client, path, body, status, message):
    content = body if isinstance(body, bytes) else json.dumps(body)
    response = client.post(path, content=content, headers={"Content-Type": "application/json"})
    answer = response.json()
    assert response.status_code == status and message in answer["error"]["message"], answer
    assert answer["error"]["type"] == "invalid_request_error"
    assert len(response.content) < 1000 and "\n" not in answer["message"]


def test_other_methods_types_and_hosts_are_refused(client):
    assert client.get("/v1/embeddings").status_code == 405
    assert client.post("/v1/embeddings", content="a").status_code == 415
    assert client.post("/v1/other", json={}).json()["error"]["message"] == "There is no such page."
    foreign = client.get("/v1/models", headers={"Host": "example.com"})
    assert foreign.status_code == 400 and "tiny" not in foreign.text


def test_a_failure_at_work_is_told_without_a_traceback(dense_model):
    class Broken:
        dim, matryoshka_dims = 4, ()
        encode_query = encode_document = None

        def encode(self, texts):
            raise OSError("a secret path")

    app = make_app({}, embedders={"broken": Broken()})
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False) as client:
        response = client.post("/v1/embeddings", json={"input": "a"})
    assert response.status_code == 500 and "secret" not in response.text
    assert response.json()["error"]["type"] == "server_error"
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
