"""Bench of mining: time and memory of mining hard negatives by number of queries."""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from embed_jax.errors import require

from .measure import (
    MIB,
    count,
    in_fresh_process,
    make_texts,
    median_ratio,
    peak_growth,
    print_json,
    print_row,
    result,
)
from .peers import PEER, as_peer
from .speed import OURS, open_model

DESCRIPTION = """Time and memory of mining hard negatives, for a quarter of the queries and for all.

Each runs in a fresh process: the corpus is embedded (into a file with --on-disk), queries are
embedded, searched for and dealt their negatives in blocks. "memory" is how far the peak rose
meanwhile, above the model and the texts; by the number of queries it grows by about 1 KB each. "all
similarities" is what the whole matrix would take. With --against, sentence-transformers' own
function mines for all queries too; the two take turns, each in a fresh process."""
EXAMPLES = """examples:
  python -m scripts.bench mining --queries 10000 --passages 100000
  python -m scripts.bench mining --model sentence-transformers/all-MiniLM-L6-v2 --queries 2000 \\
      --passages 20000
  python -m scripts.bench mining --shape minilm-l6 --queries 2000 --passages 5000 \\
      --against sentence-transformers --repeat 3
  python -m scripts.bench mining --strategy bm25 --json"""
NEGATIVES = 4
WIDTHS = (24, 14, 14, 8)
PEER_WIDTHS = (12, 12, len(PEER), 8)


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
    command.add_argument("--against", choices=[PEER], help="compare with mine_hard_negatives there")
    command.add_argument(
        "--repeat", type=count, default=1, help="runs of each side with --against (default: 1)"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    if args.queries < 4:
        return f"--queries: expected 4 or more, found {args.queries}"
    if args.queries > args.passages:
        return f"--queries: expected at most --passages {args.passages}, found {args.queries}"
    if args.against and (args.strategy != "dense" or args.on_disk):
        return "--against: expected --strategy dense without --on-disk"
    return None


def bench_mining(args: argparse.Namespace) -> None:
    names = ("model", "shape", "passages", "words", "strategy", "on_disk", "block", "rank_max")
    options = {name: getattr(args, name) for name in names}
    if args.against:
        _bench_against(args, options)
        return
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


def _bench_against(args: argparse.Namespace, options: dict[str, Any]) -> None:
    """Prints the seconds of both sides, and the memory that each took."""
    require("sentence_transformers")
    require("datasets")
    options |= {"queries": args.queries}
    sides = ("measure_mining", "measure_peer")
    turns = [
        [in_fresh_process(__name__, side, options) for side in sides] for _ in range(args.repeat)
    ]
    if not args.json:
        print_row(("", OURS, args.against, "ratio"), PEER_WIDTHS)
    for name, unit, parts in (("all", "s", ("corpus", "mining")), ("memory", "MiB", ("memory",))):
        ours, peers = (
            [sum(turn[side][part] for part in parts) for turn in turns] for side in (0, 1)
        )
        ratio = median_ratio(ours, peers) if all(peers) else None
        cells = statistics.median(ours), statistics.median(peers), ratio
        if args.json:
            print_json(result(f"mining/{name}", unit, *cells, args.repeat, against=args.against))
        else:
            print_row((f"{name}, {unit}", *cells), PEER_WIDTHS)


def measure_peer(**options: Any) -> dict[str, float]:
    """Returns what `measure_mining` does, of sentence-transformers' `mine_hard_negatives`."""
    import datasets
    from sentence_transformers.util import mine_hard_negatives

    pairs, corpus = make_pairs(options["queries"], options["passages"], options["words"])
    model = as_peer(open_model(options["model"], options["shape"], 0, "float32"))
    model.encode(corpus[:64])
    began = time.perf_counter()
    grown = peak_growth(
        lambda: mine_hard_negatives(
            datasets.Dataset.from_list(pairs),
            model,
            corpus=corpus,
            num_negatives=NEGATIVES,
            range_max=options["rank_max"],
            verbose=False,
        )
    )
    return {"corpus": 0.0, "mining": time.perf_counter() - began, "memory": grown / MIB}


def make_pairs(queries: int, passages: int, words: float) -> tuple[list[dict[str, str]], list[str]]:
    """Makes pairs whose anchor is the beginning of their passage, and all passages."""
    corpus = [f"{text} n{number}" for number, text in enumerate(make_texts(passages, words))]
    chosen = np.random.default_rng(0).choice(passages, queries, replace=False)
    pairs = [
        {"anchor": " ".join(corpus[row].split()[:6]), "positive": corpus[row]} for row in chosen
    ]
    return pairs, corpus


def measure_mining(queries: int, passages: int, words: float, **options: Any) -> dict[str, float]:
    """Returns the seconds of embedding or indexing the corpus and of mining, and MiB.

    The process does nothing else.
    """
    pairs, corpus = make_pairs(queries, passages, words)
    encode = (
        make_encode(options["model"], options["shape"]) if options["strategy"] != "bm25" else None
    )
    seconds = {}
    grown = peak_growth(lambda: seconds.update(mine_all(pairs, corpus, encode, **options)))
    return {**seconds, "memory": grown / MIB, "all similarities": 4 * queries * passages / MIB}


def make_encode(model: str | None, shape: str):
    """Returns the model's `encode`, compiled for the shapes to come."""
    encode = open_model(model, shape, 0, "float32").encode
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
            pairs, corpus, [searcher], Mining(number=NEGATIVES, rank_max=rank_max), block=block
        ):
            pass
        return {"corpus": middle - began, "mining": time.perf_counter() - middle}
