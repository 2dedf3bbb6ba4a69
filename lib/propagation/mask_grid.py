"""The resolution of the network's masks: their part of the square that holds the slice, and the image at the same places."""

import numpy as np
import torch
import torch.nn.functional as F

from lib.model.features import SliceFeatures


def grid_size(features: SliceFeatures, side: int) -> tuple[int, int]:
    """Return height and width in cells of a slice within a square of `side` cells; the rest of the square is padding."""
    return tuple(max(1, round(n * side / features.side)) for n in (features.height, features.width))


def grid_intensities(features: SliceFeatures, slices: slice, side: int) -> np.ndarray:
    """Return the original intensities of some slices, float32 (T, h, w), at the cells of masks in a square of `side` cells."""
    intensities = torch.from_numpy(np.ascontiguousarray(features.frames.stack[slices], np.float32))
    size = grid_size(features, side)
    return F.interpolate(intensities[:, None], size, mode="bilinear", antialias=True, align_corners=False)[:, 0].numpy()
