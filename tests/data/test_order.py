"""The records of a batch: each once an epoch, in the right shares, without duplicates."""

import numpy as np
import pytest

from embed_jax.data.distinct_batches import find_repeated_codes, make_distinct_batches
from embed_jax.data.order import Batches, ShuffledRecords, make_order, make_turns
from embed_jax.errors import InputError

pytest.importorskip("grain")
LENGTHS = [50, 20, 9]
FIRSTS = np.cumsum([0, *LENGTHS])


def source_of(numbers):
    return np.searchsorted(FIRSTS, numbers, side="right") - 1


def shares(order, steps):
    return np.bincount(
        source_of(np.concatenate([order[step] for step in range(steps)])), minlength=3
    )


@pytest.mark.parametrize("mixing", ["single", "mixed"])
@pytest.mark.parametrize("sampling", ["proportional", "round_robin", "temperature", "weights"])
def test_a_batch_is_a_function_of_seed_and_step(mixing, sampling):
    def make(seed=0):
        return make_order(
            LENGTHS, 4, seed, mixing=mixing, sampling=sampling, temperature=2.0, weights=[1, 2, 3]
        )

    forwards, backwards = make(), make()
    result = [forwards[step] for step in range(60)]
    assert all((backwards[step] == result[step]).all() for step in reversed(range(60)))
    assert any((make(1)[step] != result[step]).any() for step in range(5))
    for numbers in result:
        assert len(numbers) == 4 and numbers.min() >= 0 and numbers.max() < sum(LENGTHS)
        if mixing == "single":
            assert len(set(source_of(numbers))) == 1


def test_proportional_has_everything_once_an_epoch():
    order = make_order(LENGTHS, 1, 0, mixing="mixed")
    for epoch in range(3):
        numbers = [int(order[epoch * 79 + step][0]) for step in range(79)]
        assert sorted(numbers) == list(range(79))
    single = make_order(LENGTHS, 4, 0)
    assert single.count(1) == 12 + 5 + 2
    numbers = np.concatenate([single[step] for step in range(19)])
    assert len(set(numbers.tolist())) == 19 * 4 and shares(single, 19).tolist() == [48, 20, 8]


