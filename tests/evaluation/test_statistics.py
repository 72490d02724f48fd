import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vlm_jax.evaluation.statistics import Estimate, clustered_mean, clustered_p_value


def test_clusters_of_one_give_the_usual_t_interval():
    y = np.random.default_rng(0).random(40)
    low, high = stats.t.interval(0.95, 39, y.mean(), stats.sem(y))
    found = clustered_mean(y, range(40))
    assert (found.score, found.low, found.high) == pytest.approx((y.mean(), low, high))
    assert clustered_p_value(y - 0.45, range(40)) == pytest.approx(stats.ttest_1samp(y, 0.45).pvalue)


def test_equal_clusters_give_the_t_interval_of_their_means():
    y = np.random.default_rng(1).random((15, 4))
    low, high = stats.t.interval(0.95, 14, y.mean(), stats.sem(y.mean(1)))
    found = clustered_mean(y.ravel(), np.repeat(range(15), 4))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert found.n == 60


def test_unequal_clusters_worked_by_hand():
    # Clusters {1, 1, 0}, {0}, {1, 0}: mean 1/2, residual sums 1/2, -1/2, 0; error² = 3/2 * 1/2 / 36.
    found = clustered_mean([1, 1, 0, 0, 1, 0], ["a", "a", "a", "b", "c", "c"], confidence=0.5)
    half = stats.t.ppf(0.75, 2) * np.sqrt(3 / 2 * 0.5 / 36)
    assert (found.score, found.low, found.high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_the_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(2)
    covered, naive = 0, 0
    for _ in range(600):
        chance = np.repeat(rng.beta(2, 1, 60), rng.integers(1, 20, 60))
        # Mean of the clusters' chances, each as often as it has members: the truth about this kind of sample is 2/3.
        clusters = np.cumsum(np.r_[True, chance[1:] != chance[:-1]])
        y = rng.random(len(chance)) < chance
        found = clustered_mean(y, clusters)
        covered += found.low <= 2 / 3 <= found.high
        alone = clustered_mean(y, range(len(y)))
        naive += alone.low <= 2 / 3 <= alone.high
    assert 0.92 < covered / 600 < 0.98
    assert naive < covered - 60


def test_without_any_spread_the_interval_is_that_of_no_failure_in_as_many_clusters():
    found = clustered_mean([1.0] * 50, np.repeat(range(10), 5))
    assert found.high == 1
    assert found.low == pytest.approx(stats.binomtest(10, 10).proportion_ci(method="exact").low)
    nothing = clustered_mean([0.0] * 10, range(10), bounds=(-1, 1))
    assert nothing.low == -nothing.high == pytest.approx(found.low - 1)
    assert clustered_p_value([0.0] * 10, range(10)) == 1
    assert clustered_p_value([1.0] * 10, range(10)) == pytest.approx(2 / 2**10)


def test_one_cluster_says_nothing_and_no_observation_is_refused():
    assert clustered_mean([1, 0], ["a", "a"]) == Estimate(0.5, 0.0, 1.0, 2)
    assert clustered_p_value([1, 1], ["a", "a"]) == 1
    with pytest.raises(ValueError, match="0 observations"):
        clustered_mean([], [])
    with pytest.raises(ValueError, match="2 observations, 1 clusters"):
        clustered_mean([1, 1], [1])


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0]), st.integers(0, 5)), min_size=1, max_size=30))
def test_the_interval_holds_the_mean_and_stays_in_bounds_in_any_order(pairs):
    values, clusters = zip(*pairs, strict=True)
    found = clustered_mean(values, clusters)
    assert 0 <= found.low <= found.score + 1e-12
    assert found.score - 1e-12 <= found.high <= 1
    again = clustered_mean(values[::-1], clusters[::-1])
    assert (again.low, again.high) == pytest.approx((found.low, found.high))
