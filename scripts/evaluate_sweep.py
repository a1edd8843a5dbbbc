"""Retrieval quality, bytes and speed of compressed embeddings: dimension x precision x search, for evaluate --sweep."""

from __future__ import annotations

import argparse
import contextlib
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, RunError, require

from .commands import PICTURES, Parser, check_picture, print_table, written_whole
from .sweep_rows import (
    METRIC,
    SEARCHES,
    Measured,
    Setting,
    as_json,
    cheapest,
    described,
    table,
)

K = 10
REPEATS, SECONDS = 7, 0.3  # a search is timed so often at least, and so long
ORIGINALS = ("int8", "float32")


def add_arguments(parser: Parser) -> Any:
    """The options of a sweep, with their defaults."""
    group = parser.add_argument_group("sweep")
    group.add_argument(
        "--sweep",
        action="store_true",
        help="retrieval: quality, bytes and speed of compressed embeddings, in a table",
    )
    group.add_argument(
        "--dims",
        help="numbers kept of each embedding, such as 384,256,128 (default: all, and the sizes that a Matryoshka "
        "model was trained for)",
    )
    group.add_argument(
        "--precisions",
        default="float32,int8,int4,binary",
        help="float32, int8, uint8, int4, binary, ubinary, pq<bytes of a code> (default: %(default)s)",
    )
    group.add_argument(
        "--search",
        default="symmetric,asymmetric",
        help="queries compressed as the documents are, or float queries against compressed documents (default: both)",
    )
    group.add_argument(
        "--rescore",
        default="0,4",
        help="0: no; N: N times 10 candidates scored again, float query against the codes; N:int8, N:float32: against "
        "embeddings stored beside the codes (default: 0,4)",
    )
    group.add_argument(
        "--keep",
        type=float,
        default=0.95,
        help="share of full quality that is enough to recommend (default: 0.95)",
    )
    group.add_argument(
        "--threads", type=int, default=2, help="threads that FAISS searches with (default: 2)"
    )
    group.add_argument("--plot", type=Path, help=f"picture of the table ({', '.join(PICTURES)})")
    return group


def check_arguments(args: argparse.Namespace, parser: Parser) -> None:
    """Ends with one line for options that no sweep can have; makes lists of those that are lists."""
    if not 0 < args.keep <= 1:
        parser.error(f"--keep: expected a share above 0, at most 1, found {args.keep}")
    if args.threads < 1:
        parser.error(f"--threads: expected 1 or more, found {args.threads}")
    check_picture(parser, "--plot", args.plot)
    dims = args.dims.split(",") if args.dims else []
    if not all(dim.isdecimal() and int(dim) > 0 for dim in dims):
        parser.error(
            f"--dims: expected numbers from 1 up, separated by commas, found {args.dims!r}"
        )
    args.dims = [int(dim) for dim in dict.fromkeys(dims)]
    args.precisions = list(dict.fromkeys(args.precisions.split(",")))
    searches = args.search.split(",")
    if not set(searches) <= set(SEARCHES):
        parser.error(f"--search: expected {' or '.join(SEARCHES)} or both, found {args.search!r}")
    args.search = [search == "asymmetric" for search in searches]
    args.rescore = [_rescoring(entry, parser) for entry in dict.fromkeys(args.rescore.split(","))]
    require("faiss")
    if args.plot:
        require("matplotlib")


def _rescoring(entry: str, parser: Parser) -> tuple[int, str | None]:
    number, _, originals = entry.partition(":")
    if not number.isdecimal() or (originals and (originals not in ORIGINALS or not int(number))):
        parser.error(f"--rescore: expected numbers such as 0,4,4:int8,4:float32, found {entry!r}")
    return int(number), originals or None


def trained_sizes(model: Any) -> list[int]:
    """The whole size of a model's embeddings, and those that it was trained for, the largest first."""
    return sorted({model.dim, *getattr(model, "matryoshka_dims", ())}, reverse=True)


def settings(args: argparse.Namespace, dim: int) -> list[Setting]:
    """float32 at the model's dimension, `dim`, and every combination that is a search of its own.

    Left out: other searches of float32, and rescoring with what the scores come from already.

    Raises:
        InputError: for a dimension above the model's, or a precision that a dimension cannot have.
    """
    from embed_jax.retrieval.calibration import check_precision

    found = [Setting(dim, "float32")]
    if max(args.dims, default=1) > dim:
        raise InputError(
            f"--dims: expected 1 to {dim}, the size of the model's embeddings, found {max(args.dims)}"
        )
    for kept in args.dims or [dim]:
        for precision in args.precisions:
            check_precision(precision, kept)
            for asymmetric, (rescore, originals) in itertools.product(args.search, args.rescore):
                if precision == "float32":
                    found.append(Setting(kept, precision))
                elif originals != precision and (originals or not (rescore and asymmetric)):
                    found.append(Setting(kept, precision, asymmetric, rescore, originals))
    return list(dict.fromkeys(found))


