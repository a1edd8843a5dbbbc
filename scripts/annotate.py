"""Scores of a teacher for (query, passage) pairs, for distillation, filters and reranking tables.

The teacher is a cross-encoder, an embedding model (the similarity of query and passage), or a
reranker behind an API. A pair is scored once: scores are kept as they come in a score file, by a
hash of the two texts, and lists are written when all of their pairs have one. A run that was
stopped at any time continues where it stopped, with the same result as if it had not been. Other
data may use the same score file; another teacher, or other settings of it, may not.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_jax.errors import InputError, exit_with_one_line
from embed_jax.remote.rerank import RERANK_FORMS

from .commands import (
    Parser,
    add_compute_dtype,
    add_server_options,
    whole_file,
    wrong_server_option,
)

if TYPE_CHECKING:
    from embed_jax.retrieval.annotate import BlockScorer, PassageList

EXAMPLES = """input:
  --data            pairs, triplets, n-tuples (of scripts.mine); scored lists get new scores
  --beir and --run  results of searches, lines QUERY Q0 DOCUMENT RANK SCORE TAG; of several runs
                    the union is scored

--format, as training reads them:
  scored-lists  query passages scores, with id and group: for margin_mse, kl and other list losses
  scored-pairs  sentence1 sentence2 score, a line a passage

interfaces: cohere, jina (also of vLLM), voyage; tei (Text Embeddings Inference). The key is read
from CO_API_KEY, JINA_API_KEY or VOYAGE_API_KEY and written nowhere.

examples:
  python -m scripts.annotate --data mined.jsonl --model cross-encoder/ms-marco-MiniLM-L6-v2 \\
      --min-margin 0 --output lists.jsonl
  python -m scripts.annotate --beir scifact --split test --run bm25.trec --run dense.trec \\
      --depth 100 --model runs/reranker/model --scores-only --output scores.jsonl
  python -m scripts.annotate --data mined.jsonl --model BAAI/bge-reranker-v2-m3 \\
      --interface jina --base-url http://localhost:8000/v1 --no-key --output lists.jsonl
