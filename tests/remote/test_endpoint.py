import base64
import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from embed_jax.errors import InputError, RunError
from embed_jax.remote.ask import Retries
from embed_jax.remote.embedding_forms import INTERFACES
from embed_jax.remote.endpoint import EmbeddingEndpoint, endpoint_encoder
from embed_jax.remote.vector_cache import VectorCache

ROOT = Path(__file__).parent.parent.parent
KEY = "sk-not-to-be-seen-0123456789"
OWN_DIM = 5
FAST = Retries(count=2, first=0.001, longest=0.002)
BASES = {"openai": "/v1", "cohere": "", "voyage": "/v1", "google": "/v1beta"}
TEXTS = [f"text {n}" for n in range(10)]


def embedding(text, kind=None, dim=None):
    """Returns the stand-in's embedding of a text: float32 numbers that depend on the kind."""
    values = np.random.default_rng(zlib.crc32(f"{kind}:{text!r}".encode())).normal(
        size=dim or OWN_DIM
    )
    return values.astype(np.float32)


def expected(texts, kind=None, dim=None):
    return np.stack([embedding(text, kind, dim) for text in texts])


class EmbeddingServer:
    """A server on loopback with all four interfaces.

    `behave(vectors, number of the request)` returns the vectors to answer with (a list of arrays),
    or (status, headers, body), or "cut", "shuffle", "no index".
    """

    def __init__(self):
        self.behave = lambda vectors, number: vectors
        self.requests = []  # (path, headers, content, texts)
        self.times = []
        self.lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                texts, kind, dim = read_request(self.path, content)
                with server.lock:
                    server.times.append(time.monotonic())
                    server.requests.append((self.path, dict(self.headers), content, texts))
                    number = len(server.requests)
                action = server.behave([embedding(text, kind, dim) for text in texts], number)
                status, headers = 200, {}
                if isinstance(action, tuple):
                    status, headers, body = action
                else:
                    vectors = (
                        action if isinstance(action, list) else server_vectors(texts, kind, dim)
                    )
                    body = json.dumps(write_answer(self.path, content, vectors, action)).encode()
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if action == "cut" else body)

            def log_message(self, *_):
                pass

            def handle(self):
                try:
                    super().handle()
                except ConnectionError:  # the other side was killed
                    pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()

    def sent(self):
        return [text for request in self.requests for text in request[3]]


def server_vectors(texts, kind, dim):
    return [embedding(text, kind, dim) for text in texts]


def read_request(path, content):
    """Returns (texts, the provider's word for their kind, dimension), or raises a KeyError."""
    if path == "/v1/embeddings":
        return (
            content["input"],
            content.get("input_type"),
            content.get("dimensions", content.get("output_dimension")),
        )
    if path == "/v2/embed":
        assert content["embedding_types"] == ["float"]
        return content["texts"], content["input_type"], content.get("output_dimension")
    assert path == "/v1beta/models/some-model:batchEmbedContents"
    parts = content["requests"]
    assert all(part["model"] == "models/some-model" for part in parts)
    texts = [part["content"]["parts"][0]["text"] for part in parts]
    return texts, parts[0].get("taskType"), parts[0].get("outputDimensionality")


def write_answer(path, content, vectors, action):
    rows = [vector if isinstance(vector, str | list) else vector.tolist() for vector in vectors]
    if path == "/v2/embed":
        return {"id": "1", "embeddings": {"float": rows}, "texts": content["texts"]}
    if path != "/v1/embeddings":
        return {"embeddings": [{"values": row} for row in rows]}
    if content.get("encoding_format") == "base64":
        rows = [base64.b64encode(np.array(row, "<f4").tobytes()).decode() for row in rows]
    items = [
        {"object": "embedding", "index": number, "embedding": row}
        for number, row in enumerate(rows)
    ]
    if action == "shuffle":
        random.Random(0).shuffle(items)
    if action == "no index":
        items = [{"embedding": item["embedding"]} for item in items]
    return {"object": "list", "data": items, "model": "some-model"}


