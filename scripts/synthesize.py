"""Writes queries for passages by a language model; keeps those whose passage a search finds again.

generate asks a server for queries and writes pairs; filter takes pairs of any origin.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from embed_jax.data.pairs import PAIR_NAMES, kind_of
from embed_jax.data.sources.files import file_format, iter_json, iter_lines
from embed_jax.data.synthesize import (
    TASKS,
    AnswerCache,
    Passage,
    answer_key,
    find_template,
    make_prompt,
    parse_answer,
    read_cached_answers,
    read_passages,
    synthetic_records,
)
from embed_jax.errors import InputError, RunError, exit_with_one_line, require
from embed_jax.remote.chat import INTERFACES, KEY_VARIABLES, ChatEndpoint
from embed_jax.remote.server import Failed, read_key

from .commands import OneLineParser, load_model, whole_file

if TYPE_CHECKING:
    from embed_jax.retrieval.round_trip import Search

GENERATE = """Asks a language model for queries that the passages of a corpus answer.

The pairs are in the order of the corpus.

Answers are kept as they come, for pairs.jsonl in pairs.cache.jsonl: a run that was stopped
continues where it stopped, and nothing that was answered is asked for again. Passages without
an answer after all tries are listed in pairs.failed.jsonl, and the exit status is 1; the same
command asks for them again."""

GENERATE_EXAMPLES = """tasks: what is written for a passage
  query        a query that it answers
  doc2query    a search as people type it, as for doc2query and GPL
  short_long   a search query for a long document
  long_short   a long text for a label, title or brief answer
  short_short  a short text for a short text
  long_long    a document for a document
  sts          a text of the same meaning

The key is read from OPENAI_API_KEY or ANTHROPIC_API_KEY and written nowhere. A line of the output:
  {"anchor": QUERY, "positive": PASSAGE, "id": PASSAGE'S, "source": {"model": ..., "task": ...,
  "template": ..., ...}}

examples:
  python -m scripts.synthesize generate --corpus corpus.jsonl --field title,text \\
      --queries-per-passage 3 \\
      --interface openai --base-url https://api.openai.com/v1 --llm NAME --output pairs.jsonl
  python -m scripts.synthesize generate --corpus labels.txt --task long_short --language German \\
      --interface anthropic --base-url https://api.anthropic.com --llm NAME --output pairs.jsonl
  python -m scripts.synthesize generate --corpus corpus.jsonl --interface openai \\
      --base-url http://localhost:8000/v1 \\
      --no-key --llm NAME --concurrency 32 --keep-top 1 --bm25 --output pairs.jsonl
"""

FILTER = """Keeps the pairs whose passage (second text) is among the K best for their query.

Searched are the passages of all pairs and of --corpus. With K = 2 and a corpus of a million
passages it is E5's consistency filter of weak pairs."""

FILTER_EXAMPLES = """examples:
  python -m scripts.synthesize filter --pairs weak.jsonl.gz --corpus passages.jsonl --keep-top 2 \\
      --model runs/first/model --output kept.jsonl
  python -m scripts.synthesize filter --pairs pairs.tsv --keep-top 10 --bm25 --output kept.jsonl
"""


Item = tuple[Mapping[str, Any], tuple[str, str]]  # a record, and its query and passage


def main() -> int:
    args = parse(sys.argv[1:])
    return args.run(args)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    layout: dict[str, Any] = {
        "formatter_class": argparse.RawDescriptionHelpFormatter,
        "allow_abbrev": False,
    }
    parser = OneLineParser(prog="python -m scripts.synthesize", description=__doc__, **layout)
    commands = parser.add_subparsers(dest="what", required=True)
    generate = commands.add_parser(
        "generate",
        help="write queries for passages",
        description=GENERATE,
        epilog=GENERATE_EXAMPLES,
        **layout,
    )
    keep = commands.add_parser(
        "filter",
        help="keep pairs that a search finds again",
        description=FILTER,
        epilog=FILTER_EXAMPLES,
        **layout,
    )
    add_generate_options(generate)
    keep.add_argument("--pairs", required=True, type=Path, help="file of pairs, as for training")
    keep.add_argument("--corpus", type=Path, help="file of extra passages to search")
    keep.add_argument(
        "--field",
        default="text",
        help="its field with the text; several are joined (default: text)",
    )
    for command in (generate, keep):
        command.add_argument("--output", required=True, type=Path, help="the .jsonl file to write")
        search = command.add_argument_group("round trip")
        search.add_argument(
            "--keep-top", type=int, help="keep a query if its passage is among the N best"
        )
        search.add_argument(
            "--model", help="search with this embedding model: directory or hub name"
        )
        search.add_argument("--bm25", action="store_true", help="search by BM25")
        command.add_argument("--debug", action="store_true", help="show the traceback of an error")
    generate.set_defaults(run=run_generate)
    keep.set_defaults(run=run_filter)
    args = parser.parse_args(argv)
    wrong = (check_generate(args) if args.what == "generate" else None) or check_output_and_search(
        args
    )
    if wrong:
        commands.choices[args.what].error(wrong)
    args.fields = args.field.split(",")
    return args


