"""Carry a mask from one slice to the next by matching small patches: structures move, so the same place is not the same tissue.

Each pixel of the new slice looks for patches like its own near the same place on the old slice, and takes on what the mask says there: label
propagation as in video segmentation (for CT and MR: Yeung et al., Sli2Vol, MICCAI 2021), here by intensities instead of learned features.
"""

import numpy as np
import torch
import torch.nn.functional as F

from lib.imaging.masks import bounding_box

# Chosen on generated volumes and patients of the training data; docs/architecture.md has the figures.
REACH = 4  # Pixels in each direction within which patches are compared.
PATCH_RADIUS = 2  # Of a square patch of 5 x 5 pixels.
TOLERANCE = 0.002  # Mean squared difference of scaled intensities that makes a match less likely by a factor of e.
DISTANCE_COST = 0.02  # The same for each squared pixel of distance, as an exponent.


def carry_mask(mask: np.ndarray, old_image: np.ndarray, new_image: np.ndarray) -> np.ndarray:
    """Return a mask, bool (h, w), carried from an old slice to a new one; the mask itself where nothing of it would be left.

    Args:
        old_image, new_image: Intensities (h, w) of the slices in [0, 1].
    """
    box = bounding_box(mask[None])
    if box is None:
        return mask
    margin = REACH + PATCH_RADIUS
    window = tuple(slice(max(s.start - margin, 0), s.stop + margin) for s in box[1:])
    new, old, inside = (torch.from_numpy(np.ascontiguousarray(x[window], np.float32)) for x in (new_image, old_image, mask))
    moved_images, moved_masks = _moved(old), _moved(inside)
    differences = _patch_means((moved_images - new) ** 2)
    steps = torch.arange(-REACH, REACH + 1) ** 2
    costs = differences / TOLERANCE + DISTANCE_COST * (steps[:, None] + steps).reshape(-1, 1, 1)
    carried = mask.copy()
    carried[window] = ((-costs).softmax(0) * moved_masks).sum(0).numpy() > 0.5
    return carried if carried.any() else mask


def _moved(image: torch.Tensor) -> torch.Tensor:
    """Return an image (h, w) moved by all steps within reach, (steps, h, w); beyond its edges, their values go on."""
    height, width = image.shape
    padded = F.pad(image[None, None], (REACH,) * 4, mode="replicate")[0, 0]
    return padded.unfold(0, height, 1).unfold(1, width, 1).reshape(-1, height, width)


def _patch_means(values: torch.Tensor) -> torch.Tensor:
    """Return the means of values (N, h, w) in the patch round each pixel; beyond the edges, the values go on."""
    size = 2 * PATCH_RADIUS + 1
    padded = F.pad(values[None], (PATCH_RADIUS,) * 4, mode="replicate")[0]
    for dim in (1, 2):  # Sums of a few shifted copies are several times as quick as pooling.
        padded = sum(padded.narrow(dim, n, values.shape[dim]) for n in range(size)) / size
    return padded