@pytest.fixture
def server(monkeypatch):
    for interface in INTERFACES.values():
        monkeypatch.setenv(interface.key_variable, KEY)
    server = EmbeddingServer()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def encoder(server):
    """`encoder(interface="openai", cache=None, batch_size=0, **options) -> encode`.

    The options are those of Endpoint; waits are short.
    """

    def make(interface="openai", cache=None, batch_size=0, concurrency=4, retries=FAST, **options):
        endpoint = EmbeddingEndpoint(
            interface, "some-model", base_url=server.base + BASES[interface], **options
        )
        how = {"batch_size": batch_size, "concurrency": concurrency, "retries": retries}
        return endpoint_encoder(endpoint, cache=cache, **how)

    return make


WORDS = {
    "openai": (None, None, None),
    "cohere": ("search_document", "search_query", "search_document"),
    "voyage": (None, "query", "document"),
    "google": ("SEMANTIC_SIMILARITY", "RETRIEVAL_QUERY", "RETRIEVAL_DOCUMENT"),
}


@pytest.mark.parametrize("dim", [0, 3])
@pytest.mark.parametrize("interface", INTERFACES)
def test_embeddings_are_the_servers_in_the_order_of_the_texts(encoder, interface, dim):
    encode = encoder(interface, batch_size=3, dim=dim)
    for kind, word in zip(("", "query", "document"), WORDS[interface], strict=True):
        result = encode(TEXTS, kind=kind)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, expected(TEXTS, word, dim))
    np.testing.assert_array_equal(
        encode(TEXTS, prompt="query: ", kind="query"),
        expected([f"query: {t}" for t in TEXTS], WORDS[interface][1], dim),
    )
    assert encode([]).shape == (0, dim or OWN_DIM)


def test_the_shape_of_requests(encoder, server):
    for interface in INTERFACES:
        encoder(interface, dim=3)(["a", "b"], kind="query")
    (openai, cohere, voyage, google) = server.requests
    assert openai[0] == voyage[0] == "/v1/embeddings" and cohere[0] == "/v2/embed"
    assert [request[1]["Authorization"] for request in (openai, cohere, voyage)] == [
        f"Bearer {KEY}"
    ] * 3
    headers = {name.lower(): value for name, value in google[1].items()}
    assert headers["x-goog-api-key"] == KEY and "authorization" not in headers
    assert openai[2] == {
        "model": "some-model",
        "input": ["a", "b"],
        "dimensions": 3,
        "encoding_format": "float",
    }
    assert voyage[2] == {
        "model": "some-model",
        "input": ["a", "b"],
        "output_dimension": 3,
        "input_type": "query",
    }
    assert cohere[2] == {
        "model": "some-model",
        "texts": ["a", "b"],
        "input_type": "search_query",
        "embedding_types": ["float"],
        "output_dimension": 3,
    }
    common = {
        "model": "models/some-model",
        "taskType": "RETRIEVAL_QUERY",
        "outputDimensionality": 3,
    }
    assert google[2] == {
        "requests": [{"content": {"parts": [{"text": text}]}, **common} for text in "ab"]
    }


def test_what_requests_hold_can_be_changed(encoder, server):
    as_base64 = encoder(settings={"encoding_format": "base64"})
    np.testing.assert_array_equal(as_base64(TEXTS), expected(TEXTS))
    assert server.requests[-1][2]["encoding_format"] == "base64"
    passages = encoder(kinds={"query": "query", "document": "passage"}, key_variable="")
    np.testing.assert_array_equal(passages(TEXTS, kind="document"), expected(TEXTS, "passage"))
    assert "Authorization" not in server.requests[-1][1]
    np.testing.assert_array_equal(encoder("google", kinds={})(TEXTS, kind="query"), expected(TEXTS))


@pytest.mark.parametrize(
    ("interface", "most"), [("openai", 2048), ("cohere", 96), ("voyage", 1000), ("google", 100)]
)
def test_no_request_is_larger_than_the_provider_allows(encoder, server, interface, most):
    texts = [str(n) for n in range(2 * most + 1)]
    assert encoder(interface)(texts).shape == (len(texts), OWN_DIM)
    assert sorted(len(request[3]) for request in server.requests) == [1, most, most]


