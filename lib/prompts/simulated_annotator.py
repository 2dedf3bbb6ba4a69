"""A simulated annotator, from a reference mask: the clicks of Shen et al. 2024 (section 3.2), boxes, and on which slices."""

from collections.abc import Callable
from typing import Any

import numpy as np

from lib.imaging.frames import Frames
from lib.imaging.masks import deepest_pixel, edge_distance

MIN_DEPTH = 1.42  # pixels; a thinner error region gets no click


def corrective_click(predicted: np.ndarray, reference: np.ndarray) -> tuple[bool, int, int] | None:
    """The corrective click (positive, y, x) at the deepest point of what is missed or marked in excess.

    Missed wins a tie. None when nothing thicker than MIN_DEPTH is wrong.
    """
    missed, extra = edge_distance(reference & ~predicted), edge_distance(predicted & ~reference)
    if max(missed.max(), extra.max()) < MIN_DEPTH:
        return None
    positive = bool(missed.max() >= extra.max())
    y, x = np.unravel_index(int((missed if positive else extra).argmax()), reference.shape)
    return positive, int(y), int(x)


def largest_slice(reference: np.ndarray) -> int:
    """Index of the slice of bool (T, Y, X) with the most foreground, the first of equals."""
    return int(reference.sum((1, 2)).argmax())


def slices_at_shares(reference: np.ndarray, shares=(0.2, 0.5, 0.8)) -> list[int]:
    """Non-empty slices of bool (T, Y, X) at shares of the object's extent; equal ones once."""
    filled = np.flatnonzero(reference.any((1, 2)))
    return sorted({int(filled[round(s * (len(filled) - 1))]) for s in shares})


def clicks_on_slice(predict: Callable[[dict], np.ndarray], frames: Frames, reference: np.ndarray, t: int, count: int) -> dict:
    """Up to `count` clicks (voxels) on slice t: one inside, then each where the answer to those before is most wrong.

    Args:
        predict: prompts {"positive": voxels, "negative": voxels} -> bool (Y, X), the mask of slice t.
        reference: bool (T, Y, X).
    """
    y, x = deepest_pixel(reference[t])
    prompts = {"positive": [frames.to_voxel(t, y, x)], "negative": []}
    while len(prompts["positive"]) + len(prompts["negative"]) < count:
        click = corrective_click(predict(prompts), reference[t])
        if click is None:
            break
        voxel = frames.to_voxel(t, *click[1:])
        if voxel in prompts["positive"] or voxel in prompts["negative"]:
            break
        prompts["positive" if click[0] else "negative"].append(voxel)
    return prompts


def box_on_slice(frames: Frames, reference: np.ndarray, t: int) -> dict:
    """The tight box of slice t as prompts."""
    ys, xs = np.nonzero(reference[t])
    return {"boxes": [[frames.to_voxel(t, f(ys), f(xs)) for f in (np.min, np.max)]]}


Segment = Callable[[dict, bool], Any]  # From prompts, and whether to propagate, to a result with `mask`, bool (I, J, K).
# Prompts for slice t, from the engine that knows those given before, the frames, the reference, t, and the mask on the screen.
Annotator = Callable[[Segment, Frames, np.ndarray, int, np.ndarray], dict]


def click_annotator(count: int) -> Annotator:
    """Annotates a slice by up to `count` clicks, or as empty."""
    def annotate(segment, frames, reference, t, shown):
        if not reference[t].any():
            return {"absent": [t]}
        return clicks_on_slice(lambda p: frames.from_volume(segment(p, False).mask)[t], frames, reference, t, count)

    return annotate


def correction_annotator(count: int) -> Annotator:
    """Annotates a slice as one does who looks at its mask: up to `count` clicks, each where that is most wrong (one inside where
    nothing is), or as empty."""
    def annotate(segment, frames, reference, t, shown):
        if not reference[t].any():
            return {"absent": [t]}
        prompts: dict = {"positive": [], "negative": []}
        for _ in range(count):
            click = corrective_click(shown, reference[t])
            voxel = click and frames.to_voxel(t, *click[1:])
            if click is None or voxel in (*prompts["positive"], *prompts["negative"]):
                break
            prompts["positive" if click[0] else "negative"].append(voxel)
            shown = frames.from_volume(segment(prompts, True).mask)[t]
        return prompts if any(prompts.values()) else {"positive": [frames.to_voxel(t, *deepest_pixel(reference[t]))]}

    return annotate


def box_annotator(segment, frames: Frames, reference: np.ndarray, t: int, shown) -> dict:
    """Annotates a slice by its tight box, or as empty."""
    return box_on_slice(frames, reference, t) if reference[t].any() else {"absent": [t]}


def painting_annotator(segment, frames: Frames, reference: np.ndarray, t: int, shown) -> dict:
    """Annotates a slice by its reference mask."""
    stack = np.zeros((len(frames), *frames.size), bool)
    stack[t] = reference[t]
    return {"masks": {t: frames.to_volume(stack).take(t, frames.axis)}}