"""
FORMATS = ("scored-lists", "scored-pairs")
REMOTE_OPTIONS = ("base_url", "settings", "key_variable", "no_key")
LOCAL_OPTIONS = ("max_length", "compute_dtype", "activation", "query_prompt", "corpus_prompt")


def main() -> None:
    from embed_jax.retrieval.annotate import ScoreStore, missing_pairs, score_missing

    args = parse(sys.argv[1:])
    lists = open_run_lists(args) if args.beir else open_record_lists(args.data, args.split)
    teacher, load_scorer = remote_teacher(args) if args.interface else local_teacher(args)
    with ScoreStore(args.scores, teacher, args.model) as store:
        before, count = len(store), sum(1 for _ in missing_pairs(lists, store))
        if count:
            import tqdm

            with tqdm.tqdm(total=count, unit="pair", disable=not sys.stderr.isatty()) as bar:
                score_missing(lists, store, load_scorer(), progress=bar.update)
        store.sort()
        print(f"{args.scores}: {count} pairs scored now, {before} before")
        if not args.scores_only:
            write_lists(args.output, lists, store, args.format, args.min_margin)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = Parser("scripts.annotate", __doc__, EXAMPLES)
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--data", help="file, directory, tfds:NAME or hf:NAME with lists, as for training"
    )
    data.add_argument("--beir", help="directory in BEIR's layout (or python_docs), for --run")
    parser.add_argument("--split", default="train", help="which split of either (default: train)")
    parser.add_argument("--output", required=True, type=Path, help="the .jsonl file to write")
    runs = parser.add_argument_group("runs")
    runs.add_argument(
        "--run", action="append", default=[], type=Path, help="a file of results; may be repeated"
    )
    runs.add_argument(
        "--depth", type=int, default=0, help="use the N best of each query (default: all)"
    )
    runs.add_argument(
        "--with-relevant", action="store_true", help="add relevant documents that no run has"
    )
    result = parser.add_argument_group("result")
    result.add_argument(
        "--scores",
        type=Path,
        help="the score file, which other data may share (default: OUTPUT.scores.jsonl)",
    )
    result.add_argument(
        "--scores-only", action="store_true", help="write no lists: --output is the score file"
    )
    result.add_argument(
        "--format", choices=FORMATS, default="scored-lists", help="see below (default: %(default)s)"
    )
    result.add_argument(
        "--min-margin",
        type=float,
        metavar="MARGIN",
        help="drop lists whose relevant passages (the first one; with --run, those judged so) do "
        "not all score this much above all others",
    )
    teacher = parser.add_argument_group("teacher")
    teacher.add_argument(
        "--model",
        required=True,
        help="cross-encoder or embedding model: directory or hub name; with --interface its name "
        "there",
    )
    teacher.add_argument(
        "--max-length", type=int, help="cut texts at this many tokens (default: the model's limit)"
    )
    add_compute_dtype(teacher, default=None)
    teacher.add_argument(
        "--activation",
        choices=("identity", "sigmoid"),
        help="of a cross-encoder's scores; identity: its logits (default: the model's)",
    )
    teacher.add_argument(
        "--query-prompt", help="of an embedding model, before each query (default: the model's)"
    )
    teacher.add_argument(
        "--corpus-prompt", help="of an embedding model, before each passage (default: the model's)"
    )
    teacher.add_argument(
        "--block", type=int, default=1024, help="pairs between two writes (default: 1024)"
    )
    server = parser.add_argument_group("server")
    server.add_argument("--interface", choices=RERANK_FORMS, help="form of the API; see below")
    server.add_argument("--base-url", help="URL before /rerank (default: the provider's)")
    server.add_argument(
        "--settings",
        metavar="JSON",
        help='extra JSON fields of a request, such as {"raw_scores": true} of tei',
    )
    server.add_argument(
        "--batch-size", type=int, default=0, help="documents in a request (default: the most)"
    )
    add_server_options(server)
    args = parser.parse_args(argv)
    wrong = wrong_option(args)
    if wrong:
        parser.error(wrong)
    args.settings = json.loads(args.settings or "{}")
    args.scores = (
        args.output if args.scores_only else args.scores or args.output.with_suffix(".scores.jsonl")
    )
    return args


def wrong_option(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    for name in ("output", "scores"):
        path = getattr(args, name)
        if path and (path.suffix != ".jsonl" or path.is_dir()):
            return f"--{name}: expected the name of a file that ends in .jsonl, found {str(path)!r}"
    if args.scores_only and (args.scores or args.min_margin is not None):
        return "--scores-only: goes with neither --scores nor --min-margin"
    inputs = [path.resolve() for path in (Path(args.data or "."), *args.run)]
    outputs = [path.resolve() for path in (args.output, args.scores) if path]
    if len(set(outputs)) < len(outputs) or set(inputs) & set(outputs):
        return "--output: expected another file than those of the other options"
    if bool(args.beir) != bool(args.run):
        return "--beir and --run go together"
    if not args.beir and (args.depth or args.with_relevant):
        return "--depth and --with-relevant go with --run"
    for name, least in (("depth", 0), ("block", 1), ("batch_size", 0)):
        if getattr(args, name) < least:
            return (
                f"--{name.replace('_', '-')}: expected {least} or more, found {getattr(args, name)}"
            )
    if args.min_margin is not None and not math.isfinite(args.min_margin):
        return f"--min-margin: expected a finite number, found {args.min_margin}"
    refused, side = (LOCAL_OPTIONS, "not with") if args.interface else (REMOTE_OPTIONS, "goes with")
    for name in refused:
        if getattr(args, name):
            return f"--{name.replace('_', '-')}: {side} --interface"
    wrong = wrong_server_option(
        concurrency=args.concurrency,
        requests_per_minute=args.requests_per_minute,
        retries=args.retries,
        first_wait=args.first_wait,
        timeout=args.timeout,
        no_key=args.no_key,
        key_variable=args.key_variable,
    )
    if wrong:
        return wrong
    try:
        settings = json.loads(args.settings or "{}")
    except ValueError:
        settings = None
    if not isinstance(settings, dict) or {"model", "query", "documents", "texts"} & settings.keys():
        return (
            "--settings: expected a JSON object without model, query and documents, found "
            f"{args.settings!r}"
        )
    return None


# ---- input ---------------------------------------------------------------------------------------


def open_record_lists(name: str, split: str) -> Iterable[PassageList]:
    """Opens the lists of training data."""
    from embed_jax.data.sources import open_records
    from embed_jax.retrieval.annotate import record_lists

    records = open_records(name, split)
    try:
        return record_lists(records)
    except InputError as error:
        raise InputError(f"{name}: {error}") from None


def open_run_lists(args: argparse.Namespace) -> Iterable[PassageList]:
    """Opens the lists of runs over a retrieval task."""
    from embed_jax.data.sources import open_retrieval_task
    from embed_jax.data.sources.trec import read_trec_run
    from embed_jax.retrieval.annotate import RunLists

    task = open_retrieval_task(args.beir, args.split)
    runs = [read_trec_run(path, args.depth) for path in args.run]
    try:
        return RunLists(*task, runs, args.with_relevant)
    except InputError as error:
        files = ", ".join(map(str, args.run))
        raise InputError(f"{files} with {args.beir}, split {args.split!r}: {error}") from None


# ---- teachers ------------------------------------------------------------------------------------


def local_teacher(args: argparse.Namespace) -> tuple[dict[str, Any], Callable[[], BlockScorer]]:
    """Returns everything that a local model's scores depend on, and a function that loads it."""
    from embed_jax.encoders.hub import digest_files, resolve
    from embed_jax.encoders.model_kind import is_cross_encoder

    directory = resolve(args.model)
    crosses = is_cross_encoder(directory)
    for name in ("query_prompt", "corpus_prompt") if crosses else ("activation",):
        if getattr(args, name) is not None:
            kind = "a cross-encoder" if crosses else "an embedding model"
            raise InputError(f"--{name.replace('_', '-')}: not for {args.model}, {kind}")
    options: dict[str, Any] = {
        "max_length": args.max_length or 0,
        "compute_dtype": args.compute_dtype or "float32",
    }
    names = ("activation",) if crosses else ("query_prompt", "corpus_prompt")
    teacher = {
        "kind": "cross-encoder" if crosses else "embedding model",
        "files": digest_files(directory),
        **options,
        **{name: getattr(args, name) for name in names},
    }

    def load_scorer() -> BlockScorer:
        from embed_jax.loading import load_by_kind
        from embed_jax.retrieval.annotate import in_blocks, similarity_scorer
        from embed_jax.runtime import enable_compilation_cache

        enable_compilation_cache()
        model: Any = load_by_kind(str(directory), **options)
        if crosses:
            model.activation = args.activation or model.activation
            return in_blocks(model.score, args.block)
        score = similarity_scorer(
            functools.partial(model.encode_query, prompt=args.query_prompt),
            functools.partial(model.encode_document, prompt=args.corpus_prompt),
            model.similarity_pairwise,
        )
        return in_blocks(score, args.block)

    return teacher, load_scorer