def test_a_request_has_no_more_bytes_than_the_provider_allows_tokens(encoder, server):
    texts = ["é" * 30_000 + str(n) for n in range(5)] + ["x" * 200_000, "y"]
    encoder("voyage", concurrency=1)(texts)
    assert [len(request[3]) for request in server.requests] == [1] * 7
    server.requests.clear()
    encoder("openai", concurrency=1)(texts)
    assert [len(request[3]) for request in server.requests] == [4, 3]


def test_a_text_is_sent_once_and_an_empty_one_as_a_blank(encoder, server):
    texts = ["b", "a", "", "b", " ", "b", "a"]
    np.testing.assert_array_equal(
        encoder(batch_size=2)(texts), expected(["b", "a", " ", "b", " ", "b", "a"])
    )
    assert sorted(server.sent()) == [" ", "a", "b"]


@pytest.mark.parametrize("interface", ["openai", "voyage"])
@pytest.mark.parametrize("order", ["shuffle", "no index"])
def test_the_answers_indices_decide_if_there_are_any(encoder, server, interface, order):
    server.behave = lambda vectors, number: order
    np.testing.assert_array_equal(encoder(interface)(TEXTS), expected(TEXTS))


def body(*items):
    return 200, {}, json.dumps({"data": list(items)}).encode()


ONCE = {
    "429": (429, {"Retry-After": "0"}, b"{}"),
    "500": (500, {}, b"<html>oh</html>"),
    "503": (503, {}, b""),
    "cut": "cut",
    "no JSON": (200, {}, b"<html>"),
    "deep": (200, {}, b"[" * 100_000),
    "other fields": (200, {}, b'{"choices": []}'),
    "a list": (200, {}, b"[1]"),
    "too few": [embedding("x")],
    "none": [],
    "not finite": [np.full(OWN_DIM, np.nan)] * 2,
    "beyond float32": [np.full(OWN_DIM, 1e300)] * 2,
    "ragged": [np.ones(OWN_DIM), np.ones(OWN_DIM + 1)],
    "empty": [np.ones(0)] * 2,
    "strings": [["1", "2", "3", "4", "5"]] * 2,
    "null": [[1.0, None, 1.0, 1.0, 1.0]] * 2,
    "nested": [[[1.0]] * OWN_DIM] * 2,
    "cut base64": ["AAAAAAA="] * 2,
    "same index": body({"index": 0, "embedding": [1.0]}, {"index": 0, "embedding": [2.0]}),
    "from 1": body({"index": 1, "embedding": [1.0]}, {"index": 2, "embedding": [2.0]}),
}


