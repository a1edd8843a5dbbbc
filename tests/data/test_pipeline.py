"""A batch is a function of (seed, step), in any process and in any order of calls."""

import dataclasses
import hashlib
import re
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import pytest

from embed_jax.data.order import make_order
from embed_jax.data.pairs import text_hash
from embed_jax.data.pipeline import make_batch_maker, prefetch, training_batches
from embed_jax.data.record_source import RecordSource, data_fingerprint
from embed_jax.data.sources import RecordFields, pair_columns
from embed_jax.data.tokenizer_files import load_tokenizer
from embed_jax.errors import InputError

pytest.importorskip("grain")
COUNT, BATCH = 50, 8


@pytest.fixture(scope="module")
def records(made_records):
    return made_records(COUNT)


@pytest.fixture(scope="module")
def make(records, tokenizer_directory):
    def batches(*, seed=0, batch_size=BATCH, prompts=("",), **changes):
        fields = {"columns": pair_columns(records)} | {
            name: changes.pop(name) for name in FIELDS if name in changes
        }
        source = RecordSource(changes.pop("records", records), RecordFields(**fields), prompts)
        settings = {
            "tokenizers": {"encoder": load_tokenizer(tokenizer_directory, 32)},
            "groups": 2,
            "row_length": 32,
        }
        order = make_order([len(source.records)], batch_size, seed)
        return training_batches(
            make_batch_maker([source], batch_size=batch_size, **(settings | changes)), order
        )

    return batches


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype and (x == y).all()


def digest(batch):
    return hashlib.sha256(
        b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in jax.tree.leaves(batch))
    ).hexdigest()


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
                    assert (
                        tokens.token_ids[g][slots].tolist()
                        == tokenizer.encode([record[name]]).ids[0].tolist()
                    )


def test_same_step_same_batch_in_another_process(make, made_records, tokenizer_directory):
    ds = make()
    assert_equal(ds[11], ds[11])
    assert digest(make(seed=1)[11]) != digest(ds[11])
    program = f"""
import jax, hashlib, numpy as np
from embed_jax.data.order import make_order
from embed_jax.data.pipeline import make_batch_maker, training_batches
from embed_jax.data.record_source import RecordSource
from embed_jax.data.sources import RecordFields, pair_columns
from embed_jax.data.tokenizer_files import load_tokenizer
records = {made_records(COUNT)!r}
source = RecordSource(records, RecordFields(pair_columns(records)))
make = make_batch_maker([source], batch_size={BATCH}, groups=2, row_length=32,
    tokenizers={{"encoder": load_tokenizer({str(tokenizer_directory)!r}, 32)}})
ds = training_batches(make, make_order([len(records)], {BATCH}, 0))
leaves = jax.tree.leaves(ds[11])
content = b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in leaves)
print(hashlib.sha256(content).hexdigest())
"""
    other = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == digest(ds[11])


def test_epochs_are_complete_and_different(make):
    ds, steps = make(), COUNT // BATCH
    orders = []
    for epoch in range(3):
        seen = [
            int(r) for step in range(steps) for r in ds[epoch * steps + step].record.reshape(-1)
        ]
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
        assert (
            parts[0].tokens["encoder"].token_ids.shape
            == parts[1].tokens["encoder"].token_ids.shape
            == (2, 6, 32)
        )


@pytest.mark.parametrize(("hosts", "shares"), [(2, 2), (2, 4), (4, 4), (1, 4)])
def test_one_process_makes_the_shares_of_several(make, tokenizer_directory, hosts, shares):
    """The batch depends, to the bit, on the number of shares, not on the process."""
    views = {
        "encoder": load_tokenizer(tokenizer_directory, 32),
        "guide": load_tokenizer(tokenizer_directory, 48),
    }
    settings = FIELDS | {"groups": 4, "rows": 6, "shares": shares, "tokenizers": views}
    whole, parts = (
        make(**settings),
        [make(**settings, shard=(host, hosts)) for host in range(hosts)],
    )
    for step in (0, 9):
        together = jax.tree.map(
            lambda *leaves: np.concatenate(leaves), *[part[step] for part in parts]
        )
        assert_equal(whole[step], together)
    assert digest(whole[0]) != digest(make(**(settings | {"shares": 1}))[0])


