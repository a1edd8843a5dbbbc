"""Shards of embeddings: the merged array is that of one process, and nothing is lost unnoticed."""

import json
import shutil

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.retrieval import shards
from embed_jax.retrieval.shards import (
    Shard,
    has_shard,
    merge_shards,
    parse_shard,
    survey_texts,
    write_shard,
)

pytest.importorskip("pyarrow")
BLOCK, DIM = 4, 3
RECORDS = [(f"é{number}", f"text {number}") for number in range(30)]
SURVEY = survey_texts(lambda: RECORDS)
VECTORS = np.random.default_rng(0).normal(size=(30, DIM)).astype(np.float32)
SETTINGS = {"model": "m", "dim": None}


def write(folder, index, count, survey=SURVEY, vectors=VECTORS, **settings):
    shard = Shard(index, count, survey, BLOCK, {**SETTINGS, **settings})
    rows = shard.rows
    starts = range(rows.start, rows.stop, BLOCK)
    blocks = (vectors[start : min(start + BLOCK, rows.stop)] for start in starts)
    write_shard(folder, shard, (RECORDS[row][0] for row in rows), blocks)
    return shard


def merged(folder, tmp_path):
    output, ids = tmp_path / "out.npy", tmp_path / "ids.json"
    merge_shards(folder, output, ids)
    return output.read_bytes(), json.loads(ids.read_text())


@pytest.mark.parametrize("count", [1, 2, 3, 8, 11])
@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_merged_shards_are_the_array_of_one_process(tmp_path, count, dtype):
    vectors = (10 * VECTORS).astype(dtype)
    for index in reversed(range(count)):
        write(tmp_path / "shards", index, count, vectors=vectors)
    np.save(tmp_path / "one.npy", vectors)
    content, ids = merged(tmp_path / "shards", tmp_path)
    assert content == (tmp_path / "one.npy").read_bytes()
    assert ids == [name for name, _ in RECORDS]


def test_shares_are_whole_blocks_and_cover_every_text():
    for count in range(1, 12):
        ranges = [Shard(index, count, SURVEY, BLOCK, {}).rows for index in range(count)]
        assert [row for rows in ranges for row in rows] == list(range(30))
        assert all(rows.start % BLOCK == 0 or not rows for rows in ranges)
        sizes = [-(-len(rows) // BLOCK) for rows in ranges]
        assert max(sizes) - min(sizes) <= 1


def test_a_lost_or_damaged_shard_is_named_and_redone_by_itself(tmp_path):
    folder = tmp_path / "shards"
    made = [write(folder, index, 4) for index in range(4)]
    content, ids = merged(folder, tmp_path)
    file = folder / f"{made[2].name}.parquet"
    whole = file.read_bytes()
    for damage in (
        lambda: file.unlink(),
        lambda: file.write_bytes(whole[:-9]),
        lambda: file.write_bytes(whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]),
        lambda: file.with_suffix(".json").unlink(),
        lambda: file.with_suffix(".json").write_text("{"),
        lambda: file.with_suffix(".json").write_text(
            file.with_suffix(".json").read_text().replace('"index": 2', '"index": 1')
        ),
    ):
        damage()
        (folder / f".{file.name}.77").write_bytes(b"of a killed writer")
        assert [has_shard(folder, shard) for shard in made] == [True, True, False, True]
        with pytest.raises(InputError, match=r"2/4|not the manifest") as caught:
            merged(folder, tmp_path)
        assert "\n" not in str(caught.value)
        write(folder, 2, 4)
        assert merged(folder, tmp_path) == (content, ids)
        assert len(list(folder.iterdir())) == 8


def test_a_writer_that_fails_leaves_no_shard(tmp_path):
    shard = Shard(0, 1, SURVEY, BLOCK, SETTINGS)
    with pytest.raises(InputError, match="expected 30 embeddings, found 4: the input changed"):
        write_shard(tmp_path, shard, ["a"] * 4, [VECTORS[:4]])
    with pytest.raises(InputError, match="expected 30 embeddings, found 0"):
        write_shard(tmp_path, shard, ["a"] * 4, [VECTORS])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"count": 3}, "shards of several runs, of 2, 3 shards"),
        ({"model": "other"}, "of other texts or settings than shard 0: model was 'm', is 'other'"),
        ({"survey": survey_texts(lambda: [*RECORDS[:-1], ("é29", "new")])}, "input content was"),
        ({"vectors": VECTORS[:, :2]}, "shards of several dimensions"),
    ],
)
def test_shards_of_different_runs_are_not_merged(tmp_path, change, message):
    write(tmp_path / "shards", 0, 2)
    write(tmp_path / "shards", 1, **{"count": 2, **change})
    with pytest.raises(InputError, match=message):
        merged(tmp_path / "shards", tmp_path)


def test_ids_are_checked_against_those_of_the_input(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="corpus: the id 'é3' stands 2 times"):
        survey_texts(lambda: [*RECORDS, ("é3", "again")], "corpus")
    with monkeypatch.context() as patch:  # two ids with one hash are two ids
        patch.setattr(shards, "_short_hash", lambda name: 7)
        assert survey_texts(lambda: RECORDS) == SURVEY
    ids = [name for name, _ in RECORDS]
    for wrong in ([*ids[:-1], "new"], [*ids[1:], ids[0]]):
        folder = tmp_path / wrong[0]
        shard = Shard(0, 1, SURVEY, 30, SETTINGS)
        write_shard(folder, shard, wrong, [VECTORS])
        with pytest.raises(InputError, match="do not have each id of the input once, in order"):
            merged(folder, tmp_path)
        shutil.rmtree(folder)


@pytest.mark.parametrize("text", ["", "1", "2/2", "-1/2", "a/b", "1/2/3", "0/0"])
def test_another_form_of_a_shard_is_refused(text):
    with pytest.raises(InputError, match="expected I/N with I from 0 to N - 1"):
        parse_shard(text)


def test_no_shards_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no shards; scripts.encode --shard I/N writes them"):
        merged(tmp_path, tmp_path)