def test_shares_are_those_asked_for():
    assert make_turns([100, 50, 10], "weights", weights=[1, 1, 2]).turns == (40, 40, 80)
    assert make_turns([100, 25], "temperature", temperature=2.0).turns == (83, 42)  # 10 to 5
    assert make_turns([1000, 1], "weights", weights=[1000, 1e-9]).turns == (
        1000,
        1,
    )  # nobody goes without
    even = make_order(LENGTHS, 4, 0, sampling="round_robin")
    assert [int(source_of(even[step])[0]) for step in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    twice = make_order(LENGTHS, 4, 0, sampling="weights", weights=[1, 1, 1])
    # The small one comes round again, shuffled anew, before the large one has been seen.
    third = [tuple(twice[step]) for step in range(twice.count(1)) if source_of(twice[step])[0] == 2]
    assert len(third) > 2 and len({tuple(sorted(batch)) for batch in third}) > 1


def test_sources_do_not_share_their_order():
    order = make_order([30, 30], 30, 0, sampling="round_robin")
    assert (order[0] != order[1] - 30).any()


def test_one_source_of_a_mixture_is_the_data_set():
    single, mixture = (
        make_order([50], 8, 3),
        make_order([50], 8, 3, sampling="temperature", mixing="mixed"),
    )
    assert all((single[step] == mixture[step]).all() for step in range(20))


CLUSTERS = [np.arange(50) % 3, None, np.zeros(9, int)]  # of 17, 17 and 16 records; none; one


def cluster_of(numbers):
    """Returns the data set and the cluster of each record; 0 without clusters."""
    result = []
    for number in numbers.tolist():
        source = int(source_of(number))
        clusters = CLUSTERS[source]
        result.append((source, 0 if clusters is None else int(clusters[number - FIRSTS[source]])))
    return result


def test_a_batch_is_from_one_cluster_and_an_epoch_has_every_record_that_fills_one():
    order = make_order(LENGTHS, 4, 0, clusters=CLUSTERS)
    assert order.count(1) == (4 + 4 + 4) + 5 + 2
    for epoch in range(3):
        batches = [order[epoch * 19 + step] for step in range(19)]
        assert all(len(set(cluster_of(batch))) == 1 for batch in batches)
        numbers = np.concatenate(batches).tolist()
        assert len(set(numbers)) == len(numbers) == 19 * 4
    clusters = [cluster_of(order[step])[0] for step in range(19)]
    assert clusters != sorted(clusters), "they are shuffled among one another"
    again = make_order(LENGTHS, 4, 0, clusters=CLUSTERS)
    assert all((again[step] == order[step]).all() for step in reversed(range(57)))
    seen = {int(number) for step in range(19 * 8) for number in order[step]}
    assert seen == set(range(sum(LENGTHS))), "what is left over in one epoch comes in another"


def test_the_shares_of_data_sets_do_not_depend_on_their_clusters():
    order = make_order(LENGTHS, 4, 0, clusters=CLUSTERS, sampling="round_robin")
    assert [int(source_of(order[step])[0]) for step in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    first = [cluster_of(order[step])[0][1] for step in range(0, 36, 3)]
    assert np.bincount(first).tolist() == [4, 4, 4], "an epoch of the first data set"


def test_batches_of_clusters_have_no_duplicates():
    hashes = duplicate_keys(sum(LENGTHS), 0.3)
    order = make_order(LENGTHS, 4, 0, clusters=CLUSTERS, duplicate_keys=hashes)
    for step in range(2 * order.count(1)):
        assert has_none(order[step], hashes) and len(set(cluster_of(order[step]))) == 1


def duplicate_keys(records, duplicates, seed=0):
    """Returns hashes of two texts per record; a share of the first texts repeats."""
    rng = np.random.default_rng(seed)
    result = rng.integers(1, 2**62, (records, 2)).astype(np.uint64)
    double = rng.random(records) < duplicates
    result[double, 0] = rng.integers(1, records // 20, double.sum())
    return result


def has_none(batch, hashes):
    texts = hashes[batch].reshape(-1)
    return len(np.unique(texts)) == len(texts)


@pytest.mark.slow
def test_no_duplicate_in_a_thousand_batches_of_a_thousand():
    hashes = duplicate_keys(40_000, 0.3)
    order = Batches(ShuffledRecords(len(hashes), 0), 1024, find_repeated_codes(hashes))
    per_epoch = order.count(1)
    assert 36 <= per_epoch <= 39  # hardly anything is left over
    assert not all(
        has_none(Batches(ShuffledRecords(len(hashes), 0), 1024)[step], hashes) for step in range(3)
    )
    assert all(has_none(order[step], hashes) for step in range(1000))
    assert (
        len(set(np.concatenate([order[step] for step in range(per_epoch)]).tolist()))
        == per_epoch * 1024
    )


def test_the_count_is_the_true_number_of_steps():
    hashes = duplicate_keys(500, 0.5, seed=1)
    order = Batches(ShuffledRecords(500, 0), 16, find_repeated_codes(hashes))
    epochs = [
        len(
            np.unique(np.concatenate([order[s] for s in range(order.count(e), order.count(e + 1))]))
        )
        for e in range(4)
    ]
    assert epochs == [
        (order.count(e + 1) - order.count(e)) * 16 for e in range(4)
    ]  # no record twice in an epoch
    assert order.count(2.5) == order.count(2) + (order.count(3) - order.count(2)) // 2


def test_as_many_batches_as_can_be():
    """Every other record has the same text, so a batch takes one of them only."""
    hashes = np.arange(1, 201, dtype=np.uint64).reshape(100, 2)
    hashes[:50, 0] = 7
    order = Batches(ShuffledRecords(100, 0), 10, find_repeated_codes(hashes))
    assert order.count(1) == 5  # 50 others, nine a batch, and one of the fifty
    codes = np.full((100, 1), -1)
    assert len(make_distinct_batches(np.arange(100), codes, 10)) == 10


def test_the_same_text_twice_in_a_record_is_no_duplicate():
    hashes = np.repeat(
        np.arange(1, 21, dtype=np.uint64)[:, None], 2, axis=1
    )  # anchor and positive are one text
    assert Batches(ShuffledRecords(20, 0), 10, find_repeated_codes(hashes)).count(1) == 2


def test_mixed_batches_have_no_duplicates_across_data_sets():
    hashes = np.arange(1, 2 * 79 + 1, dtype=np.uint64).reshape(79, 2)
    hashes[50:70, 1] = hashes[:20, 0]  # the second data set has texts of the first
    order = make_order(LENGTHS, 16, 0, mixing="mixed", duplicate_keys=hashes)
    assert all(has_none(order[step], hashes) for step in range(20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [3]}, "3 records do not fill a batch of 4"),
        ({"lengths": [50, 3]}, "3 records do not fill a batch of 4"),
        ({"sampling": "random"}, "unknown config.mixture.sampling 'random'"),
        ({"mixing": "both"}, "unknown config.mixture.batches 'both'"),
        ({"mixing": "mixed", "clusters": CLUSTERS}, "expected 'single' with clusters"),
        (
            {"clusters": [np.arange(50) // 48, None, None]},
            "2 records do not fill a batch of 4: lower config.batch.clusters",
        ),
        ({"clusters": [np.zeros(49, int), None, None]}, "one for each of 50 records, found 49"),
        (
            {
                "clusters": [np.arange(50) // 25, None, None],
                "duplicate_keys": np.arange(79, dtype=np.uint64)[:, None] // 25 + 1,
            },
            "made of 25; lower config.batch.size or config.batch.clusters",
        ),
        ({"sampling": "weights", "weights": [1, 0, 1]}, "a weight above 0"),
        ({"sampling": "weights", "weights": [1, 1]}, "a weight above 0"),
        (
            {"sampling": "temperature", "temperature": 0.0},
            "config.mixture.temperature: expected more than 0",
        ),
    ],
)
def test_what_cannot_be_ordered(arguments, message):
    with pytest.raises(InputError, match=message):
        make_order(**({"lengths": LENGTHS, "batch_size": 4, "seed": 0} | arguments))


def test_nothing_but_duplicates_is_an_error():
    order = make_order([20], 4, 0, duplicate_keys=np.full((20, 2), 5, np.uint64))
    with pytest.raises(
        InputError, match="config.batch.no_duplicates: no batch of 4 records without duplicates"
    ):
        order.count(1)
