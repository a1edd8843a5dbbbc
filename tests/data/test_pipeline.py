"""A batch is a function of (seed, step), whoever asks for it and whenever."""

import dataclasses
import hashlib
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from embed_jax.data.pipeline import fingerprint, prefetch, steps_per_epoch, text_hash, training_batches
from embed_jax.data.sources import pair_columns
from embed_jax.data.tokenize import load_tokenizer
from embed_jax.errors import InputError

pytest.importorskip("grain")
COUNT, BATCH = 50, 8


@pytest.fixture(scope="module")
def records(made_records):
    return made_records(COUNT)


@pytest.fixture(scope="module")
def make(records, tokenizer_directory):
    settings = {
        "columns": pair_columns(records),
        "tokenizers": {"encoder": load_tokenizer(tokenizer_directory, 32)},
        "batch_size": BATCH,
        "groups": 2,
        "row_length": 32,
        "seed": 0,
    }
    return lambda **changes: training_batches(changes.pop("records", records), **(settings | changes))


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and (x == y).all()


def digest(batch):
    return hashlib.sha256(b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(batch))).hexdigest()


def test_batch_holds_its_records(make, records, tokenizer_directory):
    tokenizer = load_tokenizer(tokenizer_directory, 32)
    batch = make()[3]
    tokens = batch.tokens["encoder"]
    assert batch.present.shape == (2, 3, 4) and batch.text_hash.shape == (2, 3, 4, 2)
    assert tokens.sentences == 12 and tokens.token_ids.shape[0] == 2
    assert (batch.label, batch.score) == (None, None)
    for g in range(2):
        for e in range(4):
            record = records[batch.record[g, e]]
            for c, name in enumerate(("anchor", "positive", "negative")):
                slots = tokens.sentence[g] == 4 * c + e
                assert batch.present[g, c, e] == (name in record) == slots.any()
                assert tuple(batch.text_hash[g, c, e]) == text_hash(record.get(name))
                if name in record:
                    assert tokens.token_ids[g][slots].tolist() == tokenizer.encode([record[name]]).ids[0].tolist()


def test_same_step_same_batch_in_another_process(make, made_records, tokenizer_directory):
    ds = make()
    assert_equal(ds[11], ds[11])
    assert digest(make(seed=1)[11]) != digest(ds[11])
    program = f"""
import jax, hashlib, numpy as np
from embed_jax.data.pipeline import training_batches
from embed_jax.data.sources import pair_columns
from embed_jax.data.tokenize import load_tokenizer
records = {made_records(COUNT)!r}
ds = training_batches(records, columns=pair_columns(records), batch_size={BATCH}, groups=2, row_length=32, seed=0,
    tokenizers={{"encoder": load_tokenizer({str(tokenizer_directory)!r}, 32)}})
print(hashlib.sha256(b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(ds[11]))).hexdigest())
"""
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == digest(ds[11])


def test_epochs_are_complete_and_different(make):
    ds, steps = make(), steps_per_epoch(COUNT, BATCH)
    orders = []
    for epoch in range(3):
        seen = [int(r) for step in range(steps) for r in ds[epoch * steps + step].record.reshape(-1)]
        assert len(set(seen)) == len(seen) == steps * BATCH
        orders.append(seen)
    assert orders[0] != orders[1] != orders[2]
    whole = make(batch_size=COUNT, groups=1)  # nothing left over: each record once
    for epoch in range(2):
        assert sorted(whole[epoch].record.reshape(-1)) == list(range(COUNT))
    # Seed 1 is not seed 0 an epoch later.
    assert sorted(make(seed=1)[0].record.reshape(-1)) != sorted(ds[steps].record.reshape(-1))


def test_hosts_share_a_batch(make):
    whole = make(groups=4)
    shares = [make(groups=4, rows=6, shard=(host, 2)) for host in range(2)]
    for step in (0, 9):
        parts = [share[step] for share in shares]
        assert all(part.record.shape == (2, 2) for part in parts)
        together = np.concatenate([part.record.reshape(-1) for part in parts])
        assert sorted(together) == sorted(whole[step].record.reshape(-1))
        assert parts[0].tokens["encoder"].token_ids.shape == parts[1].tokens["encoder"].token_ids.shape == (2, 6, 32)


