"""The protocol of Dong et al. 2024: one prompt on one slice (or three), in 24 settings and more.

A setting is named "slice/prompt/direction/mask", for example "largest/box/both/first":

  slice      first, median or largest of the slices with foreground; three of them
  prompt     point, points (of the three largest components), box, boxes (likewise), mask (the reference)
  direction  forward, both
  mask       which of the decoder's masks stands on the prompted slice: the first channel, or that of the highest predicted IoU
             (best); a reference mask leaves no choice ("reference")

The 24 of the paper are first, median, largest x point, box x both directions x both masks; ALL adds the others.

Only slices with foreground count; their IoU is pooled over all volumes of a class. Where the published code differs from the
paper's words: with both directions the slices of the backward half, the prompted one among them, count twice.
"""

from collections.abc import Callable, Iterator
from itertools import product

import numpy as np
from scipy import ndimage

from lib.evaluation.methods.method import Annotations, How, Method, ask, box, clicks, painted
from lib.evaluation.protocols.steps import Counting, Plan, Step
from lib.evaluation.protocols.target import Target
from lib.imaging.frames import Frames
from lib.imaging.masks import edge_distance
from lib.prompts.simulated_annotator import largest_slice
from lib.prompts.volume_prompts import SlicePrompt

SLICES = ("first", "median", "largest", "three")
PROMPTS = ("point", "points", "box", "boxes", "mask")
DIRECTIONS = ("forward", "both")
MASKS = ("first", "best")
COMPONENTS = 3

SETTINGS = tuple("/".join(s) for s in product(SLICES[:3], ("point", "box"), DIRECTIONS, MASKS))
ALL = (
    *("/".join(s) for s in product(SLICES, PROMPTS[:4], DIRECTIONS, MASKS)),
    *("/".join((*s, "reference")) for s in product(SLICES, ("mask",), DIRECTIONS)),
)

Propose = Callable[[Frames, int, SlicePrompt], tuple[np.ndarray, np.ndarray]]  # see `lib.evaluation.methods.decoder_candidates`


def choose_slices(reference: np.ndarray, which: str) -> list[int]:
    """Slices of bool (T, Y, X) to prompt. Three: every n // 4-th of the n slices with foreground, without the first if there are
    more than four."""
    filled = np.flatnonzero(reference.any((1, 2))).tolist()
    if which == "three":
        spread = filled[:: max(1, len(filled) // 4)]
        return spread[1:4] if len(spread) > 4 else spread[:3]
    return [{"first": filled[0], "median": filled[len(filled) // 2], "largest": largest_slice(reference)}[which]]


def largest_components(mask: np.ndarray, count: int) -> list[np.ndarray]:
    """The largest 8-connected components of bool (Y, X), largest first, the first of equals first."""
    parts, total = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel())[1:]
    order = np.argsort(-sizes, kind="stable")[:count]
    return [parts == n + 1 for n in order]


def inner_point(component: np.ndarray, rng: np.random.Generator) -> tuple[bool, int, int]:
    """A positive click on a random one of the pixels farthest from the edge."""
    inside = edge_distance(component)
    pixels = np.argwhere(inside == inside.max())
    y, x = pixels[rng.integers(len(pixels))]
    return True, int(y), int(x)


def tight_box(component: np.ndarray) -> SlicePrompt:
    """The bounding box."""
    pixels = np.argwhere(component)
    return box(tuple(pixels.min(0)), tuple(pixels.max(0)))


def slice_prompts(mask: np.ndarray, which: str, rng: np.random.Generator) -> list[SlicePrompt]:
    """Prompts of one slice with the reference bool (Y, X); several boxes are decoded each on its own."""
    if which == "mask":
        return [painted(mask)]
    parts = largest_components(mask, COMPONENTS if which in ("points", "boxes") else 1)
    if which.startswith("point"):
        return [clicks([inner_point(p, rng) for p in parts])]
    return [tight_box(p) for p in parts]


def chosen_mask(masks: np.ndarray, iou: np.ndarray, which: str) -> np.ndarray:
    """Of masks (C, Y, X) the first, or the one of the highest predicted IoU (C,)."""
    return masks[0 if which == "first" else int(iou.argmax())]


def counting(target: Target, start: int, direction: str, plan: Plan) -> Counting:
    """Slices with foreground; those up to `start` twice, where the published code does that."""
    weights = target.reference.any((1, 2)).astype(float)
    if plan.published and direction == "both":
        weights[: start + 1] *= 2
    return Counting(weights=weights)


def steps(method: Method, target: Target, plan: Plan, propose: Propose) -> Iterator[Step]:
    """One step for each setting; a point is the same in all settings of one slice."""
    method.open(target.frames)
    made: dict[tuple[int, str], list[SlicePrompt]] = {}
    for setting in plan.settings or SETTINGS:
        where, prompt, direction, mask = setting.split("/")
        slices = choose_slices(target.reference, where)
        start = slices[min(1, len(slices) - 1)]  # of three, the middle one
        annotations: Annotations = {}
        for t in sorted(slices, key=lambda t: (t != start, t)):
            if (t, prompt) not in made:
                made[t, prompt] = slice_prompts(target.reference[t], prompt, plan.rng)
            annotations[t] = _with_mask(made[t, prompt], mask, lambda p, t=t: propose(target.frames, t, p))
        how = How(direction=direction)
        counts = counting(target, start, direction, plan)
        yield Step(setting, 1, target, annotations, how, ask(method, target.frames, annotations, how), start, counts)


def _with_mask(prompts: list[SlicePrompt], which: str, propose) -> SlicePrompt:
    """The chosen masks of all prompts of a slice, together, as a painted slice."""
    if which == "reference":
        return prompts[0]
    return painted(np.any([chosen_mask(*propose(p), which) for p in prompts], axis=0))
