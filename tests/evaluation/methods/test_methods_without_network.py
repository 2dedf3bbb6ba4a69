"""Test the methods that need no network: the random walker, and the interpolation between painted slices."""

import numpy as np
import pytest

from lib.common.errors import PromptError
from lib.evaluation.methods.classical import MAX_VOXELS, ClassicalMethod
from lib.evaluation.methods.fill import FillMethod
from lib.evaluation.methods.method import PropagationMode, box_prompt, can_take, click_prompt, mask_prompt
from lib.imaging.frames import Frames
from lib.imaging.metrics import dice
from lib.imaging.volume import Volume


def make_ball(axis=2, shape=(24, 40, 44), centre=(12, 18, 20), radius=(8, 11, 11)):
    """Return the frames of a bright ball and its mask, bool (T, Y, X); lengths are along t, y and x, in voxels of 2 x 1 x 1 mm."""
    grid = np.indices(shape).T - np.array(centre)
    mask = (((grid / np.array(radius)) ** 2).sum(-1) < 1).T
    stack = np.where(mask, 150, 50) + np.random.default_rng(0).normal(0, 5, shape)
    spacing = [1.0, 1.0, 1.0]
    spacing[axis] = 2.0
    array = np.ascontiguousarray(np.moveaxis(stack.astype(np.float32).transpose(0, 2, 1), 0, axis))  # (T, X, Y), then T to its axis
    return Frames(Volume(array, np.diag([*spacing, 1.0])), axis, (0, 255)), mask


@pytest.fixture
def ball():
    return make_ball()


def open_method(method, frames):
    """Return the method with the volume opened."""
    method.open(frames)
    return method


@pytest.mark.parametrize("prompt, min_dice", [
    (click_prompt([(True, 18, 20), (False, 2, 2)]), 0.9), (box_prompt((7, 9), (29, 31)), 0.9), ("reference", 0.9),
])  # fmt: skip
def test_random_walker_finds_a_bright_ball(ball, prompt, min_dice):
    frames, reference = ball
    prompt = mask_prompt(reference[12]) if prompt == "reference" else prompt
    method = open_method(ClassicalMethod(), frames)
    mask = method.segment({12: prompt}).mask
    assert mask.shape == reference.shape and dice(mask, reference) > min_dice
    only_slice = method.segment({12: prompt}, PropagationMode(propagate=False)).mask
    np.testing.assert_array_equal(only_slice[12], mask[12])
    assert np.flatnonzero(only_slice.any((1, 2))).tolist() == [12]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_random_walker_along_any_axis(axis):
    frames, reference = make_ball(axis)
    mask = open_method(ClassicalMethod(), frames).segment({12: click_prompt([(True, 18, 20)])}).mask
    assert dice(mask, reference) > 0.9


def test_random_walker_stops_at_empty_slices(ball):
    frames, reference = ball
    empty = mask_prompt(np.zeros_like(reference[0]))
    mask = open_method(ClassicalMethod(), frames).segment({12: mask_prompt(reference[12]), 9: empty, 15: empty}).mask
    assert not mask[:10].any() and not mask[15:].any() and mask[11:14].any((1, 2)).all()


def test_random_walker_keeps_painted_slices_of_a_volume_that_it_shrinks():
    """The painted dot is smaller than a voxel of the shrunk volume."""
    frames, _ = make_ball(shape=(40, 160, 160), centre=(20, 80, 80), radius=(3, 3, 3))
    assert np.prod(frames.stack.shape) > 4 * MAX_VOXELS
    dot = np.zeros(frames.size, bool)
    dot[81, 79] = True
    mask = open_method(ClassicalMethod(), frames).segment({20: mask_prompt(dot)}).mask
    np.testing.assert_array_equal(mask[20], dot)


def test_fill_interpolates_between_painted_slices(ball):
    """Between discs of equal size lie such discs; of a ball, half of the missing volume and more is found."""
    frames, reference = ball
    method = open_method(FillMethod(), frames)
    disc = mask_prompt(reference[12])
    between = method.segment({4: disc, 10: disc}).mask
    assert all((between[t] == reference[12]).all() for t in range(4, 11)) and not between[:4].any() and not between[11:].any()
    painted = {t: mask_prompt(reference[t]) for t in (18, 6, 12)}
    mask = method.segment(painted).mask
    assert all((mask[t] == reference[t]).all() for t in painted) and dice(mask[6:19], reference[6:19]) > 0.9
    assert np.flatnonzero(method.segment(painted, PropagationMode(propagate=False)).mask.any((1, 2))).tolist() == [6, 12, 18]


def test_fill_does_not_cross_empty_slices(ball):
    frames, reference = ball
    painted = {t: mask_prompt(reference[t]) for t in (6, 8, 14, 16)} | {11: mask_prompt(np.zeros_like(reference[0]))}
    mask = open_method(FillMethod(), frames).segment(painted).mask
    assert np.flatnonzero(mask.any((1, 2))).tolist() == [6, 7, 8, 14, 15, 16]


def test_fill_keeps_a_single_slice_and_structures_at_the_edge(ball):
    frames, reference = ball
    method = open_method(FillMethod(), frames)
    areas = method.segment({12: mask_prompt(reference[12])}).mask.sum((1, 2))
    assert areas[12] == reference[12].sum() == areas.sum()
    full = np.ones_like(reference[0])
    assert method.segment({0: mask_prompt(full), 23: mask_prompt(full)}).mask.all()


def test_fill_is_repeatable_and_survives(ball):
    """The filter corrupts the heap with several threads; with one, many calls in a row give the same masks."""
    frames, _ = ball
    method, rng = open_method(FillMethod(), frames), np.random.default_rng(1)
    painted = {t: mask_prompt(rng.random(frames.size) > 0.4) for t in (2, 7, 11, 20)}
    first = method.segment(painted).mask
    for _ in range(10):
        np.testing.assert_array_equal(method.segment(painted).mask, first)
    assert all((first[t] == p.mask).all() for t, p in painted.items())


def test_which_prompts_a_method_takes(ball):
    frames, reference = ball
    painted, empty, click = mask_prompt(reference[12]), mask_prompt(np.zeros_like(reference[0])), click_prompt([(True, 18, 20)])
    fill, walker = open_method(FillMethod(), frames), ClassicalMethod()
    assert can_take(fill, {12: painted, 3: empty}) and not can_take(fill, {12: painted, 13: click})
    assert can_take(walker, {12: painted, 13: click})
    with pytest.raises(PromptError, match="painted slices only"):
        fill.segment({12: painted, 13: click})
