"""The protocol of He et al. 2024 (section 2): up to five clicks on a first slice, then corrections on the worst slice of each round.

The mode "published" follows the authors' code where it differs from the paper's text: the fifth click is computed but not submitted;
only slices with foreground in the reference can be the worst; the "centre" of a region is the pixel nearest (m, m), where m is the
mean of all its row and column numbers together; slices after the first are corrections that are no conditioning frames.
"""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from scipy import ndimage

from lib.evaluation.methods.method import Annotations, Click, Method, PropagationMode, click_prompt
from lib.evaluation.protocols.steps import ProtocolPlan, Step
from lib.evaluation.protocols.target import Target
from lib.imaging.masks import filled_slices, keep_components
from lib.quality.next_slice import pick_worst_slice, slice_errors

SETTINGS = ("full", "background removed")
MAX_CLICKS_ON_FIRST_SLICE = 5
MAX_SLICES = 8


def find_first_voxel(reference: np.ndarray) -> tuple[int, int, int]:
    """Return (t, y, x) of the foreground voxel nearest the centroid of the largest 26-connected component of bool (T, Y, X)."""
    voxels_tyx = np.argwhere(keep_components(reference, "largest", ()))
    nearest = ((voxels_tyx - voxels_tyx.mean(0)) ** 2).sum(1).argmin()
    return tuple(int(v) for v in voxels_tyx[nearest])


def erode(region: np.ndarray) -> np.ndarray:
    """Return a region, bool (Y, X), eroded by a 3 x 3 square; what lies beyond the image's edge counts as background."""
    return ndimage.binary_erosion(region, np.ones((3, 3)))


def find_centre(region: np.ndarray, as_published: bool) -> tuple[int, int]:
    """Return (y, x) of the pixel of a region, bool (Y, X), not empty, that is nearest its centre; of equally near ones the first."""
    pixels_yx = np.argwhere(region)
    middle = np.full(2, pixels_yx.mean()) if as_published else pixels_yx.mean(0)
    y, x = pixels_yx[((pixels_yx - middle) ** 2).sum(1).argmin()]
    return int(y), int(x)


def find_errors(mask: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eroded regions of missed (false negative) and of excess (false positive) pixels of a slice."""
    return erode(reference & ~mask), erode(mask & ~reference)


def choose_next_click(mask: np.ndarray, reference: np.ndarray, as_published: bool) -> Click | None:
    """Return the next click on the first slice, at the centre of the larger error, or None if there is no error.

    If both errors are equally large, the click is on the missed pixels.
    """
    missed, excess = find_errors(mask, reference)
    if not (missed.any() or excess.any()):
        return None
    is_positive = bool(missed.sum() >= excess.sum())
    return is_positive, *find_centre(missed if is_positive else excess, as_published)


def choose_corrections(mask: np.ndarray, reference: np.ndarray, plan: ProtocolPlan) -> list[Click]:
    """Return the clicks on a later slice: one at the centre of each error, and a random one in the larger error."""
    missed, excess = find_errors(mask, reference)
    clicks = [(positive, *find_centre(region, plan.as_published)) for positive, region in ((True, missed), (False, excess)) if region.any()]
    if clicks:
        is_positive = bool(missed.sum() >= excess.sum())
        pixels_yx = np.argwhere(missed if is_positive else excess)
        y, x = pixels_yx[plan.rng.integers(len(pixels_yx))]
        clicks.append((is_positive, int(y), int(x)))
    return clicks


def find_worst_slice(mask: np.ndarray, reference: np.ndarray, as_published: bool) -> int:
    """Return the slice of bool (T, Y, X) with the lowest Dice; among equals that with the most wrong pixels, then the first.

    The Dice of a slice that is empty in both is 1. As published, only slices with foreground in the reference are candidates.
    """
    candidates = filled_slices(reference) if as_published else np.arange(len(reference))
    return pick_worst_slice(*slice_errors(mask, reference), candidates)


def annotate_first_slice(method: Method, target: Target, mode: PropagationMode, plan: ProtocolPlan) -> tuple[int, list[Click]]:
    """Return the index of the first slice and the clicks on it, which follow the method's predictions for that slice."""
    t, y, x = find_first_voxel(target.reference)
    clicks: list[Click] = [(True, y, x)]
    # The published code computes a fifth click but does not submit it, so it is not computed here.
    while len(clicks) < MAX_CLICKS_ON_FIRST_SLICE - plan.as_published:
        mask = method.segment({t: click_prompt(clicks)}, replace(mode, propagate=False)).mask[t]
        click = choose_next_click(mask, target.reference[t], plan.as_published)
        if click is None:
            break
        clicks.append(click)
    return t, clicks


def run_steps(method: Method, target: Target, plan: ProtocolPlan) -> Iterator[Step]:
    """Yield one step for each annotated slice, on the whole volume and on its slices with foreground only."""
    for setting in plan.settings or SETTINGS:
        without_background = setting == "background removed"
        yield from _run_setting(method, target.keep_slices(target.foreground_slices) if without_background else target, plan, setting)


def _run_setting(method: Method, target: Target, plan: ProtocolPlan, setting: str) -> Iterator[Step]:
    """Yield the steps of one setting, until a slice gets no corrections or enough slices are annotated."""
    method.open(target.frames)
    mode = PropagationMode(clicks_one_by_one=True, corrections_condition=not plan.as_published)
    t, first_clicks = annotate_first_slice(method, target, mode, plan)
    clicks_by_slice = {t: first_clicks}
    for number in range(1, MAX_SLICES + 1):
        annotations: Annotations = {s: click_prompt(clicks) for s, clicks in clicks_by_slice.items()}
        prediction = method.segment(annotations, mode)
        yield Step(setting, number, target, annotations, mode, prediction, t)
        t = find_worst_slice(prediction.mask, target.reference, plan.as_published)
        corrections = choose_corrections(prediction.mask[t], target.reference[t], plan)
        if not corrections:
            return
        clicks_by_slice[t] = clicks_by_slice.get(t, []) + corrections
