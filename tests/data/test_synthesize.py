import json
import random
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from embed_jax.data.synthesize import (
    TASKS,
    AnswerCache,
    Passage,
    Template,
    answer_key,
    make_prompt,
    parse_answer,
    read_cached_answers,
    read_passages,
    synthetic_records,
)
from embed_jax.errors import InputError
from embed_jax.remote.ask import Pace, Retries, Stopped
from embed_jax.remote.chat import ChatEndpoint, answer_text
from embed_jax.remote.server import Failed, read_key, retry_after

PASSAGE = 'Braces {like} {0} these, "quotes" and </passage> are text.'


@pytest.mark.parametrize("task", TASKS)
def test_a_prompt_holds_the_passage_and_the_number_and_is_the_same_every_time(task):
    prompt = make_prompt(task, PASSAGE, 3, language="German", seed=1)
    assert f"<passage>\n{PASSAGE}\n</passage>" in prompt
    assert "exactly 3" in prompt and "German" in prompt and '{"queries": [...]}' in prompt
    assert prompt == make_prompt(task, PASSAGE, 3, language="German", seed=1)
    assert "language of the passage" in make_prompt(task, PASSAGE, 3)


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.choices])
def test_prompts_vary_over_passages_and_use_every_phrase(task):
    prompts = [make_prompt(task, f"passage {n}", 1) for n in range(200)]
    for phrases in TASKS[task].choices.values():
        assert len(set(phrases)) == len(phrases) > 1
        assert all(any(phrase in prompt for prompt in prompts) for phrase in phrases)


def test_another_wording_is_another_version():
    versions = {Template("a").version, Template("b").version, Template("a", {"x": ("y",)}).version}
    assert len(versions) == 3 and all(len(version) == 8 for version in versions)
    assert Template("a").version == Template("a").version


def test_an_answers_key_depends_on_all_that_an_answer_depends_on():
    base = ("openai", "m", {"temperature": 1.0, "max_tokens": 5}, "prompt")
    others = [
        ("anthropic", *base[1:]),
        ("openai", "n", *base[2:]),
        (*base[:2], {"temperature": 0.5}, "prompt"),
    ]
    others += [(*base[:3], "another")]
    assert len({answer_key(*parts) for parts in [base, *others]}) == 5
    assert answer_key(*base) == answer_key(
        "openai", "m", {"max_tokens": 5, "temperature": 1.0}, "prompt"
    )


@pytest.mark.parametrize(
    "text",
    [
        '{"queries": ["a b", " c "]}',
        '["a b", "c"]',
        '```json\n{"queries": ["a b", "c"]}\n```',
        'Here they are {as asked}:\n```\n["a b", "c"]\n```\nAnything else?',
        '<think>perhaps ["x", "y"]?</think>\n{"why": null, "queries": ["a b", "c"]}',
    ],
)
def test_answers_are_read_in_whatever_they_are_wrapped(text):
    assert parse_answer(text, 2, PASSAGE) == ["a b", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no JSON"),
        ("a b\nc", "no JSON"),
        ('{"queries": ["a b", "c"', "no JSON"),
        ("[" * 5000, "no JSON"),
        ('{"questions": ["a", "b"]}', "no JSON"),
        ('{"queries": "a"}', "no JSON"),
        ('{"queries": [{"query": "a"}, {"query": "b"}]}', "no JSON"),
        ('{"queries": [1, 2]}', "no JSON"),
        ('{"queries": ["a"], "others": ["a", "b"]}', "1 queries, not 2"),
        ('["a", "b", "c"]', "3 queries, not 2"),
        ('["a", " \\n"]', "empty"),
        ('["a  B", "A b"]', "repeats"),
        (json.dumps(["a", PASSAGE.upper()]), "repeats"),
        ('["a", "\\ud800"]', "surrogate"),
    ],
)
def test_answers_that_are_not_as_asked_are_failures(text, message):
    with pytest.raises(Failed, match=message):
        parse_answer(text, 2, PASSAGE)


def test_passages_have_ids_of_their_own_or_of_their_text(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text(
        '{"_id": "d1", "title": "T", "text": "one ", "metadata": {}}\n'
        '{"id": 7, "title": "", "text": "two", "group": "g"}\n'
        '{"title": "", "text": "three"}\n{"title": "", "text": "three"}\n'
    )
    result = read_passages(path, ("title", "text"))
    assert [(passage.id, passage.group, passage.text) for passage in result[:2]] == [
        ("d1", None, "T one"),
        ("7", "g", "two"),
    ]
    assert result[2].id == result[3].id not in ("d1", "7")  # equal texts are one passage
    assert [passage.where for passage in result] == [f"{path}:{line}" for line in (1, 2, 3, 4)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"text": "x"}\n{"text": " "}\n', "corpus.jsonl:2: an empty passage"),
        ('{"text": "x"}\n{"title": "y"}\n', "corpus.jsonl:2: no field 'text'"),
        ('{"text": "x"}\n{"text": 5}\n', "corpus.jsonl:2"),
        (
            '{"_id": "a", "text": "x"}\n{"_id": "a", "text": "y"}\n',
            "corpus.jsonl:2: the id 'a' is also that of line 1",
        ),
        ("", "empty"),
    ],
)
def test_bad_passages_are_refused_with_their_line(tmp_path, content, message):
    (tmp_path / "corpus.jsonl").write_text(content)
    with pytest.raises(InputError, match=message):
        read_passages(tmp_path / "corpus.jsonl")