def add_generate_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--corpus",
        required=True,
        type=Path,
        help=".jsonl, .txt, .tsv or .csv file, or any of them .gz",
    )
    parser.add_argument(
        "--field", default="text", help="field with the passage; several are joined (default: text)"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the first prompt; send nothing, need no key"
    )
    answers = parser.add_argument_group("answers")
    answers.add_argument("--task", default="query", help=f"{', '.join(TASKS)} (default: query)")
    answers.add_argument(
        "--queries-per-passage", type=int, default=1, metavar="N", help="default: 1"
    )
    answers.add_argument(
        "--language", help="language of the queries, such as German (default: the passage's)"
    )
    answers.add_argument(
        "--temperature",
        type=float,
        default=1.0,
        help="temperature of the model's sampling (default: 1)",
    )
    answers.add_argument(
        "--max-tokens", type=int, default=2048, help="longest answer (default: 2048)"
    )
    answers.add_argument(
        "--settings",
        default="{}",
        metavar="JSON",
        help="extra JSON fields of a request; null removes a field",
    )
    answers.add_argument(
        "--seed", type=int, default=0, help="seed for varied prompts and waiting times (default: 0)"
    )
    server = parser.add_argument_group("server")
    server.add_argument("--interface", required=True, choices=INTERFACES)
    server.add_argument(
        "--base-url", required=True, help="URL before /chat/completions or /v1/messages"
    )
    server.add_argument(
        "--llm", required=True, metavar="NAME", help="the language model's name there"
    )
    server.add_argument("--key-variable", metavar="NAME", help="environment variable with the key")
    server.add_argument("--no-key", action="store_true", help="send no key, as to a local server")
    server.add_argument("--concurrency", type=int, default=4, help="parallel requests (default: 4)")
    server.add_argument("--requests-per-minute", type=float, default=0, help="default: no limit")
    server.add_argument(
        "--retries", type=int, default=5, help="tries after the first one (default: 5)"
    )
    server.add_argument(
        "--first-wait", type=float, default=1.0, help="seconds before the second try (default: 1)"
    )
    server.add_argument(
        "--patience",
        type=float,
        default=600,
        help="longest wait a server may ask for (default: 600)",
    )
    server.add_argument(
        "--timeout", type=float, default=120, help="seconds for an answer (default: 120)"
    )