def sweep(
    args: argparse.Namespace, model: Any, encode_queries: Any, encode_corpus: Any, task: Any
) -> dict[str, Any]:
    """Encodes once, measures every setting, prints the table and draws the picture; returns what is written as JSON."""
    import faiss
    import numpy as np

    from embed_jax.evals.retrieval import check_qrels
    from embed_jax.scores import unit_length

    corpus, queries, qrels = task
    check_qrels(corpus, queries, qrels, ignore_identical_ids=args.ignore_identical_ids)
    args.dims = args.dims or trained_sizes(model)
    chosen = settings(args, model.dim)
    with written_whole(args.plot) if args.plot else contextlib.nullcontext() as picture:
        documents, asked = (
            encode_corpus(list(corpus.values())),
            encode_queries([queries[query] for query in qrels]),
        )
        if not (np.isfinite(documents).all() and np.isfinite(asked).all()):
            raise RunError("the model gives embeddings with numbers that are not finite")
        if model.similarity_fn_name == "cosine":
            documents, asked = unit_length(documents), unit_length(asked)
        faiss.omp_set_num_threads(args.threads)
        rows = measure(documents, asked, list(corpus), qrels, chosen, args.ignore_identical_ids)
        if args.plot:
            from .sweep_plot import plot_sweep

            plot_sweep(rows, args.keep, args.data, picture, args.plot.suffix[1:])
    best = cheapest(rows, args.keep)
    print(f"{args.data}: {len(qrels)} queries, {len(corpus)} documents")
    print_table(*table(rows))
    print(
        f"queries/s: {len(qrels)} queries at once, their {K} best, {args.threads} threads; median of {REPEATS} or more "
        "after a warm-up; texts are embedded before. Ranges and centres take further bytes, once"
    )
    print(f"cheapest that keeps {100 * args.keep:g} % of the quality of float32: {described(best)}")
    return {
        "metrics": {METRIC: rows[0].quality},
        "intervals": {METRIC: rows[0].interval},
        "sweep": [as_json(row, rows) for row in rows],
        "keep": args.keep,
        "recommended": as_json(best, rows),
        "timing": {"threads": args.threads, "queries": len(qrels), "k": K},
    }


def measure(
    documents: Any,
    queries: Any,
    names: Sequence[str],
    qrels: Mapping[str, Mapping[str, int]],
    chosen: Sequence[Setting],
    ignore_identical_ids: bool = False,
) -> list[Measured]:
    """Each of the settings, in their order; shares are of the quality of the first.

    Args:
        documents, queries: float embeddings, [N, D] and [Q, D], in the order of `names` and of `qrels`.

    Raises:
        InputError: if the first finds nothing, or the documents are too few to calibrate on.
    """
    from embed_jax.evals.metrics import bootstrap_interval
    from embed_jax.evals.retrieval import score_run
    from embed_jax.retrieval.calibration import SAMPLE, calibrate
    from embed_jax.retrieval.compressed import CompressedIndex
    from embed_jax.retrieval.quantize import compress
    from embed_jax.sentence import truncate

    def prefix(embeddings, dim):
        return truncate(embeddings, dim) if dim < embeddings.shape[1] else embeddings

    @functools.lru_cache(
        maxsize=len(ORIGINALS) + 1
    )  # what is stored beside serves several settings
    def compressed(dim, precision):
        cut = prefix(documents, dim)
        return compress(cut, precision, calibrate(cut[:: -(-len(cut) // SAMPLE)], precision))

    found: list[Measured] = []
    for (dim, precision), group in itertools.groupby(
        chosen, lambda setting: (setting.dim, setting.precision)
    ):
        index, asked = CompressedIndex(compressed(dim, precision)), prefix(queries, dim)
        for setting in group:
            originals = compressed(dim, setting.originals) if setting.originals else None
            options = {
                "asymmetric": setting.asymmetric,
                "rescore": setting.rescore,
                "originals": originals,
            }
            seconds, (_, rows) = timed(
                functools.partial(index.search, asked, K + ignore_identical_ids, **options)
            )
            run = {
                query: {
                    names[row]: 0.0
                    for row in own
                    if not (ignore_identical_ids and names[row] == query)
                }
                for query, own in zip(qrels, rows.tolist(), strict=True)
            }
            values = score_run(run, qrels, ks=(K,)).per_query[METRIC]
            quality = float(values.mean())
            if not found and not quality:
                raise InputError(
                    f"{METRIC} of the embeddings as they are is 0: there is nothing to keep a share of"
                )
            found.append(
                Measured(
                    setting,
                    quality,
                    bootstrap_interval(len(values), lambda i, v=values: float(v[i].mean())),
                    quality / (found[0].quality if found else quality),
                    index.bytes_per_vector,
                    originals.bytes_per_vector if originals else 0,
                    index.bytes_once,
                    len(queries) / seconds,
                )
            )
    return found


def timed(search: Callable[[], Any]) -> tuple[float, Any]:
    """The median seconds of a search, and what it found."""
    found, seconds = search(), []
    while len(seconds) < REPEATS or sum(seconds) < SECONDS:
        began = time.perf_counter()
        search()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), found
