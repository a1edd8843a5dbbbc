"""Mines hard negatives: passages that a search ranks high and that are not known positives.

All positives of an anchor are known positives of that query. They, the query's own text and
repeated texts are never its negatives, and neither is a passage that contains a positive or is part
of one. Texts are compared with and without their titles, after Unicode NFKC and with single blanks;
with --model also as its tokenizer reads them, so that for an uncased model upper and lower case are
one. What stays of the best --rank-max others after the limits on scores is used, except the first
--rank-min; scores are those of --cross-encoder, or of the search itself. The passages are those of
the corpus and all positives.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from embed_jax.errors import InputError, exit_with_one_line, require
from embed_jax.registry import unknown

from .commands import Parser, add_compute_dtype, load_model, whole_file

EXAMPLES = """--format, as training reads them; a pair without a negative is left out:
  triplets        anchor positive negative, a line a negative
  n-tuples        anchor positive negative_1 ... negative_k; fewer where fewer are found
  labelled-pairs  sentence1 sentence2 label: 1 for positives, 0 for negatives
  scored-lists    query passages scores, the positive first: for distillation

examples:
  python -m scripts.mine --pairs pairs.jsonl --corpus corpus.jsonl.gz --output mined.jsonl
  python -m scripts.mine --beir scifact --strategy bm25,dense \\
      --model sentence-transformers/all-MiniLM-L6-v2 \\
      --number 4 --rank-min 2 --output mined.jsonl
  python -m scripts.mine --pairs pairs.tsv --strategy faiss --index-factory HNSW32 \\
      --model runs/quickstart/model \\
      --relative-margin 0.05 --format triplets --output mined.jsonl
  python -m scripts.mine --beir scifact --strategy bm25 \\
      --cross-encoder cross-encoder/ms-marco-MiniLM-L6-v2 \\
      --max-score 0 --number 8 --sampling random --format scored-lists --output lists.jsonl