def test_host_reads_only_its_share(make, records):
    class Counting(list):
        read = []

        def __getitem__(self, index):
            self.read.append(index)
            return super().__getitem__(index)

    counting = Counting(records)
    batch = make(records=counting, groups=2, rows=6, shard=(1, 2))[0]
    assert sorted(Counting.read) == sorted(batch.record.reshape(-1)) and len(Counting.read) == BATCH // 2


def test_two_views_share_their_order(make, tokenizer_directory):
    encoder, guide = load_tokenizer(tokenizer_directory, 32), load_tokenizer(tokenizer_directory, 8)
    batch = make(tokenizers={"a guide": guide, "encoder": encoder})[2]
    both = batch.tokens["encoder"], batch.tokens["a guide"]
    assert both[0].sentences == both[1].sentences
    for g in range(2):
        for number in range(12):
            long, short = (view.token_ids[g][view.sentence[g] == number].tolist() for view in both)
            assert short == (long if len(long) <= 8 else long[:7] + long[-1:])
    assert_equal(dataclasses.replace(make()[2], tokens=None), dataclasses.replace(batch, tokens=None))


def test_prompts_by_column(make, tokenizer_directory):
    tokens = make(prompts=("what is : ", ""), include_prompt=False)[0].tokens["encoder"]
    anchors = tokens.sentence < 4
    assert (tokens.pooled[anchors] == (tokens.position[anchors] >= 4)).all()  # [CLS] what is :
    assert tokens.pooled[(tokens.sentence >= 4) & (tokens.sentence < 12)].all()


def test_labels_and_scores(make, records):
    batch = make(label=lambda record: len(record["anchor"]), score=lambda record: 0.5)[0]
    assert batch.label.tolist() == [[len(records[r]["anchor"]) for r in group] for group in batch.record]
    assert batch.label.dtype == np.int32 and batch.score.dtype == np.float32


def test_prefetch_is_in_order_from_anywhere(make):
    ds = make()
    for start, stop in ((0, 7), (13, 18), (5, 5)):
        got = list(prefetch(ds, start, num_steps=stop))
        assert [step for step, _ in got] == list(range(start, stop))
        for step, batch in got:
            assert_equal(batch, ds[step])


def test_prefetch_runs_ahead_and_stops_when_abandoned(make, records):
    read = []

    def columns(record):
        read.append(threading.current_thread())
        return record["anchor"], record["positive"]

    ds = make(columns=columns)
    read.clear()
    batches = prefetch(ds, buffer=3)
    next(batches)
    deadline = time.monotonic() + 5
    while len(read) < 4 * BATCH and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(read) == 4 * BATCH  # the one taken and three ahead
    batches.close()
    time.sleep(0.05)
    assert len(read) == 4 * BATCH
    assert threading.main_thread() not in read
    assert not any(thread.is_alive() for thread in set(read))


def test_an_error_in_a_thread_reaches_the_consumer(make):
    def columns(record):
        return (record["anchor"], None)

    with pytest.raises(InputError, match="anchor and positive are needed"):
        next(prefetch(make(columns=columns)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 64}, "50 records do not fill a batch of 64"),
        ({"groups": 3}, "each must divide"),
        ({"row_length": 16}, "row length 16 is too short"),
        ({"shard": (0, 2)}, "config.batch.rows"),
        ({"tokenizers": {}}, "'encoder'"),
    ],
)
def test_settings_that_cannot_work(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_fixed_rows(make):
    assert make(rows=7)[0].tokens["encoder"].token_ids.shape == (2, 7, 32)
    with pytest.raises(InputError, match="`rows` is 1"):
        make(rows=1)[0]


def test_fingerprint_tells_data_apart(records):
    columns = pair_columns(records)
    same = fingerprint(list(records), columns)
    assert fingerprint(records, columns) == same and same["records"] == COUNT
    changed = [*records[:-1], records[-1] | {"positive": "other"}]
    assert fingerprint(changed, columns) != same


def test_text_hash_is_stable_and_ignores_outer_white_space():
    assert text_hash("the cat") == text_hash(" the cat\n") != text_hash("the Cat")
    assert text_hash("the cat") == (3944598488, 708418682)  # b2sum -l 64
    assert text_hash(None) == (0, 0)
