"""Means with 95 % bootstrap intervals over volumes.

Structures of one volume are not independent of each other, so whole volumes are resampled (a cluster bootstrap): a resample draws as
many volumes as there are, with replacement, and all values of a volume come with it.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import numpy as np

RESAMPLES = 2000
PERCENTILES = (2.5, 97.5)


class Estimate(NamedTuple):
    """A figure with its 95 % interval; `low` and `high` are NaN if there are fewer than two volumes."""

    value: float
    low: float = math.nan
    high: float = math.nan


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], volume_count: int, seed: int = 0) -> Estimate:
    """Return a statistic of all volumes and its percentile interval.

    Args:
        statistic: Takes how often each volume counts, float (R, volume_count), and returns the R values of the statistic. A value
            may be NaN where no volume with data is drawn; it is left out.
        volume_count: Number of volumes. With one, there is no interval.
    """
    value = float(statistic(np.ones((1, volume_count)))[0])
    if volume_count < 2:
        return Estimate(value)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(volume_count, np.full(volume_count, 1 / volume_count), RESAMPLES).astype(float)
    values = statistic(counts)
    values = values[~np.isnan(values)]
    return Estimate(value, *(float(v) for v in np.percentile(values, PERCENTILES))) if len(values) else Estimate(value)


def estimate_mean(values: Sequence[float], volumes: Sequence[Hashable]) -> Estimate:
    """Return the mean of the values that are not NaN with its interval; NaN if there are none.

    Args:
        values: One value for each structure.
        volumes: For each value, what identifies its volume.

    >>> estimate_mean([0.5, 0.7, float("nan")], ["a", "b", "b"]).value
    0.6
    """
    sums: dict[Hashable, tuple[float, int]] = {}
    for value, volume in zip(values, volumes, strict=True):
        if not math.isnan(value):
            total, count = sums.get(volume, (0.0, 0))
            sums[volume] = total + float(value), count + 1
    if not sums:
        return Estimate(math.nan)
    totals, counts = np.array(list(sums.values())).T
    return bootstrap(lambda weights: (weights @ totals) / (weights @ counts), len(totals))


def format_estimate(estimate: Estimate, digits: int = 3, missing: str = "-") -> str:
    """Return the value and its interval as text.

    >>> format_estimate(Estimate(0.6, 0.55, 0.652), 2), format_estimate(Estimate(0.6)), format_estimate(Estimate(float("nan")))
    ('0.60 [0.55, 0.65]', '0.600', '-')
    """
    value, low, high = estimate
    if math.isnan(value):
        return missing
    interval = "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{interval}"
