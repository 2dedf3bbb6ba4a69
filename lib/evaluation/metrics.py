"""Metrics of a mask against its reference, with the voxel spacing.

Empty masks: if both are empty, Dice, IoU and NSD are 1 and HD95 is 0. If one is empty, Dice, IoU and NSD are 0, and HD95 is NaN, which
is an empty cell in results.csv and is left out of means.
"""

import warnings
from functools import lru_cache
from itertools import product

import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from monai.metrics.utils import get_code_to_measure_table
from scipy.spatial import KDTree

from lib.evaluation.protocols.steps import Step
from lib.imaging.masks import bounding_box
from lib.imaging.metrics import dice, slice_iou

TOLERANCE_MM = 2.0  # Tolerance of the surface Dice where a protocol has no other (interactive 3D challenge of CVPR 2025).
TOLERANCE_VOXELS = 1.0  # The same where a protocol measures distances in voxels (Shen et al. 2024, published code).


def overlap_metrics(mask: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return Dice ("dice") and IoU ("iou") of two bool arrays (T, Y, X)."""
    overlap = dice(mask, reference)
    return {"dice": overlap, "iou": overlap / (2 - overlap)}


def surface_dice(mask: np.ndarray, reference: np.ndarray, spacing, tolerance: float = TOLERANCE_MM) -> float:
    """Return the normalised surface Dice (NSD, Nikolov et al. 2018): the share of both surfaces that is near the other one.

    The surface runs through the corners at which eight voxels meet that are not all equal, and each corner counts by the area of the
    surface there. Beyond the edge of the volume is outside. The result equals that of MONAI's `compute_surface_dice` with
    `use_subvoxels`, but only distances up to the tolerance are searched for, which takes a fraction of the time on large volumes.

    Args:
        mask: The predicted mask, bool (T, Y, X).
        reference: The reference segmentation, bool (T, Y, X).
        spacing: The voxel spacing along t, y and x. Its unit is that of the distances.
        tolerance: Distance up to which a surface counts as near, in the same unit.
    """
    if not (mask.any() and reference.any()):
        return float(not (mask.any() or reference.any()))
    box = bounding_box(mask | reference)
    spacing = tuple(float(s) for s in spacing)
    areas_by_code = _surface_areas(spacing)
    codes = [_corner_codes(np.pad(m[box], 1)) for m in (mask, reference)]
    on_surface = [(c > 0) & (c < 255) for c in codes]
    near_area = area = 0.0
    for (code, own), other in zip(zip(codes, on_surface, strict=True), reversed(on_surface), strict=True):
        area += float(areas_by_code[code[own]].sum())
        near_area += float(areas_by_code[code[own & other]].sum())
        elsewhere = own & ~other
        points, others = (np.argwhere(s) * spacing for s in (elsewhere, other))
        # The tree returns distances strictly below its bound, and distances equal to the tolerance count as near.
        distance, _ = KDTree(others, leafsize=32).query(points, distance_upper_bound=tolerance * (1 + 1e-9) + 1e-9)
        near_area += float(areas_by_code[code[elsewhere]][np.isfinite(distance)].sum())
    return near_area / area


def hausdorff_distance(mask: np.ndarray, reference: np.ndarray, spacing) -> float:
    """Return the 95 % Hausdorff distance (HD95) in the unit of the spacing along t, y and x; for the arrays see `surface_dice`."""
    if not (mask.any() and reference.any()):
        return float("nan") if mask.any() or reference.any() else 0.0
    box = bounding_box(mask | reference)
    # With a border of one voxel, an object that reaches the edge of the volume has a surface there.
    y_pred, y = (torch.from_numpy(np.pad(m[box], 1))[None, None].float() for m in (mask, reference))  # MONAI takes (batch, class, ...).
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spacing = tuple(float(s) for s in spacing)
        return float(compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=spacing))


def pooled_slice_iou(mask: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Return the weighted sum of the slices' IoU and the sum of the weights (T,), to be pooled over volumes (Dong et al. 2024)."""
    return {"slice_iou_sum": float((slice_iou(mask, reference) * weights).sum()), "slice_weight": float(weights.sum())}


def score_step(step: Step, mask: np.ndarray, tolerance_mm: float = TOLERANCE_MM) -> dict[str, float]:
    """Return all metrics, by column of results.csv, of a mask, bool (T, Y, X), on the slices of the step's target."""
    scored_slices, reference, frames = step.scored_slices, step.target.reference, step.target.frames
    scores = {"slice_dice": dice(mask[step.last_annotated], reference[step.last_annotated])}
    if scored_slices.weights is not None:
        scores |= pooled_slice_iou(mask, reference, scored_slices.weights)
    if scored_slices.indices is not None:
        mask, reference = mask[scored_slices.indices], reference[scored_slices.indices]
    in_mm = scored_slices.in_mm
    spacing, tolerance = ((frames.slice_mm, *frames.pixel_mm), tolerance_mm) if in_mm else ((1.0, 1.0, 1.0), TOLERANCE_VOXELS)
    scores |= overlap_metrics(mask, reference)
    return scores | {
        "nsd": surface_dice(mask, reference, spacing, tolerance), "hd95": hausdorff_distance(mask, reference, spacing),
    }  # fmt: skip


def _corner_codes(mask: np.ndarray) -> np.ndarray:
    """Return for each corner within bool (T, Y, X) the eight voxels around it as bits: uint8 (T - 1, Y - 1, X - 1)."""
    codes = np.zeros([n - 1 for n in mask.shape], np.uint8)
    for bit, offsets in enumerate(product((1, 0), repeat=3)):  # The last of the eight voxels has bit 0, as in MONAI's table.
        codes |= mask[tuple(slice(o, n - 1 + o) for o, n in zip(offsets, mask.shape, strict=True))].astype(np.uint8) << np.uint8(bit)
    return codes


@lru_cache(maxsize=8)
def _surface_areas(spacing: tuple[float, float, float]) -> np.ndarray:
    """Return the area of the surface within the eight voxels of each code of `_corner_codes`, float (256,)."""
    return get_code_to_measure_table(spacing)[0].double().numpy()

