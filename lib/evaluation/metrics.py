"""Metrics of a mask against its reference, by MONAI, with the voxel spacing.

Empty masks. Both empty: Dice, IoU and NSD are 1, HD95 is 0. One empty: Dice, IoU and NSD are 0; HD95 has no value (NaN, an empty
cell in tables of results), and means leave it out.
"""

import warnings

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

from lib.evaluation.protocols.steps import Step
from lib.imaging.masks import bounding_box
from lib.quality.estimator import slice_iou

TOLERANCE = 1.0  # of the surface Dice: 1 mm, or 1 voxel (Shen et al. 2024, published code)
METRICS = ("dice", "iou", "nsd", "hd95")


def overlap(mask: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Dice and IoU of two bool arrays (T, Y, X)."""
    y_pred, y = _batch(mask), _batch(reference)
    return {
        "dice": float(compute_dice(y_pred, y, ignore_empty=False)),
        "iou": float(compute_iou(y_pred, y, ignore_empty=False)),
    }


def surfaces(mask: np.ndarray, reference: np.ndarray, spacing, tolerance: float = TOLERANCE) -> dict[str, float]:
    """Normalised surface Dice at a tolerance, and 95 % Hausdorff distance.

    Args:
        mask, reference: bool (T, Y, X).
        spacing: of the three axes. Distances and tolerance are in its unit.
    """
    if not (mask.any() and reference.any()):
        both = not (mask.any() or reference.any())
        return {"nsd": float(both), "hd95": 0.0 if both else float("nan")}
    part = bounding_box(mask | reference)
    # A border of one voxel, so that a surface at the edge of the volume is one here too.
    y_pred, y = (_batch(np.pad(m[part], 1)) for m in (mask, reference))
    spacing = tuple(float(s) for s in spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nsd = compute_surface_dice(y_pred, y, [tolerance], include_background=True, spacing=spacing)
        hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=spacing)
    return {"nsd": float(nsd), "hd95": float(hd95)}


def pooled(mask: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Sum of slice IoU (Dong et al. 2024) times weights (T,), and the sum of the weights: pooled over volumes by adding both."""
    return {"slice_iou_sum": float((slice_iou(mask, reference) * weights).sum()), "slice_weight": float(weights.sum())}


def score(step: Step, mask: np.ndarray) -> dict[str, float]:
    """All figures of one step for a mask bool (T, Y, X) on the slices of its target."""
    counting, reference, frames = step.counting, step.target.reference, step.target.frames
    out = {"slice_dice": overlap(mask[step.shown], reference[step.shown])["dice"]}
    if counting.weights is not None:
        out |= pooled(mask, reference, counting.weights)
    if counting.slices is not None:
        mask, reference = mask[counting.slices], reference[counting.slices]
    spacing = (frames.slice_mm, *frames.pixel_mm) if counting.in_mm else (1.0, 1.0, 1.0)
    return out | overlap(mask, reference) | surfaces(mask, reference, spacing)


def _batch(mask: np.ndarray) -> torch.Tensor:
    """As MONAI takes it: one image, one class."""
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()