def assert_one_shape(batches):
    """Nearly all batches have the same rows, and others more only where they need them."""
    views = [batches[step].tokens["encoder"] for step in range(40)]
    rows = [view.token_ids.shape[1] for view in views]
    needed = [int((view.sentence < view.sentences).any(-1).sum(-1).max()) for view in views]
    usual = min(rows)
    assert len(set(needed)) > 1 and rows.count(usual) > 30
    assert rows == [max(usual, number) for number in needed]


def test_batches_have_one_shape_and_more_rows_only_where_they_need_them(make):
    assert_one_shape(make())


def test_batches_of_all_data_sets_have_one_shape_though_one_fills_no_batch(
    records, made_records, tokenizer_directory
):
    sources = [
        RecordSource(some, RecordFields(pair_columns(some)))
        for some in (records, made_records(BATCH - 1, seed=1))
    ]
    maker = make_batch_maker(
        sources,
        tokenizers={"encoder": load_tokenizer(tokenizer_directory, 32)},
        batch_size=BATCH,
        groups=2,
        row_length=32,
        mixed=True,
    )
    order = make_order([len(source.records) for source in sources], BATCH, 0, mixing="mixed")
    assert_one_shape(training_batches(maker, order))


def test_short_texts_have_short_rows_and_a_long_one_the_long_rows(
    make, records, tokenizer_directory
):
    """The rows suit a sample of the texts; a batch with a longer text has what it needs."""
    tokenizers = {"encoder": load_tokenizer(tokenizer_directory, 100)}
    options = {"tokenizers": tokenizers, "row_length": 128, "batch_size": 2, "groups": 1}
    numbers = range(COUNT // 2)  # one epoch

    def lengths(records, **changes):
        batches = make(records=records, **(options | changes))
        return [batches[step].tokens["encoder"].token_ids.shape[2] for step in numbers]

    assert set(lengths(records)) == {128}
    assert set(lengths(records, rows=4, shorter_rows=True)) == {128}, "hosts need one shape"
    (usual,) = set(lengths(records, shorter_rows=True))
    assert usual in (32, 64)
    # A long text in a record that the sample, 16 of 50, does not read.
    sampled = np.linspace(0, COUNT - 1, 16).astype(int)
    unread = next(number for number in range(COUNT) if number not in sampled)
    changed = [dict(record) for record in records]
    changed[unread]["positive"] = "the " * 90
    shorter, whole = (
        make(records=changed, shorter_rows=shorter, **options) for shorter in (True, False)
    )
    for step in numbers:
        tokens, full = (batches[step].tokens["encoder"] for batches in (shorter, whole))
        length = 128 if unread in shorter[step].record else usual
        assert tokens.token_ids.shape[2] == length and full.token_ids.shape[2] == 128
        for number in range(tokens.sentences):
            ids = [t.token_ids[t.sentence == number].tolist() for t in (tokens, full)]
            assert ids[0] == ids[1]


def test_shares_without_fixed_rows_have_the_rows_of_the_fullest(make):
    whole = make(groups=4, shares=2)[5].tokens["encoder"].token_ids
    shares = [
        make(groups=4, rows=9, shares=2, shard=(host, 2))[5].tokens["encoder"] for host in range(2)
    ]
    used = [
        (share.sentence < share.sentences).any(-1).sum(-1) for share in shares
    ]  # rows with tokens, by group
    assert whole.shape[0] == 4 and whole.shape[1] >= np.max(used)
    for host in range(2):
        assert (whole[2 * host : 2 * host + 2] == shares[host].token_ids[:, : whole.shape[1]]).all()


@pytest.mark.unchecked
def test_host_reads_only_its_share(make, records):
    class Counting(list):
        read = []

        def __getitem__(self, index):
            self.read.append(index)
            return super().__getitem__(index)

    counting = Counting(records)
    batch = make(records=counting, groups=2, rows=6, shard=(1, 2))[0]
    assert (
        sorted(Counting.read) == sorted(batch.record.reshape(-1))
        and len(Counting.read) == BATCH // 2
    )


def test_two_views_share_their_order(make, tokenizer_directory):
    encoder, guide = load_tokenizer(tokenizer_directory, 32), load_tokenizer(tokenizer_directory, 8)
    batch = make(tokenizers={"a guide": guide, "encoder": encoder})[2]
    both = batch.tokens["encoder"], batch.tokens["a guide"]
    assert both[0].sentences == both[1].sentences
    for g in range(2):
        for number in range(12):
            long, short = (view.token_ids[g][view.sentence[g] == number].tolist() for view in both)
            assert short == (long if len(long) <= 8 else long[:7] + long[-1:])
    assert_equal(
        dataclasses.replace(make()[2], tokens=None), dataclasses.replace(batch, tokens=None)
    )


def test_another_view_has_its_own_row_length_and_no_prompt(make, records, tokenizer_directory):
    encoder, guide = (
        load_tokenizer(tokenizer_directory, 32),
        load_tokenizer(tokenizer_directory, 40),
    )
    batch = make(
        tokenizers={"encoder": encoder, "guide": guide},
        prompts=("what is : ",),
        include_prompt=False,
    )[0]
    mine, other = batch.tokens["encoder"], batch.tokens["guide"]
    assert mine.token_ids.shape[2] == 32 and other.token_ids.shape[2] == 40
    assert (other.pooled == (other.sentence < other.sentences)).all()
    for g, e in np.ndindex(2, 4):
        (ids,) = guide.encode([records[batch.record[g, e]]["anchor"]]).ids
        assert other.token_ids[g][other.sentence[g] == e].tolist() == ids.tolist()


def test_prompts_by_column(make, tokenizer_directory):
    tokens = make(prompts=("what is : ", ""), include_prompt=False)[0].tokens["encoder"]
    anchors = tokens.sentence < 4
    assert (tokens.pooled[anchors] == (tokens.position[anchors] >= 4)).all()  # [CLS] what is :
    assert tokens.pooled[(tokens.sentence >= 4) & (tokens.sentence < 12)].all()


FIELDS = {
    "columns": lambda record: (record["anchor"], record["positive"], record.get("negative")),
    "label": lambda record: len(record["anchor"]),
    "score": lambda record: [len(record["positive"]) / 2, 0.25, 1.0],
    "keys": lambda record: ["negative" in record and "same " or None, record["anchor"][:1], ""],
}


def test_fields_follow_their_records(make, records):
    batch = make(**FIELDS)[0]
    for name, dtype in (("label", np.int32), ("score", np.float32)):
        result = getattr(batch, name)
        assert result.dtype == dtype
        assert result.tolist() == [
            [FIELDS[name](records[number]) for number in group] for group in batch.record
        ]
    assert batch.keys.shape == (2, 4, 3, 2) and batch.keys.dtype == np.uint32
    for place in np.ndindex(2, 4):
        record = records[batch.record[place]]
        same = text_hash("same") if "negative" in record else (0, 0)
        assert [tuple(key) for key in batch.keys[place]] == [
            same,
            text_hash(record["anchor"][:1]),
            (0, 0),
        ]
    without = make()[0]
    assert (without.label, without.score, without.keys, without.dataset) == (None,) * 4


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("score", [0.0] * 4, "found 3 scores, expected 4 as in other records, or one for each of"),
        ("keys", ["a"] * 3, "found 2 keys, expected 3 as in record 0$"),
    ],
)
def test_every_record_has_as_many_scores_and_keys(make, records, name, values, message):
    odd = records[-1]
    with pytest.raises(InputError, match=f"^record {COUNT - 1}: {message}"):
        make(
            **{name: lambda record: values if record is not odd else values[1:]},
            batch_size=COUNT,
            groups=1,
        )[0]


