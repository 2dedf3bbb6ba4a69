"""Test the metrics on masks that are written by hand."""

import numpy as np
import pytest
import torch
from monai.metrics import compute_surface_dice
from scipy import ndimage

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


@pytest.mark.parametrize("mask, reference, spacing, hd95", [
    (SQUARE, SQUARE, (1, 1, 1), 0),
    (RIGHT, SQUARE, (1, 1, 1), 1),  # all surface voxels are at most one away
    (RIGHT, SQUARE, (1, 1, 2), 2),
    (FAR, SQUARE, (1, 1, 1), 4),  # 3 and 4 away
    (FAR, SQUARE, (5, 7, 0.5), 2),  # 1.5 and 2 mm
    (EMPTY, EMPTY, (1, 1, 1), 0),
    (SQUARE, EMPTY, (1, 1, 1), np.nan),
    (EMPTY, SQUARE, (1, 1, 1), np.nan),
])  # fmt: skip
def test_hausdorff_distance(mask, reference, spacing, hd95):
    assert metrics.hausdorff_distance(mask[None], reference[None], spacing) == pytest.approx(hd95, nan_ok=True)


def make_slabs(*depths, shape=(20, 9, 9)):
    """Return slabs across the whole slice (Y, X), each from slice 0 to just before the given one: bool (T, Y, X)."""
    slabs = [np.zeros(shape, bool) for _ in depths]
    for slab, depth in zip(slabs, depths, strict=True):
        slab[:depth] = True
    return slabs


@pytest.mark.parametrize("tolerance, near_share", [(3.9, 0.0), (4.0, 1.0), (4.1, 1.0)])
def test_surface_dice_of_parallel_planes(tolerance, near_share):
    """Two blocks differ by their upper faces, which are two slices of 2 mm apart: near up to a tolerance of 4 mm, and not below.

    The other faces coincide with those of the volume. Of 200 x 200 pixels of 1 mm, the sides between the upper faces are hardly a part.
    """
    deep, shallow = make_slabs(12, 10, shape=(14, 200, 200))
    face, sides = 200 * 200, 4 * 200 * 11 * 2
    expected = (face + sides + near_share * face) / (2 * face + sides)
    assert metrics.surface_dice(deep, shallow, (2, 1, 1), tolerance) == pytest.approx(expected, abs=0.01)


def test_the_tolerance_is_in_the_unit_of_the_spacing_of_each_axis():
    """A thin plate and its copy two voxels along one axis: they are near if two voxels of that axis are within the tolerance."""
    for axis in range(3):
        shape = [60, 60, 60]
        shape[axis] = 9
        plates = [np.zeros(shape, bool) for _ in range(2)]
        for n, plate in enumerate(plates):
            plate[(slice(None),) * axis + (3 + 2 * n,)] = True
        spacing = [0.25, 0.25, 0.25]
        for size, expected in ((1.0, 1.0), (1.5, 0.5)):  # Distances of 2 and 3 mm; the inner faces stay 1.5 mm apart.
            spacing[axis] = size
            assert metrics.surface_dice(*plates, spacing) == pytest.approx(expected, abs=0.05), (axis, size)


@pytest.mark.parametrize("seed", range(4))
def test_surface_dice_equals_the_library(seed):
    """MONAI's subvoxel surface Dice, which follows DeepMind's, on random masks that also touch the edges of the volume."""
    rng = np.random.default_rng(seed)
    mask, reference = (ndimage.gaussian_filter(rng.normal(size=(9, 21, 24)), (1, 2, 2)) > 0.05 for _ in range(2))
    spacing, tolerance = tuple(rng.uniform(0.4, 4, 3).tolist()), float(rng.uniform(0.5, 4))
    y_pred, y = (torch.from_numpy(np.pad(m, 1))[None, None].float() for m in (mask, reference))
    library = compute_surface_dice(y_pred, y, [tolerance], include_background=True, spacing=spacing, use_subvoxels=True)
    assert metrics.surface_dice(mask, reference, spacing, tolerance) == pytest.approx(float(library), abs=1e-5)


@pytest.mark.parametrize("mask, reference, nsd", [(SQUARE, SQUARE, 1), (EMPTY, EMPTY, 1), (SQUARE, EMPTY, 0), (EMPTY, SQUARE, 0)])
def test_surface_dice_of_equal_and_of_empty_masks(mask, reference, nsd):
    assert metrics.surface_dice(mask[None], reference[None], (1, 1, 1)) == nsd


def test_spacing_is_that_of_its_axis():
    """The masks are two slices apart, so that only the distance between slices has an effect."""
    mask, reference = np.stack([SQUARE, EMPTY, EMPTY]), np.stack([EMPTY, EMPTY, SQUARE])
    assert metrics.hausdorff_distance(mask, reference, (5, 1, 1)) == 10
    assert metrics.hausdorff_distance(mask.swapaxes(0, 1), reference.swapaxes(0, 1), (5, 3, 1)) == 6


def test_objects_at_the_edge_of_the_volume_have_a_surface_there():
    """The slice is full up to its edges; without the border the surface would have a hole there."""
    full = np.ones((1, 4, 4), bool)
    small = full.copy()
    small[:, :, 3] = False
    assert metrics.hausdorff_distance(full, full, (1, 1, 1)) == 0
    assert metrics.hausdorff_distance(full, small, (1, 1, 3)) == 3


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
    """The mask lies one pixel to the right, which is 0.5 mm or one voxel; both are within the tolerances."""
    mask, reference = np.stack([RIGHT]), np.stack([SQUARE])
    scores = metrics.score_step(make_step(reference, ScoredSlices()), mask)
    assert scores == pytest.approx({"slice_dice": 0.5, "dice": 0.5, "iou": 1 / 3, "nsd": 1, "hd95": 0.5})
    assert metrics.score_step(make_step(reference, ScoredSlices(in_mm=False)), mask)["hd95"] == 1
    assert metrics.score_step(make_step(reference, ScoredSlices()), mask, tolerance_mm=0.4)["nsd"] < 0.9
    far = np.stack([FAR])  # four pixels of 0.5 mm, or four voxels
    assert metrics.score_step(make_step(reference, ScoredSlices()), far)["nsd"] == 1
    assert metrics.score_step(make_step(reference, ScoredSlices(in_mm=False)), far)["nsd"] < 0.5


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
