import itertools
import math

import numpy as np
import pytest
from scipy import stats

from embed_jax.errors import InputError
from embed_jax.evals.metrics import spearman
from embed_jax.evals.significance import (
    compare_items,
    holm,
    overall_difference,
    paired_average_precision,
    paired_difference,
    paired_spearman,
    seed_summary,
    verdict,
)
from embed_jax.evals.task import Items, binary_average_precision


def sts_null(rng, n):
    """Gold scores, and two systems equally good, on different scales."""
    gold = rng.normal(size=n)
    a, b = gold + rng.normal(size=(2, n))
    return np.tanh(a), 50 + 3 * b, gold


@pytest.mark.parametrize("n", [4, 7, 10])
def test_few_items_are_tested_exactly_as_by_enumeration(n):
    rng = np.random.default_rng(n)
    for _ in range(5):
        a, b = rng.integers(0, 5, size=(2, n)) / 4  # with ties and items that do not differ
        d = a - b
        patterns = [np.mean(np.array(signs) * d) for signs in itertools.product((1, -1), repeat=n)]
        expected = np.mean([abs(value) >= abs(d.mean()) - 1e-12 for value in patterns])
        result = paired_difference(a, b)
        assert result.exact and result.p_value == pytest.approx(expected, abs=1e-12)


def test_few_pairs_are_tested_exactly_as_by_enumeration():
    rng = np.random.default_rng(0)
    for n in (3, 6, 8):
        a, b, gold = rng.integers(0, 2 * n, size=(3, n)).astype(float)
        ranks = np.stack([stats.rankdata(a), stats.rankdata(b)])
        observed = stats.spearmanr(a, gold).statistic - stats.spearmanr(b, gold).statistic
        count = 0
        for swap in itertools.product((0, 1), repeat=n):
            x, y = ranks[list(swap), range(n)], ranks[[1 - s for s in swap], range(n)]
            rho = [
                0.0 if np.ptp(side) == 0 else stats.spearmanr(side, gold).statistic
                for side in (x, y)
            ]
            count += abs(rho[0] - rho[1]) >= abs(observed) - 1e-9
        result = paired_spearman(a, b, gold)
        assert result.exact and result.difference == pytest.approx(observed)
        assert result.p_value == pytest.approx(count / 2**n)


def test_few_labelled_pairs_are_tested_exactly_as_by_enumeration():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(4)
    labels = np.array([1.0, 0, 1, 0, 0, 1, 0])
    a, b = (rng.permutation(7).astype(float) for _ in range(2))
    result = paired_average_precision(a, b, labels)
    assert result.difference == pytest.approx(
        metrics.average_precision_score(labels, a) - metrics.average_precision_score(labels, b)
    )
    count = 0
    for swap in itertools.product((0, 1), repeat=7):
        x, y = (np.where(side, b, a) for side in (np.array(swap), 1 - np.array(swap)))
        both = [
            metrics.average_precision_score(labels, side - 1e-3 * labels) for side in (x, y)
        ]  # ties: 0 first
        count += abs(both[0] - both[1]) >= abs(result.difference) - 1e-9
    assert result.exact and result.p_value == pytest.approx(count / 2**7)


def test_average_precision_is_scikit_learns():
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(6)
    for levels in (3, 1000):
        values, labels = (
            rng.integers(levels, size=200).astype(float),
            rng.integers(2, size=200).astype(float),
        )
        assert binary_average_precision(values, labels) == pytest.approx(
            metrics.average_precision_score(labels, values)
        )


def test_items_are_compared_by_their_own_statistic():
    a, b, gold = sts_null(np.random.default_rng(8), 30)
    labels = (gold > 0).astype(float)
    assert compare_items(Items(a), Items(b)) == paired_difference(a, b)
    assert compare_items(Items(a, gold, "spearman"), Items(b, gold, "spearman")) == paired_spearman(
        a, b, gold
    )
    assert compare_items(
        Items(a, labels, "ap"), Items(b, labels, "ap")
    ) == paired_average_precision(a, b, labels)
    for other in (Items(b[1:]), Items(b, gold, "spearman")):
        with pytest.raises(InputError, match="scores of the same items"):
            compare_items(Items(a), other)
    with pytest.raises(InputError, match="and other gold"):
        compare_items(Items(a, gold, "spearman"), Items(b, gold + 1, "spearman"))


