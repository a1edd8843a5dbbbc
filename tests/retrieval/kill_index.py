"""Kills writers of indexes of each kind, and looks at what each leaves behind.

    python kill_index.py FOLDER multi-vector=40 exact=15 hnsw=15

Imports no JAX and calls no FAISS in the process that forks, so that a kill costs milliseconds.
"""

import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import numpy as np

from embed_jax.errors import InputError
from embed_jax.retrieval.indexes import build_index, open_index
from embed_jax.retrieval.residual_codec import ResidualCodec

DIM = 16
MODEL = {"model": "m", "prompts": {"query": "[Q] "}}


def make_codec():
    rng = np.random.default_rng(0)
    centroids = rng.normal(size=(64, DIM))
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    weights = np.linspace(-0.6, 0.6, 4).astype(np.float32)
    cutoffs = (weights[1:] + weights[:-1]) / 2
    return ResidualCodec(
        2, centroids.astype(np.float16), cutoffs, weights, np.zeros(DIM, np.float32), 0.0
    )


def tokens_of(name, version):
    rng = np.random.default_rng([name, version])
    return rng.normal(size=(rng.integers(1, 30), DIM)).astype(np.float32)


def embedding_of(kind, name, version):
    """Returns the tokens of a document, or its one vector."""
    tokens = tokens_of(name, version)
    return tokens if kind == "multi-vector" else tokens[0]


def build(kind, path, documents):
    options = {"codec": make_codec()} if kind == "multi-vector" else {}
    build_index(path, documents, identity=MODEL, kind=kind, replace=True, **options)


def states():
    """Yields the operations for ever, with the state {number: version} after each."""
    for turn in itertools.count():
        state = {number: turn for number in range(120)}
        yield "build", list(state), dict(state)
        for step in range(2):
            new = list(range(120 + 30 * step, 150 + 30 * step))
            state |= dict.fromkeys(new, turn)
            yield "add", new, dict(state)
            changed = list(state)[step::9]
            state |= dict.fromkeys(changed, 1000 + turn * 10 + step)
            yield "update", changed, dict(state)
            gone = list(state)[step::11]
            state = {name: version for name, version in state.items() if name not in gone}
            yield "delete", gone, dict(state)


def write(kind, path, first, log):
    """Does the operations from number `first` on, and logs each before and after."""
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number, (action, names, state) in enumerate(itertools.islice(states(), first, None), first):
        documents = [(str(name), embedding_of(kind, name, state.get(name, 0))) for name in names]
        os.write(descriptor, f"start {number}\n".encode())
        if action == "build":
            build(kind, path, documents)
        else:
            index = open_index(path, MODEL)
            getattr(index, action)(documents if action != "delete" else [n for n, _ in documents])
        os.write(descriptor, f"done {number}\n".encode())


def check(kind, path, state):
    """Tells whether the index has exactly these documents, each once, with these embeddings."""
    index = open_index(path, MODEL)
    if sorted(index.ids) != sorted(map(str, state)):
        return False
    for chunk in index._state.chunks:
        made = [embedding_of(kind, int(name), state[int(name)]) for name in chunk.ids]
        vectors = np.concatenate([np.atleast_2d(array) for array in made])
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        right = has_tokens if kind == "multi-vector" else has_vectors
        if not right(index, chunk, made, vectors):
            return False
    return True


def has_tokens(index, chunk, made, vectors):
    if [len(array) for array in made] != chunk.lengths.tolist():
        return False
    arrays = chunk.arrays["codes"], chunk.arrays["residuals"]
    encoded = make_codec().encode(vectors.astype(np.float16))
    return all((array == other).all() for array, other in zip(arrays, encoded, strict=True))


def has_vectors(index, chunk, made, vectors):
    """Looks at the vectors by id, and at those that FAISS has under their numbers."""
    arrays = [chunk.arrays["vectors"]]
    if index._state.faiss_index is not None:
        arrays.append(index._state.faiss_index.reconstruct_batch(chunk.arrays["serials"]))
    return all(np.allclose(array, vectors, atol=1e-6) for array in arrays)


def in_child(function, *args):
    """Runs a function in a child process, and returns its id."""
    child = os.fork()
    if child:
        return child
    try:
        function(*args)
        os._exit(0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)


def recover(kind, path, number, log):
    """Finds which of the states before and after operation `number` is there, and logs it."""
    after = [state for _, _, state in itertools.islice(states(), number + 1)]
    try:
        if check(kind, path, after[number]):
            return log.write_text(f"{number + 1}")
        assert number and check(kind, path, after[number - 1]), f"neither state at {number}"
    except InputError as error:
        assert not number and "no index" in str(error), f"at {number}: {error}"
    log.write_text(f"{number}")


def wait(log, operations, share):
    """Waits until that number of operations has begun, then for a share of what each took."""
    begin = time.monotonic()
    while log.read_text().count("start") < operations:
        assert time.monotonic() - begin < 60, "the writer does not write"
        time.sleep(0.002)
    time.sleep(share * (time.monotonic() - begin) / operations)


def drill(kind, path, kills):
    log, state_file = path.with_suffix(".log"), path.with_suffix(".found")
    rng, first = random.Random(0), 0
    killed = dict.fromkeys(("build", "add", "update", "delete"), 0)  # in the midst of them
    for _ in range(kills):
        log.write_text("")
        child = in_child(write, kind, path, first, log)
        wait(log, rng.randrange(1, 6), rng.uniform(0, 1.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        event, number = log.read_text().splitlines()[-1].split()
        number = int(number)
        if event == "start":
            killed[next(itertools.islice(states(), number, None))[0]] += 1
        child = in_child(recover, kind, path, number, state_file)
        assert os.waitpid(child, 0)[1] == 0, "the index is in no state that it should be in"
        first = int(state_file.read_text())
        assert first == number + 1 or event == "start", "a finished write is gone"
    counts = {"kind": kind, "kills": kills, "in the midst of": killed, "operations": first}
    print(json.dumps(counts), flush=True)
    documents = [(str(name), embedding_of(kind, name, 0)) for name in range(20)]
    child = in_child(build, kind, path, documents)  # the next writer tidies up
    assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        kind, _, kills = argument.partition("=")
        drill(kind, Path(sys.argv[1]) / kind, int(kills))