def test_lists_may_have_fewer_scored_candidates_than_others(make, records):
    def candidates(record):
        return ["a", "b", "c"][: 1 + records.index(record) % 3]

    batch = make(
        columns=lambda record: (record["anchor"], *candidates(record)),
        score=lambda record: [ord(text) / 2 for text in candidates(record)],
    )[0]
    for place in np.ndindex(2, 4):
        count = len(candidates(records[batch.record[place]]))
        scores = [ord(text) / 2 for text in "abc"[:count]] + [0.0] * (3 - count)
        assert batch.score[place].tolist() == scores
        assert batch.present[place[0], 1:, place[1]].tolist() == [k < count for k in range(3)]


def test_a_bad_field_names_its_record(make, records):
    def label(record):
        if record is records[-1]:
            raise InputError("label: what is this?")
        return 0

    with pytest.raises(InputError, match=f"^record {COUNT - 1}: label: what is this"):
        make(label=label, batch_size=COUNT, groups=1)[0]


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
        (
            {"shares": 4},
            "config.batch.shares: expected a multiple of the 1 hosts that divides the 2 groups, "
            "found 4",
        ),
        (
            {"shares": 1, "shard": (0, 2), "rows": 6},
            "config.batch.shares: expected a multiple of the 2 hosts",
        ),
        ({"shares": -2}, "config.batch.shares"),
        ({"tokenizers": {}}, "'encoder'"),
    ],
)
def test_settings_that_cannot_work(make, changes, message):
    with pytest.raises(InputError, match=message):
        make(**changes)


