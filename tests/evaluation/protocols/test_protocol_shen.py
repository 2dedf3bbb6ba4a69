"""The protocol of Shen et al. on masks drawn by hand."""

import numpy as np
import pytest

from lib.evaluation.protocols import shen
from lib.evaluation.protocols.steps import Plan
from lib.evaluation.protocols.target import Target
from tests.evaluation.drawing import Scripted, drawn, target_of

EMPTY = drawn(*["........"] * 5)
SQUARE = drawn("........", ".###....", ".###....", ".###....", "........")
RIGHT = drawn("........", ".....###", ".....###", ".....###", "........")


def plan(mode, *settings, seed=0):
    return Plan(mode, np.random.default_rng(seed), settings)


def large(total, sizes):
    """Truth (total, 20, 20); slices of so many pixels."""
    reference = np.zeros((total, 20, 20), bool)
    for t, n in sizes.items():
        reference[t].flat[:n] = True
    return reference


@pytest.mark.parametrize("filled, expected", [([3], 3), ([1, 2, 3], 2), ([1, 2], 2), ([0, 1, 5, 6], 5), ([0, 4, 9], 4)])
def test_central_slice(filled, expected):
    """By the slices with foreground, so a gap does not count."""
    reference = np.stack([SQUARE if t in filled else EMPTY for t in range(10)])
    assert shen.central_slice(reference) == expected


def test_salient_slices_have_more_than_256_pixels():
    assert shen.salient_slices(large(4, {0: 256, 1: 257, 3: 400})).tolist() == [1, 3]


def test_margin_is_5_to_9_slices_on_each_side():
    reference = large(60, {30: 1, 33: 1})
    kept = [shen.with_margin(reference, np.random.default_rng(seed)) for seed in range(50)]
    assert {30 - k[0] for k in kept} == {k[-1] - 33 for k in kept} == {5, 6, 7, 8, 9}
    assert all((np.diff(k) == 1).all() for k in kept)
    assert any(30 - k[0] != k[-1] - 33 for k in kept), "each side has its own"
    edge = shen.with_margin(large(5, {1: 1, 4: 1}), np.random.default_rng(0))
    assert edge.tolist() == [0, 1, 2, 3, 4]


def test_order_of_propagation():
    assert shen.propagation_order(5, 0).tolist() == [0, 1, 2, 3, 4] and shen.propagation_order(3, 2).tolist() == [2, 1, 0]


def test_slices_are_scaled_each_on_its_own():
    target = target_of(np.stack([EMPTY, SQUARE]))
    stack = np.array([[[10, 20, 30]], [[0, 500, 1000]], [[7, 7, 7]]], np.float32)
    frames = type(target.frames)(type(target.frames.volume)(stack.transpose(2, 1, 0)), 2, (0.0, 10.0))
    scaled = Target.of(frames, np.zeros(stack.shape, bool)).scaled()
    assert scaled.frames.windowed(range(3)).tolist() == [[[0, 128, 255]], [[0, 128, 255]], [[0, 0, 0]]]


LEFT, MIDDLE, EXTRA = (np.pad(np.ones((3, 3), bool), ((1, 1), (before, 9 - before))) for before in (1, 5, 9))


@pytest.mark.parametrize("mode", ["described", "published"])
@pytest.mark.parametrize("answers, points, labels", [
    ([LEFT | MIDDLE], [[2, 2]], [1]),
    ([LEFT, LEFT | MIDDLE | EXTRA, LEFT | MIDDLE], [[2, 2], [6, 2], [10, 2]], [1, 1, 0]),
    ([LEFT | EXTRA, LEFT | MIDDLE], [[2, 2], [6, 2]], [1, 1]),  # equally deep: what is missed goes first
])  # fmt: skip
def test_clicks_follow_the_answers(mode, answers, points, labels):
    """The first click is in the middle of the first of two equal parts."""
    reference = np.stack([LEFT | MIDDLE] * 3)
    found = list(shen.steps(Scripted(*(np.stack([a] * 3) for a in answers)), target_of(reference), plan(mode, "5 clicks")))
    assert [s.round for s in found] == list(range(1, len(answers) + 1)) and {s.shown for s in found} == {1}
    for n, step in enumerate(found, 1):
        assert step.annotations[1].points.tolist() == points[:n] and step.annotations[1].labels.tolist() == labels[:n]
    assert found[0].how.one_by_one and found[0].how.propagate


def test_at_most_five_clicks():
    reference = np.stack([SQUARE | RIGHT])
    found = list(shen.steps(Scripted(np.stack([EMPTY])), target_of(reference), plan("described", "5 clicks")))
    assert [s.round for s in found] == [1, 2, 3, 4, 5]


def test_thin_errors_get_no_click():
    """One row too few has a depth of 1, below 1.42."""
    short = SQUARE & drawn("........", "########", "########", "........", "........")
    found = list(shen.steps(Scripted(np.stack([short])), target_of(np.stack([SQUARE])), plan("described", "5 clicks")))
    assert len(found) == 1


def test_mask_is_the_reference_of_the_central_slice():
    reference = np.stack([EMPTY, SQUARE, RIGHT, SQUARE, EMPTY])
    found = list(shen.steps(Scripted(reference), target_of(reference), plan("described", "1 mask")))
    assert len(found) == 1 and list(found[0].annotations) == [2]
    np.testing.assert_array_equal(found[0].annotations[2].mask, RIGHT)


def test_what_the_network_sees_and_what_counts():
    """Slices 10 to 13 of 30 have foreground, 11 and 12 of them more than 256 pixels."""
    reference = large(30, {10: 50, 11: 300, 12: 300, 13: 256})
    method = Scripted(*[np.zeros((n, 20, 20), bool) for n in (30, 30)])
    full, salient = shen.steps(method, target_of(reference), plan("described", "1 mask", "1 mask, salient"))
    assert len(full.target.index) == 30 and full.counting.slices is None and full.counting.in_mm
    assert len(salient.target.index) == 30 and salient.counting.slices.tolist() == [11, 12]
    assert full.shown == salient.shown == 12

    method = Scripted(np.zeros((30, 20, 20), bool))
    full, salient = shen.steps(method, target_of(reference), plan("published", "1 mask", "1 mask, salient"))
    index = full.target.index
    assert 1 <= index[0] <= 5 and 18 <= index[-1] <= 22 and index[full.shown] == 12 and not full.counting.in_mm
    assert full.counting.slices.tolist() == [*range(full.shown, len(index)), *range(full.shown - 1, -1, -1)]
    assert salient.target.index.tolist() == [11, 12] and salient.shown == 1 and salient.counting.slices.tolist() == [1, 0]


@pytest.mark.parametrize("mode", ["described", "published"])
def test_small_structures_have_no_salient_area(mode):
    reference = large(3, {1: 256})
    assert list(shen.steps(Scripted(reference), target_of(reference), plan(mode, "1 mask, salient", "5 clicks, salient"))) == []
