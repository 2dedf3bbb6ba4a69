"""A simulated annotator, from a reference mask: the clicks of Shen et al. 2024 (section 3.2), boxes, and on which slices."""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from lib.frames import Frames

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


def clicks_on(predict: Callable[[dict], np.ndarray], frames: Frames, truth: np.ndarray, t: int, count: int) -> dict:
    """Up to `count` clicks (voxels) on slice t: one inside, then each where the answer to those before is most wrong.

    Args:
        predict: prompts {"positive": voxels, "negative": voxels} -> bool (Y, X), the mask of slice t.
        truth: bool (T, Y, X).
    """
    y, x = deepest(truth[t])
    prompts = {"positive": [frames.to_voxel(t, y, x)], "negative": []}
    while len(prompts["positive"]) + len(prompts["negative"]) < count:
        click = next_click(predict(prompts), truth[t])
        if click is None:
            break
        voxel = frames.to_voxel(t, *click[1:])
        if voxel in prompts["positive"] or voxel in prompts["negative"]:
            break
        prompts["positive" if click[0] else "negative"].append(voxel)
    return prompts


def box_on(frames: Frames, truth: np.ndarray, t: int) -> dict:
    """The tight box of slice t as prompts."""
    ys, xs = np.nonzero(truth[t])
    return {"boxes": [[frames.to_voxel(t, f(ys), f(xs)) for f in (np.min, np.max)]]}
