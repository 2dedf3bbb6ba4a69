"""The protocol of Shen et al. 2024 (section 3): five clicks or the reference mask on the central slice, propagated both ways.

All labels count as one structure. The mode "published" follows the authors' code where it differs from the paper's text: every slice
is scaled on its own; the volume is cut to the slices with foreground and a random margin of 5 to 9 slices; the network sees only the
salient slices (in the paper's text it sees all, and only the salient ones are scored); surfaces are compared in voxels, with the
slices stacked in the order of propagation.
"""

from collections.abc import Iterator

import numpy as np

from lib.evaluation.methods.method import Click, Method, PropagationMode, click_prompt, mask_prompt
from lib.evaluation.protocols.steps import ProtocolPlan, ScoredSlices, Step
from lib.evaluation.protocols.target import Target
from lib.imaging.masks import deepest_pixel, filled_slices, slice_areas
from lib.prompts.simulated_annotator import corrective_click

SETTINGS = ("5 clicks", "1 mask", "5 clicks, salient", "1 mask, salient")
MAX_CLICKS = 5
SALIENT_PIXELS = 256  # A slice with more foreground pixels is salient.


def find_central_slice(reference: np.ndarray) -> int:
    """Return the middle one of the slices of bool (T, Y, X) with foreground; of two middle ones the later."""
    foreground_slices = filled_slices(reference)
    return int(foreground_slices[len(foreground_slices) // 2])


def find_salient_slices(reference: np.ndarray) -> np.ndarray:
    """Return the indices of the slices of bool (T, Y, X) with more than SALIENT_PIXELS foreground pixels."""
    return np.flatnonzero(slice_areas(reference) > SALIENT_PIXELS)


def choose_slices_with_margin(reference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the indices from the first to the last slice with foreground and of 5 to 9 more on each side, within the volume."""
    foreground_slices = filled_slices(reference)
    before, after = rng.integers(5, 10, 2)
    return np.arange(max(0, foreground_slices[0] - before), min(len(reference), foreground_slices[-1] + after + 1))


def propagation_order(slice_count: int, start: int) -> np.ndarray:
    """Return the slice indices in the order of propagation: forward from `start`, then backward from the slice before it.

    >>> propagation_order(5, 2).tolist()
    [2, 3, 4, 1, 0]
    """
    return np.array([*range(start, slice_count), *range(start - 1, -1, -1)])


def choose_scored_slices(target: Target, start: int, salient_only: bool, plan: ProtocolPlan) -> ScoredSlices:
    """Return which slices are scored, and in which order they are stacked."""
    if plan.as_published:
        return ScoredSlices(propagation_order(len(target.reference), start), in_mm=False)
    return ScoredSlices(find_salient_slices(target.reference) if salient_only else None)


def run_steps(method: Method, target: Target, plan: ProtocolPlan) -> Iterator[Step]:
    """Yield a step for each of the five clicks, all propagated, so that the growth per click is known, and one step for a mask."""
    for setting in plan.settings or SETTINGS:
        prompt, _, area = setting.partition(", ")
        salient_only = area == "salient"
        visible = _visible_target(target, salient_only, plan)
        if visible is None:
            continue
        method.open(visible.frames)
        t = find_central_slice(visible.reference)
        scored_slices = choose_scored_slices(visible, t, salient_only, plan)
        if prompt == "1 mask":
            annotations = {t: mask_prompt(visible.reference[t])}
            yield Step(setting, 1, visible, annotations, PropagationMode(), method.segment(annotations), t, scored_slices)
        else:
            yield from _run_clicks(method, visible, t, setting, scored_slices)


def _visible_target(target: Target, salient_only: bool, plan: ProtocolPlan) -> Target | None:
    """Return the target on the slices that the network sees; None if salient slices are asked for and there are none."""
    slices = find_salient_slices(target.reference)
    if salient_only and not len(slices):
        return None
    if not plan.as_published:
        return target
    return target.keep_slices(slices if salient_only else choose_slices_with_margin(target.reference, plan.rng))


def _run_clicks(method: Method, target: Target, t: int, setting: str, scored_slices: ScoredSlices) -> Iterator[Step]:
    """Yield a step for each click on slice t: first the deepest point of the object, then the deepest point of the errors."""
    clicks: list[Click] = [(True, *deepest_pixel(target.reference[t]))]
    mode = PropagationMode(clicks_one_by_one=True)
    for number in range(1, MAX_CLICKS + 1):
        annotations = {t: click_prompt(clicks)}
        prediction = method.segment(annotations, mode)
        yield Step(setting, number, target, annotations, mode, prediction, t, scored_slices)
        click = corrective_click(prediction.mask[t], target.reference[t])
        if click is None:
            return
        clicks.append(click)
