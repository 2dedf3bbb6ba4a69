"""Where a careful annotator would click next, from a reference mask: the clicks of Shen et al. 2024 (section 3.2)."""

import numpy as np
from scipy import ndimage

MIN_DEPTH = 1.42  # pixels; a thinner error region gets no click


def depth(mask: np.ndarray) -> np.ndarray:
    """Distance in pixels of each pixel of bool (Y, X) to the outside; the image's edge counts as outside."""
    return ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]


def deepest(mask: np.ndarray) -> tuple[int, int] | None:
    """(y, x) farthest from the mask's edge, the first of equals in reading order; None if the mask is empty."""
    if not mask.any():
        return None
    y, x = np.unravel_index(int(depth(mask).argmax()), mask.shape)
    return int(y), int(x)


def next_click(predicted: np.ndarray, truth: np.ndarray) -> tuple[bool, int, int] | None:
    """The corrective click (positive, y, x) at the deepest point of what is missed or marked in excess.

    Missed wins a tie. None when nothing thicker than MIN_DEPTH is wrong.
    """
    missed, extra = depth(truth & ~predicted), depth(predicted & ~truth)
    if max(missed.max(), extra.max()) < MIN_DEPTH:
        return None
    positive = bool(missed.max() >= extra.max())
    y, x = np.unravel_index(int((missed if positive else extra).argmax()), truth.shape)
    return positive, int(y), int(x)


def largest_slice(truth: np.ndarray) -> int:
    """Index of the slice of bool (T, Y, X) with the most foreground, the first of equals."""
    return int(truth.sum((1, 2)).argmax())


def slices_at(truth: np.ndarray, shares=(0.2, 0.5, 0.8)) -> list[int]:
    """Non-empty slices of bool (T, Y, X) at shares of the object's extent; equal ones once."""
    filled = np.flatnonzero(truth.any((1, 2)))
    return sorted({int(filled[round(s * (len(filled) - 1))]) for s in shares})
