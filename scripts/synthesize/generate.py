"""Queries that a language model writes for passages: synthesize generate."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
from embed_jax.errors import RunError
from embed_jax.remote.chat import INTERFACES, KEY_VARIABLES, ChatEndpoint
from embed_jax.remote.server import Failed, read_key

from ..commands import OneLineParser, add_server_options, whole_file, wrong_server_option
from .round_trip import open_search, write_kept

DESCRIPTION = """Asks a language model for queries that the passages of a corpus answer.

The pairs are in the order of the corpus.

Answers are kept as they come, for pairs.jsonl in pairs.cache.jsonl: a run that was stopped
continues where it stopped, and nothing that was answered is asked for again. Passages without
an answer after all tries are listed in pairs.failed.jsonl, and the exit status is 1; the same
command asks for them again."""

EXAMPLES = """tasks: what is written for a passage
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


def add_arguments(parser: OneLineParser) -> Callable[[argparse.Namespace], str | None]:
    """Adds the options of the command, and returns a function that checks them."""
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
    add_server_options(server)
    server.add_argument(
        "--patience",
        type=float,
        default=600,
        help="longest wait a server may ask for (default: 600)",
    )
    return check


def check(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None; sets `settings`."""
    find_template(args.task)
    for name, least in (
        ("queries_per_passage", 1),
        ("max_tokens", 1),
    ):
        if getattr(args, name) < least:
            return (
                f"--{name.replace('_', '-')}: expected {least} or more, found {getattr(args, name)}"
            )
    for name in ("temperature", "patience"):
        if not 0 <= getattr(args, name) < float("inf"):
            return (
                f"--{name.replace('_', '-')}: expected a number from 0 up, found "
                f"{getattr(args, name)}"
            )
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


def run(args: argparse.Namespace) -> int:
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
    search = open_search(args.model, args.bm25)
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
