"""Kills writers of a multi-vector index, and looks at what each leaves behind.

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
from embed_jax.retrieval.indexes import open_index
from embed_jax.retrieval.multi_vector import build_multi_vector
from embed_jax.retrieval.residual_codec import ResidualCodec

DIM = 16
MODEL = {"model": "colbert", "prompts": {"query": "[Q] "}}


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


def states():
    """Yields the operations for ever, with the state {number: version} after each."""
    for turn in itertools.count():
        state = {number: turn for number in range(400)}
        yield "build", list(state), dict(state)
        for step in range(6):
            new = list(range(400 + 50 * step, 450 + 50 * step))
            state |= dict.fromkeys(new, turn)
            yield "add", new, dict(state)
            changed = list(state)[step::9]
            state |= dict.fromkeys(changed, 1000 + turn * 10 + step)
            yield "update", changed, dict(state)
            gone = list(state)[step::11]
            state = {name: version for name, version in state.items() if name not in gone}
            yield "delete", gone, dict(state)


def write(path, first, log):
    """Does the operations from number `first` on, and logs each before and after."""
    codec, descriptor = make_codec(), os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number, (action, names, state) in enumerate(itertools.islice(states(), first, None), first):
        documents = [(str(name), tokens_of(name, state.get(name, 0))) for name in names]
        os.write(descriptor, f"start {number}\n".encode())
        if action == "build":
            build_multi_vector(path, documents, identity=MODEL, codec=codec, replace=True)
        else:
            index = open_index(path, MODEL)
            getattr(index, action)(documents if action != "delete" else [n for n, _ in documents])
        os.write(descriptor, f"done {number}\n".encode())


def check(path, state):
    """Tells whether the index has exactly these documents, with these tokens."""
    index = open_index(path, MODEL)
    if sorted(index.ids) != sorted(map(str, state)):
        return False
    codec = make_codec()
    for chunk in index._state.chunks:
        tokens = [tokens_of(int(name), state[int(name)]) for name in chunk.ids]
        if [len(array) for array in tokens] != chunk.lengths.tolist():
            return False
        vectors = np.concatenate(tokens)
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)
        codes, packed = codec.encode(vectors)
        if not (
            (chunk.arrays["codes"] == codes).all() and (chunk.arrays["residuals"] == packed).all()
        ):
            return False
    return True


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


def recover(path, number, log):
    """Finds which of the states before and after operation `number` is there, and logs it."""
    after = [state for _, _, state in itertools.islice(states(), number + 1)]
    try:
        if check(path, after[number]):
            return log.write_text(f"{number + 1}")
        assert number and check(path, after[number - 1]), f"neither state at {number}"
    except InputError as error:
        assert not number and "no index" in str(error), f"at {number}: {error}"
    log.write_text(f"{number}")


def main(path, kills):
    log, state_file = path.with_suffix(".log"), path.with_suffix(".found")
    rng, midst, first = random.Random(0), 0, 0
    for _ in range(kills):
        log.write_text("")
        child = in_child(write, path, first, log)
        time.sleep(rng.uniform(0.1, 0.5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        lines = log.read_text().splitlines()
        if not lines:
            continue
        action, number = lines[-1].split()
        midst += action == "start"
        number = int(number)
        child = in_child(recover, path, number, state_file)
        assert os.waitpid(child, 0)[1] == 0, "the index is in no state that it should be in"
        first = int(state_file.read_text())
        assert first == number + 1 or action == "start", "a finished write is gone"
    print(json.dumps({"kills": kills, "in the midst": midst, "operations": first}))
    child = in_child(write_one, path, first)  # the next writer tidies up
    assert os.waitpid(child, 0)[1] == 0


def write_one(path, first):
    build_multi_vector(
        path, [("a", tokens_of(0, 0))], identity=MODEL, codec=make_codec(), replace=True
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
