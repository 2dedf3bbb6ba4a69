"""Test the protocol of Shen et al. on masks that are written by hand."""

import numpy as np
import pytest

from lib.evaluation.protocols import shen
from lib.evaluation.protocols.steps import ProtocolPlan
from lib.evaluation.protocols.target import Target
from tests.evaluation.simulated_methods import ScriptedMethod, make_target, mask_from_text

EMPTY = mask_from_text(*["........"] * 5)
SQUARE = mask_from_text("........", ".###....", ".###....", ".###....", "........")
RIGHT = mask_from_text("........", ".....###", ".....###", ".....###", "........")


def plan(mode, *settings, seed=0):
    return ProtocolPlan(mode, np.random.default_rng(seed), settings)


def make_reference(slice_count, pixels_by_slice):
    """Return a reference (slice_count, 20, 20) whose slices have the given numbers of foreground pixels."""
    reference = np.zeros((slice_count, 20, 20), bool)
    for t, pixels in pixels_by_slice.items():
        reference[t].flat[:pixels] = True
    return reference


@pytest.mark.parametrize("filled, expected", [([3], 3), ([1, 2, 3], 2), ([1, 2], 2), ([0, 1, 5, 6], 5), ([0, 4, 9], 4)])
def test_central_slice(filled, expected):
    """Only the slices with foreground are counted, so that a gap has no effect."""
    reference = np.stack([SQUARE if t in filled else EMPTY for t in range(10)])
    assert shen.find_central_slice(reference) == expected


def test_salient_slices_have_more_than_256_pixels():
    assert shen.find_salient_slices(make_reference(4, {0: 256, 1: 257, 3: 400})).tolist() == [1, 3]


def test_margin_is_5_to_9_slices_on_each_side():
    reference = make_reference(60, {30: 1, 33: 1})
    kept = [shen.choose_slices_with_margin(reference, np.random.default_rng(seed)) for seed in range(50)]
    assert {30 - k[0] for k in kept} == {k[-1] - 33 for k in kept} == {5, 6, 7, 8, 9}
    assert all((np.diff(k) == 1).all() for k in kept)
    assert any(30 - k[0] != k[-1] - 33 for k in kept), "each side has its own"
    edge = shen.choose_slices_with_margin(make_reference(5, {1: 1, 4: 1}), np.random.default_rng(0))
    assert edge.tolist() == [0, 1, 2, 3, 4]


def test_order_of_propagation():
    assert shen.propagation_order(5, 0).tolist() == [0, 1, 2, 3, 4] and shen.propagation_order(3, 2).tolist() == [2, 1, 0]


def test_slices_are_scaled_each_on_its_own():
    target = make_target(np.stack([EMPTY, SQUARE]))
    stack = np.array([[[10, 20, 30]], [[0, 500, 1000]], [[7, 7, 7]]], np.float32)
    frames = type(target.frames)(type(target.frames.volume)(stack.transpose(2, 1, 0)), 2, (0.0, 10.0))
    scaled = Target.with_all_slices(frames, np.zeros(stack.shape, bool)).scale_each_slice()
    assert scaled.frames.windowed(range(3)).tolist() == [[[0, 128, 255]], [[0, 128, 255]], [[0, 0, 0]]]


LEFT, MIDDLE, OUTSIDE = (np.pad(np.ones((3, 3), bool), ((1, 1), (before, 9 - before))) for before in (1, 5, 9))


@pytest.mark.parametrize("mode", ["described", "published"])
@pytest.mark.parametrize("masks, points, labels", [
    ([LEFT | MIDDLE], [[2, 2]], [1]),
    ([LEFT, LEFT | MIDDLE | OUTSIDE, LEFT | MIDDLE], [[2, 2], [6, 2], [10, 2]], [1, 1, 0]),
    ([LEFT | OUTSIDE, LEFT | MIDDLE], [[2, 2], [6, 2]], [1, 1]),  # equally deep: the missed region goes first
])  # fmt: skip
def test_clicks_follow_the_predictions(mode, masks, points, labels):
    """The first click is in the middle of the first of two equal components."""
    reference = np.stack([LEFT | MIDDLE] * 3)
    steps = list(shen.run_steps(ScriptedMethod(*(np.stack([m] * 3) for m in masks)), make_target(reference), plan(mode, "5 clicks")))
    assert [s.round for s in steps] == list(range(1, len(masks) + 1)) and {s.last_annotated for s in steps} == {1}
    for n, step in enumerate(steps, 1):
        assert step.annotations[1].points.tolist() == points[:n] and step.annotations[1].labels.tolist() == labels[:n]
    assert steps[0].propagation_mode.clicks_one_by_one and steps[0].propagation_mode.propagate


def test_at_most_five_clicks():
    reference = np.stack([SQUARE | RIGHT])
    steps = list(shen.run_steps(ScriptedMethod(np.stack([EMPTY])), make_target(reference), plan("described", "5 clicks")))
    assert [s.round for s in steps] == [1, 2, 3, 4, 5]


def test_thin_errors_get_no_click():
    """A missed region of one row has a depth of 1, below the threshold of 1.42."""
    short = SQUARE & mask_from_text("........", "########", "########", "........", "........")
    steps = list(shen.run_steps(ScriptedMethod(np.stack([short])), make_target(np.stack([SQUARE])), plan("described", "5 clicks")))
    assert len(steps) == 1


def test_mask_is_the_reference_of_the_central_slice():
    reference = np.stack([EMPTY, SQUARE, RIGHT, SQUARE, EMPTY])
    steps = list(shen.run_steps(ScriptedMethod(reference), make_target(reference), plan("described", "1 mask")))
    assert len(steps) == 1 and list(steps[0].annotations) == [2]
    np.testing.assert_array_equal(steps[0].annotations[2].mask, RIGHT)


def test_visible_and_scored_slices():
    """Slices 10 to 13 of 30 have foreground; 11 and 12 have more than 256 pixels."""
    reference = make_reference(30, {10: 50, 11: 300, 12: 300, 13: 256})
    method = ScriptedMethod(*[np.zeros((n, 20, 20), bool) for n in (30, 30)])
    full, salient = shen.run_steps(method, make_target(reference), plan("described", "1 mask", "1 mask, salient"))
    assert len(full.target.source_slices) == 30 and full.scored_slices.indices is None and full.scored_slices.in_mm
    assert len(salient.target.source_slices) == 30 and salient.scored_slices.indices.tolist() == [11, 12]
    assert full.last_annotated == salient.last_annotated == 12

    method = ScriptedMethod(np.zeros((30, 20, 20), bool))
    full, salient = shen.run_steps(method, make_target(reference), plan("published", "1 mask", "1 mask, salient"))
    index = full.target.source_slices
    assert 1 <= index[0] <= 5 and 18 <= index[-1] <= 22 and index[full.last_annotated] == 12 and not full.scored_slices.in_mm
    assert full.scored_slices.indices.tolist() == [*range(full.last_annotated, len(index)), *range(full.last_annotated - 1, -1, -1)]
    assert salient.target.source_slices.tolist() == [11, 12] and salient.last_annotated == 1
    assert salient.scored_slices.indices.tolist() == [1, 0]


@pytest.mark.parametrize("mode", ["described", "published"])
def test_small_structures_have_no_salient_area(mode):
    reference = make_reference(3, {1: 256})
    assert list(shen.run_steps(ScriptedMethod(reference), make_target(reference), plan(mode, "1 mask, salient", "5 clicks, salient"))) == []
