"""Kills writers of indexes of each kind, and looks at what each leaves behind.

    python kill_index.py FOLDER int8=30 binary=30 ivf-pq=30 bm25=30 sparse=30 multi-vector=30 \
        exact=30 hnsw=30

Imports no JAX and calls no FAISS in the process that forks, so that a kill costs milliseconds.
LanceDB runs threads, so its writers are new processes, and it comes last.
"""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
sys.modules["jax"] = None  # bm25s would import it, for a search that is not used here

import bm25s  # noqa: E402, F401 (before the forks)
import faiss  # noqa: E402
import numpy as np  # noqa: E402
import scipy.sparse  # noqa: E402

from embed_jax.errors import InputError  # noqa: E402
from embed_jax.retrieval.indexes import build_index, open_index  # noqa: E402
from embed_jax.retrieval.residual_codec import ResidualCodec  # noqa: E402
from embed_jax.retrieval.words import word_pattern  # noqa: E402

DIM = 16
MODEL = {"model": "m", "prompts": {"query": "[Q] "}}
LANCE = "lance"
OPTIONS = {"ivf-pq": {"factory": "IVF2,PQ4x4"}}


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
    """Returns a document's embedding in the form that an index of the kind takes."""
    tokens = tokens_of(name, version)
    if kind == "multi-vector":
        return tokens
    if kind == "bm25":
        return " ".join(f"w{word}" for word in np.argmax(tokens, axis=1))
    if kind == "sparse":
        return scipy.sparse.csr_array(np.maximum(tokens[:1], 0))
    return tokens[0]


def build(kind, path, documents):
    options = {"codec": make_codec()} if kind == "multi-vector" else OPTIONS.get(kind, {})
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
    if kind == LANCE:
        return has_rows(index, state)
    right = {"multi-vector": has_tokens, "bm25": has_words, "sparse": has_weights}
    for chunk in index._state.chunks:
        made = [embedding_of(kind, int(name), state[int(name)]) for name in chunk.ids]
        if not right.get(kind, has_vectors)(index, chunk, made):
            return False
    return kind != "bm25" or has_matrix(index)


def has_rows(index, state):
    table = index._table.to_arrow()
    vectors = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    made = [embedding_of(LANCE, int(name), state[int(name)]) for name in table["id"].to_pylist()]
    return np.allclose(vectors.reshape(-1, DIM), unit_vectors(made), atol=1e-6)


def unit_vectors(made):
    vectors = np.concatenate([np.atleast_2d(array) for array in made])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def has_tokens(index, chunk, made):
    if [len(array) for array in made] != chunk.lengths.tolist():
        return False
    arrays = chunk.arrays["codes"], chunk.arrays["residuals"]
    encoded = make_codec().encode(unit_vectors(made).astype(np.float16))
    return all((array == other).all() for array, other in zip(arrays, encoded, strict=True))


def has_words(index, chunk, made):
    """Compares the words of each document, by the columns that they have in the matrix."""
    own = [index._state.word_ids(text) for text in made]
    stored = np.split(chunk.arrays["words"], np.cumsum(chunk.lengths)[:-1])
    vocabulary = index._state.vocabulary
    return all(
        np.array_equal(vocabulary[ids], words) for ids, words in zip(own, stored, strict=True)
    )


def has_matrix(index):
    """Compares bm25s' matrix with one that is made of the words that are stored."""
    state = index._state
    with tempfile.TemporaryDirectory() as folder:
        index.finish(Path(folder), state.chunks, state)
        files = [file for file in Path(folder).iterdir() if not file.name.startswith("params")]
        assert len(files) > 2
        return all(file.read_bytes() == (state.folder / file.name).read_bytes() for file in files)


def has_weights(index, chunk, made):
    rows = scipy.sparse.vstack(made, format="csr").astype(np.float32)
    parts = (rows.indices, "words"), (rows.data, "weights"), (np.diff(rows.indptr), None)
    return all(
        np.array_equal(own, chunk.lengths if name is None else chunk.arrays[name])
        for own, name in parts
    )


def has_vectors(index, chunk, made):
    """Looks at the vectors by id, and at those that FAISS has under their numbers."""
    vectors, serials = unit_vectors(made), chunk.arrays["serials"]
    if not np.allclose(chunk.arrays["vectors"], vectors, atol=1e-6):
        return False
    known = index._state.faiss_index
    if known is None:
        return True
    if isinstance(known, faiss.IndexBinary):
        codes = faiss.vector_to_array(known.xb).reshape(-1, known.code_size)
        return (codes[serials] == np.packbits(vectors > 0, axis=1)).all()
    if isinstance(known, faiss.IndexIVF):
        known.make_direct_map()
    if not isinstance(known, faiss.IndexHNSW):  # codes
        vectors = known.sa_decode(known.sa_encode(vectors))
    return np.allclose(known.reconstruct_batch(serials), vectors, atol=1e-6)


def in_child(function, *args):
    """Runs a function in a child process, and returns its id."""
    if args[0] == LANCE:
        command = [sys.executable, __file__, "call", function.__name__, *map(str, args)]
        return subprocess.Popen(command).pid
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
    word_pattern()  # is remembered, and takes a tenth of a second
    killed = dict.fromkeys(("build", "add", "update", "delete"), 0)  # in the midst of them
    for _ in range(kills):
        log.write_text("")
        child = in_child(write, kind, path, first, log)
        if kind == LANCE:
            wait(log, 1, 0)  # it imports
        wait(log, rng.randrange(1, 6), rng.uniform(0, 1.2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        event, number = log.read_text().splitlines()[-1].split()
        number = int(number)
        if event == "start":
            killed[next(itertools.islice(states(), number, None))[0]] += 1
        if kind == LANCE:  # nothing is forked any more
            recover(kind, path, number, state_file)
        else:
            child = in_child(recover, kind, path, number, state_file)
            assert os.waitpid(child, 0)[1] == 0, "the index is in no state that it should be in"
        first = int(state_file.read_text())
        assert first == number + 1 or event == "start", "a finished write is gone"
    counts = {"kind": kind, "kills": kills, "in the midst of": killed, "operations": first}
    print(json.dumps(counts), flush=True)
    documents = [(str(name), embedding_of(kind, name, 0)) for name in range(20)]
    if kind == LANCE:
        return build(kind, path, documents)
    child = in_child(build, kind, path, documents)  # the next writer tidies up
    assert os.waitpid(child, 0)[1] == 0


if __name__ == "__main__":
    if sys.argv[1] == "call":
        write(sys.argv[3], Path(sys.argv[4]), int(sys.argv[5]), Path(sys.argv[6]))
    for argument in sorted(sys.argv[2:], key=lambda text: text.startswith(LANCE)):
        kind, _, kills = argument.partition("=")
        drill(kind, Path(sys.argv[1]) / kind, int(kills))
