"""Sharded files give the records of one JSONL file in order, and errors name the shard."""

import json
import warnings

import numpy as np
import pytest

from embed_jax.data.order import make_order
from embed_jax.data.pipeline import make_batch_maker, training_batches
from embed_jax.data.record_source import RecordSource
from embed_jax.data.records import Cleaner
from embed_jax.data.sources import iter_records, open_records, record_fields
from embed_jax.data.sources.array_record import write_array_record
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.errors import InputError

pytest.importorskip("grain")
datasets = pytest.importorskip("datasets")
pyarrow = pytest.importorskip("pyarrow")

KINDS = {
    "pairs": lambda n: {
        "id": n,
        "anchor": f"a {n}",
        "positive": f"„p“ {n}",
        "negatives": [f"n {n}"] * (n % 3),
    },
    "scores": lambda n: {
        "sentence1": f"a {n}",
        "sentence2": f"b {n}",
        "score": n / 8,
        "group": f"g{n % 2}",
    },
    "lists": lambda n: {"query": f"q {n}", "passages": [f"a {n}", "b"], "scores": [1.0, n / 8]},
    "texts": lambda n: {"text": f"text {n}", "label": n % 4, "unused": n},
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def write_parquet(rows, path, shards):
    """Writes DIRECTORY/NAME-00000-of-00003.parquet and so on, with uneven numbers of rows."""
    ends = [len(rows) * number**2 // shards**2 for number in range(shards + 1)]
    for number in range(shards):
        file = path.with_name(f"{path.name}-{number:05d}-of-{shards:05d}.parquet")
        table = pyarrow.Table.from_pylist(rows[ends[number] : ends[number + 1]])
        pyarrow.parquet.write_table(table, file, row_group_size=3)


WRITE = {"array_record": write_array_record, "parquet": write_parquet}


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("source", WRITE)
def test_the_same_records_as_from_jsonl(tmp_path, source, kind, shards):
    rows = [KINDS[kind](n) for n in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = open_records(str(tmp_path / "train.jsonl"))
    WRITE[source](rows, tmp_path / "train", shards)
    WRITE[source](rows[:5], tmp_path / "test", 1)
    records = open_records(f"{source}:{tmp_path}")
    assert list(records) == expected and len(records) == 20
    assert [records[n] for n in (19, 0, 7, -1)] == [expected[n] for n in (19, 0, 7, -1)]
    assert list(records[4:9]) == expected[4:9]
    assert list(open_records(f"{source}:{tmp_path}", "test")) == expected[:5]
    assert list(iter_records(f"{source}:{tmp_path}/train-*")) == expected
    assert list(open_records(f"{source}:{tmp_path}/{{split}}-*-of-*", "test")) == expected[:5]
    first = next(tmp_path.glob(f"train-00000-*.{source}"))
    shard_records = list(open_records(f"{source}:{first}"))
    assert 0 < len(shard_records) <= 20 and shard_records == expected[: len(shard_records)]


@pytest.mark.parametrize("source", WRITE)
def test_batches_are_those_of_jsonl(tmp_path, source, made_records, tokenizer_directory):
    rows = [{"negative": None} | row for row in made_records(40)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    WRITE[source](rows, tmp_path / "train", 3)

    def batch(name):
        records = open_records(name)
        source = RecordSource(records, record_fields(records))
        tokenizers = {"encoder": load_tokenizer(tokenizer_directory, 16)}
        order = make_order([len(records)], 8, 3)
        maker = make_batch_maker(
            [source], tokenizers=tokenizers, batch_size=8, groups=2, row_length=32
        )
        return training_batches(maker, order)[7]

    mine, expected = batch(f"{source}:{tmp_path}"), batch(str(tmp_path / "train.jsonl"))
    np.testing.assert_array_equal(mine.record, expected.record)
    np.testing.assert_array_equal(mine.text_hash, expected.text_hash)
    np.testing.assert_array_equal(
        mine.tokens["encoder"].token_ids, expected.tokens["encoder"].token_ids
    )


@pytest.mark.parametrize("source", WRITE)
@pytest.mark.unchecked
def test_one_of_many_records_is_decoded_alone(tmp_path, monkeypatch, source):
    rows = [{"anchor": f"a {n}", "positive": f"p {n}"} for n in range(20_000)]
    WRITE[source](rows, tmp_path / "train", 4)
    original, seen = Cleaner.__call__, []

    def counted(self, raw, where, header=""):
        seen.append(where)
        return original(self, raw, where, header)

    monkeypatch.setattr(Cleaner, "__call__", counted)
    records = open_records(f"{source}:{tmp_path}")
    opened = len(seen)
    assert len(records) == 20_000 and opened <= {"parquet": 2, "array_record": 20_001}[source]
    assert records[11_234] == rows[11_234] and len(seen) == opened + 1
    assert len(records[1000:19_000]) == 18_000 and len(seen) == opened + 1
    record_fields(records)
    assert len(seen) < opened + 5000


BAD = [
    ({"anchor": "a"}, "no field 'positive': found anchor; accepted: anchor positive"),
    ({"anchor": "a", "positive": 3}, "field 'positive' must be a string, found int"),
    ([1], "expected a JSON object, found list"),
    (
        {"anchor": "a", "positive": "p", "score": "high"},
        "score: expected a finite number, found 'high'",
    ),
]


@pytest.mark.parametrize("row,message", BAD)
@pytest.mark.unchecked
def test_a_bad_record_of_array_record(tmp_path, row, message):
    good = {"anchor": "a", "positive": "p"}
    files = write_array_record([good] * 5 + [row] + [good] * 2, tmp_path / "train", 2)
    with pytest.raises(InputError) as caught:
        open_records(f"array_record:{tmp_path}")
    assert str(caught.value).startswith(f"{files[1]}, record 1: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("source", WRITE)
def test_a_record_without_a_text_is_left_out_and_counted(tmp_path, source):
    rows = [{"anchor": f"a{n}", "positive": "p"} for n in range(9)]
    rows[7]["positive"], rows[2]["anchor"] = None, " \u2003"
    WRITE[source](rows, tmp_path / "train", 3)
    message = (
        "2 of 9 records are left out: 1 with no text in 'anchor', 1 with no text in 'positive'"
    )
    with pytest.warns(UserWarning, match=message):
        records = open_records(f"{source}:{tmp_path}")
    assert list(records) == [row for n, row in enumerate(rows) if n not in (2, 7)]
    assert list(records[5:]) == [rows[6], rows[8]]


@pytest.mark.unchecked
def test_a_bad_row_of_parquet(tmp_path):
    rows = [{"anchor": "a", "positive": "p", "score": 1.0} for _ in range(9)]
    rows[7]["score"] = float("inf")
    write_parquet(rows, tmp_path / "train", 3)
    records = open_records(f"parquet:{tmp_path}")
    assert len(records[:7]) == 7 and records[8] == rows[8]
    message = "train-00002-of-00003.parquet, record 3: score: expected a finite number, found inf"
    with pytest.raises(InputError, match=message):
        records[7]


@pytest.mark.parametrize("source", WRITE)
def test_files_that_cannot_be_used(tmp_path, source):
    def refused(name, split="train"):
        with pytest.raises(InputError) as caught:
            open_records(f"{source}:{name}", split)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such files of the split 'train'" in refused(tmp_path)
    assert "no such files of the split 'train'" in refused(f"{tmp_path}/gone-*.{source}")
    assert "which files are the split 'test'? Write {split}" in refused(
        f"{tmp_path}/gone-*.{source}", "test"
    )
    WRITE[source]([{"premise": "a"}] * 4, tmp_path / "train", 2)
    assert (
        "unknown fields: found " in (result := refused(tmp_path))
        or "no column of use: found premise" in result
    )
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / f"train.{source}").write_bytes(b"something else")
    assert f"train.{source}: cannot be read as " in refused(tmp_path / "bad")
    (tmp_path / "two").mkdir()
    for shards in (1, 2):
        WRITE[source]([KINDS["texts"](n) for n in range(6)], tmp_path / "two" / "train", shards)
    assert "one of 2 shards beside some of 1" in refused(tmp_path / "two")


def test_parquet_files_of_other_columns(tmp_path):
    write_parquet([{"anchor": "a", "positive": "p", "meta": 1}], tmp_path / "train-a", 1)
    write_parquet([{"anchor": "a", "answer": "p"}], tmp_path / "train-b", 1)
    with pytest.raises(
        InputError, match="train-b-.*: found the columns anchor, answer; .* anchor, positive"
    ):
        open_records(f"parquet:{tmp_path}")


@pytest.mark.unchecked
def test_array_record_is_written_whole_or_not_at_all(tmp_path):
    class Rows(list):
        def __getitem__(self, index):
            if index.start:
                raise RuntimeError("gone")
            return super().__getitem__(index)

    with pytest.raises(InputError, match="train: cannot be written: gone"):
        write_array_record(Rows([KINDS["texts"](n) for n in range(6)]), tmp_path / "train", 2)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="expected 1 to 1 shards"):
        write_array_record([{"text": "a"}], tmp_path / "train", 2)
    with pytest.raises(InputError, match="cannot be written"):
        write_array_record([{"text": "a"}], tmp_path / "gone" / "train")
    with warnings.catch_warnings(action="error"):
        files = write_array_record([KINDS["texts"](n) for n in range(7)], tmp_path / "train", 3)
    assert [file.name for file in files] == [
        f"train-0000{n}-of-00003.array_record" for n in range(3)
    ]
    assert [len(open_records(f"array_record:{file}")) for file in files] == [2, 2, 3]
