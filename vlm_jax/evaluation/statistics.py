"""Means with confidence intervals when observations come in clusters: many questions about one picture."""

import dataclasses
from collections.abc import Hashable, Sequence

import numpy as np
from jaxtyping import Float
from scipy.special import stdtr, stdtrit


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over n observations and its confidence interval."""

    score: float
    low: float
    high: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        """As it stands in eval.json."""
        return dataclasses.asdict(self)


def clustered_mean(
    values: Sequence[float] | Float[np.ndarray, " n"],
    clusters: Sequence[Hashable],
    *,
    bounds: tuple[float, float] = (0.0, 1.0),
    confidence: float = 0.95,
) -> Estimate:
    """The mean of all observations, with an interval that knows that those of one cluster go together.

        standard error² = G / (G - 1) · Σ_g (Σ_{i in g} (y_i - mean))² / n²;   mean ± t(G - 1) · standard error

    over G clusters: the cluster-robust variance of a mean (Liang & Zeger 1986; Cameron & Miller
    2015; for benchmarks of language models Miller 2024, "Adding error bars to evals"). Where every
    cluster holds one observation this is the usual t interval.

    If no cluster departs from the mean at all (say, every answer is right), that formula gives an interval of no width.
    Then the interval reaches as far as G clusters without an exception cannot rule out: a share of
    1 - ((1 - confidence) / 2)^(1/G) of the way to each bound (Clopper & Pearson 1934 for no failure in G trials).

    Args:
        values: observations within `bounds`.
        clusters: for each observation the cluster that it belongs to.
        bounds: smallest and largest possible value; the interval stays within. One cluster alone gives all of it.
        confidence: coverage that is aimed at.

    Raises:
        ValueError: if there are no observations, or not one cluster for each.
    """
    mean, error, count = _mean_and_error(values, clusters)
    if count < 2:
        return Estimate(mean, *bounds, len(values))
    if error > 0:
        half = float(stdtrit(count - 1, (1 + confidence) / 2)) * error
        return Estimate(mean, max(bounds[0], mean - half), min(bounds[1], mean + half), len(values))
    share = 1 - ((1 - confidence) / 2) ** (1 / count)
    return Estimate(mean, mean - share * (mean - bounds[0]), mean + share * (bounds[1] - mean), len(values))


def clustered_p_value(values: Sequence[float] | Float[np.ndarray, " n"], clusters: Sequence[Hashable]) -> float:
    """Two-sided p-value of the hypothesis that the mean is 0, by the t statistic of `clustered_mean`.

    Where no cluster departs from the mean, the sign test over clusters; 1 if all values are 0.
    """
    mean, error, count = _mean_and_error(values, clusters)
    if count < 2 or error == 0:
        return 1.0 if mean == 0 or count < 2 else 2 * 0.5**count
    return float(2 * stdtr(count - 1, -abs(mean) / error))


def _mean_and_error(
    values: Sequence[float] | Float[np.ndarray, " n"], clusters: Sequence[Hashable]
) -> tuple[float, float, int]:
    """(mean, cluster-robust standard error, number of clusters)."""
    y = np.asarray(values, np.float64)
    if not len(y) or len(y) != len(clusters):
        raise ValueError(
            f"{len(y)} observations, {len(clusters)} clusters: give some observations, and a cluster for each"
        )
    numbers: dict[Hashable, int] = {}
    member = np.array([numbers.setdefault(cluster, len(numbers)) for cluster in clusters])
    mean, count = float(y.mean()), len(numbers)
    if count < 2:
        return mean, 0.0, count
    sums = np.bincount(member, y - mean, minlength=count)
    # Sums of rounding errors are no spread.
    sums[np.abs(sums) < 1e-12 * len(y)] = 0.0
    return mean, float(np.sqrt(count / (count - 1) * np.sum(sums**2)) / len(y)), count
