"""Operations on binary masks."""

import numpy as np
from scipy import ndimage

from lib.errors import OptionError

COMPONENTS = ("annotated", "largest", "all")


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Where bool (T, Y, X) is not empty; None if it is empty. Quick when few of the slices are filled."""
    filled = np.flatnonzero(mask.any((1, 2)))
    if not len(filled):
        return None
    depth = slice(int(filled[0]), int(filled[-1]) + 1)
    flat = mask[depth].any(0)
    ends = [np.flatnonzero(flat.any(a)) for a in (1, 0)]
    return depth, *(slice(int(e[0]), int(e[-1]) + 1) for e in ends)


def keep_components(mask: np.ndarray, which: str, annotated: np.ndarray) -> np.ndarray:
    """The wanted 26-connected components of a 3D mask.

    Args:
        mask: bool (I, J, K).
        which: "annotated" keeps those that touch what the user annotated, "largest" the one of most voxels, "all" all.
        annotated: bool (I, J, K), the mask on the annotated slices.

    Raises:
        OptionError: another value of `which`.
    """
    if which not in COMPONENTS:
        raise OptionError(f"Unknown value {which!r} for components: use {', '.join(COMPONENTS)}.")
    if which == "all" or not mask.any():
        return mask
    parts, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if which == "annotated":
        touched = np.unique(parts[annotated & mask])
        chosen = touched[touched > 0]
        if not len(chosen):
            return mask
    else:
        chosen = [int(sizes.argmax())]
    return np.isin(parts, chosen)


def depth(mask: np.ndarray) -> np.ndarray:
    """Distance in pixels of each pixel of bool (Y, X) to the outside; the image's edge counts as outside."""
    return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def deepest(mask: np.ndarray) -> tuple[int, int] | None:
    """(y, x) farthest from the mask's edge, the first of equals in reading order; None if the mask is empty."""
    if not mask.any():
        return None
    y, x = np.unravel_index(int(depth(mask).argmax()), mask.shape)
    return int(y), int(x)
