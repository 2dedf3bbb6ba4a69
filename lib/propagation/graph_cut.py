"""Divide a slice into inside and outside so that the mask follows the evidence of its pixels and the edges of the image."""

import numpy as np
import numpymaxflow
from scipy import ndimage

_SEED_LOGIT = 40.0  # So sure that no evidence and no smoothness overrule it.
_BINS = 24
_PSEUDO_COUNT = 0.3  # Of each bin, so that an intensity that occurs on one side only is no proof.


def graph_cut(image: np.ndarray, logits: np.ndarray, seeds: np.ndarray, smoothness: float) -> np.ndarray:
    """Return the mask bool (Y, X) of least cost, a minimum cut (Boykov and Jolly, ICCV 2001).

    A mask pays the size of each logit that it contradicts, and `smoothness` for each pair of neighbours of equal intensity that it divides.
    At an edge of the image it pays nearly nothing.

    Args:
        image: float32 (Y, X) in [0, 1], see `scale_intensities`.
        logits: Evidence for the inside, float (Y, X).
        seeds: int8 (Y, X), 1 and -1 for pixels that are surely inside or outside, else 0.
    """
    logits = np.where(seeds != 0, seeds * _SEED_LOGIT, np.clip(logits, -_SEED_LOGIT / 2, _SEED_LOGIT / 2))
    probabilities = np.stack([1 / (1 + np.exp(logits)), 1 / (1 + np.exp(-logits))]).astype(np.float32)
    steps = np.concatenate([np.abs(np.diff(image, axis=axis)).ravel() for axis in (0, 1)])
    edge_scale = max(1.5 * float(np.median(steps)), 0.02) if steps.size else 1.0
    cut = numpymaxflow.maxflow(np.ascontiguousarray(image[None], np.float32), probabilities, smoothness, edge_scale, 4)[0] > 0
    return np.where(seeds != 0, seeds > 0, cut)


def scale_intensities(image: np.ndarray) -> np.ndarray:
    """Return an image (Y, X) of any intensities as float32 in [0, 1]; its 1st and 99th percentile become 0 and 1."""
    low, high = np.percentile(image, [1, 99])
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1).astype(np.float32)


def intensity_logits(image: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    """Return the logarithm of how much more frequent each pixel's intensity is inside than outside, float (Y, X) in [-3, 3].

    Args:
        image: float32 (Y, X) in [0, 1].
        inside, outside: bool (Y, X), the pixels to compare. If one of them is empty, intensities say nothing: all is 0.
    """
    if not (inside.any() and outside.any()):
        return np.zeros(image.shape)
    bins = np.minimum((image * _BINS).astype(int), _BINS - 1)
    counts = (np.bincount(bins[region], minlength=_BINS).astype(float) for region in (inside, outside))
    smooth_counts = [ndimage.gaussian_filter1d(c, 1.0, mode="nearest") + _PSEUDO_COUNT for c in counts]
    frequencies = [c / c.sum() for c in smooth_counts]
    return np.clip(np.log(frequencies[0] / frequencies[1]), -3, 3)[bins]
