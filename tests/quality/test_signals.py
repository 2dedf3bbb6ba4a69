"""Signals of hand-drawn masks: slices of 20 x 20 with a centred square each."""

import numpy as np
import pytest

from lib.quality.signals import SIGNALS, compute_signals, mask_source, neighbours_outward
from tests.quality.test_next_slice import squares


def signals(masks, annotated, **changes):
    t = len(masks)
    arguments = {"predicted_iou": np.full(t, 0.8), "presence": np.full(t, 0.5), "agreement": np.full(t, np.nan), "likeness": np.ones(t), "correlation": np.ones(t)} | changes
    return compute_signals(masks, pixel_mm=1.0, slice_mm=2.0, annotated=annotated, **arguments)


def column(table, name):
    return table[:, SIGNALS.index(name)]


def test_distances_count_in_sizes_of_the_structure():
    table = signals(squares(4, 4, 4, 4), [1])  # 16 mm2: size 4 mm, slices 2 mm apart
    assert column(table, "distance").tolist() == [0.5, 0, 0.5, 1.0]
    assert column(table, "nearness")[1] == 1


def test_change_adds_up_outward_and_the_worst_iou_stays():
    table = signals(squares(4, 4, 2, 2), [0], predicted_iou=np.array([0.9, 0.5, 0.8, 0.7]))
    step = 1 - 2 * 4 / (16 + 4)
    assert column(table, "change").tolist() == pytest.approx([0, 0, step, step])
    assert column(table, "worst_iou").tolist() == [0.9, 0.5, 0.5, 0.5]


def test_neighbours_go_from_the_annotated_slices_to_both_sides():
    assert neighbours_outward(5, [2]) == [(1, 2), (3, 2), (0, 1), (4, 3)]
    assert (2, 1) in neighbours_outward(5, [0, 4]) or (2, 3) in neighbours_outward(5, [0, 4])


def test_a_slice_beyond_the_end_of_tracking_has_the_last_mask_as_source():
    assert mask_source(np.array([0, 4, 4, 6, 0, 0]) > 0, [2]).tolist() == [1, 1, 2, 3, 3, 3]
    assert mask_source(np.array([0, 0, 4]) > 0, [2]).tolist() == [2, 2, 2]


def test_the_worst_likeness_on_the_way_stays():
    likeness, correlation = np.array([0.9, 0.2, 0.6, 0.8]), np.array([1, 1, 0.5, 0.7])
    table = signals(squares(4, 4, 0, 0), [0], likeness=likeness, correlation=correlation)
    assert column(table, "worst_likeness").tolist() == [0.9, 0.2, 0.2, 0.2]
    assert column(table, "correlation").tolist() == [1, 1, 0.5, 0.5]


def test_an_abrupt_end_is_told_from_a_tapering_one():
    abrupt, tapering = signals(squares(8, 8, 0), [0]), signals(squares(8, 2, 0), [0])
    assert column(abrupt, "end_area")[2] == 1 and column(tapering, "end_area")[2] == pytest.approx(1 / 16)
    assert column(abrupt, "reach").tolist() == [0, 0.25, 0.25]  # 2 mm of 8


def test_slices_beyond_the_mask_fade():
    nearness = column(signals(squares(4, 4, 0, 0), [0]), "mask_nearness")
    assert nearness[0] == nearness[1] == 1 and nearness[2] > nearness[3]


def test_nothing_anywhere_is_finite():
    assert np.isfinite(signals(squares(0, 0, 0), [1])).all()
