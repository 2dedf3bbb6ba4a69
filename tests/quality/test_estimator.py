"""Slice quality by hand-drawn masks, and an estimate that can be fitted, written and read."""

import numpy as np
import pytest

from lib.quality.estimator import (
    SIGNALS,
    Boosting,
    QualityEstimator,
    compute_signals,
    mask_source,
    neighbours_outward,
    predicted_quality,
    slice_iou,
)


def squares(*sides):
    """A slice of 20 x 20 with a centred square for each side."""
    out = np.zeros((len(sides), 20, 20), bool)
    for mask, side in zip(out, sides, strict=True):
        low = 10 - side // 2
        mask[low : low + side, low : low + side] = True
    return out


def known(masks, annotated, **more):
    t = len(masks)
    given = {"predicted_iou": np.full(t, 0.8), "present": np.full(t, 0.5), "agreement": np.full(t, np.nan), "alike": np.ones(t), "same": np.ones(t)} | more
    return compute_signals(masks, pixel_mm=1.0, slice_mm=2.0, annotated=annotated, **given)


def column(table, name):
    return table[:, SIGNALS.index(name)]


def test_slice_iou_of_empty_slices():
    iou = slice_iou(squares(4, 0, 4, 0), squares(4, 4, 0, 0))
    assert iou.tolist() == [1, 0, 0, 1]
    assert slice_iou(squares(2), squares(4))[0] == pytest.approx(4 / 16)


def test_distances_count_in_sizes_of_the_structure():
    table = known(squares(4, 4, 4, 4), [1])  # 16 mm2: size 4 mm, slices 2 mm apart
    assert column(table, "distance").tolist() == [0.5, 0, 0.5, 1.0]
    assert column(table, "near")[1] == 1


def test_change_adds_up_outward_and_the_worst_iou_stays():
    table = known(squares(4, 4, 2, 2), [0], predicted_iou=np.array([0.9, 0.5, 0.8, 0.7]))
    step = 1 - 2 * 4 / (16 + 4)
    assert column(table, "change").tolist() == pytest.approx([0, 0, step, step])
    assert column(table, "worst_iou").tolist() == [0.9, 0.5, 0.5, 0.5]


def test_outward_goes_from_the_annotated_slices_to_both_sides():
    assert neighbours_outward(5, [2]) == [(1, 2), (3, 2), (0, 1), (4, 3)]
    assert (2, 1) in neighbours_outward(5, [0, 4]) or (2, 3) in neighbours_outward(5, [0, 4])


def test_the_last_mask_stays_in_force_where_tracking_has_ended():
    assert mask_source(np.array([0, 4, 4, 6, 0, 0]) > 0, [2]).tolist() == [1, 1, 2, 3, 3, 3]
    assert mask_source(np.array([0, 0, 4]) > 0, [2]).tolist() == [2, 2, 2]


def test_the_worst_look_on_the_way_stays():
    alike, same = np.array([0.9, 0.2, 0.6, 0.8]), np.array([1, 1, 0.5, 0.7])
    table = known(squares(4, 4, 0, 0), [0], alike=alike, same=same)
    assert column(table, "worst_alike").tolist() == [0.9, 0.2, 0.2, 0.2]
    assert column(table, "same").tolist() == [1, 1, 0.5, 0.5]


def test_an_abrupt_end_is_told_from_a_tapering_one():
    abrupt, tapering = known(squares(8, 8, 0), [0]), known(squares(8, 2, 0), [0])
    assert column(abrupt, "stop")[2] == 1 and column(tapering, "stop")[2] == pytest.approx(1 / 16)
    assert column(abrupt, "reach").tolist() == [0, 0.25, 0.25]  # 2 mm of 8


def test_slices_beyond_the_mask_fade():
    beyond = column(known(squares(4, 4, 0, 0), [0]), "beyond")
    assert beyond[0] == beyond[1] == 1 and beyond[2] > beyond[3]


def test_nothing_anywhere_is_finite():
    assert np.isfinite(known(squares(0, 0, 0), [1])).all()


def test_heads_turn_round_where_there_is_no_mask():
    assert predicted_quality(np.array([0.8, 0.8]), np.array([0.5, 0.1]), np.array([True, False]), np.full(2, np.nan)).tolist() == [0.4, 0.9]


def test_heads_believe_no_more_than_the_directions_agree():
    agreement = np.array([0.5, 0.9, np.nan])  # Dice: IoU 1/3, 0.82
    assert predicted_quality(np.full(3, 0.8), np.ones(3), np.ones(3, bool), agreement).tolist() == pytest.approx([1 / 3, 0.8, 0.8])


def test_an_estimate_is_fitted_written_and_read():
    rng = np.random.default_rng(0)
    x, filled = rng.random((2000, len(SIGNALS))), rng.random(2000) < 0.6
    iou = np.where(filled, 0.2 + 0.6 * x[:, 0], 0.9 - 0.5 * x[:, -1])
    estimator = QualityEstimator.fit(x, filled, iou)
    said = estimator(x, filled)
    assert np.abs(said - iou).mean() < 0.03 and said.min() >= 0 and said.max() <= 1
    np.testing.assert_allclose(QualityEstimator.from_json(estimator.to_json())(x, filled), said)


def test_trees_follow_a_function_also_where_they_were_not_fitted():
    rng = np.random.default_rng(1)
    x = rng.random((4000, 4))
    y = x[:, 0] * (x[:, 1] > 0.5) + 0.1 * x[:, 2]
    trees = Boosting.fit(x[:2000], y[:2000])
    assert np.abs(trees(x[2000:]) - y[2000:]).mean() < 0.03 < np.abs(y[:2000].mean() - y[2000:]).mean()


@pytest.mark.parametrize(("monotone", "falls"), [(None, True), ([1, 0], False), ([-1, 0], True)])
def test_what_can_only_be_good_never_lowers_the_estimate(monotone, falls):
    rng = np.random.default_rng(2)
    x = rng.random((3000, 2))
    y = x[:, 0] - 0.6 * (x[:, 0] > 0.5) + 0.1 * rng.standard_normal(3000)  # of this sample of volumes
    line = np.stack([np.linspace(0, 1, 200), np.full(200, 0.3)], 1)
    assert (np.diff(Boosting.fit(x, y, monotone)(line)) < -1e-9).any() == falls


def test_an_estimate_of_another_release_is_not_used():
    assert QualityEstimator.from_json("{}") is None
    assert QualityEstimator.from_json('{"signals": ["distance"], "filled": {}, "empty": {}}') is None
