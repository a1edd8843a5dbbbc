"""Indexes in an object store, by functions and commands; moto's server stands in for S3."""

import json
import os
import socket
import subprocess
import time
import urllib.request

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval.indexes import build_index, index_exists, open_index
from embed_jax.retrieval.search import Pipeline, index_retriever
from embed_jax.scores import unit_length
from scripts import index as index_command
from scripts.search import __main__ as search_command

pytest.importorskip("lancedb")
pytestmark = pytest.mark.skipif("MOTO_PYTHON" not in os.environ, reason="needs moto, by itself")
MODEL = {"model": "m"}
VECTORS = np.asarray(unit_length(np.random.default_rng(0).normal(size=(30, 16))), np.float32)
DOCUMENTS = [(f"d{n}", VECTORS[n], f"text {n}", {"year": n % 5}) for n in range(20)]


@pytest.fixture(scope="module")
def bucket():
    """Returns the address of a bucket on loopback; see .ci/object_store."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    command = [os.environ["MOTO_PYTHON"], "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    server = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    settings = {
        "AWS_ENDPOINT": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    try:
        wait_for(server, port)
        request = urllib.request.Request(f"{endpoint}/bucket", method="PUT")
        urllib.request.urlopen(request).close()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in settings.items():
                patch.setenv(name, value)
            yield "s3://bucket"
    finally:
        server.kill()
        server.wait()


def wait_for(server, port):
    """Waits until a process listens."""
    while server.poll() is None:
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
    pytest.fail(f"the server ended with status {server.returncode}")


def test_the_life_of_an_index(bucket):
    path = f"{bucket}/life"
    assert not index_exists(path)
    with pytest.raises(InputError, match="no index, or its first build"):
        open_index(path)
    build_index(path, DOCUMENTS, identity=MODEL, kind="lance", store_texts=True)
    with pytest.raises(InputError, match="holds an index already"):
        build_index(path, DOCUMENTS, identity=MODEL, kind="lance")
    with pytest.raises(InputError, match="model was 'm', is 'n'"):
        open_index(path, {"model": "n"})
    index, reader = open_index(path, MODEL), open_index(path, MODEL)
    assert index_exists(path) and len(index) == 20 and index.texts(["d3"]) == ["text 3"]
    scores = VECTORS[:20] @ VECTORS[25]
    (hits,) = index.search(VECTORS[25:26], 3)
    assert list(hits) == [f"d{n}" for n in np.argsort(-scores)[:3]]
    np.testing.assert_allclose(list(hits.values()), np.sort(scores)[::-1][:3], atol=1e-6)
    (hits,) = index.search(VECTORS[25:26], 20, where={"year": 2}, allowed=["d2", "d7", "d8"])
    assert hits.keys() == {"d2", "d7"}

    before = index.version()
    index.add([("new", VECTORS[20], "new", {"year": 9})])
    index.update([("d0", VECTORS[21], "changed", {"year": 8})])
    index.delete(["d1"])
    assert index.version() != before and len(reader) == 20, "a reader keeps its state"

    def broken():
        yield "d50", VECTORS[22]
        raise InputError("the corpus ends here")

    with pytest.raises(InputError, match="the corpus ends here"):
        index.add(broken())
    again = open_index(path, MODEL)
    assert set(again.ids) == {"new", "d0", *(f"d{n}" for n in range(2, 20))}
    assert again.fields("d0") == {"year": 8} and again.size()["documents"] == 20
    changes = again.changes({"d0": "changed", "d2": "other", "d3": "text 3", "d99": "x"})
    assert (changes.added, changes.updated, len(changes.deleted)) == (["d99"], ["d2"], 17)


def test_a_served_index_is_not_searched_after_another_process_changed_it(bucket):
    pytest.importorskip("starlette")
    from embed_jax.serve.fields import Refused
    from embed_jax.serve.searches import ServedSearch

    path = f"{bucket}/served"
    build_index(path, DOCUMENTS, identity=MODEL, kind="lance", store_texts=True)
    index = open_index(path)
    retriever = index_retriever(index, lambda queries: VECTORS[: len(queries)])
    served = ServedSearch(Pipeline({"dense": retriever}, index.texts), {"dense": index})
    (stages,) = served.search(False, ["any"])
    assert next(iter(stages["dense"])) == "d0"
    open_index(path).delete(["d0"])
    with pytest.raises(Refused, match="was changed since it was opened"):
        served.search(False, ["any"])


def test_commands_take_an_address(run, bucket, tiny_model, tmp_path):
    corpus, output = tmp_path / "corpus.jsonl", f"{bucket}/deep/dense"
    texts = ["the cat and the dog", "a red house", "music"]
    lines = [json.dumps({"_id": f"é{n}", "text": text}) for n, text in enumerate(texts)]
    corpus.write_text("\n".join(lines))
    arguments = ("--corpus", corpus, "--model", tiny_model, "--kind", "lance", "--output", output)
    status, out, err = run(index_command, *arguments)
    assert status == 0 and f"{output}: 3 documents" in out, err
    corpus.write_text("\n".join(lines[1:]))
    status, out, err = run(index_command, *arguments)
    assert status == 0 and "0 added, 0 updated, 1 deleted" in out, err
    status, out, err = run(search_command, "--index", output, "the cat and the dog", "--k", 2)
    assert status == 0 and {line.split()[1] for line in out.splitlines()[1:3]} == {"é1", "é2"}, err
    status, _, err = run(index_command, *arguments[:-1], "s3://nobody/x")
    assert status == 2 and err.count("\n") == 1 and "The specified bucket does not exist" in err
