import collections
import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from embed_jax.data.sources import open_records, record_fields
from embed_jax.data.synthesize import AnswerCache
from scripts.synthesize import __main__ as synthesize

ROOT = Path(__file__).parent.parent.parent
KEY = "sk-not-to-be-seen-0123456789"
INTERFACES = ("openai", "anthropic")


class LanguageModel:
    """A server on loopback in both interfaces.

    `behave(passage, number of the request for it)` returns the queries to answer with, or the
    model's text, or (status, headers, body), or "cut", "drop", "slow", "trickle".
    """

    def __init__(self):
        self.behave = lambda passage, tried: [f"what is {passage}?"]
        self.requests = []  # (time, path, headers, content, passage)
        self.tries = collections.Counter()
        self.lock = threading.Lock()
        language_model = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                passage = re.search(
                    r"<passage>\n(.*)\n</passage>", content["messages"][0]["content"], re.DOTALL
                )[1]
                with language_model.lock:
                    language_model.tries[passage] += 1
                    tried = language_model.tries[passage]
                    language_model.requests.append(
                        (time.monotonic(), self.path, dict(self.headers), content, passage)
                    )
                self.answer(language_model.behave(passage, tried))

            def answer(self, action):
                if action == "drop":
                    return
                if action == "slow":
                    time.sleep(0.6)
                content = (
                    [action] if action in ("cut", "slow", "trickle") else action
                )  # an answer to be had too late
                status, headers, body = (
                    content if isinstance(content, tuple) else (200, {}, self.body_of(content))
                )
                before = b" " * 12 if action == "trickle" else b""
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(before + body) + (action == "cut")))
                self.end_headers()
                for blank in before:
                    self.wfile.write(bytes([blank]))
                    time.sleep(0.05)
                self.wfile.write(body)

            def body_of(self, action):
                text = action if isinstance(action, str) else json.dumps({"queries": action})
                if self.path == "/v1/messages":
                    return json.dumps(
                        {"content": [{"type": "text", "text": text}], "stop_reason": "end_turn"}
                    ).encode()
                return json.dumps(
                    {"choices": [{"message": {"content": text}, "finish_reason": "stop"}]}
                ).encode()

            def log_message(self, *_):
                pass

            def handle(self):
                try:
                    super().handle()
                except ConnectionError:  # the other side had enough of waiting
                    pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
        ).start()


@pytest.fixture
def llm(monkeypatch):
    for name in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY"):
        monkeypatch.setenv(name, KEY)
    model = LanguageModel()
    yield model
    model.server.shutdown()
    model.server.server_close()


