"""Fill slices that tracking has left empty between two annotated ones, by the shapes on either side.

A structure that is annotated in the same place on two slices is there between them, too. Where it is thinner than a cell of the
network's masks, tracking loses it all the same. There, the shape is interpolated between the nearest slices that show it: the signed
distances to their borders are averaged (Raya and Udupa, IEEE Transactions on Medical Imaging 1990).
"""

from collections.abc import Iterable
from itertools import pairwise

import numpy as np
from scipy import ndimage

from lib.imaging.masks import bounding_box, edge_distance


def fill_empty_slices(stack: np.ndarray, annotated: Iterable[int]) -> None:
    """Fill empty slices of masks, bool (T, Y, X), in place, where both neighbouring annotated slices show the structure in the same place.

    Args:
        annotated: Indices of the annotated slices, which never change.
    """
    for first, last in pairwise(sorted(annotated)):
        if last - first < 2 or not (stack[first] & stack[last]).any():
            continue
        known = [t for t in range(first, last + 1) if stack[t].any()]
        for before, after in pairwise(known):
            for t in range(before + 1, after):
                stack[t] = interpolate_shape(stack[before], stack[after], (t - before) / (after - before))


def interpolate_shape(before: np.ndarray, after: np.ndarray, share: float) -> np.ndarray:
    """Return the shape bool (Y, X) that lies between two others, neither empty: `share`, in [0, 1], is how far it is from `before`."""
    _, rows, columns = bounding_box((before | after)[None])
    window = tuple(slice(max(s.start - 1, 0), s.stop + 1) for s in (rows, columns))
    shape = np.zeros_like(before)
    shape[window] = (1 - share) * _signed_distance(before[window]) + share * _signed_distance(after[window]) >= 0
    return shape


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Return the distance in pixels of each pixel of bool (Y, X) to the border, which lies between pixels, positive inside."""
    return np.where(mask, edge_distance(mask) - 0.5, 0.5 - ndimage.distance_transform_edt(~mask))
