"""The protocol of Dong et al. 2024: prompts on one slice, or on three, in the 24 settings of the paper and more.

A setting is named "slice/prompt/direction/mask", for example "largest/box/both/first":

  slice      first, median or largest of the slices with foreground; or three of them
  prompt     point, points (one on each of the three largest components), box, boxes (likewise), mask (the reference)
  direction  forward, both
  mask       which of the decoder's masks is taken for the prompted slice: that of the first channel (first), or that with the
             highest predicted IoU (best); a reference mask leaves no choice (reference)

The paper's 24 settings combine first, median and largest with point and box, both directions and both masks; ALL_SETTINGS adds others.

Only slices with foreground are scored; their IoU is pooled over all volumes of a class. The mode "published" follows the authors' code
where it differs from the paper's text: with both directions, the slices up to and including the prompted one count twice.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product

import numpy as np
from scipy import ndimage

from lib.evaluation.methods.method import Method, PropagationMode, box_prompt, click_prompt, mask_prompt, segment_or_empty
from lib.evaluation.protocols.steps import ProtocolPlan, ScoredSlices, Step
from lib.evaluation.protocols.target import Target
from lib.imaging.frames import Frames
from lib.imaging.masks import edge_distance, filled_slices
from lib.prompts.simulated_annotator import largest_slice
from lib.prompts.volume_prompts import SlicePrompt

SLICES = ("first", "median", "largest", "three")
PROMPTS = ("point", "points", "box", "boxes", "mask")
DIRECTIONS = ("forward", "both")
MASKS = ("first", "best")
MAX_COMPONENTS = 3

SETTINGS = tuple("/".join(s) for s in product(SLICES[:3], ("point", "box"), DIRECTIONS, MASKS))
ALL_SETTINGS = (
    *("/".join(s) for s in product(SLICES, PROMPTS[:4], DIRECTIONS, MASKS)),
    *("/".join((*s, "reference")) for s in product(SLICES, ("mask",), DIRECTIONS)),
)

# Returns candidate masks for a slice and their predicted IoU; see `lib.evaluation.methods.decoder_candidates`.
ProposeMasks = Callable[[Frames, int, SlicePrompt], tuple[np.ndarray, np.ndarray]]


def choose_slices(reference: np.ndarray, which: str) -> list[int]:
    """Return the indices of the slices of bool (T, Y, X) to prompt; `which` is one of SLICES.

    "three" takes every (n // 4)-th of the n slices with foreground: of more than four the 2nd to 4th, else the first three.
    """
    foreground_slices = filled_slices(reference).tolist()
    if which == "three":
        spread = foreground_slices[:: max(1, len(foreground_slices) // 4)]
        return spread[1:4] if len(spread) > 4 else spread[:3]
    median = foreground_slices[len(foreground_slices) // 2]
    return [{"first": foreground_slices[0], "median": median, "largest": largest_slice(reference)}[which]]


def find_largest_components(mask: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the largest 8-connected components of bool (Y, X), largest first; equally large ones in the order of their labels."""
    components, _ = ndimage.label(mask, np.ones((3, 3)))
    sizes = np.bincount(components.ravel())[1:]
    order = np.argsort(-sizes, kind="stable")[:count]
    return [components == n + 1 for n in order]


def choose_inner_point(component: np.ndarray, rng: np.random.Generator) -> tuple[bool, int, int]:
    """Return a positive click on a random one of the component's pixels that are farthest from its edge."""
    distance = edge_distance(component)
    pixels_yx = np.argwhere(distance == distance.max())
    y, x = pixels_yx[rng.integers(len(pixels_yx))]
    return True, int(y), int(x)


def make_slice_prompts(mask: np.ndarray, which: str, rng: np.random.Generator) -> list[SlicePrompt]:
    """Return the prompts of a slice with the reference bool (Y, X); `which` is one of PROMPTS.

    Several points are one prompt, but several boxes are one prompt each, because each is decoded on its own.
    """
    if which == "mask":
        return [mask_prompt(mask)]
    components = find_largest_components(mask, MAX_COMPONENTS if which in ("points", "boxes") else 1)
    if which.startswith("point"):
        return [click_prompt([choose_inner_point(c, rng) for c in components])]
    return [box_prompt(tuple(pixels_yx.min(0)), tuple(pixels_yx.max(0))) for pixels_yx in map(np.argwhere, components)]


def choose_mask(masks: np.ndarray, predicted_iou: np.ndarray, which: str) -> np.ndarray:
    """Return the first of the masks (C, Y, X), or for "best" the one with the highest predicted IoU (C,)."""
    return masks[0 if which == "first" else int(predicted_iou.argmax())]


def weight_slices(target: Target, start: int, direction: str, plan: ProtocolPlan) -> ScoredSlices:
    """Return weights that are 1 for slices with foreground, and 2 for those up to `start` where the published code counts twice."""
    weights = target.reference.any((1, 2)).astype(float)
    if plan.as_published and direction == "both":
        weights[: start + 1] *= 2
    return ScoredSlices(weights=weights)


def run_steps(method: Method, target: Target, plan: ProtocolPlan, propose_masks: ProposeMasks) -> Iterator[Step]:
    """Yield one step for each setting. Settings that prompt the same slice in the same way share its random points."""
    method.open(target.frames)
    prompts_by_slice: dict[tuple[int, str], list[SlicePrompt]] = {}
    for setting in plan.settings or SETTINGS:
        which_slice, prompt, direction, which_mask = setting.split("/")
        slices = choose_slices(target.reference, which_slice)
        start = slices[min(1, len(slices) - 1)]  # The middle one of three.
        annotations: dict[int, SlicePrompt] = {}
        for t in sorted(slices, key=lambda t: (t != start, t)):
            if (t, prompt) not in prompts_by_slice:
                prompts_by_slice[t, prompt] = make_slice_prompts(target.reference[t], prompt, plan.rng)
            annotations[t] = _as_mask_prompt(prompts_by_slice[t, prompt], which_mask, partial(propose_masks, target.frames, t))
        mode = PropagationMode(direction=direction)
        scored_slices = weight_slices(target, start, direction, plan)
        prediction = segment_or_empty(method, target.frames, annotations, mode)
        yield Step(setting, 1, target, annotations, mode, prediction, start, scored_slices)


def _as_mask_prompt(prompts: list[SlicePrompt], which: str, propose_masks) -> SlicePrompt:
    """Return the union of the masks that are chosen for the prompts of a slice as a painted slice."""
    if which == "reference":
        return prompts[0]
    return mask_prompt(np.any([choose_mask(*propose_masks(p), which) for p in prompts], axis=0))
