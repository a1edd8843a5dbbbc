"""Bench of a server under load: many clients at a time, each waiting for its answer."""

from __future__ import annotations

import argparse
import concurrent.futures
import functools
import json
import statistics
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable

from .measure import count, make_texts, print_json, print_row, result

DESCRIPTION = """Latency of a server of scripts.search --serve with many clients at a time.

Each client sends one request after the other and waits for each answer. What the server has is
measured: its page, /v1/embeddings and /rerank, each with different texts."""
EXAMPLES = """examples:
  python -m scripts.bench clients --url http://127.0.0.1:8000
  python -m scripts.bench clients --url http://127.0.0.1:8000 --clients 10 --requests 20 --json"""
WIDTHS = (18, 12, 12, 12, 14, 8)
WORDS = 9.0  # median words of a query
DOCUMENTS = 5  # of a request for reranking
SECONDS = 300  # that a client waits


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--url", required=True, help="address of the server")
    command.add_argument(
        "--clients", type=count, default=50, help="clients at a time (default: %(default)s)"
    )
    command.add_argument(
        "--requests", type=count, default=5, help="of each client (default: %(default)s)"
    )


def check_options(args: argparse.Namespace) -> str | None:
    """Returns a message about options that cannot be used, or None."""
    if not args.url.startswith(("http://", "https://")):
        return f"--url: expected http://HOST..., found {args.url!r}"
    return None


def bench_clients(args: argparse.Namespace) -> None:
    texts = make_texts(args.clients * args.requests, WORDS)
    if not args.json:
        print_row(("", "p50 ms", "p95 ms", "most ms", "requests/s", "errors"), WIDTHS)
    for name, ask in kinds_of_requests(args.url.rstrip("/")).items():
        ask(texts[0])  # compiles what is not compiled yet
        began = time.perf_counter()
        latencies, errors = measure_load(ask, texts, args.clients)
        rate = len(texts) / (time.perf_counter() - began)
        quantiles = statistics.quantiles(latencies, n=20, method="inclusive")
        p50, p95 = quantiles[9], quantiles[18]
        if args.json:
            for what, value in (("p50", p50), ("p95", p95)):
                print_json(result(f"clients/{name}/{what}", "ms", value, None, None, len(texts)))
        else:
            cells = (f"{value:.0f}" for value in (p50, p95, max(latencies)))
            print_row((name, *cells, f"{rate:.1f}", str(errors)), WIDTHS)


def kinds_of_requests(url: str) -> dict[str, Callable[[str], None]]:
    """Returns functions that send a text and wait for the answer, by what answers.

    Each raises an OSError for an answer other than 200.
    """

    def post(path: str, content: dict[str, object]) -> None:
        headers = {"Content-Type": "application/json"}
        body = json.dumps(content).encode()
        fetch(urllib.request.Request(url + path, body, headers, method="POST"))

    names = json.loads(fetch(urllib.request.Request(f"{url}/v1/models")))
    known = [each["id"] for each in names["data"]]

    def page(text: str) -> None:
        fetch(urllib.request.Request(f"{url}/?{urllib.parse.urlencode({'q': text})}"))

    def embed(model: str, text: str) -> None:
        post("/v1/embeddings", {"model": model, "input": text})

    def rerank(model: str, text: str) -> None:
        post("/rerank", {"model": model, "query": text, "documents": [text] * DOCUMENTS})

    kinds: dict[str, Callable[[str], None]] = {}
    if b'id="q"' in fetch(urllib.request.Request(f"{url}/")):
        kinds["page"] = page
    for what, ask in (("/v1/embeddings", embed), ("/rerank", rerank)):
        for model in known:
            try:
                ask(model, "a query")
            except OSError:  # a model of the other kind
                continue
            kinds[what] = functools.partial(ask, model)
            break
    return kinds


def fetch(request: urllib.request.Request) -> bytes:
    """Returns the body of an answer; raises an OSError unless its status is 200."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=SECONDS) as response:
        return response.read()


def measure_load(
    ask: Callable[[str], None], texts: list[str], clients: int
) -> tuple[list[float], int]:
    """Returns the milliseconds of each request, and how many failed.

    Args:
        ask: sends a text and waits for the answer.
        texts: of all requests.
        clients: requests at a time.
    """

    def timed(text: str) -> tuple[float, bool]:
        began, failed = time.perf_counter(), False
        try:
            ask(text)
        except OSError:
            failed = True
        return 1000 * (time.perf_counter() - began), failed

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        outcomes = list(pool.map(timed, texts))
    return [latency for latency, _ in outcomes], sum(failed for _, failed in outcomes)
