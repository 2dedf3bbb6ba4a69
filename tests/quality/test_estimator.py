"""The expected IoU: by the network's own outputs, and by an estimator that is fitted, written and read."""

import warnings

import numpy as np
import pytest

from lib.model import checkpoints
from lib.quality.estimator import BoostedTrees, QualityEstimator, predicted_quality
from lib.quality.signals import SIGNALS


def test_the_networks_own_estimate_turns_round_where_there_is_no_mask():
    assert predicted_quality(np.array([0.8, 0.8]), np.array([0.5, 0.1]), np.array([True, False]), np.full(2, np.nan)).tolist() == [0.4, 0.9]


def test_the_networks_own_estimate_is_no_higher_than_the_directions_agree():
    agreement = np.array([0.5, 0.9, np.nan])  # Dice: IoU 1/3, 0.82
    assert predicted_quality(np.full(3, 0.8), np.ones(3), np.ones(3, bool), agreement).tolist() == pytest.approx([1 / 3, 0.8, 0.8])


def test_an_estimator_is_fitted_written_and_read():
    rng = np.random.default_rng(0)
    x, has_mask = rng.random((2000, len(SIGNALS))), rng.random(2000) < 0.6
    iou = np.where(has_mask, 0.2 + 0.6 * x[:, 0], 0.9 - 0.5 * x[:, -1])
    estimator = QualityEstimator.fit(x, has_mask, iou)
    expected = estimator.predict(x, has_mask)
    assert np.abs(expected - iou).mean() < 0.03 and expected.min() >= 0 and expected.max() <= 1
    np.testing.assert_array_equal(QualityEstimator.from_json(estimator.to_json()).predict(x, has_mask), expected)
    assert QualityEstimator.fit(x, has_mask, iou).to_json() == estimator.to_json(), "the same data give the same trees"


def test_no_slices_are_no_trouble():
    x, has_mask = np.random.default_rng(0).random((200, len(SIGNALS))), np.arange(200) % 2 == 0
    estimator = QualityEstimator.fit(x, has_mask, x[:, 0])
    assert estimator.predict(x[:3], np.ones(3, bool)).shape == (3,) and estimator.predict(x[:0], has_mask[:0]).shape == (0,)


def test_trees_follow_a_function_also_where_they_were_not_fitted():
    rng = np.random.default_rng(1)
    x = rng.random((4000, 4))
    y = x[:, 0] * (x[:, 1] > 0.5) + 0.1 * x[:, 2]
    trees = BoostedTrees.fit(x[:2000], y[:2000])
    assert np.abs(trees.predict(x[2000:]) - y[2000:]).mean() < 0.03 < np.abs(y[:2000].mean() - y[2000:]).mean()


@pytest.mark.parametrize(("monotone", "falls"), [(None, True), ({0: 1}, False), ({0: -1}, True)])
def test_what_can_only_be_good_never_lowers_the_estimate(monotone, falls):
    rng = np.random.default_rng(2)
    x = rng.random((3000, 2))
    y = x[:, 0] - 0.6 * (x[:, 0] > 0.5) + 0.1 * rng.standard_normal(3000)  # As a sample of volumes may have it.
    line = np.stack([np.linspace(0, 1, 200), np.full(200, 0.3)], 1)
    assert (np.diff(BoostedTrees.fit(x, y, monotone).predict(line)) < -1e-9).any() == falls


def test_an_estimator_of_another_release_is_not_used():
    assert QualityEstimator.from_json("{}") is None
    assert QualityEstimator.from_json('{"signals": ["distance"], "with_mask": "", "without_mask": ""}') is None


def test_the_embedded_checkpoint_brings_an_estimator_that_warns_of_nothing():
    estimator = QualityEstimator.from_json(checkpoints.metadata(checkpoints.find("embedded"))["slice_quality"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # Users of the command line would see a warning.
        expected = estimator.predict(np.random.default_rng(0).random((50, len(SIGNALS))), np.arange(50) % 2 == 0)
    assert (expected >= 0).all() and (expected <= 1).all() and expected.std() > 0.01
