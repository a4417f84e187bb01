"""Means with intervals, paired differences with tests, average ranks. Numpy only, seeded."""

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

DRAWS = 10_000
FEWEST = 3  # units; fewer get neither interval nor test
ALPHA = 0.05
POWER = 0.8  # of a test, the share of the repetitions in which it sees an effect that is there
EXACT = 14  # with at most this many pairs, every pattern of signs is tried


class _WithInterval:
    """Formats as "mean [low, high]", or "mean" alone, each number by the given specification."""

    def __format__(self, spec: str) -> str:
        if self.low is None:
            return f"{self.mean:{spec}}"
        return f"{self.mean:{spec}} [{self.low:{spec}}, {self.high:{spec}}]"


@dataclass(frozen=True)
class Estimate(_WithInterval):
    """A mean over n independent units, and its 95% interval (None with fewer than 3 units)."""

    mean: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Difference(_WithInterval):
    """Mean paired difference b - a, its interval, and a two-sided p-value that it is zero (None below 3 pairs).

    `p_holm` is the p-value corrected for the number of tests reported together (Holm 1979), `deviation` the
    standard deviation of the pairs' differences (None below 3 pairs).
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    p: float | None
    p_holm: float | None = None
    deviation: float | None = None


def by_group(values: Mapping[tuple[Hashable, Hashable], float]) -> dict[Hashable, float]:
    """(prompt, sample) -> value to prompt -> mean over samples: samples of one prompt are not independent."""
    groups: dict[Hashable, list[float]] = {}
    for (prompt, _), value in values.items():
        groups.setdefault(prompt, []).append(value)
    means = {}
    for prompt, group in groups.items():
        means[prompt] = float(np.mean(group))
    return means


def estimate(values: Iterable[float], seed: int = 0) -> Estimate:
    """Mean of independent values with a percentile bootstrap interval."""
    x = np.fromiter(values, float)
    low, high = _interval(x, seed)
    return Estimate(float(x.mean()), low, high, len(x))


def estimate_crossed(values: np.ndarray, seed: int = 0) -> Estimate | None:
    """Mean of values that vary by two sources of chance at once, with a percentile bootstrap interval.

    Rows and columns are drawn with replacement, independently of each other (Efron & Tibshirani, 1993).

    Args:
        values: [repeats, units], for instance one encoder a row and one clip a column; nan is left out.

    Returns:
        The mean over all of them, None if there are none; n counts the units that told something.
    """
    told = ~np.isnan(values)
    if not told.any():
        return None
    mean = float(values[told].mean())
    values = values[:, told.any(axis=0)]
    told = told[:, told.any(axis=0)]
    repeats, units = values.shape
    if units < FEWEST:
        return Estimate(mean, None, None, units)
    rng = np.random.default_rng(seed)
    row_counts = rng.multinomial(repeats, np.full(repeats, 1 / repeats), DRAWS)  # [draws, repeats]
    column_counts = rng.multinomial(units, np.full(units, 1 / units), DRAWS)  # [draws, units]
    totals = ((row_counts @ np.where(told, values, 0.0)) * column_counts).sum(axis=1)
    counts = ((row_counts @ told.astype(float)) * column_counts).sum(axis=1)
    low, high = np.percentile(totals[counts > 0] / counts[counts > 0], [2.5, 97.5])
    return Estimate(mean, float(low), float(high), units)


def compare(a: Mapping[Hashable, float], b: Mapping[Hashable, float], seed: int = 0) -> Difference | None:
    """Paired difference b - a over the units both have; None where they share none."""
    differences = []
    for unit in a:
        if unit in b:
            differences.append(b[unit] - a[unit])
    if not differences:
        return None
    x = np.array(differences)
    low, high = _interval(x, seed)
    p, deviation = None, None
    if len(x) >= FEWEST:
        p = sign_flip(x, seed)
        deviation = float(x.std(ddof=1))
    return Difference(float(x.mean()), low, high, len(x), p, deviation=deviation)


def sign_flip(x: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value that paired differences x [n] are symmetric about zero.

    The mean is compared with its values under all 2^n patterns of signs, or under 10,000 random ones and
    itself (Phipson & Smyth 2010), so that p is never 0.
    """
    n = len(x)
    observed = abs(x.sum()) * (1 - 1e-12)  # sums of another order may round to less
    if n <= EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ x) >= observed).mean())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (DRAWS, n))
    return float((1 + (np.abs(signs @ x) >= observed).sum()) / (1 + DRAWS))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of the p-values that are not None."""
    tests = []
    for i, p in enumerate(ps):
        if p is not None:
            tests.append((p, i))
    tests.sort()
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for place, (p, i) in enumerate(tests):
        largest = max(largest, min(1.0, p * (len(tests) - place)))
        corrected[i] = largest
    return corrected


def units_needed(effect: float, deviation: float, alpha: float = ALPHA, power: float = POWER) -> int | None:
    """How many pairs a mean paired difference of `effect` needs to be seen with this power; None for no effect.

    By the normal approximation, n = ((z(1 - alpha / 2) + z(power)) deviation / effect)^2 (Cohen 1988).

    Args:
        deviation: standard deviation of the pairs' differences.
        alpha: level of the two-sided test.
    """
    if not effect:
        return None
    return max(FEWEST, math.ceil((_quantiles(alpha, power) * deviation / effect) ** 2))


def least_effect(n: int, deviation: float, alpha: float = ALPHA, power: float = POWER) -> float:
    """The smallest mean paired difference that n pairs see with this power; as `units_needed`."""
    return _quantiles(alpha, power) * deviation / math.sqrt(n)


def _quantiles(alpha: float, power: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)


def ranks(values: Sequence[float], better: int) -> list[float]:
    """Rank of each value, 1 for the best; equal values share the mean of their ranks.

    Args:
        better: 1 where more is better, -1 where less is.
    """
    x = -better * np.asarray(values, float)
    found = []
    for value in x:
        before = (x < value).sum()
        tied = (x == value).sum()
        found.append(float(before + (tied + 1) / 2))
    return found


def average_ranks(
    scores: Mapping[str, Mapping[str, float | None]], better: Mapping[str, int]
) -> tuple[dict[str, float], list[str]]:
    """Mean rank of each method over the metrics that every method has.

    Args:
        scores: method -> metric -> value, None or absent where it was not measured.
        better: metric -> 1 where more is better, -1 where less is.

    Returns:
        method -> average rank, and the metrics it is over. A metric that one method lacks ranks nobody.
    """
    used = []
    table = []
    for metric, sign in better.items():
        values = [row.get(metric) for row in scores.values()]
        if None not in values:
            used.append(metric)
            table.append(ranks(values, sign))
    if not used:
        return {}, []
    means = np.mean(table, axis=0).tolist()
    return dict(zip(scores, means, strict=True)), used


def _interval(x: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    if len(x) < FEWEST:
        return None, None
    draws = np.random.default_rng(seed).integers(0, len(x), (DRAWS, len(x)))
    low, high = np.percentile(x[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)
