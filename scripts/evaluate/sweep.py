"""Retrieval quality, bytes and speed of compressed embeddings: evaluate sweep."""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, RunError, require
from embed_jax.evals.sweep import (
    METRIC,
    ORIGINALS,
    REPEATS,
    SEARCHES,
    K,
    as_json,
    cheapest,
    measure,
    settings,
    table,
    trained_sizes,
)
from embed_jax.evals.sweep import described as describe_row
from embed_jax.evals.token_sweep import compressed_tokens_table, measure_tokens
from embed_jax.retrieval.residual_codec import BITS

from ..commands import PICTURES, OneLineParser, check_picture, load_model, print_table, whole_file
from . import embedders
from .data import add_search_arguments, describe_evaluation


def add_arguments(parser: OneLineParser) -> Callable[[argparse.Namespace], None]:
    """Adds the options of the command, and returns a function that checks them and splits lists."""
    add_search_arguments(parser)
    parser.add_argument(
        "--dims",
        help="numbers kept of each embedding, such as 384,256,128 (default: all, and the sizes "
        "that a Matryoshka "
        "model was trained for)",
    )
    parser.add_argument(
        "--precisions",
        default="float32,int8,int4,binary",
        help="float32, int8, uint8, int4, binary, ubinary, pq<bytes of a code> (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--search",
        default="symmetric,asymmetric",
        help="queries compressed as the documents are, or float queries against compressed "
        "documents (default: both)",
    )
    parser.add_argument(
        "--rescore",
        default="0,4",
        help="0: no; N: N times 10 candidates scored again, float query against the codes; "
        "N:int8, N:float32: against "
        "embeddings stored beside the codes (default: 0,4)",
    )
    parser.add_argument(
        "--bits",
        default="1,2,4,8",
        help="of late interaction: bits of a dimension of a residual (default: %(default)s)",
    )
    parser.add_argument(
        "--pool",
        default="1,2,3,4",
        help="of late interaction: about one vector for this number of tokens (default: "
        "%(default)s)",
    )
    parser.add_argument(
        "--keep",
        type=float,
        default=0.95,
        help="share of full quality that is enough to recommend (default: 0.95)",
    )
    parser.add_argument("--threads", type=int, default=2, help="threads of FAISS (default: 2)")
    parser.add_argument("--plot", type=Path, help=f"picture of the table ({', '.join(PICTURES)})")
    embedders.add_arguments(parser)

    def check(args: argparse.Namespace) -> None:
        embedders.check_arguments(args, parser)
        if args.dim:
            parser.error("a sweep takes several sizes: --dims instead of --dim")
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
        bits, factors = args.bits.split(","), args.pool.split(",")
        if not set(bits) <= set(map(str, BITS)):
            known = ",".join(map(str, BITS))
            parser.error(f"--bits: expected some of {known}, found {args.bits!r}")
        if not all(_is_factor(factor) for factor in factors):
            parser.error(f"--pool: expected numbers from 1 up, such as 1,2,4, found {args.pool!r}")
        args.bits = [int(number) for number in dict.fromkeys(bits)]
        args.pool = [float(factor) for factor in dict.fromkeys(factors)]
        searches = args.search.split(",")
        if not set(searches) <= set(SEARCHES):
            parser.error(
                f"--search: expected {' or '.join(SEARCHES)} or both, found {args.search!r}"
            )
        args.search = [search == "asymmetric" for search in searches]
        args.rescore = [
            _rescoring(entry, parser) for entry in dict.fromkeys(args.rescore.split(","))
        ]
        require("faiss")
        if args.plot:
            require("matplotlib")

    return check


def _rescoring(entry: str, parser: OneLineParser) -> tuple[int, str | None]:
    number, _, originals = entry.partition(":")
    if not number.isdecimal() or (originals and (originals not in ORIGINALS or not int(number))):
        parser.error(f"--rescore: expected numbers such as 0,4,4:int8,4:float32, found {entry!r}")
    return int(number), originals or None


