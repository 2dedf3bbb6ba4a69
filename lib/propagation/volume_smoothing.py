"""Smooth the masks of tracked slices in 3D: each pass draws slice by slice, so that neighbouring slices disagree in places.

Probabilities diffuse between neighbouring cells, within a slice and across slices, but hardly across edges of the image, as in a random
walk with priors (Grady, CVPR 2005). Annotated slices stay as they are.
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
import torch

from lib.imaging.masks import bounding_box
from lib.model.features import SliceFeatures
from lib.propagation.mask_grid import grid_intensities, grid_size
from lib.propagation.tracks import Tracks

# Chosen on generated volumes and patients of the training data, see docs/experiments.md; that ends do not move, on validation volumes.
SMOOTHNESS, SWEEPS = 12.0, 60
EDGE_SCALE = 1 / 30  # Difference of scaled intensities that divides the smoothing by e.
MARGIN = 4  # Cells round the masks, within their slices, that take part. Smoothing does not move the ends of a structure.
SURE_LOGIT = 8.0  # Logits are limited to this.


@torch.inference_mode()
def smooth_tracks(tracks: Tracks, features: SliceFeatures, annotated: Iterable[int], low: int, high: int) -> Tracks:
    """Return tracks of the same slices with smooth logits.

    Each gap between two annotated slices, and each outer one, is smoothed on its own, so that a correction changes the gaps beside it only.

    Args:
        tracks: Outputs for the slices of `features`.
        annotated: Indices of the slices that stay as they are.
        low, high: First and last slice that may hold a mask.
    """
    annotated, logits = set(annotated), tracks.logits.clone()
    for first, last in pairwise(sorted({low, high, *annotated})):
        stays = torch.tensor([t in annotated for t in range(first, last + 1)], device=logits.device)
        logits[first : last + 1] = _smooth_gap(logits[first : last + 1], features, slice(first, last + 1), stays[:, None, None])
    return Tracks(logits, tracks.iou, tracks.object_score, tracks.agreement)


def _smooth_gap(logits: torch.Tensor, features: SliceFeatures, slices: slice, stays: torch.Tensor) -> torch.Tensor:
    """Return smooth logits (T, h, w) of some slices.

    Args:
        stays: Bool (T, 1, 1), slices that do not change.
    """
    side = logits.shape[-1]
    grid = grid_size(features, side)
    box = bounding_box((logits[:, : grid[0], : grid[1]] > 0).cpu().numpy())
    if box is None:
        return logits
    depth, *plane = box
    rows, columns = (slice(max(s.start - MARGIN, 0), min(s.stop + MARGIN, n)) for s, n in zip(plane, grid, strict=True))
    part, stays = logits[depth, rows, columns], stays[depth]
    image = grid_intensities(features, slice(slices.start + depth.start, slices.start + depth.stop), side)[:, rows, columns]
    image = torch.from_numpy(_scale(image, (part > 0).cpu().numpy())).to(part)
    smooth = _diffuse(torch.sigmoid(part.clamp(-SURE_LOGIT, SURE_LOGIT)), image, stays).clamp(1e-4, 1 - 1e-4)
    result = logits.clone()
    result[depth, rows, columns] = torch.where(stays, part, torch.logit(smooth))
    return result


def _scale(image: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return an image (T, h, w) with the range of its intensities in masks bool (T, h, w) and their surroundings brought to [0, 1]."""
    low, high = np.percentile(image[masks.any(0)[None].repeat(len(image), 0)], [2, 98])
    margin = 0.2 * (high - low)
    return np.clip((image - low + margin) / (high - low + 2 * margin + 1e-6), 0, 1)


def _diffuse(probability: torch.Tensor, image: torch.Tensor, stays: torch.Tensor) -> torch.Tensor:
    """Return probabilities (T, h, w) after `SWEEPS` steps of Jacobi's method.

    Args:
        image: Intensities (T, h, w) in [0, 1].
        stays: Bool (T, 1, 1), slices that do not change.
    """
    weights = [SMOOTHNESS * torch.exp(-image.diff(dim=d).abs() / EDGE_SCALE) for d in range(3)]
    total = torch.ones_like(probability)
    for d, weight in enumerate(weights):
        _without_first(total, d).add_(weight)
        _without_last(total, d).add_(weight)
    start, smooth = probability / total, probability
    to_next = [weight / _without_first(total, d) for d, weight in enumerate(weights)]
    to_previous = [weight / _without_last(total, d) for d, weight in enumerate(weights)]
    for _ in range(SWEEPS):
        sweep = start.clone()
        for d in range(3):
            _without_first(sweep, d).addcmul_(to_next[d], _without_last(smooth, d))
            _without_last(sweep, d).addcmul_(to_previous[d], _without_first(smooth, d))
        smooth = torch.where(stays, probability, sweep)
    return smooth


def _without_first(array: torch.Tensor, dimension: int) -> torch.Tensor:
    return array.narrow(dimension, 1, array.shape[dimension] - 1)


def _without_last(array: torch.Tensor, dimension: int) -> torch.Tensor:
    return array.narrow(dimension, 0, array.shape[dimension] - 1)