@pytest.mark.parametrize("fault", ONCE)
def test_whatever_goes_wrong_once_is_tried_again_and_told_if_it_stays(encoder, server, fault):
    server.behave = lambda vectors, number: ONCE[fault] if number == 1 else vectors
    np.testing.assert_array_equal(encoder()(["a", "b"]), expected(["a", "b"]))
    assert len(server.requests) == 2
    server.behave = lambda vectors, number: ONCE[fault]
    with pytest.raises(RunError, match=r"^2 texts from 'a' on: .* \(after 3 tries\)$") as error:
        encoder()(["a", "b"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("interface", INTERFACES)
def test_every_form_counts(encoder, server, interface):
    server.behave = lambda vectors, number: vectors[:-1]
    with pytest.raises(RunError, match="9 embeddings for 10 texts"):
        encoder(interface)(TEXTS)


def test_a_server_that_asks_to_wait_is_left_alone(encoder, server):
    server.behave = lambda vectors, number: (
        (429, {"Retry-After": "0.3"}, b"{}") if number == 1 else vectors
    )
    encoder(concurrency=1)(TEXTS)
    assert server.times[1] - server.times[0] >= 0.3
    server.behave = lambda vectors, number: (
        429,
        {"Retry-After": "86400"},
        b'{"message": "enough for today"}',
    )
    with pytest.raises(RunError, match="enough for today.*86400 s"):
        encoder()(TEXTS)


@pytest.mark.parametrize("status", [400, 401, 404])
def test_a_refusal_ends_it_at_once_in_the_servers_words_but_the_key(encoder, server, status):
    body = json.dumps({"error": {"message": f"no\nsuch thing for {KEY}"}}).encode()
    server.behave = lambda vectors, number: (status, {}, body)
    with pytest.raises(InputError, match=rf"HTTP {status} .*no such thing for \*\*\*") as error:
        encoder(concurrency=1)(TEXTS)
    assert len(server.requests) == 1 and ("'text 0'" in str(error.value)) == (status == 400)


def test_no_error_shows_the_key(encoder, server):
    server.behave = lambda vectors, number: (
        200,
        {},
        json.dumps({"message": f"key {KEY}"}).encode(),
    )
    with pytest.raises(RunError, match=r"no embeddings: key \*\*\*"):
        encoder()(TEXTS)


def test_another_dimension_than_asked_for_or_than_before(encoder, server, tmp_path):
    server.behave = lambda vectors, number: [vector[:2] for vector in vectors]
    with pytest.raises(InputError, match="asked some-model for 3 dimensions, found 2"):
        encoder(dim=3)(TEXTS)
    server.requests.clear()
    server.behave = lambda vectors, number: [vector[: 5 - (number > 1)] for vector in vectors]
    path = tmp_path / "cache"
    for options in (
        {"concurrency": 1, "batch_size": 1},
        {},
    ):  # the second has earlier ones from the cache only
        encode = encoder(cache=path, **options)
        with pytest.raises(RunError, match="4 numbers after some of 5.*cache"):
            encode([*TEXTS, "new"])
        np.testing.assert_array_equal(encode(TEXTS[:1]), expected(TEXTS[:1]))


def test_what_is_in_the_cache_is_not_asked_for(encoder, server, tmp_path):
    path = tmp_path / "cache"
    first = encoder(cache=path, batch_size=3)
    first(TEXTS[:4])
    np.testing.assert_array_equal(first(TEXTS), expected(TEXTS))
    np.testing.assert_array_equal(encoder(cache=path)(TEXTS[::-1]), expected(TEXTS[::-1]))
    assert sorted(server.sent()) == TEXTS
    assert KEY not in path.read_text() and "text" not in path.read_text()


def test_the_cache_answers_no_other_question(encoder, server, tmp_path):
    path = tmp_path / "cache"
    questions = [
        ({}, {}),
        ({"dim": 3}, {}),
        ({"settings": {"encoding_format": "base64"}}, {}),
        ({}, {"prompt": "p"}),
        ({"interface": "cohere"}, {}),
        ({"interface": "cohere"}, {"kind": "query"}),
        ({"interface": "google"}, {}),
    ]
    for number, (options, question) in enumerate(questions, 1):
        for _ in range(2):
            encoder(cache=path, **options)(["a"], **question)
        assert len(server.requests) == number
    encoder(cache=path)(["a"], kind="query")  # nothing that this provider knows of
    assert len(server.requests) == number


def test_what_came_before_a_failure_is_kept(encoder, server, tmp_path):
    path = tmp_path / "cache"
    server.behave = lambda vectors, number: vectors if number <= 3 else (500, {}, b"")
    with pytest.raises(RunError):
        encoder(cache=path, batch_size=2, concurrency=1)(TEXTS)
    server.behave = lambda vectors, number: vectors
    server.requests.clear()
    np.testing.assert_array_equal(encoder(cache=path)(TEXTS), expected(TEXTS))
    assert set(server.sent()) == set(TEXTS[6:])


PROGRAM = """
import sys
from pathlib import Path
from embed_jax.remote.endpoint import EmbeddingEndpoint, endpoint_encoder
url, cache = sys.argv[1], Path(sys.argv[2])
endpoint = EmbeddingEndpoint("openai", "some-model", base_url=url)
encode = endpoint_encoder(endpoint, cache=cache, batch_size=1)
encode([f"text {n}" for n in range(500)])
"""


def test_a_killed_process_loses_nothing_that_it_kept(encoder, server, tmp_path):
    path = tmp_path / "cache"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, f"{server.base}/v1", path], cwd=ROOT, env=os.environ
    )
    while len(server.requests) < 40:
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with path.open("ab") as file:  # as if it had been in the middle of a line
        file.write(b"0123456789abcdef0123456789abcdef AAAA")
    whole = path.read_bytes().count(b"\n")
    assert 0 < whole < 500
    server.requests.clear()
    texts = [f"text {n}" for n in range(500)]
    np.testing.assert_array_equal(encoder(cache=path)(texts), expected(texts))
    assert len(set(server.sent())) == 500 - whole  # a request of the killed one may have come late


