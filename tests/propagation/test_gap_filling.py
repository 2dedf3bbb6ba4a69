"""Slices that tracking has left empty between annotated ones are filled by the shapes on either side."""

import numpy as np
import pytest

from lib.propagation.gap_filling import fill_empty_slices, interpolate_shape


def bar(first: int, last: int) -> np.ndarray:
    """Return a bar of one row, bool (5, 12), over the columns first..last."""
    mask = np.zeros((5, 12), bool)
    mask[2, first : last + 1] = True
    return mask


def test_an_empty_slice_gets_the_shape_between_its_neighbours():
    stack = np.zeros((5, 5, 12), bool)
    stack[0], stack[4] = bar(1, 5), bar(3, 7)
    fill_empty_slices(stack, [0, 4])
    assert stack.any((1, 2)).all()
    assert (stack[2] == bar(2, 6)).all()


def test_masks_that_are_there_stay_and_guide_the_others():
    stack = np.zeros((5, 5, 12), bool)
    stack[0], stack[2], stack[4] = bar(1, 5), bar(4, 8), bar(3, 7)
    fill_empty_slices(stack, [0, 4])
    assert (stack[2] == bar(4, 8)).all() and stack[1].any() and stack[3].any()


@pytest.mark.parametrize("far_end", [bar(8, 10), np.zeros((5, 12), bool)])
def test_nothing_is_filled_between_structures_in_different_places_or_towards_an_empty_slice(far_end):
    stack = np.zeros((5, 5, 12), bool)
    stack[0], stack[4] = bar(1, 5), far_end
    fill_empty_slices(stack, [0, 4])
    assert not stack[1:4].any()


def test_nothing_is_filled_beyond_the_outermost_annotated_slices():
    stack = np.zeros((5, 5, 12), bool)
    stack[1], stack[3] = bar(1, 5), bar(1, 5)
    fill_empty_slices(stack, [1, 3])
    assert (stack[2] == bar(1, 5)).all() and not stack[0].any() and not stack[4].any()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_shape_at_the_edge_of_the_slice_stays_there(share):
    half = np.zeros((6, 6), bool)
    half[:, :3] = True
    assert (interpolate_shape(half, half, share) == half).all()
