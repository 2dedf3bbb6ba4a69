"""Operate on binary masks of slices (Y, X) and volumes (T, Y, X)."""

from collections.abc import Sequence

import cc3d
import numpy as np
from scipy import ndimage

from lib.common.errors import OptionError

COMPONENTS = ("annotated", "largest", "all")


def slice_areas(mask: np.ndarray) -> np.ndarray:
    """Return the number of pixels (T,) that are set in each slice of bool (T, Y, X)."""
    return np.array([np.count_nonzero(m) for m in mask])  # Many times as fast as mask.sum((1, 2)).


def filled_slices(mask: np.ndarray) -> np.ndarray:
    """Return the indices of the slices of bool (T, Y, X) that are not empty, in ascending order."""
    return np.flatnonzero(slice_areas(mask))


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Return the smallest box, as slices along T, Y and X, that contains the foreground of bool (T, Y, X); None if it is empty."""
    filled = filled_slices(mask)
    if not len(filled):
        return None
    depth = slice(int(filled[0]), int(filled[-1]) + 1)
    projection = mask[depth].any(0)
    filled_rows_columns = [np.flatnonzero(projection.any(a)) for a in (1, 0)]
    return depth, *(slice(int(f[0]), int(f[-1]) + 1) for f in filled_rows_columns)


def keep_components(mask: np.ndarray, which: str, annotated: Sequence[int]) -> np.ndarray:
    """Return a mask with only some of its 26-connected components; if none of them qualifies, with all.

    Args:
        mask: bool (T, Y, X), which stays as it is.
        which: "annotated" keeps the components that reach an annotated slice, "largest" the one with the most voxels, "all" all.
        annotated: Indices of the annotated slices.

    Raises:
        OptionError: `which` has another value.
    """
    if which not in COMPONENTS:
        raise OptionError(f"Unknown value {which!r} for components: use {', '.join(COMPONENTS)}.")
    if which == "all" or not mask.any():
        return mask
    # cc3d is three to five times as fast as SciPy and SimpleITK. Its version 4.1.1 fails for bool arrays that are single rows of voxels.
    components, count = cc3d.connected_components(mask.view(np.uint8), connectivity=26, return_N=True)
    is_kept = np.zeros(count + 1, bool)
    if which == "annotated":
        for t in annotated:
            is_kept[components[t]] = True
    else:
        is_kept[1 + np.bincount(components[mask])[1:].argmax()] = True
    is_kept[0] = False
    if is_kept[1:].all() or not is_kept.any():
        return mask
    return np.stack([is_kept[labels] for labels in components])  # Indexing all slices at once would need a 64-bit copy of them.


def edge_distance(mask: np.ndarray) -> np.ndarray:
    """Return each pixel's distance in pixels to the outside of a mask, bool (Y, X); beyond the image's edge is outside too."""
    distance = np.zeros(mask.shape)
    box = bounding_box(mask[None])
    if box is not None:
        distance[box[1:]] = ndimage.distance_transform_edt(np.pad(mask[box[1:]], 1))[1:-1, 1:-1]
    return distance


def deepest_pixel(mask: np.ndarray) -> tuple[int, int] | None:
    """Return the pixel (y, x) farthest from the outside of bool (Y, X), in reading order the first; None if the mask is empty."""
    if not mask.any():
        return None
    y, x = np.unravel_index(int(edge_distance(mask).argmax()), mask.shape)
    return int(y), int(x)


class BorderStrength:
    """Measures how clearly the borders of masks follow edges of one image (Y, X) of any intensity range."""

    def __init__(self, image: np.ndarray):
        self._image = image.astype(np.float32)
        self._window = 2 * max(2, round(max(image.shape) / 128)) + 1
        self._mean = ndimage.uniform_filter(self._image, self._window)
        self._noise = np.abs(self._image - ndimage.uniform_filter(self._image, 3))
        self._min_noise = 1e-3 * np.ptp(self._image) + 1e-12

    def edge_strength(self, mask: np.ndarray) -> float:
        """Return the mean edge strength along the border of a mask bool (Y, X), 0 to 1; 0 if it has no border."""
        strengths = self.along_border(mask)[1]
        return float(strengths.mean()) if strengths.size else 0.0

    def along_border(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the border of a mask bool (Y, X), bool (Y, X), and the edge strengths of its N pixels in row order, (N,).

        Edge strength goes from 0 (no edge) to 1 (sharp edge). At each border pixel, let d be the difference between the mean intensities
        inside and outside the mask in a window of about 1/60 of the image's side, and n the mean noise inside the mask. The edge
        strength there is d / (d + n).
        """
        border = mask & ~ndimage.binary_erosion(mask, border_value=1)
        if not border.any():
            return border, np.zeros(0)
        inside_share = ndimage.uniform_filter(mask.astype(np.float32), self._window)[border]
        inside_sum = ndimage.uniform_filter(self._image * mask, self._window)[border]  # divided by the window's area
        outside_mean = (self._mean[border] - inside_sum) / np.maximum(1 - inside_share, 1e-3)
        difference = np.abs(inside_sum / np.maximum(inside_share, 1e-3) - outside_mean)
        return border, difference / (difference + self._noise[mask].mean() + self._min_noise)
