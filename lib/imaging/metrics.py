"""Measure the overlap of masks. Two empty masks have a Dice coefficient of 1; an empty and a filled mask have 0."""

import numpy as np

from lib.imaging.masks import slice_areas


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Dice coefficient of two bool arrays of the same shape.

    >>> dice(np.array([1, 1, 0], bool), np.array([0, 1, 1], bool)), dice(np.zeros(3, bool), np.zeros(3, bool))
    (0.5, 1.0)
    """
    total = np.count_nonzero(a) + np.count_nonzero(b)
    return 2 * np.count_nonzero(a & b) / total if total else 1.0


def slice_dice(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """Return the 2D Dice coefficient (T,) of each slice along `axis` of two bool volumes."""
    in_plane = tuple(x for x in range(3) if x != axis)
    total = a.sum(in_plane) + b.sum(in_plane)
    return np.where(total > 0, 2 * (a & b).sum(in_plane) / np.maximum(total, 1), 1.0)


def empty_fp_share(predicted: np.ndarray, reference: np.ndarray, axis: int) -> float:
    """Return the share of the slices with an empty `reference` in which `predicted` is not empty; NaN if no slice is empty."""
    in_plane = tuple(x for x in range(3) if x != axis)
    empty = ~reference.any(in_plane)
    return float(predicted.any(in_plane)[empty].mean()) if empty.any() else float("nan")


def slice_recall(predicted: np.ndarray, reference: np.ndarray, axis: int) -> float:
    """Return the share of the slices with a `reference` in which `predicted` is not empty; NaN if all slices are empty."""
    in_plane = tuple(x for x in range(3) if x != axis)
    filled = reference.any(in_plane)
    return float(predicted.any(in_plane)[filled].mean()) if filled.any() else float("nan")


def slice_iou(predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the IoU (T,) of each slice of two masks bool (T, Y, X); 1 where both are empty, 0 where one is."""
    both, either = slice_areas(predicted & reference), slice_areas(predicted | reference)
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)