def test_fixed_rows(make):
    assert make(rows=7)[0].tokens["encoder"].token_ids.shape == (2, 7, 32)
    with pytest.raises(InputError, match=r"config.batch.rows: .*found 1; .* 0 each batch") as error:
        make(rows=1)[0]
    assert rows_of(make(rows=numbers_in(error)[-2])[0]) == numbers_in(error)[-2], "hold any batch"


def numbers_in(error) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(error.value))]


def rows_of(batch) -> int:
    return batch.tokens["encoder"].token_ids.shape[1]


def test_advice_about_rows_on_several_hosts_can_be_followed(make):
    with pytest.raises(InputError, match="found 0; set it, for these data to") as error:
        make(shard=(1, 2))
    advised = numbers_in(error)[-1]
    for step in range(3):
        for host in range(2):
            assert rows_of(make(shard=(host, 2), rows=advised)[step]) == advised
    with pytest.raises(InputError, match="found 1; [0-9]+ hold any batch$") as error:
        make(shard=(0, 2), rows=1)[0]
    assert advised <= numbers_in(error)[-1], "more than any batch needs"


def test_fingerprint_tells_data_apart(records):
    def of(records, **fields):
        return data_fingerprint(
            {"": RecordSource(records, RecordFields(**{"columns": pair_columns(records)} | fields))}
        )

    same = of(list(records))
    assert of(records) == same and same[""]["records"] == COUNT
    changed = [*records[:-1], records[-1] | {"positive": "other"}]
    assert of(changed) != same
    prints = [of(records, **{name: FIELDS[name]}) for name in ("label", "score", "keys")]
    prints += [same, of(records, label=FIELDS["label"], score=FIELDS["score"])]
    assert len({fingerprint[""]["texts"] for fingerprint in prints}) == len(prints)
    assert (
        data_fingerprint({"other": RecordSource(records, RecordFields(pair_columns(records)))})
        != same
    )


def test_text_hash_is_stable_and_ignores_outer_white_space():
    assert text_hash("the cat") == text_hash(" the cat\n") != text_hash("the Cat")
    assert text_hash("the cat") == (3944598488, 708418682)  # b2sum -l 64
    assert text_hash(None) == (0, 0)
