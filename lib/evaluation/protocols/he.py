"""The protocol of He et al. 2024 (section 2): up to five clicks on a first slice, then the worst slice again and again.

Where the published code differs from the paper's words: the fifth click is computed but not submitted; only slices with
foreground in the reference can be the worst; the "centre" of a region is the pixel nearest (m, m), m being the mean of all its
row and column numbers at once; slices after the first are corrections that do not condition.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import ndimage

from lib.evaluation.methods.method import Annotations, Click, How, Method, clicks
from lib.evaluation.protocols.steps import Plan, Step
from lib.evaluation.protocols.target import Target
from lib.quality.next_slice import pick_worst_slice, slice_errors

SETTINGS = ("full", "background removed")
FIRST_CLICKS = 5
SLICES = 8


def first_voxel(reference: np.ndarray) -> tuple[int, int, int]:
    """(t, y, x) of the foreground voxel nearest the centroid of the largest 26-connected component of bool (T, Y, X)."""
    parts, _ = ndimage.label(reference, np.ones((3, 3, 3)))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    voxels = np.argwhere(parts == sizes.argmax())
    nearest = ((voxels - voxels.mean(0)) ** 2).sum(1).argmin()
    return tuple(int(v) for v in voxels[nearest])


def eroded(region: np.ndarray) -> np.ndarray:
    """Bool (Y, X) eroded by a 3 x 3 square; beyond the image's edge nothing belongs to it."""
    return ndimage.binary_erosion(region, np.ones((3, 3)))


def centre(region: np.ndarray, published: bool) -> tuple[int, int]:
    """(y, x) of the pixel of a region, bool (Y, X), not empty, that is nearest its centre; the first of equals."""
    pixels = np.argwhere(region)
    middle = np.full(2, pixels.mean()) if published else pixels.mean(0)
    y, x = pixels[((pixels - middle) ** 2).sum(1).argmin()]
    return int(y), int(x)


def errors(mask: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Missed (FN) and excess (FP) pixels of a slice, eroded."""
    return eroded(reference & ~mask), eroded(mask & ~reference)


def next_click(mask: np.ndarray, reference: np.ndarray, published: bool) -> Click | None:
    """The next click on the first slice: at the centre of the larger error, of what is missed among equals; None: no error."""
    missed, excess = errors(mask, reference)
    if not (missed.any() or excess.any()):
        return None
    positive = bool(missed.sum() >= excess.sum())
    return positive, *centre(missed if positive else excess, published)


def correction(mask: np.ndarray, reference: np.ndarray, plan: Plan) -> list[Click]:
    """Clicks on a later slice: one at the centre of each error, and a random one in the larger, missed among equals."""
    missed, excess = errors(mask, reference)
    found = [(positive, *centre(region, plan.published)) for positive, region in ((True, missed), (False, excess)) if region.any()]
    if found:
        positive = bool(missed.sum() >= excess.sum())
        pixels = np.argwhere(missed if positive else excess)
        y, x = pixels[plan.rng.integers(len(pixels))]
        found.append((positive, int(y), int(x)))
    return found


def worst_slice(mask: np.ndarray, reference: np.ndarray, published: bool) -> int:
    """Slice of bool (T, Y, X) with the lowest Dice; of equals the one with the most wrong pixels, then the first.

    Both empty is Dice 1. `published`: only slices with foreground in the reference.
    """
    allowed = np.flatnonzero(reference.any((1, 2))) if published else np.arange(len(reference))
    return pick_worst_slice(*slice_errors(mask, reference), allowed)


def first_clicks(method: Method, target: Target, how: How, plan: Plan) -> tuple[int, list[Click]]:
    """The first slice and the clicks on it."""
    t, y, x = first_voxel(target.reference)
    made: list[Click] = [(True, y, x)]
    # Of `published` the fifth click is computed and not submitted, so it is not computed here.
    while len(made) < FIRST_CLICKS - plan.published:
        mask = method.segment({t: clicks(made)}, replace(how, propagate=False)).mask[t]
        click = next_click(mask, target.reference[t], plan.published)
        if click is None:
            break
        made.append(click)
    return t, made


def steps(method: Method, target: Target, plan: Plan) -> Iterator[Step]:
    """One step for each annotated slice, of the whole volume and of the slices with foreground only."""
    for setting in plan.settings or SETTINGS:
        part = target.keep(target.filled) if setting == SETTINGS[1] else target
        yield from _rounds(method, part, plan, setting)


def _rounds(method: Method, target: Target, plan: Plan, setting: str) -> Iterator[Step]:
    method.open(target.frames)
    how = How(one_by_one=True, conditioning=not plan.published)
    t, made = first_clicks(method, target, how, plan)
    points = {t: made}
    for number in range(1, SLICES + 1):
        annotations: Annotations = {s: clicks(p) for s, p in points.items()}
        answer = method.segment(annotations, how)
        yield Step(setting, number, target, annotations, how, answer, t)
        t = worst_slice(answer.mask, target.reference, plan.published)
        found = correction(answer.mask[t], target.reference[t], plan)
        if not found:
            return
        points[t] = points.get(t, []) + found
