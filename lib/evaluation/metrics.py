"""Metrics of a mask against its reference, computed by MONAI with the voxel spacing.

Empty masks: if both are empty, Dice, IoU and NSD are 1 and HD95 is 0. If one is empty, Dice, IoU and NSD are 0, and HD95 is NaN, which
is an empty cell in results.csv and is left out of means.
"""

import warnings

import numpy as np
import torch
from monai.metrics import compute_dice, compute_hausdorff_distance, compute_iou, compute_surface_dice

from lib.evaluation.protocols.steps import Step
from lib.imaging.masks import bounding_box
from lib.imaging.metrics import slice_iou

TOLERANCE = 1.0  # Tolerance of the surface Dice, in the unit of the spacing, mm or voxels (Shen et al. 2024, published code).


def overlap_metrics(mask: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """Return Dice ("dice") and IoU ("iou") of two bool arrays (T, Y, X)."""
    y_pred, y = _to_batch(mask), _to_batch(reference)
    dice, iou = compute_dice(y_pred, y, ignore_empty=False), compute_iou(y_pred, y, ignore_empty=False)
    return {"dice": float(dice), "iou": float(iou)}


def surface_metrics(mask: np.ndarray, reference: np.ndarray, spacing, tolerance: float = TOLERANCE) -> dict[str, float]:
    """Return the normalised surface Dice at a tolerance ("nsd") and the 95 % Hausdorff distance ("hd95").

    Args:
        mask: The predicted mask, bool (T, Y, X).
        reference: The reference segmentation, bool (T, Y, X).
        spacing: The voxel spacing along t, y and x. Its unit is that of the distances.
        tolerance: Distance up to which two surfaces count as equal, in the same unit.
    """
    if not (mask.any() and reference.any()):
        both_empty = not (mask.any() or reference.any())
        return {"nsd": float(both_empty), "hd95": 0.0 if both_empty else float("nan")}
    box = bounding_box(mask | reference)
    # With a border of one voxel, an object that reaches the edge of the volume has a surface there.
    y_pred, y = (_to_batch(np.pad(m[box], 1)) for m in (mask, reference))
    spacing = tuple(float(s) for s in spacing)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        nsd = compute_surface_dice(y_pred, y, [tolerance], include_background=True, spacing=spacing)
        hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=spacing)
    return {"nsd": float(nsd), "hd95": float(hd95)}


def pooled_slice_iou(mask: np.ndarray, reference: np.ndarray, weights: np.ndarray) -> dict[str, float]:
    """Return the weighted sum of the slices' IoU and the sum of the weights (T,), to be pooled over volumes (Dong et al. 2024)."""
    return {"slice_iou_sum": float((slice_iou(mask, reference) * weights).sum()), "slice_weight": float(weights.sum())}


def score_step(step: Step, mask: np.ndarray) -> dict[str, float]:
    """Return all metrics, by column of results.csv, of a mask, bool (T, Y, X), on the slices of the step's target."""
    scored_slices, reference, frames = step.scored_slices, step.target.reference, step.target.frames
    scores = {"slice_dice": overlap_metrics(mask[step.last_annotated], reference[step.last_annotated])["dice"]}
    if scored_slices.weights is not None:
        scores |= pooled_slice_iou(mask, reference, scored_slices.weights)
    if scored_slices.indices is not None:
        mask, reference = mask[scored_slices.indices], reference[scored_slices.indices]
    spacing = (frames.slice_mm, *frames.pixel_mm) if scored_slices.in_mm else (1.0, 1.0, 1.0)
    return scores | overlap_metrics(mask, reference) | surface_metrics(mask, reference, spacing)


def _to_batch(mask: np.ndarray) -> torch.Tensor:
    """Return the mask as MONAI's metrics take it: float, with a batch and a class axis of length 1 in front."""
    return torch.from_numpy(np.ascontiguousarray(mask))[None, None].float()