def test_tasks_that_agree_a_little_each_tell_systems_apart_together():
    rng = np.random.default_rng(9)
    tasks = []
    for _ in range(8):
        base = rng.normal(size=60)
        tasks.append((Items(base + 0.1 + 0.55 * rng.normal(size=60)), Items(base)))
    single = [compare_items(a, b).p_value for a, b in tasks]
    together = overall_difference(tasks)
    assert min(holm(single)) > 0.05 > together.p_value and together.interval[0] > 0
    assert together.difference == pytest.approx(np.mean([a.score() - b.score() for a, b in tasks]))
    single_task = overall_difference(tasks[:1])  # the same test, but sampled
    assert single_task.p_value == pytest.approx(single[0], abs=0.05)


def test_systems_alike_on_all_tasks_have_a_uniform_overall_p_value(monkeypatch):
    monkeypatch.setattr(Items, "resampled", lambda *_, **__: np.zeros(1000))
    rng = np.random.default_rng(10)
    p_values = []
    for seed in range(150):
        gold = rng.normal(size=20)
        sides = gold + rng.normal(size=(2, 20))
        means = rng.exponential(size=(2, 20))
        tasks = [
            tuple(Items(side, gold, "spearman") for side in sides),
            tuple(Items(side) for side in means),
        ]
        p_values.append(overall_difference(tasks, resamples=200, seed=seed).p_value)
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def test_sampled_p_values_approach_the_exact_ones():
    rng = np.random.default_rng(3)
    a, b, gold = sts_null(rng, 16)
    for compare in (
        lambda **k: paired_difference(a, b / 50, **k),
        lambda **k: paired_spearman(a, b, gold, **k),
    ):
        exact, sampled = compare(resamples=2**16), compare(resamples=1000)
        assert exact.exact and not sampled.exact
        error = math.sqrt(exact.p_value * (1 - exact.p_value) / 1000)
        assert abs(exact.p_value - sampled.p_value) < 4 * error + 0.001


def test_p_values_are_uniform_where_the_systems_are_alike(monkeypatch):
    # The intervals are what takes the time, and are not looked at.
    monkeypatch.setattr(Items, "resampled", lambda *_, **__: np.zeros(1))
    rng = np.random.default_rng(0)
    means, correlations = [], []
    for seed in range(300):
        difficulty = rng.exponential(size=25)
        a, b = difficulty + rng.exponential(size=(2, 25))
        means.append(paired_difference(a, b, resamples=300, seed=seed).p_value)
    for seed in range(200):
        correlations.append(paired_spearman(*sts_null(rng, 40), resamples=200, seed=seed).p_value)
    for p_values in (means, correlations):
        assert stats.kstest(p_values, "uniform").pvalue > 0.01
        assert np.mean(np.array(p_values) < 0.05) < 0.09


def test_a_true_difference_has_a_small_p_value():
    rng = np.random.default_rng(1)
    base = rng.normal(size=60)
    result = paired_difference(base + 0.5 + 0.3 * rng.normal(size=60), base)
    assert result.p_value < 0.001 and result.interval[0] > 0.3 and result.interval[1] < 0.7
    gold = rng.normal(size=100)
    good, poor = gold + 0.3 * rng.normal(size=100), gold + 3 * rng.normal(size=100)
    result = paired_spearman(good, poor, gold)
    assert result.p_value < 0.001 and result.interval[0] > 0


@pytest.mark.parametrize("n", [8, 50])  # exact, sampled
def test_exchanging_the_systems_turns_the_sign_and_nothing_else(n):
    a, b, gold = sts_null(np.random.default_rng(n), n)
    for there, back in (
        (paired_difference(a, b), paired_difference(b, a)),
        (paired_spearman(a, b, gold), paired_spearman(b, a, gold)),
    ):
        assert there.p_value == back.p_value
        assert there.difference == pytest.approx(-back.difference, abs=1e-12)
        assert there.interval == pytest.approx([-back.interval[1], -back.interval[0]], abs=1e-12)


def test_only_the_order_of_similarities_counts():
    a, b, gold = sts_null(np.random.default_rng(5), 30)
    assert paired_spearman(a, b, gold) == paired_spearman(np.exp(a), b / 7 - 3, gold**3)
    assert paired_spearman(a, b, gold).difference == spearman(a, gold) - spearman(b, gold)


def test_the_interval_covers_the_true_difference():
    rng = np.random.default_rng(2)
    covered = 0
    for seed in range(100):
        a, b = rng.normal(size=(2, 60))
        low, high = paired_difference(a + 0.2, b, resamples=1, seed=seed).interval
        covered += low <= 0.2 <= high
    assert 88 <= covered <= 99  # 95 expected


