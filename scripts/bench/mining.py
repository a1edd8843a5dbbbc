"""Bench of mining: time and memory of mining hard negatives by number of queries."""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from .measure import (
    MIB,
    count,
    in_fresh_process,
    make_texts,
    peak_growth,
    print_json,
    print_row,
    random_model,
    result,
)

DESCRIPTION = """Time and memory of mining hard negatives, for a quarter of the queries and for all.

Each runs in a fresh process: the corpus is embedded (into a file with --on-disk), queries are
embedded, searched for and dealt their negatives in blocks. "memory" is how far the peak rose
meanwhile, above the model and the texts; by the number of queries it grows by about 1 KB each. "all
similarities" is what the whole matrix would take."""
EXAMPLES = """examples:
  python -m scripts.bench mining --queries 10000 --passages 100000
  python -m scripts.bench mining --model sentence-transformers/all-MiniLM-L6-v2 --queries 2000 \\
      --passages 20000
  python -m scripts.bench mining --strategy bm25 --json"""
WIDTHS = (24, 14, 14, 8)


def add_options(command: argparse.ArgumentParser) -> None:
    weights = command.add_mutually_exclusive_group()
    weights.add_argument("--model", help="directory or hub name")
    weights.add_argument(
        "--shape", default="tiny", help="shape of random weights (default: %(default)s)"
    )
    command.add_argument(
        "--queries", type=count, default=10_000, help="pairs (default: %(default)s)"
    )
    command.add_argument(
        "--passages", type=count, default=100_000, help="passages (default: %(default)s)"
    )
    command.add_argument(
        "--words", type=float, default=20.0, help="median words of a passage (default: %(default)s)"
    )
    command.add_argument(
        "--strategy", choices=["dense", "faiss", "bm25"], default="dense", help="(default: dense)"
    )
    command.add_argument(
        "--on-disk", action="store_true", help="the corpus' embeddings are in a file"
    )
    command.add_argument(
        "--block", type=count, default=1024, help="queries per search (default: %(default)s)"
    )
    command.add_argument(
        "--rank-max", type=count, default=100, help="candidates per query (default: %(default)s)"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    if args.queries < 4:
        return f"--queries: expected 4 or more, found {args.queries}"
    if args.queries > args.passages:
        return f"--queries: expected at most --passages {args.passages}, found {args.queries}"
    return None


def bench_mining(args: argparse.Namespace) -> None:
    names = ("model", "shape", "passages", "words", "strategy", "on_disk", "block", "rank_max")
    options = {name: getattr(args, name) for name in names}
    if not args.json:
        print(
            f"{args.queries:,} pairs, {args.passages:,} passages, {args.strategy}, "
            f"{args.model or args.shape}"
        )
        print_row(("", f"{args.queries // 4:,} pairs", f"{args.queries:,} pairs", "ratio"), WIDTHS)
    few, all = (
        in_fresh_process(__name__, "measure_mining", {"queries": queries, **options})
        for queries in (args.queries // 4, args.queries)
    )
    for name, unit in (
        ("corpus", "s"),
        ("mining", "s"),
        ("memory", "MiB"),
        ("all similarities", "MiB"),
    ):
        ratio = all[name] / few[name] if few[name] else None
        if args.json:
            details = {
                "queries": args.queries,
                "passages": args.passages,
                "strategy": args.strategy,
            }
            print_json(result(f"mining/{name}", unit, all[name], few[name], ratio, 1, **details))
        else:
            print_row((f"{name}, {unit}", few[name], all[name], ratio), WIDTHS)


def measure_mining(queries: int, passages: int, words: float, **options: Any) -> dict[str, float]:
    """Returns the seconds of embedding or indexing the corpus and of mining, and MiB.

    The process does nothing else.
    """
    corpus = [f"{text} n{number}" for number, text in enumerate(make_texts(passages, words))]
    chosen = np.random.default_rng(0).choice(passages, queries, replace=False)
    # A query is the beginning of its passage.
    pairs = [
        {"anchor": " ".join(corpus[row].split()[:6]), "positive": corpus[row]} for row in chosen
    ]
    encode = (
        make_encode(options["model"], options["shape"]) if options["strategy"] != "bm25" else None
    )
    seconds = {}
    grown = peak_growth(lambda: seconds.update(mine_all(pairs, corpus, encode, **options)))
    return {**seconds, "memory": grown / MIB, "all similarities": 4 * queries * passages / MIB}


def make_encode(model: str | None, shape: str):
    """Returns the model's `encode`, compiled for the shapes to come."""
    if model:
        from embed_jax.sentence import load_sentence_encoder

        encode = load_sentence_encoder(model).encode
    else:
        encode = random_model(shape).encode
    encode(make_texts(64, 10.0))
    return encode


def mine_all(
    pairs, corpus, encode, strategy: str, on_disk: bool, block: int, rank_max: int, **rest
) -> dict[str, float]:
    from embed_jax.retrieval.mine import (
        bm25_searcher,
        dense_searcher,
        faiss_searcher,
        mine_negatives,
    )
    from embed_jax.retrieval.mining_candidates import Mining

    with tempfile.TemporaryDirectory() as directory:
        began = time.perf_counter()
        searcher: Any
        if strategy == "bm25":
            searcher = bm25_searcher(corpus)
        else:
            make = dense_searcher if strategy == "dense" else faiss_searcher
            searcher = make(
                encode, encode, corpus, store=Path(directory) / "corpus.npy" if on_disk else None
            )
        middle = time.perf_counter()
        for _ in mine_negatives(
            pairs, corpus, [searcher], Mining(number=4, rank_max=rank_max), block=block
        ):
            pass
        return {"corpus": middle - began, "mining": time.perf_counter() - middle}
