"""How good is the mask of a slice? From a reference, or expected from what the network itself says."""

import numpy as np


def slice_iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU (T,) of each slice of bool (T, Y, X); both empty = 1, one empty = 0."""
    both, either = (predicted & truth).sum((1, 2)), (predicted | truth).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def expected_iou(predicted_iou: np.ndarray, present: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """What the network's own heads say about each slice (T,), in [0, 1].

    Where there is a mask, it is right if the object is there, and then as good as predicted; where there is none, it is
    right if the object is not there.

    Args:
        predicted_iou: (T,) of the decoder's IoU head. present: (T,) probability that the object is there.
        filled: bool (T,), whether the slice has a mask.
    """
    return np.where(filled, present * np.clip(predicted_iou, 0, 1), 1 - present)
