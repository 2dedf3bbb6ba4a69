"""Slice quality by hand-drawn masks, and an estimate that can be fitted, written and read."""

import numpy as np
import pytest

from lib.slice_quality import SIGNALS, Estimator, heads, signals, slice_iou


def squares(*sides):
    """A slice of 20 x 20 with a centred square for each side."""
    out = np.zeros((len(sides), 20, 20), bool)
    for mask, side in zip(out, sides, strict=True):
        low = 10 - side // 2
        mask[low : low + side, low : low + side] = True
    return out


def known(masks, annotated, **more):
    t = len(masks)
    given = {"predicted_iou": np.full(t, 0.8), "present": np.full(t, 0.5), "agreement": np.full(t, np.nan)} | more
    return signals(masks, pixel_mm=1.0, slice_mm=2.0, annotated=annotated, **given)


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


def test_slices_beyond_the_mask_fade():
    beyond = column(known(squares(4, 4, 0, 0), [0]), "beyond")
    assert beyond[0] == beyond[1] == 1 and beyond[2] > beyond[3]


def test_nothing_anywhere_is_finite():
    assert np.isfinite(known(squares(0, 0, 0), [1])).all()


def test_heads_turn_round_where_there_is_no_mask():
    assert heads(np.array([0.8, 0.8]), np.array([0.5, 0.1]), np.array([True, False])).tolist() == [0.4, 0.9]


def test_an_estimate_is_fitted_written_and_read():
    rng = np.random.default_rng(0)
    x, filled = rng.random((400, len(SIGNALS))), rng.random(400) < 0.6
    iou = np.where(filled, 0.2 + 0.6 * x[:, 0], 0.9 - 0.5 * x[:, -1])
    estimator = Estimator.fit(x, filled, iou)
    said = estimator(x, filled)
    assert np.abs(said - iou).max() < 0.02 and said.min() >= 0 and said.max() <= 1
    np.testing.assert_allclose(Estimator.from_json(estimator.to_json())(x, filled), said)
