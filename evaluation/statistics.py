"""Means with intervals, paired differences with tests, average ranks. Numpy only, seeded."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
EXACT = 14  # with at most this many pairs, every pattern of signs is tried


class _WithInterval:
    """Formats as "mean [low, high]", or "mean" alone, each number by the given specification."""

    def __format__(self, spec: str) -> str:
        interval = "" if self.low is None else f" [{self.low:{spec}}, {self.high:{spec}}]"
        return f"{self.mean:{spec}}{interval}"


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

    `p_holm` is the p-value corrected for the number of tests reported together (Holm 1979).
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    p: float | None
    p_holm: float | None = None


def by_group(values: Mapping[tuple[Hashable, Hashable], float]) -> dict[Hashable, float]:
    """(prompt, sample) -> value to prompt -> mean over samples: samples of one prompt are not independent."""
    groups: dict[Hashable, list[float]] = {}
    for (prompt, _), value in values.items():
        groups.setdefault(prompt, []).append(value)
    return {prompt: float(np.mean(group)) for prompt, group in groups.items()}


def estimate(values: Iterable[float], seed: int = 0) -> Estimate:
    """Mean of independent values with a percentile bootstrap interval."""
    x = np.fromiter(values, float)
    return Estimate(float(x.mean()), *_interval(x, seed), len(x))


def compare(a: Mapping[Hashable, float], b: Mapping[Hashable, float], seed: int = 0) -> Difference | None:
    """Paired difference b - a over the units both have; None where they share none."""
    shared = [unit for unit in a if unit in b]
    if not shared:
        return None
    x = np.array([b[unit] - a[unit] for unit in shared])
    return Difference(float(x.mean()), *_interval(x, seed), len(x), sign_flip(x, seed) if len(x) > 2 else None)


def sign_flip(x: np.ndarray, seed: int = 0) -> float:
    """Two-sided p-value that paired differences x [n] are symmetric about zero.

    The mean is compared with its values under all 2^n patterns of signs, or under 10,000 random ones and
    itself (Phipson & Smyth 2010), so that p is never 0.
    """
    n, observed = len(x), abs(x.sum()) * (1 - 1e-12)
    if n <= EXACT:
        signs = 1 - 2 * ((np.arange(2**n)[:, None] >> np.arange(n)) & 1)
        return float((np.abs(signs @ x) >= observed).mean())
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (DRAWS, n))
    return float((1 + (np.abs(signs @ x) >= observed).sum()) / (1 + DRAWS))


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down correction of the p-values that are not None."""
    order = sorted((i for i, p in enumerate(ps) if p is not None), key=lambda i: ps[i])
    corrected: list[float | None] = [None] * len(ps)
    largest = 0.0
    for place, i in enumerate(order):
        largest = max(largest, min(1.0, ps[i] * (len(order) - place)))
        corrected[i] = largest
    return corrected


def ranks(values: Sequence[float], better: int) -> list[float]:
    """Rank of each value, 1 for the best; equal values share the mean of their ranks.

    Args:
        better: 1 where more is better, -1 where less is.
    """
    x = -better * np.asarray(values, float)
    return [float((x < value).sum() + ((x == value).sum() + 1) / 2) for value in x]


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
    methods = list(scores)
    used = [metric for metric in better if all(scores[method].get(metric) is not None for method in methods)]
    table = [ranks([scores[method][metric] for method in methods], better[metric]) for metric in used]
    means = np.mean(table, axis=0) if table else []
    # Without a metric that all have, there is no rank to give.
    return {method: float(mean) for method, mean in zip(methods, means, strict=False)}, used


def _interval(x: np.ndarray, seed: int) -> tuple[float | None, float | None]:
    if len(x) < 3:
        return None, None
    draws = np.random.default_rng(seed).integers(0, len(x), (DRAWS, len(x)))
    low, high = np.percentile(x[draws].mean(1), [2.5, 97.5])
    return float(low), float(high)