def remote_teacher(args: argparse.Namespace) -> tuple[dict[str, Any], Callable[[], BlockScorer]]:
    """Returns everything that a server's scores depend on, and a function that makes its scorer."""
    from embed_jax.remote.ask import Retries
    from embed_jax.remote.rerank import RerankEndpoint, rerank_scorer

    endpoint = RerankEndpoint(
        args.interface,
        args.model,
        base_url=args.base_url or "",
        settings=args.settings,
        key_variable="" if args.no_key else args.key_variable,
        timeout=args.timeout,
    )
    teacher = {
        "kind": args.interface,
        "url": endpoint.url,
        "model": endpoint.model,
        "settings": endpoint.settings,
    }

    def make_scorer() -> BlockScorer:
        return rerank_scorer(
            endpoint,
            batch_size=args.batch_size,
            concurrency=args.concurrency,
            retries=Retries(args.retries, args.first_wait),
            per_minute=args.requests_per_minute,
        )

    return teacher, make_scorer


# ---- output --------------------------------------------------------------------------------------


def write_lists(
    path: Path,
    lists: Iterable[PassageList],
    store: Any,
    form: str,
    min_margin: float | None,
) -> None:
    """Writes the scored lists whose margin is large enough.

    Raises:
        InputError: no list is left.
    """
    from embed_jax.retrieval.annotate import SCORED_FORMS, scored_lists, teacher_margin

    total = written = 0
    with whole_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        for passage_list, scores in scored_lists(lists, store):
            total += 1
            if min_margin is not None and teacher_margin(passage_list, scores) < min_margin:
                continue
            written += 1
            for record in SCORED_FORMS[form](passage_list, scores):
                file.write(json.dumps(record, ensure_ascii=False) + "\n")
        if not written:
            raise InputError(f"--min-margin {min_margin:g}: none of {total} lists has this margin")
    dropped = f", {total - written} dropped by --min-margin" if min_margin is not None else ""
    print(f"{path}: {written} lists{dropped}")


if __name__ == "__main__":
    exit_with_one_line(main)