def check_generate(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None; sets `settings`."""
    find_template(args.task)
    for name, least in (
        ("queries_per_passage", 1),
        ("max_tokens", 1),
        ("concurrency", 1),
        ("retries", 0),
    ):
        if getattr(args, name) < least:
            return (
                f"--{name.replace('_', '-')}: expected {least} or more, found {getattr(args, name)}"
            )
    for name in ("temperature", "requests_per_minute", "first_wait", "patience"):
        if not 0 <= getattr(args, name) < float("inf"):
            return (
                f"--{name.replace('_', '-')}: expected a number from 0 up, found "
                f"{getattr(args, name)}"
            )
    if not 0 < args.timeout < 1e6:
        return f"--timeout: expected seconds above 0, found {args.timeout}"
    if args.no_key and args.key_variable:
        return "--no-key and --key-variable exclude each other"
    try:
        extra = json.loads(args.settings)
    except ValueError:
        extra = None
    if not isinstance(extra, dict) or {"model", "messages", "stream"} & extra.keys():
        return (
            "--settings: expected a JSON object without model, messages and stream, found "
            f"{args.settings!r}"
        )
    settings = {"temperature": args.temperature, "max_tokens": args.max_tokens} | extra
    args.settings = {name: value for name, value in settings.items() if value is not None}
    return None


def check_output_and_search(args: argparse.Namespace) -> str | None:
    if args.output.suffix != ".jsonl" or args.output.is_dir():
        return (
            f"--output: expected the name of a file that ends in .jsonl, found {str(args.output)!r}"
        )
    if args.output.resolve() in [
        path.resolve() for path in (args.corpus, getattr(args, "pairs", None)) if path
    ]:
        return f"--output: {args.output} is also the input"
    if args.keep_top is None and (args.model or args.bm25 or args.what == "filter"):
        return "--keep-top is missing"
    if args.keep_top is not None and args.keep_top < 1:
        return f"--keep-top: expected 1 or more, found {args.keep_top}"
    if args.keep_top is not None and bool(args.model) == args.bm25:
        return "--keep-top needs one of --model and --bm25"
    return None


def run_generate(args: argparse.Namespace) -> int:
    variable = args.key_variable or KEY_VARIABLES[args.interface]
    otherwise = "--key-variable names another, --no-key goes without"
    key = None if args.no_key or args.dry_run else read_key(variable, otherwise)
    endpoint = ChatEndpoint(
        args.interface, args.base_url, args.llm, args.settings, key=key, timeout=args.timeout
    )
    passages = read_passages(args.corpus, args.fields)
    keys = [
        answer_key(args.interface, args.llm, args.settings, prompt_for(passage, args))
        for passage in passages
    ]
    beside = args.output.with_suffix(".cache.jsonl")
    if args.dry_run:
        missing = set(keys) - read_cached_answers(beside).keys()
        print(prompt_for(passages[0], args))
        print(f"\n{len(passages)} passages, {len(missing)} requests to send to {endpoint.url}")
        return 0
    search = round_trip_search(args)
    with AnswerCache(beside) as cache:
        failures = answer_missing(passages, keys, endpoint, cache, args)
        records = synthetic_records(passages, keys, cache.answers, provenance(args))
        items = ((record, (record["anchor"], record["positive"])) for record in records)
        texts = list(dict.fromkeys(passage.text for passage in passages))
        count, outcome = write_kept(args.output, items, texts, args.keep_top, search)
        print(f"{args.output}: {count} queries for {len(passages)} passages{outcome}")
        keyed = zip(passages, keys, strict=True)
        report_failures(
            args.output, [(passage, failures[key]) for passage, key in keyed if key in failures]
        )
    return 0


def prompt_for(passage: Passage, args: argparse.Namespace) -> str:
    return make_prompt(
        args.task, passage.text, args.queries_per_passage, language=args.language, seed=args.seed
    )


def provenance(args: argparse.Namespace) -> dict[str, Any]:
    return {
        "model": args.llm,
        "interface": args.interface,
        "task": args.task,
        "template": find_template(args.task).version,
        "language": args.language,
        "temperature": args.settings.get("temperature"),
    }


def answer_missing(
    passages: Sequence[Passage],
    keys: Sequence[str],
    endpoint: ChatEndpoint,
    cache: AnswerCache,
    args: argparse.Namespace,
) -> dict[str, str]:
    """Asks for the missing answers, each prompt once; returns what went wrong, by key."""
    import datetime

    import tqdm

    from embed_jax.remote.ask import Job, Retries, ask_all

    n = args.queries_per_passage
    missing = {
        key: passage
        for key, passage in zip(keys, passages, strict=True)
        if key not in cache.answers
    }

    def job(key: str, passage: Passage) -> Job:
        return Job(
            key,
            prompt_for(passage, args),
            lambda text: parse_answer(text, n, passage.text),
            passage.where,
        )

    answers = ask_all(
        endpoint,
        (job(key, passage) for key, passage in missing.items()),
        concurrency=min(args.concurrency, max(len(missing), 1)),
        retries=Retries(args.retries, args.first_wait, patience=args.patience),
        per_minute=args.requests_per_minute,
        seed=args.seed,
    )
    failures: dict[str, str] = {}
    with tqdm.tqdm(total=len(missing), unit="passage", disable=not sys.stderr.isatty()) as bar:
        for done, answer in answers:
            if isinstance(answer, Failed):
                failures[done.key] = str(answer)
                bar.set_postfix(failed=len(failures))
            else:
                now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
                cache.add(done.key, {"queries": answer, "date": now})
            bar.update()
    return failures


def report_failures(output: Path, failed: Sequence[tuple[Passage, str]]) -> None:
    listing = output.with_suffix(".failed.jsonl")
    if not failed:
        listing.unlink(missing_ok=True)  # of a run before
        return
    with whole_file(listing) as beside, beside.open("w", encoding="utf-8") as file:
        for passage, why in failed:
            file.write(
                json.dumps(
                    {"id": passage.id, "where": passage.where, "error": why}, ensure_ascii=False
                )
                + "\n"
            )
    first, why = failed[0]
    raise RunError(
        f"{len(failed)} passages got no answer, the first {first.where}: {why}; they are listed "
        f"in {listing}, and the "
        "same command asks for them again"
    )


def run_filter(args: argparse.Namespace) -> int:
    corpus = (
        [passage.text for passage in read_passages(args.corpus, args.fields)] if args.corpus else []
    )
    texts = dict.fromkeys(
        itertools.chain(corpus, (positive.strip() for _, (_, positive) in read_pairs(args.pairs)))
    )
    count, outcome = write_kept(
        args.output, read_pairs(args.pairs), list(texts), args.keep_top, round_trip_search(args)
    )
    print(f"{args.output}: {count} pairs, {len(texts)} passages{outcome}")
    return 0


def read_pairs(path: Path) -> Iterator[Item]:
    """Yields the records of a file of pairs, of JSONL with all fields, and their two texts."""
    if file_format(path) == ".jsonl":
        for (_, record), (line, texts) in zip(iter_json(path), iter_lines(path), strict=True):
            yield record, pair_texts(texts, f"{path}:{line}")
    else:
        for line, record in iter_lines(path):
            yield record, pair_texts(record, f"{path}:{line}")


def pair_texts(record: Mapping[str, Any], where: str) -> tuple[str, str]:
    names = kind_of(record)
    if names not in PAIR_NAMES:
        accepted = "; ".join(" ".join(names) for names in PAIR_NAMES)
        raise InputError(
            f"{where}: expected a pair with the fields {accepted}; found "
            f"{', '.join(record) or 'no field'}"
        )
    return record[names[0]], record[names[1]]


def round_trip_search(args: argparse.Namespace) -> Callable[[Sequence[str]], Search] | None:
    """Returns a function that makes the search of the options; None without one.

    The model is loaded at once.
    """
    if args.bm25:
        from embed_jax.retrieval.bm25 import bm25_searcher

        require("bm25s")
        return lambda passages: bm25_searcher(passages).search
    if not args.model:
        return None
    from embed_jax.retrieval.index import dense_searcher

    model = load_model(args.model)
    queries, documents = (
        functools.partial(side, show_progress=sys.stderr.isatty())
        for side in (model.encode_query, model.encode_document)
    )
    return lambda passages: (
        dense_searcher(queries, documents, passages, similarity=model.similarity_fn_name).search
    )


def write_kept(
    path: Path,
    items: Iterable[Item],
    passages: Sequence[str],
    k: int | None,
    search: Callable[[Sequence[str]], Search] | None,
) -> tuple[int, str]:
    """Writes the records that the round trip leaves.

    Returns:
        How many records there were, and a text about what became of them.
    """
    from embed_jax.retrieval.round_trip import round_trip_filter

    count = written = 0

    def count_items() -> Iterator[Item]:
        nonlocal count
        for item in items:
            count += 1
            yield item

    with whole_file(path) as beside, beside.open("w", encoding="utf-8") as file:
        consistent = (
            round_trip_filter(count_items(), search(passages), k, passages, lambda item: item[1])
            if search and k
            else count_items()
        )
        for record, _ in consistent:
            file.write(json.dumps(record, ensure_ascii=False) + "\n")
            written += 1
    return count, f", {written} kept, {count - written} dropped" if search else ""


if __name__ == "__main__":
    exit_with_one_line(main)