def test_equal_systems_have_p_1():
    a = np.arange(20.0)
    for result in (
        paired_difference(a, a),
        paired_spearman(a, a, a[::-1]),
        paired_spearman(a, a**2, a),
    ):
        assert (result.difference, result.interval, result.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_opposite_systems_leave_a_constant_behind():
    result = paired_spearman([1, 2], [2, 1], [1, 2])
    assert result.difference == pytest.approx(2) and result.p_value == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: paired_difference([1.0], [2.0]),
            r"scores of A: expected a list of 2 or more, found shape \(1,\)",
        ),
        (lambda: paired_difference([], []), "scores of A: expected a list of 2 or more"),
        (lambda: paired_difference([[1, 2]], [[1, 2]]), r"found shape \(1, 2\)"),
        (
            lambda: paired_difference([1, 2], [1, math.nan]),
            "scores of B: found nan at item 1, expected finite",
        ),
        (lambda: paired_difference([1, 2], [1, 2, 3]), "the same items, found 2 of A, 3 of B"),
        (
            lambda: paired_difference([1, 2], [2, 1], resamples=0),
            "resamples: expected 1 or more, found 0",
        ),
        (
            lambda: paired_spearman([1, 2], [3, 3], [1, 2]),
            "scores of B: all 2 are 3, so there is no ranking",
        ),
        (lambda: paired_spearman([1, 2], [1, 2], [0, 0]), "scores of gold: all 2 are 0"),
        (lambda: holm([0.1, 1.2]), "p-values: found 1.2 at place 1, expected numbers from 0 to 1"),
        (lambda: holm([math.nan]), "p-values: found nan at place 0"),
        (lambda: seed_summary([]), "scores of seeds: expected a list of 1 or more"),
        (lambda: seed_summary([1, math.inf]), "scores of seeds: found inf at item 1"),
        (lambda: verdict(0.1, math.nan, (0, 1)), "no verdict .* nan"),
    ],
)
@pytest.mark.unchecked
def test_what_cannot_be_compared_is_an_error_of_one_line(call, message):
    with pytest.raises(InputError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_holm_equals_an_example_by_hand():
    # Sorted: 0.005 * 4, 0.01 * 3, 0.03 * 2, 0.04 * 1 -> 0.02, 0.03, 0.06, max(0.06, 0.04).
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(holm([0.6, 0.7]), [1, 1])
    assert len(holm([])) == 0


def test_holm_rejects_what_the_step_down_procedure_rejects():
    rng = np.random.default_rng(0)
    for _ in range(100):
        p = rng.uniform(size=rng.integers(1, 12)) ** 3
        adjusted = holm(p)
        rejected = np.zeros(len(p), bool)
        for step, place in enumerate(
            np.argsort(p)
        ):  # Holm's words: stop at the first that is too large
            if p[place] * (len(p) - step) > 0.05:
                break
            rejected[place] = True
        np.testing.assert_array_equal(adjusted <= 0.05, rejected)
        assert (adjusted >= p).all() and (adjusted <= 1).all()
        assert (np.diff(adjusted[np.argsort(p)]) >= 0).all()
        order = rng.permutation(len(p))
        np.testing.assert_array_equal(holm(p[order]), adjusted[order])


def test_seed_summary_equals_scipy():
    scores = [0.71, 0.74, 0.69, 0.73]
    result = seed_summary(scores, confidence=0.9)
    expected = stats.t.interval(0.9, 3, loc=np.mean(scores), scale=stats.sem(scores))
    assert (result.mean, result.sd, result.n) == (np.mean(scores), np.std(scores, ddof=1), 4)
    assert result.interval == pytest.approx(expected)
    assert seed_summary([2.0]).mean == 2 and all(
        map(math.isnan, (seed_summary([2]).sd, *seed_summary([2]).interval))
    )


@pytest.mark.parametrize(
    ("difference", "p", "interval", "start", "end"),
    [
        (
            0.1,
            0.0001,
            (0.05, 0.15),
            "new is better than old: new - old = +0.1000",
            "+0.0500 to +0.1500, p < 0.001.",
        ),
        (-0.1, 0.01, (-0.15, -0.05), "old is better than new: new - old = -0.1000", "p = 0.010."),
        (
            0.1,
            0.3,
            (-0.1, 0.3),
            "new and old are not told apart",
            "which does not show that they are equal.",
        ),
        (
            0.1,
            0.2,
            (0.05, 0.15),
            "new and old are not told apart",
            "excludes 0, the (corrected) test does not.",
        ),
        (
            0.1,
            0.04,
            (-0.01, 0.2),
            "new and old are not clearly told apart",
            "the interval does not.",
        ),
        (0.0, 1.0, (0.0, 0.0), "new and old are not told apart", "equal."),
    ],
)
def test_the_verdict_calls_better_only_what_test_and_interval_agree_on(
    difference, p, interval, start, end
):
    sentence = verdict(difference, p, interval, a="new", b="old")
    assert sentence.startswith(start) and sentence.endswith(end) and "\n" not in sentence
