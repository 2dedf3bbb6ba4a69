"""Simulate an annotator who knows the reference segmentation. The corrective clicks follow Shen et al. 2024, section 3.2."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lib.imaging.frames import Frames
from lib.imaging.masks import deepest_pixel, edge_distance, filled_slices, slice_areas

MIN_DEPTH = 1.42  # in pixels, just over the square root of 2: a thinner error region is not worth a click


def corrective_click(predicted: np.ndarray, reference: np.ndarray) -> tuple[bool, int, int] | None:
    """Return the click (positive, y, x) at the deepest point of what a mask, bool (Y, X), misses or marks in excess.

    If both errors are equally deep, the click is positive. If no error is at least `MIN_DEPTH` deep, there is no click: None.
    """
    missed, extra = edge_distance(reference & ~predicted), edge_distance(predicted & ~reference)
    if max(missed.max(), extra.max()) < MIN_DEPTH:
        return None
    positive = bool(missed.max() >= extra.max())
    y, x = np.unravel_index(int((missed if positive else extra).argmax()), reference.shape)
    return positive, int(y), int(x)


def largest_slice(reference: np.ndarray) -> int:
    """Return the index of the slice of bool (T, Y, X) with the most foreground; among equals, the first."""
    return int(slice_areas(reference).argmax())


def slices_at_shares(reference: np.ndarray, shares=(0.2, 0.5, 0.8)) -> list[int]:
    """Return the filled slices of bool (T, Y, X) at the given shares (0 to 1) of the object's extent, sorted and without repetition."""
    filled = filled_slices(reference)
    return sorted({int(filled[round(s * (len(filled) - 1))]) for s in shares})


def clicks_on_slice(predict: Callable[[dict], np.ndarray], frames: Frames, reference: np.ndarray, t: int, count: int) -> dict:
    """Click on slice t: first inside the structure, then each time where the mask predicted so far is most wrong.

    Args:
        predict: Takes prompts {"positive": voxels, "negative": voxels} and returns the mask of slice t, bool (Y, X).
        reference: bool (T, Y, X), not empty in slice t.
        count: Maximal number of clicks. There are fewer if the mask becomes right or no longer follows the clicks.
    """
    y, x = deepest_pixel(reference[t])
    prompts = {"positive": [frames.to_voxel(t, y, x)], "negative": []}
    while len(prompts["positive"]) + len(prompts["negative"]) < count:
        click = corrective_click(predict(prompts), reference[t])
        if click is None:
            break
        voxel = frames.to_voxel(t, *click[1:])
        if voxel in prompts["positive"] or voxel in prompts["negative"]:
            break  # The model did not follow the click, and would not follow it a second time.
        prompts["positive" if click[0] else "negative"].append(voxel)
    return prompts


def box_on_slice(frames: Frames, reference: np.ndarray, t: int) -> dict:
    """Return the tight bounding box of slice t of bool (T, Y, X) as prompts {"boxes": [[low, high]]} in voxels (i, j, k)."""
    ys, xs = np.nonzero(reference[t])
    return {"boxes": [[frames.to_voxel(t, f(ys), f(xs)) for f in (np.min, np.max)]]}


# A function that segments a volume: it takes prompts and whether to propagate, and returns a result whose `mask` is bool (I, J, K).
Segment = Callable[[dict, bool], Any]
# A function that annotates one slice. Its arguments are a `Segment` that adds the given prompts to all earlier ones, the frames,
# the reference (T, Y, X) and the slice's index. It returns the slice's prompts.
Annotator = Callable[[Segment, Frames, np.ndarray, int], dict]


def click_annotator(count: int) -> Annotator:
    """Return an annotator who starts a slice afresh with up to `count` clicks, or marks it as empty."""
    def annotate(segment, frames, reference, t):
        if not reference[t].any():
            return {"absent": [t]}
        return clicks_on_slice(lambda p: frames.from_volume(segment(p, False).mask)[t], frames, reference, t, count)

    return annotate


def box_annotator(segment, frames: Frames, reference: np.ndarray, t: int) -> dict:
    """Annotate slice t with its tight bounding box, or mark it as empty; this is an `Annotator`."""
    return box_on_slice(frames, reference, t) if reference[t].any() else {"absent": [t]}


def painting_annotator(segment, frames: Frames, reference: np.ndarray, t: int) -> dict:
    """Annotate slice t by painting its reference mask; this is an `Annotator`."""
    return {"masks": {t: reference[t].T}}
