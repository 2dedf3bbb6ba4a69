"""Operations on binary masks."""

import contextlib
import math
import mmap
from collections.abc import Sequence

import cc3d
import numpy as np
from scipy import ndimage

from lib.common.errors import OptionError

COMPONENTS = ("annotated", "largest", "all")


def empty_mask(shape: tuple[int, ...]) -> np.ndarray:
    """A mask of False only, which takes memory where it is filled, in pages of 2 MB where Linux has them: a mask of 300 slices has
    20,000 of the usual pages, and each takes time when it is first touched."""
    size = math.prod(shape)
    if not size or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.zeros(shape, bool)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, bool).reshape(shape)


def slice_areas(mask: np.ndarray) -> np.ndarray:
    """Pixels (T,) of each slice of bool (T, Y, X); slice by slice, which is many times as fast as a sum."""
    return np.array([np.count_nonzero(m) for m in mask])


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Where bool (T, Y, X) is not empty; None if it is empty. Quick when few of the slices are filled."""
    filled = np.flatnonzero(slice_areas(mask))
    if not len(filled):
        return None
    depth = slice(int(filled[0]), int(filled[-1]) + 1)
    flat = mask[depth].any(0)
    ends = [np.flatnonzero(flat.any(a)) for a in (1, 0)]
    return depth, *(slice(int(e[0]), int(e[-1]) + 1) for e in ends)


def keep_components(mask: np.ndarray, which: str, annotated: Sequence[int]) -> np.ndarray:
    """The wanted 26-connected components of a 3D mask.

    Args:
        mask: bool (T, Y, X).
        which: "annotated" keeps those that touch what the user annotated, "largest" the one of most voxels, "all" all.
        annotated: indices of the annotated slices.

    Raises:
        OptionError: another value of `which`.
    """
    if which not in COMPONENTS:
        raise OptionError(f"Unknown value {which!r} for components: use {', '.join(COMPONENTS)}.")
    if which == "all" or not mask.any():
        return mask
    # Three to five times as fast as SciPy and SimpleITK; for bool, 4.1.1 takes another way, which fails for single rows of voxels.
    parts, count = cc3d.connected_components(mask.view(np.uint8), connectivity=26, return_N=True)
    wanted = np.zeros(count + 1, bool)
    if which == "annotated":
        for t in annotated:
            wanted[parts[t]] = True
    else:
        wanted[1 + np.bincount(parts[mask])[1:].argmax()] = True
    wanted[0] = False
    if wanted[1:].all() or not wanted.any():
        return mask
    return np.stack([wanted[slice_] for slice_ in parts])  # all at once would need a copy in 64 bits


def edge_distance(mask: np.ndarray) -> np.ndarray:
    """Distance in pixels of each pixel of bool (Y, X) to the outside; the image's edge counts as outside."""
    out = np.zeros(mask.shape)
    box = bounding_box(mask[None])
    if box is not None:
        out[box[1:]] = ndimage.distance_transform_edt(np.pad(mask[box[1:]], 1))[1:-1, 1:-1]
    return out


def deepest_pixel(mask: np.ndarray) -> tuple[int, int] | None:
    """(y, x) farthest from the mask's edge, the first of equals in reading order; None if the mask is empty."""
    if not mask.any():
        return None
    y, x = np.unravel_index(int(edge_distance(mask).argmax()), mask.shape)
    return int(y), int(x)


class BorderStrength:
    """How clearly the borders of masks are edges of an image (Y, X), whatever the image's range."""

    def __init__(self, image: np.ndarray):
        self._image = image.astype(np.float32)
        self._side = 2 * max(2, round(max(image.shape) / 128)) + 1
        self._mean = ndimage.uniform_filter(self._image, self._side)
        self._noise = np.abs(self._image - ndimage.uniform_filter(self._image, 3))
        self._least = 1e-3 * np.ptp(self._image) + 1e-12

    def contrast(self, mask: np.ndarray) -> float:
        """0 to 1 for bool (Y, X); 0 for no border.

        At each pixel of the border, the difference of the mean intensities within and beyond it, in a window of about 1/60 of
        the image's side, against itself plus the noise within the mask; averaged along the border.
        """
        border = mask & ~ndimage.binary_erosion(mask, border_value=1)
        if not border.any():
            return 0.0
        share = ndimage.uniform_filter(mask.astype(np.float32), self._side)[border]
        within = ndimage.uniform_filter(self._image * mask, self._side)[border]
        beyond = (self._mean[border] - within) / np.maximum(1 - share, 1e-3)
        steps = np.abs(within / np.maximum(share, 1e-3) - beyond)
        return float((steps / (steps + self._noise[mask].mean() + self._least)).mean())
