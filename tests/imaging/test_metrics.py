"""Tests of overlap metrics on hand-made masks."""

import numpy as np
import pytest

from lib.imaging.metrics import dice, empty_fp_share, slice_dice, slice_iou, slice_recall


def mask_from(*rows):
    """Return the bool mask (Y, X) in which "#" is foreground."""
    return np.array([[c == "#" for c in row] for row in rows])


EMPTY = mask_from("....", "....", "....")
SQUARE = mask_from("##..", "##..", "....")
SHIFTED = mask_from(".##.", ".##.", "....")
FAR = mask_from("....", "....", "...#")


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (SQUARE, SQUARE, 1.0),
        (SQUARE, SHIFTED, 0.5),  # 2 * 2 / (4 + 4)
        (SQUARE, FAR, 0.0),
        (SQUARE, SQUARE | FAR, 8 / 9),
        (SQUARE, EMPTY, 0.0),
        (EMPTY, SQUARE, 0.0),
        (EMPTY, EMPTY, 1.0),
    ],
)
def test_dice(a, b, expected):
    assert dice(a, b) == pytest.approx(expected)
    assert dice(b, a) == pytest.approx(expected)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_dice(axis):
    a = np.stack([SQUARE, SQUARE, EMPTY, SQUARE, EMPTY], axis)
    b = np.stack([SQUARE, SHIFTED, EMPTY, EMPTY, FAR], axis)
    assert slice_dice(a, b, axis).tolist() == [1.0, 0.5, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("predicted", "reference", "share"),
    [
        ((SQUARE, FAR, EMPTY, SQUARE), (SQUARE, EMPTY, EMPTY, EMPTY), 2 / 3),
        ((EMPTY, EMPTY), (SQUARE, EMPTY), 0.0),
        ((SQUARE, FAR), (EMPTY, EMPTY), 1.0),
        ((SQUARE, EMPTY), (SQUARE, FAR), None),  # undefined without an empty slice
    ],
)
def test_empty_fp_share(predicted, reference, share, axis):
    measured = empty_fp_share(np.stack(predicted, axis), np.stack(reference, axis), axis)
    assert np.isnan(measured) if share is None else measured == pytest.approx(share)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("predicted", "reference", "share"),
    [
        ((SQUARE, FAR, EMPTY, SQUARE), (SQUARE, SQUARE, SQUARE, EMPTY), 2 / 3),  # whatever the mask of a slice
        ((EMPTY, EMPTY), (SQUARE, EMPTY), 0.0),
        ((SQUARE, SQUARE), (EMPTY, SQUARE), 1.0),
        ((SQUARE, EMPTY), (EMPTY, EMPTY), None),  # undefined without a slice to find
    ],
)
def test_slice_recall(predicted, reference, share, axis):
    measured = slice_recall(np.stack(predicted, axis), np.stack(reference, axis), axis)
    assert np.isnan(measured) if share is None else measured == pytest.approx(share)


def test_iou_of_each_slice_and_of_empty_ones():
    iou = slice_iou(np.stack([SQUARE, EMPTY, SQUARE, EMPTY, SQUARE]), np.stack([SQUARE, SQUARE, EMPTY, EMPTY, SHIFTED]))
    assert iou.tolist() == pytest.approx([1, 0, 0, 1, 2 / 6])
