"""Metrics on masks drawn by hand."""

import numpy as np
import pytest

from lib.evaluation import metrics
from lib.evaluation.methods.method import PLAIN, Answer
from lib.evaluation.protocols.steps import Counting, Step
from lib.evaluation.protocols.target import Target
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from tests.evaluation.drawing import drawn

EMPTY = drawn("........", "........", "........", "........")
SQUARE = drawn("........", "..##....", "..##....", "........")
RIGHT = drawn("........", "...##...", "...##...", "........")  # SQUARE, one to the right
FAR = drawn("........", "......##", "......##", "........")  # four to the right


@pytest.mark.parametrize("mask, reference, dice, iou", [
    (SQUARE, SQUARE, 1, 1), (RIGHT, SQUARE, 0.5, 1 / 3), (FAR, SQUARE, 0, 0), (SQUARE, EMPTY, 0, 0), (EMPTY, SQUARE, 0, 0),
    (EMPTY, EMPTY, 1, 1),
])  # fmt: skip
def test_overlap(mask, reference, dice, iou):
    assert metrics.overlap(mask[None], reference[None]) == pytest.approx({"dice": dice, "iou": iou})


@pytest.mark.parametrize("mask, reference, spacing, tolerance, nsd, hd95", [
    (SQUARE, SQUARE, (1, 1, 1), 1, 1, 0),
    (RIGHT, SQUARE, (1, 1, 1), 1, 1, 1),  # all surface voxels are at most one away
    (RIGHT, SQUARE, (1, 1, 2), 1, 0.5, 2),  # half of them lie on the other surface, half 2 mm away
    (RIGHT, SQUARE, (1, 1, 2), 2, 1, 2),
    (FAR, SQUARE, (1, 1, 1), 3, 0.5, 4),  # 3 and 4 away
    (FAR, SQUARE, (5, 7, 0.5), 1.5, 0.5, 2),  # 1.5 and 2 mm
])  # fmt: skip
def test_surfaces(mask, reference, spacing, tolerance, nsd, hd95):
    assert metrics.surfaces(mask[None], reference[None], spacing, tolerance) == pytest.approx({"nsd": nsd, "hd95": hd95})


def test_spacing_is_that_of_its_axis():
    """Two slices apart: only the distance of slices counts."""
    mask, reference = np.stack([SQUARE, EMPTY, EMPTY]), np.stack([EMPTY, EMPTY, SQUARE])
    assert metrics.surfaces(mask, reference, (5, 1, 1))["hd95"] == 10
    assert metrics.surfaces(mask.swapaxes(0, 1), reference.swapaxes(0, 1), (5, 3, 1))["hd95"] == 6


@pytest.mark.parametrize("mask, reference, nsd, hd95", [(EMPTY, EMPTY, 1, 0), (SQUARE, EMPTY, 0, np.nan), (EMPTY, SQUARE, 0, np.nan)])
def test_surfaces_of_empty_masks(mask, reference, nsd, hd95):
    assert metrics.surfaces(mask[None], reference[None], (1, 1, 1)) == pytest.approx({"nsd": nsd, "hd95": hd95}, nan_ok=True)


def test_objects_at_the_edge_of_the_volume_have_a_surface_there():
    """A slice that is full to its edges: without the border the surface would have a hole."""
    full = np.ones((1, 4, 4), bool)
    small = full.copy()
    small[:, :, 3] = False
    assert metrics.surfaces(full, full, (1, 1, 1)) == {"nsd": 1, "hd95": 0}
    assert metrics.surfaces(full, small, (1, 1, 3), tolerance=1)["hd95"] == 3


def test_pooled_slice_iou():
    """Slices: 1, 1/3, both empty (1), 0; weights 2, 1, 0, 1."""
    mask, reference = np.stack([SQUARE, RIGHT, EMPTY, FAR]), np.stack([SQUARE, SQUARE, EMPTY, SQUARE])
    found = metrics.pooled(mask, reference, np.array([2.0, 1.0, 0.0, 1.0]))
    assert found == pytest.approx({"slice_iou_sum": 2 + 1 / 3, "slice_weight": 4})


def step(reference, counting, shown=0):
    affine = np.diag([0.5, 2.0, 5.0, 1.0])  # x, y and slices
    frames = Frames(Volume(np.zeros(reference.shape[::-1], np.float32), affine), 2, (0, 1))
    return Step("full", 1, Target.of(frames, reference), {}, PLAIN, Answer(reference), shown, counting)


def test_score_in_mm_and_in_voxels():
    """One pixel to the right: 0.5 mm, or one voxel."""
    mask, reference = np.stack([RIGHT]), np.stack([SQUARE])
    found = metrics.score(step(reference, Counting()), mask)
    assert found == pytest.approx({"slice_dice": 0.5, "dice": 0.5, "iou": 1 / 3, "nsd": 1, "hd95": 0.5})
    assert metrics.score(step(reference, Counting(in_mm=False)), mask)["hd95"] == 1


def test_only_slices_that_count():
    mask, reference = np.stack([SQUARE, FAR, RIGHT]), np.stack([SQUARE, SQUARE, SQUARE])
    found = metrics.score(step(reference, Counting(np.array([0, 2])), shown=1), mask)
    assert found["dice"] == pytest.approx(0.75) and found["slice_dice"] == 0, "the shown slice is scored in any case"


def test_order_of_the_slices_counts_for_surfaces():
    """In the order of propagation (1, 2, 0) slices 2 and 0 become neighbours: the nearest surface to the mask on slice 2 is then
    one slice away, and not two."""
    mask, reference = np.stack([EMPTY, EMPTY, SQUARE]), np.stack([SQUARE, EMPTY, EMPTY])
    assert metrics.score(step(reference, Counting(in_mm=False)), mask)["hd95"] == 2
    assert metrics.score(step(reference, Counting(np.array([1, 2, 0]), in_mm=False)), mask) | {"slice_dice": 0} == pytest.approx(
        {"slice_dice": 0, "dice": 0, "iou": 0, "nsd": 1, "hd95": 1}
    )
