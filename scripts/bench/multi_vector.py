"""Bench of the multi-vector index: building, changing and searching, and its size."""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .measure import (
    MIB,
    count,
    in_fresh_process,
    peak_growth,
    print_json,
    print_row,
    result,
)

DESCRIPTION = """Time, memory, size and recall of an index of token embeddings.

The vectors are generated: tokens of a document lie around its topic and around the words of a
vocabulary in which few words are frequent; a query is some tokens of a document, moved. Each of
building and searching runs in a fresh process; "peak" is how far its memory rose above what it had
before. Recall is of the ten best by exact MaxSim of the vectors as they were before compression,
over the first --exact queries."""
EXAMPLES = """examples:
  python -m scripts.bench multi-vector
  python -m scripts.bench multi-vector --documents 10000 --dim 96 --bits 4 --json
  python -m scripts.bench multi-vector --documents 2000 --probes 32 --candidates 4096"""
WIDTHS = (34, 14)
BLOCK = 256  # documents generated at a time
CHANGED = 100  # documents that are added, and deleted
UNITS = {
    "bytes per document": "B",
    "float16 bytes per document": "B",
    "dense bytes per document": "B",
    "build peak": "MiB",
    "search peak": "MiB",
    "search p50": "ms",
    "search p95": "ms",
    "recall@10": "",
    "centroids": "",
}


