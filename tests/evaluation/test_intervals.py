"""Test means and bootstrap intervals over volumes."""

import math

import numpy as np
import pytest

from lib.evaluation.intervals import Estimate, bootstrap, estimate_mean


def test_the_mean_is_over_structures():
    """Volume a has three structures, volume b one: the mean counts all four alike."""
    estimate = estimate_mean([0.2, 0.4, 0.6, 0.8], ["a", "a", "a", "b"])
    assert estimate.value == pytest.approx(0.5)
    assert (estimate.low, estimate.high) == pytest.approx((0.4, 0.8)), "only volume a, only volume b"


def test_structures_of_a_volume_are_drawn_together():
    """Equal values within volumes: more structures in a volume do not make the interval narrower."""
    volumes = list("abcdefgh")
    few = estimate_mean(np.linspace(0, 1, 8).tolist(), volumes)
    many = estimate_mean(np.repeat(np.linspace(0, 1, 8), 50).tolist(), np.repeat(volumes, 50).tolist())
    assert many == pytest.approx(few)
    alone = estimate_mean(np.repeat(np.linspace(0, 1, 8), 50).tolist(), list(range(400)))
    assert alone.high - alone.low < (few.high - few.low) / 4


def test_the_interval_is_that_of_the_normal_distribution_for_many_volumes():
    values = np.random.default_rng(3).normal(0.5, 0.1, 400)
    estimate = estimate_mean(values.tolist(), list(range(400)))
    half_width = 1.96 * values.std() / np.sqrt(400)
    assert estimate.low == pytest.approx(values.mean() - half_width, abs=0.001)
    assert estimate.high == pytest.approx(values.mean() + half_width, abs=0.001)


def test_missing_values():
    nan = math.nan
    assert estimate_mean([0.4, nan, 0.6], ["a", "b", "c"]).value == pytest.approx(0.5)
    one_volume = estimate_mean([0.4, 0.6, nan], ["a", "a", "b"])
    assert one_volume.value == pytest.approx(0.5) and math.isnan(one_volume.low) and math.isnan(one_volume.high)
    assert math.isnan(estimate_mean([nan], ["a"]).value) and math.isnan(estimate_mean([], []).value)


def test_the_same_values_give_the_same_interval():
    values, volumes = [0.1, 0.5, 0.7, 0.9], list("aabc")
    assert estimate_mean(values, volumes) == estimate_mean(values, volumes)


def test_resamples_without_a_value_are_left_out():
    def first_volume_only(counts):
        with np.errstate(invalid="ignore"):
            return counts[:, 0] / counts[:, 0]

    assert bootstrap(first_volume_only, 3) == Estimate(1.0, 1.0, 1.0)