@pytest.fixture
def corpus(tmp_path):
    path = tmp_path / "corpus.jsonl"
    records = [{"_id": f"d{n}", "title": "", "text": f"passage {n}"} for n in range(8)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def generate(run, llm, corpus, tmp_path):
    """Runs the command with small waits: `generate(*options) -> (exit status, stdout, stderr)`."""

    def generate(*options, interface="openai"):
        options = ("--first-wait", 0.01, *options)
        return run(synthesize, "generate", *common(llm, corpus, tmp_path, interface), *options)

    return generate


def common(llm, corpus, directory, interface="openai"):
    files = ("--corpus", corpus, "--output", directory / "out.jsonl")
    return (*files, "--interface", interface, "--base-url", llm.base, "--llm", "some-model")


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("interface", INTERFACES)
def test_pairs_in_the_corpus_order_that_training_reads(generate, llm, tmp_path, interface):
    llm.behave = lambda passage, tried: [f"what is {passage}?", f"where is {passage}?"]
    status, out, err = generate(
        "--queries-per-passage", 2, "--language", "German", interface=interface
    )
    assert (status, err) == (0, "") and "16 queries for 8 passages" in out
    result = read(tmp_path / "out.jsonl")
    expected = [
        (f"{w} is passage {n}?", f"passage {n}", f"d{n}")
        for n in range(8)
        for w in ("what", "where")
    ]
    assert [(record["anchor"], record["positive"], record["id"]) for record in result] == expected
    source = result[0]["source"]
    assert (source["model"], source["interface"], source["task"]) == (
        "some-model",
        interface,
        "query",
    )
    assert (source["language"], source["temperature"], len(source["template"])) == (
        "German",
        1.0,
        8,
    )
    assert re.match(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00$", source["date"])
    records = open_records(str(tmp_path / "out.jsonl"))
    fields = record_fields(records)
    assert [(*fields.columns(record), *fields.keys(record)) for record in records] == expected
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "corpus.jsonl",
        "out.cache.jsonl",
        "out.jsonl",
    ]


def test_the_shape_of_requests(generate, llm):
    options = (
        "--temperature",
        0.5,
        "--settings",
        '{"top_p": 0.9, "max_tokens": null, "max_completion_tokens": 77}',
    )
    assert generate(*options)[0] == 0
    assert generate("--max-tokens", 99, interface="anthropic")[0] == 0
    _, path, headers, content, _ = llm.requests[0]
    assert path == "/chat/completions" and headers["Authorization"] == f"Bearer {KEY}"
    assert [message.keys() for message in content.pop("messages")] == [{"role", "content"}]
    assert content == {
        "model": "some-model",
        "temperature": 0.5,
        "top_p": 0.9,
        "max_completion_tokens": 77,
    }
    _, path, headers, content, _ = llm.requests[-1]
    headers = {name.lower(): value for name, value in headers.items()}
    assert path == "/v1/messages" and headers["x-api-key"] == KEY and "authorization" not in headers
    assert (
        headers["anthropic-version"] == "2023-06-01"
        and headers["content-type"] == "application/json"
    )
    assert content["messages"][0]["role"] == "user"
    assert (content["model"], content["max_tokens"], content["temperature"]) == (
        "some-model",
        99,
        1.0,
    )
    llm.requests.clear()
    assert generate("--no-key", "--task", "sts")[0] == 0
    assert not {"authorization", "x-api-key"} & {name.lower() for name in llm.requests[0][2]}


ONCE = {
    "429": (429, {"Retry-After": "0"}, b"{}"),
    "500": (500, {}, b"<html>oh</html>"),
    "529": (
        529,
        {},
        b'{"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}',
    ),
    "cut": "cut",
    "dropped": "drop",
    "slow": "slow",
    "trickling": "trickle",
    "no JSON at all": (200, {}, b"<html>"),
    "other fields": (200, {}, b'{"choices": []}'),
    "empty": (200, {}, b""),
    "answer no JSON": "1. what is it?",
    "answer without queries": '{"questions": ["a"]}',
    "too many": ["a", "b"],
    "an empty one": [""],
}


@pytest.mark.parametrize("interface", INTERFACES)
def test_whatever_goes_wrong_once_is_tried_again(generate, llm, tmp_path, interface):
    wrong = {(f"passage {n % 8}", 1 + n // 8): action for n, action in enumerate(ONCE.values())}
    llm.behave = lambda passage, tried: wrong.get((passage, tried), [f"what is {passage}?"])
    status, _, err = generate("--timeout", 0.3, "--concurrency", 8, interface=interface)
    assert (status, err) == (0, "")
    assert [record["anchor"] for record in read(tmp_path / "out.jsonl")] == [
        f"what is passage {n}?" for n in range(8)
    ]
    assert sum(llm.tries.values()) == 8 + len(ONCE)


def test_a_server_that_asks_to_wait_is_left_alone(generate, llm):
    times = []

    def behave(passage, tried):
        times.append(time.monotonic())
        return (429, {"Retry-After": "0.4"}, b"{}") if len(times) == 1 else ["q"]

    llm.behave = behave
    assert generate("--concurrency", 1)[0] == 0
    assert times[1] - times[0] >= 0.4
    llm.behave = lambda passage, tried: (
        429,
        {"Retry-After": "86400"},
        b'{"error": {"message": "enough for today"}}',
    )
    status, _, err = generate("--task", "sts")
    assert status == 1 and "enough for today" in err and "86400 s" in err and err.count("\n") == 1


def test_no_more_requests_a_minute_than_allowed(generate, llm):
    assert generate("--concurrency", 8, "--requests-per-minute", 1200)[0] == 0
    times = [request[0] for request in llm.requests]
    assert times[-1] - times[0] >= 7 * 60 / 1200 - 0.02


def test_what_fails_for_good_is_listed_and_asked_for_again_by_the_same_command(
    generate, llm, tmp_path
):
    llm.behave = lambda passage, tried: (
        (500, {}, b"no luck") if passage[-1] in "36" else [f"what is {passage}?"]
    )
    status, out, err = generate("--retries", 2)
    assert (
        status == 1
        and err.count("\n") == 1
        and "2 passages got no answer" in err
        and "corpus.jsonl:4" in err
    )
    assert llm.tries["passage 3"] == llm.tries["passage 6"] == 3 and llm.tries["passage 0"] == 1
    assert [record["id"] for record in read(tmp_path / "out.jsonl")] == [
        "d0",
        "d1",
        "d2",
        "d4",
        "d5",
        "d7",
    ]
    failed = read(tmp_path / "out.failed.jsonl")
    assert [record["id"] for record in failed] == ["d3", "d6"] and "no luck" in failed[0]["error"]
    llm.behave = lambda passage, tried: ["now then"]
    llm.tries.clear()
    assert generate()[0] == 0
    assert llm.tries == {"passage 3": 1, "passage 6": 1}
    assert [record["id"] for record in read(tmp_path / "out.jsonl")] == [f"d{n}" for n in range(8)]
    assert not (tmp_path / "out.failed.jsonl").exists()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 301])
def test_a_refusal_ends_the_run_at_once_with_the_servers_words(generate, llm, tmp_path, status):
    llm.behave = lambda passage, tried: (
        status,
        {"Location": "/"},
        b'{"error": {"message": "no such\\nthing"}}',
    )
    code, out, err = generate("--concurrency", 1)
    assert (code, err.count("\n")) == (2, 1) and f"HTTP {status}" in err and "no such thing" in err
    assert ("corpus.jsonl:1" in err) == (status == 400)
    assert len(llm.requests) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


@pytest.mark.parametrize("interface", INTERFACES)
@pytest.mark.parametrize("status", [401, 500, 200])
def test_the_key_is_written_nowhere(llm, corpus, tmp_path, interface, status):
    """The key is hidden even if the server repeats it, and with --debug."""
    message = f"key {KEY} is"
    body = json.dumps({"error": {"message": message}}).encode()
    llm.behave = lambda passage, tried: (
        [f"{message} {passage}"] if status == 200 else (status, {KEY: KEY}, body)
    )
    files = [str(part) for part in common(llm, corpus, tmp_path, interface)]
    command = [
        sys.executable,
        "-m",
        "scripts.synthesize",
        "generate",
        *files,
        "--retries",
        "0",
        "--debug",
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == {401: 2, 500: 1, 200: 0}[status], done.stderr
    written = [path.read_text() for path in tmp_path.iterdir()]
    assert "key *** is" in "".join([done.stderr, *written])
    assert not any(KEY in text for text in [done.stdout, done.stderr, *written])


def test_equal_passages_are_asked_for_once_and_each_is_served(run, llm, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("one\ntwo\none\n")
    assert run(synthesize, "generate", *common(llm, path, tmp_path))[0] == 0
    assert llm.tries == {"one": 1, "two": 1}
    assert [record["positive"] for record in read(tmp_path / "out.jsonl")] == ["one", "two", "one"]


def test_a_run_killed_twice_loses_nothing_and_asks_for_nothing_twice(llm, tmp_path):
    path, count = tmp_path / "corpus.txt", 60
    path.write_text("".join(f"passage {n}\n" for n in range(count)))

    def behave(passage, tried):
        time.sleep(0.01)
        return [f"what is {passage}?", f"where is {passage}?"]

    llm.behave = behave
    options = ["--queries-per-passage", "2", "--concurrency", "3"]
    files = [str(part) for part in common(llm, path, tmp_path)]
    command = [sys.executable, "-m", "scripts.synthesize", "generate", *files, *options]
    cache, known = tmp_path / "out.cache.jsonl", set()
    for stop in (12, 35):
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        while len(llm.requests) < stop:
            assert process.poll() is None, process.communicate()
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not known & {request[-1] for request in llm.requests}
        assert not (tmp_path / "out.jsonl").exists()
        served = cache.read_bytes().rpartition(b"\n")[0].splitlines()
        known = {json.loads(line)["queries"][0][8:-1] for line in served}
        assert known
        with cache.open("ab") as file:  # as if the power had gone in the middle of a line
            file.write(b'{"key": "0123", "quer')
        llm.requests.clear()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert {request[-1] for request in llm.requests} == {
        f"passage {n}" for n in range(count)
    } - known
    result = [(record["anchor"], record["positive"]) for record in read(tmp_path / "out.jsonl")]
    assert result == [
        (f"{w} is passage {n}?", f"passage {n}") for n in range(count) for w in ("what", "where")
    ]
    before = (tmp_path / "out.jsonl").read_bytes()
    llm.requests.clear()
    assert subprocess.run(command, cwd=ROOT, capture_output=True, env=os.environ).returncode == 0
    assert llm.requests == [] and (tmp_path / "out.jsonl").read_bytes() == before


def test_the_cache_serves_another_server_but_no_other_question(
    generate, run, llm, corpus, tmp_path
):
    assert generate()[0] == 0
    other = LanguageModel()
    assert run(synthesize, "generate", *common(other, corpus, tmp_path))[0] == 0
    assert other.requests == []
    other.server.shutdown()
    other.server.server_close()
    llm.requests.clear()
    for number, option in enumerate(
        [("--task", "sts"), ("--language", "French"), ("--temperature", 0)], 1
    ):
        assert generate(*option)[0] == 0
        assert len(llm.requests) == 8 * number


def test_two_runs_on_one_output(generate, llm, tmp_path):
    with AnswerCache(tmp_path / "out.cache.jsonl"):
        status, _, err = generate()
    assert status == 2 and "in use by another run" in err and err.count("\n") == 1
    assert llm.requests == []


def test_a_dry_run_sends_nothing_and_needs_no_key(generate, llm, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    llm.behave = lambda passage, tried: (
        (500, {}, b"") if passage == "passage 0" else [f"what is {passage}?"]
    )
    status, out, _ = generate("--dry-run")
    assert status == 0 and "<passage>\npassage 0\n" in out and "8 passages, 8 requests" in out
    assert generate("--no-key", "--retries", 0)[0] == 1
    llm.requests.clear()
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert "8 passages, 1 requests" in generate("--dry-run")[1]
    assert llm.requests == [] and {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_bad_usage_is_refused_before_anything_is_sent(refused, llm, corpus, tmp_path, monkeypatch):
    good = ("generate", *common(llm, corpus, tmp_path))
    for options, message in (
        (("--task", "shrot_long"), "did you mean 'short_long'"),
        (("--queries-per-passage", 0), "--queries-per-passage"),
        (("--timeout", 0), "--timeout"),
        (("--temperature", "nan"), "--temperature"),
        (("--settings", "[1]"), "--settings"),
        (("--settings", '{"messages": []}'), "--settings"),
        (("--output", tmp_path / "out.tsv"), ".jsonl"),
        (("--output", corpus), "also the input"),
        (("--output", tmp_path / "nowhere" / "out.jsonl"), "cannot be written"),
        (("--base-url", "localhost"), "base URL"),
        (("--field", "body"), "corpus.jsonl:1"),
        (("--no-key", "--key-variable", "X"), "exclude"),
        (("--keep-top", 1), "--model"),
        (("--bm25",), "--keep-top"),
        (("--keep-top", 1, "--model", "nobody/nothing"), "nobody/nothing"),
        (("--key-variable", "NO_SUCH_KEY"), "NO_SUCH_KEY"),
        (("--interface", "cohere"), "cohere"),
    ):
        assert message in refused(synthesize, *good, *options)
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
    assert "cannot be reached" in refused(synthesize, *good, "--base-url", url)
    monkeypatch.delenv("OPENAI_API_KEY")
    assert "OPENAI_API_KEY is not set" in refused(synthesize, *good)
    assert llm.requests == []


def test_generated_queries_that_lead_elsewhere_are_dropped(generate, llm, tmp_path):
    pytest.importorskip("bm25s")
    llm.behave = lambda passage, tried: [
        "passage 0" if passage == "passage 5" else f"what is {passage}?"
    ]
    status, out, _ = generate("--keep-top", 1, "--bm25")
    assert status == 0 and "8 queries for 8 passages, 7 kept, 1 dropped" in out
    assert [record["id"] for record in read(tmp_path / "out.jsonl")] == [
        f"d{n}" for n in range(8) if n != 5
    ]


@pytest.fixture
def weak(tmp_path, sentences):
    """Returns 10 pairs whose query is their passage, and 10 whose query is another passage."""
    path, corpus = tmp_path / "weak.jsonl", tmp_path / "more.txt"
    right = [
        {"query": text, "answer": text, "source": {"n": n}} for n, text in enumerate(sentences[:10])
    ]
    elsewhere = zip(sentences[5:15], sentences[15:25], strict=True)
    wrong = [
        {"query": query, "answer": text, "source": {"n": 10 + n}}
        for n, (query, text) in enumerate(elsewhere)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in itertools.chain(right, wrong)))
    corpus.write_text("\n".join(sentences[8:40]) + "\n")
    return path, corpus


@pytest.mark.parametrize("search", ["--model", "--bm25"])
def test_weak_pairs_are_filtered_with_all_their_fields(run, tiny_model, weak, tmp_path, search):
    if search == "--bm25":
        pytest.importorskip("bm25s")
    path, corpus = weak
    with_search = ("--model", tiny_model) if search == "--model" else ("--bm25",)
    output = tmp_path / "kept.jsonl"
    options = ("--pairs", path, "--corpus", corpus, "--keep-top", 1, "--output", output)
    status, out, err = run(synthesize, "filter", *options, *with_search)
    assert (status, err) == (0, "") and "20 pairs, 40 passages, 10 kept, 10 dropped" in out
    assert read(output) == read(path)[:10]
    assert (
        run(
            synthesize,
            "filter",
            *options[:4],
            "--keep-top",
            40,
            *options[6:],
            "--model",
            tiny_model,
        )[0]
        == 0
    )
    assert read(output) == read(path)


def test_a_table_of_pairs_is_filtered_too(run, tiny_model, sentences, tmp_path):
    path, output = tmp_path / "pairs.tsv", tmp_path / "kept.jsonl"
    path.write_text(
        f"anchor\tpositive\tid\n{sentences[0]}\t{sentences[0]}\ta\n{sentences[0]}\t{sentences[1]}\tb\n"
    )
    options = ("--pairs", path, "--keep-top", 1, "--model", tiny_model, "--output", output)
    assert run(synthesize, "filter", *options)[0] == 0
    assert [record["id"] for record in read(output)] == ["a"]


def test_what_cannot_be_filtered_is_refused(refused, tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"anchor": "a", "positive": "b"}\n{"premise": "a", "hypothesis": "b"}\n')
    good = ("filter", "--pairs", path, "--output", tmp_path / "out.jsonl")
    assert "--keep-top is missing" in refused(synthesize, *good)
    assert "--keep-top is missing" in refused(synthesize, *good, "--bm25")
    assert "pairs.jsonl:2: expected a pair with the fields" in refused(
        synthesize, *good, "--bm25", "--keep-top", 1
    )
