"""Overlap measures. Empty-mask policy: both empty = 1, one empty = 0."""

import numpy as np


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """Dice coefficient of two bool arrays of one shape.

    >>> dice(np.array([1, 1, 0], bool), np.array([0, 1, 1], bool)), dice(np.zeros(3, bool), np.zeros(3, bool))
    (0.5, 1.0)
    """
    total = int(a.sum()) + int(b.sum())
    return 2 * int((a & b).sum()) / total if total else 1.0


def slice_dice(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """2D Dice (T,) of each slice along `axis` of two bool volumes."""
    others = tuple(x for x in range(3) if x != axis)
    total = a.sum(others) + b.sum(others)
    return np.where(total > 0, 2 * (a & b).sum(others) / np.maximum(total, 1), 1.0)


def empty_fp_share(predicted: np.ndarray, reference: np.ndarray, axis: int) -> float:
    """Of the slices where `reference` is empty, the share where `predicted` is not; NaN if there is no such slice."""
    others = tuple(x for x in range(3) if x != axis)
    empty = ~reference.any(others)
    return float(predicted.any(others)[empty].mean()) if empty.any() else float("nan")