def test_a_cache_cut_or_damaged_anywhere_holds_the_other_lines(tmp_path):
    path = tmp_path / "cache"
    keys = [f"{n:032x}" for n in range(4)]
    vectors = expected(keys[:3])
    VectorCache(path).add(keys[:3], vectors)
    whole = path.read_bytes()
    length = len(whole) // 3

    def check(content, there):
        path.write_bytes(content)
        for _ in range(2):
            cache = VectorCache(path)
            assert [key in cache for key in keys] == there
            for key, vector in itertools.compress(zip(keys, vectors, strict=False), there):
                np.testing.assert_array_equal(cache[key], vector)
            there = [*there[:3], True]
            vectors_of_more = embedding("more")[None]
            cache.add(keys[3:], vectors_of_more)
            np.testing.assert_array_equal(cache[keys[3]], vectors_of_more[0])

    for cut in range(len(whole) + 1):
        check(whole[:cut], [(n + 1) * length <= cut for n in range(3)] + [False])
    for place in range(length, 2 * length - 1):
        check(whole[:place] + b"\0" + whole[place + 1 :], [True, False, True, False])


def test_two_may_add_to_one_cache(tmp_path):
    path = tmp_path / "cache"
    caches = [VectorCache(path), VectorCache(path)]
    keys = [f"{n:032x}" for n in range(40)]
    for key, cache in zip(keys, itertools.cycle(caches), strict=False):
        cache.add([key], embedding(key)[None])
    for number, key in enumerate(keys):
        np.testing.assert_array_equal(caches[number % 2][key], embedding(key))
        np.testing.assert_array_equal(VectorCache(path)[key], embedding(key))


def test_bad_use_is_refused_before_anything_is_sent(encoder, server, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="did you mean 'cohere'"):
        EmbeddingEndpoint("cohre", "m")
    with pytest.raises(InputError, match="base URL"):
        EmbeddingEndpoint("openai", "m", base_url="localhost")
    with pytest.raises(InputError, match="did you mean 'query'"):
        encoder()(TEXTS, kind="querry")
    with pytest.raises(InputError, match="one string"):
        encoder()("text")
    with pytest.raises(InputError, match="no cache can be kept there"):
        encoder(cache=tmp_path / "nowhere" / "cache")
    with pytest.raises(InputError, match="NO_SUCH_KEY is not set"):
        EmbeddingEndpoint("openai", "m", key_variable="NO_SUCH_KEY")
    for interface, form in INTERFACES.items():
        monkeypatch.delenv(form.key_variable)
        with pytest.raises(InputError, match=f"{form.key_variable} is not set"):
            EmbeddingEndpoint(interface, "m")
    assert server.requests == []


def test_a_server_that_is_not_there(monkeypatch):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    encode = endpoint_encoder(
        EmbeddingEndpoint("openai", "m", base_url=url, key_variable=""), retries=FAST
    )
    with pytest.raises(InputError, match="cannot be reached"):
        encode(TEXTS)


def test_half_a_surrogate_pair_is_the_servers_to_judge(encoder):
    assert encoder()(["\ud800", "x"]).shape == (2, OWN_DIM)
