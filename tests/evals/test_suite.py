import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.suite import (
    Entry,
    evaluate,
    known_split,
    named,
    read_suite,
    result_file,
    unfinished,
)
from embed_jax.evals.task import Use


@pytest.fixture
def sts_file(tmp_path):
    path = tmp_path / "stsb" / "test.tsv"
    path.parent.mkdir()
    rows = [f"{n % 5}\tone two {n}\ttwo three {n % 7}" for n in range(12)]
    path.write_text("\n".join(["score\tsentence1\tsentence2", *rows]) + "\n")
    return path


class Model:
    similarity = "cosine"

    def __init__(self, encode):
        self.encode, self.uses = encode, []

    def __call__(self, texts, use):
        self.uses.append(use)
        return self.encode(texts)


def test_yaml_and_python_say_the_same(sts_file, tmp_path):
    (tmp_path / "a.yaml").write_text(
        "- {task: sts, data: stsb, similarity: dot}\n- {task: sts, data: x, name: other}\n"
    )
    (tmp_path / "a.py").write_text(
        "TASKS = [dict(task='sts', data='stsb', similarity='dot'), dict(task='sts', data='x', "
        "name='other')]\n"
    )
    entries = read_suite(tmp_path / "a.yaml")
    assert entries == read_suite(tmp_path / "a.py")
    assert entries[0] == Entry(
        "sts", str(tmp_path / "stsb"), "test", "stsb", "", {"similarity": "dot"}
    )
    assert (
        entries[1].data == "x" and entries[1].name == "other"
    )  # not there: wherever the command is run
    assert read_suite(tmp_path / "a.yaml", tmp_path / "nowhere")[0].data == "stsb"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("task: sts", "expected a list of tasks, found dict"),
        ("[]", "expected a list of tasks"),
        ("- sts", "task 1: expected a mapping with task and data, found 'sts'"),
        ("- {task: sts}", "task 1: no field 'data'; found task"),
        ("- {task: sing, data: x}", "task 1: unknown task 'sing'; known: bitext"),
        ("- {task: sts, data: x, split: 3}", "task 1: split: expected text, found 3"),
        (
            "- {task: sts, data: x}\n- {task: sts, data: x}",
            "task 2: 'x' is the second one of this name",
        ),
        ("- {task: sts, data: x", "cannot be read as a suite"),
    ],
)
def test_bad_suites_are_refused(tmp_path, content, message):
    (tmp_path / "s.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        read_suite(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"similarty": "dot"}, "sts stsb: unknown option 'similarty' .did you mean 'similarity'"),
        ({"scale": 5}, "sts stsb: scale: expected str, found 5"),
        ({"scale": "0,2"}, r"test.tsv:5: score 3 is out of range, expected 0 to 2"),
        ({"scale": "five"}, "scale: expected lowest and highest score"),
        ({"similarity": "near"}, "unknown similarity 'near'"),
    ],
)
def test_bad_options_are_refused(sts_file, options, message):
    with pytest.raises(InputError, match=message):
        Entry("sts", str(sts_file.parent), name="stsb", options=options).open()


def test_options_of_each_type(tmp_path):
    (tmp_path / "texts.tsv").write_text(
        "text\tlabel\n" + "".join(f"t{n}\t{'ab'[n % 2]}\n" for n in range(8))
    )
    data = str(tmp_path / "texts.tsv")
    for options in ({"documents": 0.5, "protocol": "fast"}, {"documents": 4, "protocol": "fast"}):
        assert Entry("clustering", data, name="n", options=options).open().unit == "texts"
    for options, expected in (
        ({"seed": True}, "int"),
        ({"seed": 1.5}, "int"),
        ({"documents": "half"}, r"int \| float"),
    ):
        with pytest.raises(
            InputError, match=f"clustering n: {next(iter(options))}: expected {expected}, found"
        ):
            Entry("clustering", data, name="n", options=options).open()


def test_what_is_done_is_not_done_again(sts_file, tmp_path, encode):
    entries = read_suite_of(
        tmp_path,
        "- {task: sts, data: stsb}\n- {task: sts, data: stsb, name: by_dot, similarity: dot}\n",
    )
    assert unfinished(entries, tmp_path / "m", "v1") == entries
    for entry in entries:
        details = {"fingerprint": ["v1", entry.fingerprint()]}
        evaluate(entry, "m", Model(encode), details=details).write(
            result_file(tmp_path, entry.name)
        )
    assert unfinished(entries, tmp_path, "v1") == []
    assert unfinished(entries, tmp_path, "v2") == entries  # another model
    again = read_suite_of(
        tmp_path, "- {task: sts, data: stsb}\n- {task: sts, data: stsb, name: by_dot}\n"
    )
    assert [entry.name for entry in unfinished(again, tmp_path, "v1")] == [
        "by_dot"
    ]  # other options
    sts_file.write_text(sts_file.read_text() + "3\ta\tb\n")
    assert unfinished(entries, tmp_path, "v1") == entries  # other data


def read_suite_of(directory, content):
    (directory / "s.yaml").write_text(content)
    return read_suite(directory / "s.yaml")


def test_tasks_are_given_their_instruction_and_name(sts_file, encode):
    model = Model(encode)
    result = evaluate(Entry("sts", str(sts_file), name="n", instruction="find"), "m", model)
    assert set(model.uses) == {Use("n", "STS", "", "find")}
    assert result.details["instruction"] == "find" and result.details["seconds"] > 0
    plain = evaluate(Entry("sts", str(sts_file), name="n"), "m", Model(encode))
    assert plain.outcome.metrics == result.outcome.metrics and np.isfinite(plain.outcome.score)


@pytest.mark.parametrize(
    ("data", "split", "name"),
    [
        ("sets/stsb", "test", "stsb"),
        ("stsb", "dev", "stsb-dev"),
        ("sets/stsb/test.tsv.gz", "test", "stsb"),
        ("stsb/dev.tsv", "test", "stsb-dev"),
        ("mine.tsv", "test", "mine"),
        ("hf:mteb/scifact", "test", "scifact"),
    ],
)
def test_tasks_without_a_name_are_called_by_their_data(data, split, name):
    assert named("sts", data, split) == name


@pytest.mark.parametrize(
    ("data", "split", "known"),
    [
        ("stsb", "dev", "dev"),
        ("hf:mteb/banking77", "test", "test"),
        ("stsb/dev.tsv", "test", "dev"),
        ("stsb/test.jsonl.gz", "test", "test"),
        ("pairs.tsv", "test", None),
    ],
)
def test_the_split_is_known_or_not_stated(data, split, known):
    assert known_split(data, split) == known
