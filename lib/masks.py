"""Operations on binary masks."""

import numpy as np
from scipy import ndimage

from lib.errors import OptionError

COMPONENTS = ("annotated", "largest", "all")


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
    box = ndimage.find_objects(mask.astype(np.uint8))[0]  # labelling the bounding box is much cheaper
    parts, _ = ndimage.label(mask[box], np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    if which == "annotated":
        touched = np.unique(parts[annotated[box] & mask[box]])
        chosen = touched[touched > 0]
        if not len(chosen):
            return mask
    else:
        chosen = [int(sizes.argmax())]
    out = np.zeros_like(mask)
    out[box] = np.isin(parts, chosen)
    return out
