"""Alarms of a release gate, on simulated scores of retrained seeds."""

import numpy as np
import pytest

from embed_jax.errors import InputError
from embed_jax.evals.alarms import (
    detection_power,
    false_alarms,
    is_alarm,
    plant_loss,
    raises_alarm,
)
from embed_jax.evals.significance import paired_difference

QUERIES = 300


def ndcg_of_seeds(seeds, rng):
    """nDCG@10 `[seeds, Q]` of queries with one relevant document each.

    How hard a query is, is the same for all seeds; each seed adds its noise to the rank.
    """
    hardness = rng.normal(0.8, 1.6, QUERIES)
    rank = np.floor(np.exp(hardness + 0.5 * rng.normal(size=(seeds, QUERIES)))) + 1
    return np.where(rank <= 10, 1 / np.log2(1 + rank), 0.0)


def test_two_hundred_retrained_seeds_raise_alarms_at_the_level():
    """A/A: two seeds of one training on a random half of the queries; 10 of 200 are expected."""
    rng = np.random.default_rng(0)
    alarms = 0
    for run in range(200):
        half = rng.permutation(QUERIES)[: QUERIES // 2]
        a, b = ndcg_of_seeds(2, rng)[:, half]
        alarms += raises_alarm(a, b, 0.05, seed=run)
    assert 3 <= alarms <= 16  # binomial: outside with a probability of 2 %


def test_exchanged_scores_of_two_systems_raise_alarms_at_the_level():
    """Also where one system is better: exchanging scores at random makes them equal."""
    a, b = ndcg_of_seeds(2, np.random.default_rng(1))
    assert 3 <= false_alarms(a, np.clip(b + 0.1, 0, 1), 0.05) <= 16
    assert false_alarms(a, a, 0.05, runs=5) == 0
    assert false_alarms(a, b, 0.3, runs=50) > 5


def test_a_planted_loss_is_noticed_more_often_the_larger_it_is():
    a, b = ndcg_of_seeds(2, np.random.default_rng(2))
    powers = [detection_power(a, b, loss, 0.05, runs=60) for loss in (0.001, 0.01, 0.03)]
    assert powers[0] < 0.3 and powers[0] < powers[1] < powers[2] and powers[2] > 0.8
    assert detection_power(a, b, 0.01, 0.2, runs=60) > powers[1]
    with pytest.raises(InputError, match="loss: expected at most 0"):
        detection_power(a, b, 0.5, 0.05)


def test_a_planted_loss_is_the_loss_of_the_mean():
    values = ndcg_of_seeds(1, np.random.default_rng(3))[0]
    rng = np.random.default_rng(0)
    for loss in (0.0, 0.01, 0.1):
        planted = plant_loss(values, loss, rng)
        assert values.mean() - planted.mean() == pytest.approx(loss)
        assert (planted >= 0).all() and (planted <= values).all()


def test_only_a_loss_is_an_alarm_and_the_quick_test_is_the_full_one():
    a, b = ndcg_of_seeds(2, np.random.default_rng(4))
    worse = np.clip(a - 0.05, 0, 1)
    for new, baseline, expected in ((worse, a, True), (a, worse, False), (a, b, False)):
        assert is_alarm(paired_difference(new, baseline), 0.05) == expected
        assert raises_alarm(new, baseline, 0.05) == expected