def test_a_cache_cut_anywhere_holds_what_was_whole_and_goes_on(tmp_path):
    path = tmp_path / "cache.jsonl"
    answers = {f"k{n}": {"queries": [f"ä{n}\n"], "date": "d"} for n in range(3)}
    with AnswerCache(path) as cache:
        for key, answer in answers.items():
            cache.add(key, answer)
    whole = path.read_bytes()
    ends = [n + 1 for n, byte in enumerate(whole) if byte == ord("\n")]
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        expected = dict(list(answers.items())[: sum(end <= cut for end in ends)])
        assert read_cached_answers(path) == expected
        assert path.read_bytes() == whole[:cut]  # only looked at
        with AnswerCache(path) as cache:
            assert cache.answers == expected
            cache.add("new", answers["k0"])
        assert read_cached_answers(path) == expected | {"new": answers["k0"]}


def test_a_cache_is_for_one_at_a_time_and_leaves_nothing_empty(tmp_path):
    path = tmp_path / "cache.jsonl"
    with AnswerCache(path), pytest.raises(InputError, match="in use"):
        AnswerCache(path)
    assert not path.exists()
    with AnswerCache(path) as cache:
        cache.add("k", {"queries": ["q"], "date": "d"})
    assert path.exists()


def test_a_damaged_cache_is_refused_with_its_line(tmp_path):
    path = tmp_path / "cache.jsonl"
    path.write_text('{"key": "a", "queries": ["q"], "date": "d"}\n\0\0\0\n')
    with pytest.raises(InputError, match="cache.jsonl:2: damaged"):
        AnswerCache(path)
    assert path.read_text().endswith("\0\n")


def test_records_are_in_the_passages_order_with_their_origin():
    passages = [
        Passage("d1", None, "one", "f:1"),
        Passage("d2", "g", "two", "f:2"),
        Passage("d3", None, "x", "f:3"),
    ]
    answers = {
        "b": {"queries": ["q3"], "date": "then"},
        "a": {"queries": ["q1", "q2"], "date": "now"},
    }
    result = list(synthetic_records(passages, ["a", "b", "missing"], answers, {"model": "m"}))
    assert [
        (record["anchor"], record["positive"], record["id"], record.get("group"))
        for record in result
    ] == [
        ("q1", "one", "d1", None),
        ("q2", "one", "d1", None),
        ("q3", "two", "d2", "g"),
    ]
    assert [record["source"] for record in result] == [
        {"model": "m", "date": date} for date in ("now", "now", "then")
    ]


def test_waits_grow_and_are_spread():
    retries = Retries(first=1, longest=60)
    waits = [
        [retries.wait(tried, random.Random(seed)) for seed in range(200)] for tried in range(8)
    ]
    for tried, result in enumerate(waits):
        full = min(2.0**tried, 60)
        assert full / 2 <= min(result) < 0.55 * full and 0.95 * full < max(result) <= full


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("3") == 3 and retry_after("0.5") == 0.5 and retry_after("-1") == 0
    assert (
        5 < retry_after(format_datetime(datetime.now(UTC) + timedelta(seconds=9), usegmt=True)) <= 9
    )
    assert retry_after("Wed, 01 Jan 2020 00:00:00 GMT") == 0
    assert [retry_after(value) for value in (None, "", "soon", "nan", "inf")] == [None] * 5


def test_a_pause_holds_everybody_and_a_stop_wakes_them():
    pace = Pace()
    pace.pause(0.1)
    began = time.monotonic()
    pace.wait()
    assert time.monotonic() - began >= 0.1
    pace.pause(1000)
    pace.stop()
    with pytest.raises(Stopped):
        pace.wait()


def test_an_answers_text_is_found_in_both_forms():
    thought = {"type": "thinking", "thinking": "hm"}
    parts = [thought, {"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert answer_text("anthropic", {"content": parts, "stop_reason": "end_turn"}) == "ab"
    assert answer_text("openai", {"choices": [{"message": {"content": "ab"}}]}) == "ab"
    with pytest.raises(Failed, match="token limit"):
        answer_text(
            "openai", {"choices": [{"message": {"content": "a"}, "finish_reason": "length"}]}
        )
    with pytest.raises(Failed, match="token limit"):
        answer_text("anthropic", {"content": parts, "stop_reason": "max_tokens"})
    for body in (
        {},
        [],
        5,
        None,
        {"choices": []},
        {"choices": [{"message": {"content": None}}]},
        {"content": [5]},
    ):
        for interface in ("openai", "anthropic"):
            with pytest.raises(Failed, match="no text"):
                answer_text(interface, body)
    with pytest.raises(Failed, match="out of memory"):
        answer_text("openai", {"error": {"message": "out of memory"}})


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://host/v1", "https://", "https://u:secret@host", "http://h?k=v"],
)
def test_base_urls_that_are_none_are_refused(url):
    with pytest.raises(InputError, match="base URL") as error:
        ChatEndpoint("openai", url, "m", {})
    assert "secret" not in str(error.value)


def test_a_key_that_no_header_may_hold_is_refused_unseen(monkeypatch):
    monkeypatch.setenv("KEY_HERE", "  sk-fine\n")
    assert read_key("KEY_HERE", "or none") == "sk-fine"
    for bad in ("sk-one\nsk-two", "sk one", "sk-ä"):
        monkeypatch.setenv("KEY_HERE", bad)
        with pytest.raises(InputError, match="KEY_HERE") as error:
            read_key("KEY_HERE", "or none")
        assert "sk" not in str(error.value)
    monkeypatch.setenv("KEY_HERE", " ")
    with pytest.raises(InputError, match="KEY_HERE is not set"):
        read_key("KEY_HERE", "or none")