def _is_factor(text: str) -> bool:
    try:
        return 1 <= float(text) < float("inf")
    except ValueError:
        return False


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Encodes once, measures every setting, prints a table, draws a picture, returns the JSON."""
    from embed_jax.data.sources import open_retrieval_task
    from embed_jax.late_interaction import LateInteractionEncoder

    task = open_retrieval_task(args.data, args.split)
    model = load_model(args.model, args.compute_dtype)
    if isinstance(model, LateInteractionEncoder):
        return _run_tokens(args, model, task)
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise InputError(
            f"{args.model}: a sweep is for similarity cosine or dot, found "
            f"{model.similarity_fn_name!r}"
        )
    options = embedders.read_options(args)
    chosen = settings(
        model.dim, args.dims or trained_sizes(model), args.precisions, args.search, args.rescore
    )
    with whole_file(args.plot) if args.plot else contextlib.nullcontext() as picture:
        rows = sweep(model, options, task, chosen, args.threads, args.ignore_identical_ids)
        if picture is not None:
            from .sweep_plot import plot_sweep

            plot_sweep(rows, args.keep, args.data, picture, args.plot.suffix[1:])
    best = cheapest(rows, args.keep)
    corpus, _, qrels = task
    print(f"{args.data}: {len(qrels)} queries, {len(corpus)} documents")
    print_table(*table(rows))
    print(
        f"queries/s: {len(qrels)} queries at once, their {K} best, {args.threads} threads; "
        f"median of {REPEATS} or more "
        "after a warm-up; texts are embedded before. Ranges and centres take further bytes, once"
    )
    print(
        f"cheapest that keeps {100 * args.keep:g} % of the quality of float32: {describe_row(best)}"
    )
    return describe_evaluation("retrieval", args.model, args.data, args.split, options) | {
        "metrics": {METRIC: rows[0].quality},
        "intervals": {METRIC: rows[0].interval},
        "n": len(qrels),
        "sweep": [as_json(row, rows) for row in rows],
        "keep": args.keep,
        "recommended": as_json(best, rows),
        "timing": {"threads": args.threads, "queries": len(qrels), "k": K},
    }


def _run_tokens(args: argparse.Namespace, model: Any, task: Any) -> dict[str, Any]:
    """Measures an index of token vectors for each number of bits and pooling factor."""
    from embed_jax.evals.search import check_qrels

    if args.plot:
        raise InputError("--plot: the sweep of a late-interaction model has a table only")
    corpus, queries, qrels = task
    check_qrels(corpus, queries, qrels, ignore_identical_ids=args.ignore_identical_ids)
    options = embedders.read_options(args)
    show = {"batch_tokens": args.batch_tokens, "show_progress": sys.stderr.isatty()}
    rows = []
    for row in measure_tokens(
        model.encode_document(
            list(corpus.values()), pool_factor=1.0, prompt_name=args.corpus_prompt_name, **show
        ),
        model.encode_query(
            [queries[query] for query in qrels], prompt_name=args.query_prompt_name, **show
        ),
        list(corpus),
        qrels,
        bits=args.bits,
        factors=args.pool,
        protected=model.texts.protected_tokens,
        normalize=model.texts.normalize_pooled,
        ignore_identical_ids=args.ignore_identical_ids,
    ):
        rows.append(row)
        print(f"pooling {row.pool:g}, {row.bits} bits: {row.quality:.4f}", file=sys.stderr)
    print(f"{args.data}: {len(qrels)} queries, {len(corpus)} documents")
    print_table(*compressed_tokens_table(rows))
    print(
        "difference: from the exact search of all tokens in float16, paired by query, 95 %; ratio: "
        "its bytes over the row's; ms/query: median, the query embedded before"
    )
    return describe_evaluation("retrieval", args.model, args.data, args.split, options) | {
        "metrics": {METRIC: rows[0].quality},
        "intervals": {METRIC: rows[0].interval},
        "n": len(qrels),
        "sweep": [row.as_json() for row in rows],
    }


def sweep(
    model: Any,
    options: embedders.ModelOptions,
    task: Any,
    chosen: Sequence[Any],
    threads: int,
    ignore_identical_ids: bool,
) -> list[Any]:
    """Encodes queries and documents once, and returns what each setting costs and keeps.

    Args:
        model: the model to measure.
        options: how it embeds.
        task: corpus, queries and judgements.
        chosen: the settings, float32 of whole embeddings first.
        threads: that FAISS searches with.
        ignore_identical_ids: whether a document with the query's id is left out.

    Raises:
        RunError: if an embedding is not finite.
    """
    import faiss
    import numpy as np

    from embed_jax.evals.search import check_qrels
    from embed_jax.scores import unit_length

    corpus, queries, qrels = task
    check_qrels(corpus, queries, qrels, ignore_identical_ids=ignore_identical_ids)
    encode_queries, encode_corpus = encoders(options, model)
    documents = encode_corpus(list(corpus.values()))
    embedded_queries = encode_queries([queries[query] for query in qrels])
    if not (np.isfinite(documents).all() and np.isfinite(embedded_queries).all()):
        raise RunError("the model gives embeddings with numbers that are not finite")
    if model.similarity_fn_name == "cosine":
        documents, embedded_queries = unit_length(documents), unit_length(embedded_queries)
    faiss.omp_set_num_threads(threads)
    return measure(documents, embedded_queries, list(corpus), qrels, chosen, ignore_identical_ids)


def encoders(options: embedders.ModelOptions, model: Any) -> tuple[Callable, Callable]:
    """Returns the functions that embed queries and documents, each with its prompt."""
    from embed_jax.evals.task import DOCUMENT, QUERY, Use

    encode = embedders.encoder(options, model, show_progress=True)
    prompts = embedders.model_options(options, model)
    queries, corpus = (prompts(Use(kind="Retrieval", side=side)) for side in (QUERY, DOCUMENT))
    return functools.partial(encode, **queries), functools.partial(encode, **corpus)
