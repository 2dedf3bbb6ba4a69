"""The protocol of Shen et al. 2024 (section 3): five clicks or the reference mask on the central slice, then both directions.

All labels count as one structure. Where the published code differs from the paper's words: every slice is scaled on its own; the
volume is cut to the slices with foreground and a random margin of 5 to 9; the salient slices are all that the network sees (the
paper: all that is scored); surfaces are compared in voxels, of slices stacked in the order of propagation.
"""

from collections.abc import Iterator

import numpy as np

from lib.evaluation.methods.method import How, Method, clicks, painted
from lib.evaluation.protocols.steps import Counting, Plan, Step
from lib.evaluation.protocols.target import Target
from lib.imaging.masks import deepest_pixel
from lib.prompts.simulated_annotator import corrective_click

SETTINGS = ("5 clicks", "1 mask", "5 clicks, salient", "1 mask, salient")
CLICKS = 5
SALIENT = 256  # pixels; a slice with more of them is salient


def central_slice(reference: np.ndarray) -> int:
    """The middle one of the slices of bool (T, Y, X) with foreground; of two the later."""
    filled = np.flatnonzero(reference.any((1, 2)))
    return int(filled[len(filled) // 2])


def salient_slices(reference: np.ndarray) -> np.ndarray:
    """Indices of the slices of bool (T, Y, X) with more than SALIENT foreground pixels."""
    return np.flatnonzero(reference.sum((1, 2)) > SALIENT)


def with_margin(reference: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Indices from the first to the last slice with foreground and 5 to 9 more on each side, as far as there are any."""
    filled = np.flatnonzero(reference.any((1, 2)))
    before, after = rng.integers(5, 10, 2)
    return np.arange(max(0, filled[0] - before), min(len(reference), filled[-1] + after + 1))


def propagation_order(total: int, start: int) -> np.ndarray:
    """Slices as they come out: from `start` forward, then backward from the slice before it.

    >>> propagation_order(5, 2).tolist()
    [2, 3, 4, 1, 0]
    """
    return np.array([*range(start, total), *range(start - 1, -1, -1)])


def counting(target: Target, start: int, salient: bool, plan: Plan) -> Counting:
    """Which slices count, in which order."""
    if plan.published:
        return Counting(propagation_order(len(target.reference), start), in_mm=False)
    return Counting(salient_slices(target.reference) if salient else None)


def steps(method: Method, target: Target, plan: Plan) -> Iterator[Step]:
    """Five clicks are five steps, each propagated, so that the growth per click is known; the mask is one."""
    for setting in plan.settings or SETTINGS:
        prompt, _, area = setting.partition(", ")
        part = _part(target, bool(area), plan)
        if part is None:
            continue
        method.open(part.frames)
        t = central_slice(part.reference)
        counts = counting(part, t, bool(area), plan)
        if prompt == "1 mask":
            annotations = {t: painted(part.reference[t])}
            yield Step(setting, 1, part, annotations, How(), method.segment(annotations), t, counts)
        else:
            yield from _clicks(method, part, t, setting, counts)


def _part(target: Target, salient: bool, plan: Plan) -> Target | None:
    """What the network sees; None if the structure has no salient slice."""
    slices = salient_slices(target.reference)
    if salient and not len(slices):
        return None
    if not plan.published:
        return target
    return target.keep(slices if salient else with_margin(target.reference, plan.rng))


def _clicks(method: Method, target: Target, t: int, setting: str, counts: Counting) -> Iterator[Step]:
    """First the deepest point of the object, then the deepest of what is missed or in excess (missed wins ties)."""
    made = [(True, *deepest_pixel(target.reference[t]))]
    how = How(one_by_one=True)
    for number in range(1, CLICKS + 1):
        annotations = {t: clicks(made)}
        answer = method.segment(annotations, how)
        yield Step(setting, number, target, annotations, how, answer, t, counts)
        click = corrective_click(answer.mask[t], target.reference[t])
        if click is None:
            return
        made.append(click)
