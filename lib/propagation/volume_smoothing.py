"""Smooth the masks of tracked slices in 3D: each pass draws slice by slice, so that neighbouring slices disagree in places.

Probabilities diffuse between neighbouring cells, within a slice and across slices, but hardly across edges of the image, as in a random
walk with priors (Grady, CVPR 2005). Annotated slices stay as they are.
"""

from collections.abc import Iterable

import numpy as np
import torch

from lib.imaging.masks import bounding_box
from lib.model.features import SliceFeatures
from lib.propagation.mask_grid import grid_intensities, grid_size
from lib.propagation.tracks import Tracks

# Chosen on generated volumes and patients of the training data; docs/architecture.md has the figures.
SMOOTHNESS, SWEEPS = 12.0, 60
EDGE_SCALE = 1 / 30  # Difference of scaled intensities that divides the smoothing by e.
MARGINS = 0, 4, 4  # Slices, rows and columns round the masks that take part. Smoothing does not move the ends of a structure.
SURE_LOGIT = 8.0  # Logits are limited to this.


@torch.inference_mode()
def smooth_tracks(tracks: Tracks, features: SliceFeatures, annotated: Iterable[int], low: int, high: int) -> Tracks:
    """Return tracks of the same slices with smooth logits.

    Args:
        tracks: Outputs for the slices of `features`.
        annotated: Indices of the slices that stay as they are.
        low, high: First and last slice that may hold a mask.
    """
    side = tracks.logits.shape[-1]
    height, width = grid_size(features, side)
    box = bounding_box((tracks.logits[:, :height, :width] > 0).cpu().numpy())
    if box is None:
        return tracks
    limits = (low, high + 1), (0, height), (0, width)
    box = tuple(slice(max(s.start - m, a), min(s.stop + m, b)) for s, m, (a, b) in zip(box, MARGINS, limits, strict=True))
    logits = tracks.logits[box]
    image = _scale(grid_intensities(features, box[0], side)[:, box[1], box[2]], (logits > 0).cpu().numpy())
    stays = torch.zeros(len(logits), 1, 1, dtype=torch.bool, device=logits.device)
    stays[[t - box[0].start for t in annotated if box[0].start <= t < box[0].stop]] = True
    probability = torch.sigmoid(logits.clamp(-SURE_LOGIT, SURE_LOGIT))
    smooth = _diffuse(probability, torch.from_numpy(image).to(logits), stays).clamp(1e-4, 1 - 1e-4)
    result = tracks.logits.clone()
    result[box] = torch.where(stays, logits, torch.logit(smooth))
    return Tracks(result, tracks.iou, tracks.object_score, tracks.agreement)


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