"""
STRATEGIES = ("bm25", "dense", "faiss")
FORMATS = ("triplets", "n-tuples", "labelled-pairs", "scored-lists")
Pair = dict[str, Any]


def main() -> None:
    args = parse(sys.argv[1:])
    with whole_file(args.output) as beside:
        mine_file(args, beside)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.mine", __doc__, EXAMPLES)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--pairs", help="file, directory, tfds:NAME or hf:NAME with pairs, as for training"
    )
    data.add_argument(
        "--beir", help="directory in BEIR's layout (or python_docs): its pairs and its corpus"
    )
    parser.add_argument("--split", default="train", help="which split of either (default: train)")
    parser.add_argument(
        "--corpus", type=Path, help="with --pairs: a file with text and, if it has one, title"
    )
    parser.add_argument("--output", required=True, type=Path, help="the .jsonl file to write")
    parser.add_argument(
        "--format", choices=FORMATS, default="n-tuples", help="see below (default: n-tuples)"
    )
    search = parser.add_argument_group("search")
    search.add_argument(
        "--strategy",
        default="bm25",
        help=f"{', '.join(STRATEGIES)}, or several: bm25,dense takes turns (default: bm25)",
    )
    search.add_argument("--model", help="for dense and faiss: directory or hub name")
    add_compute_dtype(search)
    search.add_argument(
        "--query-prompt",
        help="text before each query (default: the model's prompt 'query', if any)",
    )
    search.add_argument(
        "--corpus-prompt",
        help="text before each passage (default: the model's 'document', 'passage' or 'corpus')",
    )
    search.add_argument(
        "--index-factory", help="for faiss: IVF256,Flat, HNSW32, ... (default: Flat, exact)"
    )
    search.add_argument(
        "--index-parameters", help="for faiss: settings of the search, such as nprobe=16"
    )
    search.add_argument(
        "--on-disk",
        action="store_true",
        help="keep the embeddings of the corpus in a temporary file",
    )
    search.add_argument(
        "--cross-encoder",
        help="directory or hub name of a model whose scores replace the search's",
    )
    choice = parser.add_argument_group("choice")
    choice.add_argument("--number", type=int, default=1, help="negatives per pair (default: 1)")
    choice.add_argument("--rank-min", type=int, default=0, help="skip the N best (default: 0)")
    choice.add_argument(
        "--rank-max", type=int, default=100, help="look at the N best (default: 100)"
    )
    choice.add_argument(
        "--min-score", type=float, default=-math.inf, help="lowest score of a negative"
    )
    choice.add_argument(
        "--max-score", type=float, default=math.inf, help="highest score of a negative"
    )
    choice.add_argument(
        "--margin",
        type=float,
        help="smallest gap between the scores of a positive and its negative",
    )
    choice.add_argument(
        "--relative-margin",
        type=float,
        help="the same gap as a share of the positive's score: 0.05 as in NV-Retriever",
    )
    choice.add_argument(
        "--sampling",
        choices=["top", "random"],
        default="top",
        help="top: the hardest, random: any (default: top)",
    )
    choice.add_argument(
        "--seed", type=int, default=0, help="seed of --sampling random (default: 0)"
    )
    args = parser.parse_args(argv)
    args.strategy = list(dict.fromkeys(name.strip() for name in args.strategy.split(",")))
    wrong = wrong_option(args)
    if wrong:
        parser.error(wrong)
    return args


def wrong_option(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    for name in args.strategy:
        if name not in STRATEGIES:
            return f"--strategy: {unknown('strategy', name, STRATEGIES)}"
    if args.output.suffix != ".jsonl":
        return f"--output: expected a name that ends in .jsonl, found {str(args.output)!r}"
    if args.beir and args.corpus:
        return "--corpus goes with --pairs; --beir has its own"
    embeds = {"dense", "faiss"} & set(args.strategy)
    if embeds and not args.model:
        return f"--strategy {','.join(args.strategy)} needs --model"
    for name, needed, strategies in (
        ("model", embeds, "dense or faiss"),
        ("query_prompt", embeds, "dense or faiss"),
        ("corpus_prompt", embeds, "dense or faiss"),
        ("on_disk", embeds, "dense or faiss"),
        ("index_factory", "faiss" in args.strategy, "faiss"),
        ("index_parameters", "faiss" in args.strategy, "faiss"),
    ):
        if getattr(args, name) and not needed:
            return f"--{name.replace('_', '-')} goes with --strategy {strategies}"
    if args.format == "scored-lists" and len(args.strategy) > 1 and not args.cross_encoder:
        return (
            "--format scored-lists: scores of several strategies cannot be compared; expected "
            "one strategy, or --cross-encoder"
        )
    return None


def mine_file(args: argparse.Namespace, beside: Path) -> None:
    """Mines and writes the records into the file `beside`."""
    from embed_jax.retrieval.copies import token_fold
    from embed_jax.retrieval.mine import Report, corpus_with, mine_negatives, records_of
    from embed_jax.retrieval.mining_candidates import Mining

    options = Mining(
        number=args.number,
        rank_min=args.rank_min,
        rank_max=args.rank_max,
        score_min=args.min_score,
        score_max=args.max_score,
        absolute_margin=args.margin,
        relative_margin=args.relative_margin,
        sampling=args.sampling,
        seed=args.seed,
    )
    for name, module in (("bm25", "bm25s"), ("faiss", "faiss")):
        if name in args.strategy:
            require(module)
    pairs, documents = (
        read_beir(args)
        if args.beir
        else (read_pairs(args), read_corpus(args.corpus) if args.corpus else [])
    )
    count, report = 0, Report()
    corpus = corpus_with(pairs, documents, report)
    score = None
    if args.cross_encoder:
        from embed_jax import cross_encoder

        score = cross_encoder.load_cross_encoder(
            args.cross_encoder, compute_dtype=args.compute_dtype
        ).score
    model = load_model(args.model, args.compute_dtype) if args.model else None
    fold = token_fold(model.tokenizer) if model and not model.routes else None
    with contextlib.ExitStack() as stack, beside.open("w", encoding="utf-8") as file:
        searchers = make_searchers(args, model, corpus, stack)
        blocks = mine_negatives(
            pairs, corpus, searchers, options, score=score, report=report, fold=fold
        )
        for mined in blocks:
            for record in records_of(mined, args.format):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
                count += 1
    lacking = f", {report.lacking} of them positives that the corpus lacked"
    print(report)
    print(
        f"{args.output}: {count} {args.format} from {len(corpus)} "
        f"passages{lacking * (report.lacking > 0)}"
    )


def make_searchers(
    args: argparse.Namespace, model: Any, corpus: Sequence[str], stack: contextlib.ExitStack
) -> list[Any]:
    """Makes the searchers of --strategy; their files on disk are removed when the stack ends."""
    from embed_jax.retrieval.mine import bm25_searcher, dense_searcher, faiss_searcher

    options: dict[str, Any] = {}
    if model:
        options["encode_queries"], options["encode_corpus"] = (
            functools.partial(side, prompt=prompt, show_progress=sys.stderr.isatty())
            for side, prompt in (
                (model.encode_query, args.query_prompt),
                (model.encode_document, args.corpus_prompt),
            )
        )
        options["similarity"] = model.similarity_fn_name
    searchers: list[Any] = []
    for name in args.strategy:
        if name == "bm25":
            searchers.append(bm25_searcher(corpus))
            continue
        if args.on_disk:
            directory = stack.enter_context(
                tempfile.TemporaryDirectory(dir=args.output.parent, prefix=".mine.")
            )
            options["store"] = Path(directory) / "corpus.npy"
        if name == "dense":
            searchers.append(dense_searcher(corpus=corpus, **options))
        else:
            searcher = faiss_searcher(
                corpus=corpus,
                factory=args.index_factory or "Flat",
                parameters=args.index_parameters or "",
                **options,
            )
            searchers.append(searcher)
    return searchers


# ---- input ---------------------------------------------------------------------------------------


def read_pairs(args: argparse.Namespace) -> list[Pair]:
    """Reads the records of --pairs, with anchor and positive, id and group.

    Raises:
        InputError: for what are no pairs.
    """
    from embed_jax.data.pairs import KEYS, rename_columns
    from embed_jax.data.sources import open_records, pair_columns

    records = open_records(args.pairs, args.split)
    try:
        columns = pair_columns(records)
    except InputError as error:
        raise InputError(f"{args.pairs}: {error}") from None
    pairs = rename_columns(records, columns, KEYS)
    return pairs


def read_corpus(path: Path) -> list[str]:
    """Reads the passages of a file: title and text with a blank between, as BEIR joins them.

    Raises:
        InputError: for a line without a text, and an empty file.
    """
    from embed_jax.data.pairs import join_title
    from embed_jax.data.sources.files import iter_lines

    passages = []
    for line, record in iter_lines(path):
        if "text" not in record:
            raise InputError(f"{path}:{line}: no field 'text'; found {', '.join(record) or 'none'}")
        passages.append(join_title(record.get("title"), record["text"]))
        if not passages[-1]:
            raise InputError(f"{path}:{line}: empty passage")
    if not passages:
        raise InputError(f"{path}: empty, no passages in it")
    return passages


def read_beir(args: argparse.Namespace) -> tuple[list[Pair], list[str]]:
    """Reads a pair for each passage that is judged relevant (above 0), and the corpus.

    Raises:
        InputError: as the layout's reader; for an empty query or passage, or if nothing is
            relevant.
    """
    from embed_jax.data.sources import open_retrieval_task
    from embed_jax.data.sources.beir import iter_relevant

    corpus, queries, relevance = open_retrieval_task(args.beir, args.split)
    for what, texts in (("corpus", corpus), ("queries", queries)):
        empty = next((name for name, text in texts.items() if not text.strip()), None)
        if empty is not None:
            raise InputError(f"{place_of_id(args, what, empty)}: empty text")
    pairs = [
        {"anchor": queries[query], "positive": corpus[document]}
        for query, document in iter_relevant(relevance)
        if document in corpus
    ]
    if not pairs:
        raise InputError(f"{args.beir}: no passage is judged relevant in the split {args.split!r}")
    return pairs, list(corpus.values())


def place_of_id(args: argparse.Namespace, what: str, name: str) -> str:
    """Returns the file and line of an id in BEIR's layout."""
    from embed_jax.data.sources.files import iter_json

    path = next(
        path for end in ("", ".gz") if (path := Path(args.beir) / f"{what}.jsonl{end}").is_file()
    )
    return next(f"{path}:{line}" for line, record in iter_json(path) if record["_id"] == name)


if __name__ == "__main__":
    exit_with_one_line(main)
