"""Test the metrics on masks that are written by hand."""

import numpy as np
import pytest

from lib.evaluation import metrics
from lib.evaluation.methods.method import DEFAULT_MODE, Prediction
from lib.evaluation.protocols.steps import ScoredSlices, Step
from lib.evaluation.protocols.target import Target
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from tests.evaluation.simulated_methods import mask_from_text

EMPTY = mask_from_text("........", "........", "........", "........")
SQUARE = mask_from_text("........", "..##....", "..##....", "........")
RIGHT = mask_from_text("........", "...##...", "...##...", "........")  # SQUARE, one to the right
FAR = mask_from_text("........", "......##", "......##", "........")  # four to the right


@pytest.mark.parametrize("mask, reference, dice, iou", [
    (SQUARE, SQUARE, 1, 1), (RIGHT, SQUARE, 0.5, 1 / 3), (FAR, SQUARE, 0, 0), (SQUARE, EMPTY, 0, 0), (EMPTY, SQUARE, 0, 0),
    (EMPTY, EMPTY, 1, 1),
])  # fmt: skip
def test_overlap(mask, reference, dice, iou):
    assert metrics.overlap_metrics(mask[None], reference[None]) == pytest.approx({"dice": dice, "iou": iou})


@pytest.mark.parametrize("mask, reference, spacing, tolerance, nsd, hd95", [
    (SQUARE, SQUARE, (1, 1, 1), 1, 1, 0),
    (RIGHT, SQUARE, (1, 1, 1), 1, 1, 1),  # all surface voxels are at most one away
    (RIGHT, SQUARE, (1, 1, 2), 1, 0.5, 2),  # half of them lie on the other surface, half 2 mm away
    (RIGHT, SQUARE, (1, 1, 2), 2, 1, 2),
    (FAR, SQUARE, (1, 1, 1), 3, 0.5, 4),  # 3 and 4 away
    (FAR, SQUARE, (5, 7, 0.5), 1.5, 0.5, 2),  # 1.5 and 2 mm
])  # fmt: skip
def test_surfaces(mask, reference, spacing, tolerance, nsd, hd95):
    assert metrics.surface_metrics(mask[None], reference[None], spacing, tolerance) == pytest.approx({"nsd": nsd, "hd95": hd95})


def test_spacing_is_that_of_its_axis():
    """The masks are two slices apart, so that only the distance between slices has an effect."""
    mask, reference = np.stack([SQUARE, EMPTY, EMPTY]), np.stack([EMPTY, EMPTY, SQUARE])
    assert metrics.surface_metrics(mask, reference, (5, 1, 1))["hd95"] == 10
    assert metrics.surface_metrics(mask.swapaxes(0, 1), reference.swapaxes(0, 1), (5, 3, 1))["hd95"] == 6


@pytest.mark.parametrize("mask, reference, nsd, hd95", [(EMPTY, EMPTY, 1, 0), (SQUARE, EMPTY, 0, np.nan), (EMPTY, SQUARE, 0, np.nan)])
def test_surfaces_of_empty_masks(mask, reference, nsd, hd95):
    assert metrics.surface_metrics(mask[None], reference[None], (1, 1, 1)) == pytest.approx({"nsd": nsd, "hd95": hd95}, nan_ok=True)


def test_objects_at_the_edge_of_the_volume_have_a_surface_there():
    """The slice is full up to its edges; without the border the surface would have a hole there."""
    full = np.ones((1, 4, 4), bool)
    small = full.copy()
    small[:, :, 3] = False
    assert metrics.surface_metrics(full, full, (1, 1, 1)) == {"nsd": 1, "hd95": 0}
    assert metrics.surface_metrics(full, small, (1, 1, 3), tolerance=1)["hd95"] == 3


def test_pooled_slice_iou():
    """The IoU of the slices is 1, 1/3, 1 (both empty) and 0; their weights are 2, 1, 0 and 1."""
    mask, reference = np.stack([SQUARE, RIGHT, EMPTY, FAR]), np.stack([SQUARE, SQUARE, EMPTY, SQUARE])
    scores = metrics.pooled_slice_iou(mask, reference, np.array([2.0, 1.0, 0.0, 1.0]))
    assert scores == pytest.approx({"slice_iou_sum": 2 + 1 / 3, "slice_weight": 4})


def make_step(reference, scored_slices, last_annotated=0):
    """Return a step on voxels of 0.5 x 2 x 5 mm."""
    affine = np.diag([0.5, 2.0, 5.0, 1.0])  # x, y and slices
    frames = Frames(Volume(np.zeros(reference.shape[::-1], np.float32), affine), 2, (0, 1))
    target = Target.with_all_slices(frames, reference)
    return Step("full", 1, target, {}, DEFAULT_MODE, Prediction(reference), last_annotated, scored_slices)


def test_score_in_mm_and_in_voxels():
    """The mask lies one pixel to the right, which is 0.5 mm or one voxel."""
    mask, reference = np.stack([RIGHT]), np.stack([SQUARE])
    scores = metrics.score_step(make_step(reference, ScoredSlices()), mask)
    assert scores == pytest.approx({"slice_dice": 0.5, "dice": 0.5, "iou": 1 / 3, "nsd": 1, "hd95": 0.5})
    assert metrics.score_step(make_step(reference, ScoredSlices(in_mm=False)), mask)["hd95"] == 1


def test_only_scored_slices_are_compared():
    mask, reference = np.stack([SQUARE, FAR, RIGHT]), np.stack([SQUARE, SQUARE, SQUARE])
    scores = metrics.score_step(make_step(reference, ScoredSlices(np.array([0, 2])), last_annotated=1), mask)
    assert scores["dice"] == pytest.approx(0.75) and scores["slice_dice"] == 0, "the annotated slice is scored in any case"


def test_order_of_the_slices_changes_surface_distances():
    """In the order of propagation (1, 2, 0) slices 2 and 0 become neighbours: the nearest surface to the mask on slice 2 is then
    one slice away, and not two."""
    mask, reference = np.stack([EMPTY, EMPTY, SQUARE]), np.stack([SQUARE, EMPTY, EMPTY])
    assert metrics.score_step(make_step(reference, ScoredSlices(in_mm=False)), mask)["hd95"] == 2
    scores = metrics.score_step(make_step(reference, ScoredSlices(np.array([1, 2, 0]), in_mm=False)), mask)
    assert scores | {"slice_dice": 0} == pytest.approx({"slice_dice": 0, "dice": 0, "iou": 0, "nsd": 1, "hd95": 1})