def add_options(command: argparse.ArgumentParser) -> None:
    for name, value, text in (
        ("documents", 50_000, "documents"),
        ("tokens", 60, "mean tokens of a document"),
        ("dim", 128, "numbers of a token's embedding"),
        ("queries", 100, "queries, of 32 tokens"),
        ("exact", 20, "queries whose exact results are computed"),
        ("probes", 8, "centroids that each query token looks at"),
        ("candidates", 1024, "documents that are scored by all their tokens"),
    ):
        command.add_argument(
            f"--{name}", type=count, default=value, help=f"{text} (default: %(default)s)"
        )
    command.add_argument(
        "--bits", type=int, choices=[1, 2, 4, 8], default=2, help="of a dimension (default: 2)"
    )
    command.add_argument(
        "--index", help="folder to build the index in; one that is there is only searched"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    if args.dim % 8:
        return f"--dim: expected a multiple of 8, found {args.dim}"
    if args.documents <= CHANGED:
        return f"--documents: expected more than {CHANGED}, found {args.documents}"
    return None


def bench_multi_vector(args: argparse.Namespace) -> None:
    data = {"documents": args.documents, "tokens": args.tokens, "dim": args.dim}
    with tempfile.TemporaryDirectory() as directory:
        path = {"path": args.index or f"{directory}/index"}
        values = {}
        if not (args.index and Path(args.index).exists()):
            options = {**data, **path, "bits": args.bits}
            values = in_fresh_process(__name__, "measure_build", options)
        names = ("queries", "exact", "probes", "candidates")
        options = {name: getattr(args, name) for name in names}
        values |= in_fresh_process(__name__, "measure_search", {**data, **path, **options})
    if not args.json:
        print(
            f"{args.documents:,} documents of {args.tokens} tokens, {args.dim} dimensions, "
            f"{args.bits} bits, {args.probes} probes, {args.candidates} candidates"
        )
    for name, value in values.items():
        unit = UNITS.get(name, "s")
        if args.json:
            details = {**data, "bits": args.bits, **options}
            print_json(result(f"multi-vector/{name}", unit, value, None, None, 1, **details))
        else:
            print_row((f"{name}, {unit}" if unit else name, value), WIDTHS)


def make_documents(
    documents: int, tokens: int, dim: int, first: int = 0
) -> Iterator[tuple[str, np.ndarray]]:
    """Generates documents from number `first` on, which is a multiple of the block.

    The tokens of a number are always the same.
    """
    words, topics = (
        np.random.default_rng(seed).normal(size=(size, dim)).astype(np.float32)
        for seed, size in ((1, 20_000), (2, 1000))
    )
    for start in range(first, documents, BLOCK):
        rng = np.random.default_rng([3, start])
        lengths = np.maximum(rng.lognormal(np.log(tokens) - 0.06, 0.35, BLOCK).astype(int), 1)
        size = int(lengths.sum())
        frequent = np.minimum(rng.zipf(1.2, size) - 1, 10**9) % len(words)
        vectors = words[frequent] + 0.6 * np.repeat(
            topics[rng.integers(0, len(topics), BLOCK)], lengths, axis=0
        )
        vectors += 0.5 * rng.normal(size=vectors.shape).astype(np.float32)
        parts = np.split(vectors, np.cumsum(lengths)[:-1])
        for number, part in zip(range(start, min(start + BLOCK, documents)), parts, strict=False):
            yield f"d{number}", part / np.linalg.norm(part, axis=1, keepdims=True)


def make_queries(queries: int, documents: int, tokens: int, dim: int) -> Iterator[np.ndarray]:
    """Generates queries: 32 tokens drawn from a document, and moved."""
    rng = np.random.default_rng(4)
    for block in rng.integers(0, max(documents // BLOCK, 1), queries):
        start = int(block) * BLOCK
        limit = min(start + BLOCK, documents)
        choice = int(rng.integers(0, limit - start))
        made = itertools.islice(make_documents(limit, tokens, dim, start), choice, None)
        _, vectors = next(made)
        query = vectors[rng.integers(0, len(vectors), 32)]
        query = query + rng.normal(size=query.shape) * 0.6 / np.sqrt(dim)
        yield (query / np.linalg.norm(query, axis=1, keepdims=True)).astype(np.float32)


def measure_build(documents: int, tokens: int, dim: int, path: str, bits: int) -> dict[str, float]:
    """Returns seconds and MiB of building an index and of changing it, and its size."""
    from embed_jax.retrieval import build_multi_vector

    began = time.perf_counter()
    moments = {}

    def progress(stage: str, passed: int) -> None:
        moments[stage] = time.perf_counter()

    def build() -> None:
        build_multi_vector(
            path,
            make_documents(documents, tokens, dim),
            identity={"model": "generated"},
            bits=bits,
            progress=progress,
        )

    peak = peak_growth(build) / MIB
    seconds = {"build": time.perf_counter() - began, "of it, reading": moments["read"] - began}
    seconds |= change(path, documents, tokens, dim)
    return {**seconds, "build peak": peak}


def change(path: str, documents: int, tokens: int, dim: int) -> dict[str, float]:
    """Returns the seconds of opening an index, adding and deleting 100 documents; and its size."""
    from embed_jax.retrieval import open_index

    moments = [time.perf_counter()]
    index = open_index(path)
    size = index.size()
    moments.append(time.perf_counter())
    extra = itertools.islice(make_documents(10**9, tokens, dim, 10**6 * BLOCK), CHANGED)
    index.add((f"new {name}", vectors) for name, vectors in extra)
    moments.append(time.perf_counter())
    index.delete([name for name in index.ids if name.startswith("new ")])
    moments.append(time.perf_counter())
    names = ("open", f"add {CHANGED}", f"delete {CHANGED}")
    seconds = dict(zip(names, np.diff(moments).tolist(), strict=True))
    sizes = {name: value for name, value in size.items() if name.endswith("per document")}
    return {**seconds, **sizes, "centroids": len(index.codec.centroids)}


def measure_search(
    documents: int, tokens: int, dim: int, path: str, queries: int, exact: int, **options: Any
) -> dict[str, float]:
    """Returns milliseconds of a query, MiB, and the share of the exact results that is found."""
    from embed_jax.retrieval import open_index

    made = list(make_queries(queries, documents, tokens, dim))
    milliseconds: list[float] = []
    runs: list[dict[str, float]] = []

    def search() -> None:
        index = open_index(path)
        index.search(made[:5], 10, **options)  # compiles
        for query in made:
            began = time.perf_counter()
            runs.extend(index.search([query], 10, **options))
            milliseconds.append(1000 * (time.perf_counter() - began))

    peak = peak_growth(search) / MIB
    expected = exact_results(made[:exact], documents, tokens, dim)
    shares = [len(run.keys() & names) / 10 for run, names in zip(runs, expected, strict=False)]
    p50, p95 = np.quantile(milliseconds, (0.5, 0.95)).tolist()
    recall = float(np.mean(shares))
    return {"search p50": p50, "search p95": p95, "search peak": peak, "recall@10": recall}


def exact_results(
    queries: list[np.ndarray], documents: int, tokens: int, dim: int
) -> list[set[str]]:
    """Returns the ten documents with the largest MaxSim with each query, by their vectors."""
    every, names, scores = np.concatenate(queries), [], []
    made = make_documents(documents, tokens, dim)
    while block := list(itertools.islice(made, BLOCK)):
        starts = np.cumsum([0, *(len(vectors) for _, vectors in block)])[:-1]
        products = np.concatenate([vectors for _, vectors in block]) @ every.T
        best = np.maximum.reduceat(products, starts).reshape(len(block), len(queries), -1)
        scores.append(best.sum(axis=2))
        names += [name for name, _ in block]
    order = np.argsort(-np.concatenate(scores), axis=0)[:10]
    return [{names[row] for row in rows} for rows in order.T]
