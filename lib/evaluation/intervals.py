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


def bootstrap(statistic: Callable[[np.ndarray], np.ndarray], volume_count: int) -> Estimate:
    """Return a statistic of all volumes and its percentile interval.

    Args:
        statistic: Takes how often each volume counts, float (R, volume_count), and returns the R values of the statistic. A value
            may be NaN where no volume with data is drawn; it is left out.
        volume_count: Number of volumes. With less than two, there is no interval.
    """
    value = float(statistic(np.ones((1, volume_count)))[0])
    if volume_count < 2:
        return Estimate(value)
    rng = np.random.default_rng(0)
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
    known = [(value, volume) for value, volume in zip(values, volumes, strict=True) if not math.isnan(value)]
    return estimate_ratio([value for value, _ in known], [1] * len(known), [volume for _, volume in known])


def estimate_ratio(parts: Sequence[float], wholes: Sequence[float], volumes: Sequence[Hashable]) -> Estimate:
    """Return the sum of the parts divided by the sum of the wholes, with its interval; NaN if the wholes are 0.

    Args:
        parts, wholes: One pair for each structure.
        volumes: For each pair, what identifies its volume.
    """
    index = {volume: n for n, volume in enumerate(dict.fromkeys(volumes))}
    sums = np.zeros((2, len(index)))
    for part, whole, volume in zip(parts, wholes, volumes, strict=True):
        sums[:, index[volume]] += part, whole

    def ratio(counts: np.ndarray) -> np.ndarray:
        with np.errstate(invalid="ignore"):  # A resample may hold nothing; it is left out.
            return (counts @ sums[0]) / (counts @ sums[1])

    return bootstrap(ratio, len(index))


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
