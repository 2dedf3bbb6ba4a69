"""The interface of the segmentation methods under evaluation, the prompts that they take, and the predictions that they return."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lib.engine.result import Result
from lib.imaging.frames import Frames
from lib.prompts.volume_prompts import SlicePrompt

Click = tuple[bool, int, int]  # Whether it is positive, and its pixel y, x.
Annotations = dict[int, SlicePrompt]  # From slice index to its prompt, in the order in which the slices were annotated.


@dataclass(frozen=True)
class PropagationMode:
    """How a method uses the prompts.

    Attributes:
        propagate: Whether all slices are segmented; if False, only the annotated ones.
        direction: "both" for propagation from the annotated slices both ways, or "forward" towards higher slice indices only.
        clicks_one_by_one: Whether the clicks of the first annotated slice are decoded one after the other, each with the logits of
            the clicks before it.
        corrections_condition: Whether slices annotated after the first one stay in the memory as conditioning frames. If False,
            they are corrections that the memory forgets, the default of SAM 2's video predictor. Not every method can do both.
        box_slices: The first and the last slice of a 3D box whose middle slice is annotated with a 2D box; else None. The slices
            before and after it are annotated as empty as well, which is all that most methods make of it.
    """

    propagate: bool = True
    direction: str = "both"
    clicks_one_by_one: bool = False
    corrections_condition: bool = True
    box_slices: tuple[int, int] | None = None


DEFAULT_MODE = PropagationMode()


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a method returns.

    Attributes:
        mask: The predicted mask, bool (T, Y, X).
        result: The full result if the method is this project's engine, else None.
    """

    mask: np.ndarray
    result: Result | None = None


class Method(Protocol):
    """A segmentation method under evaluation. It receives frames and prompts, never the reference.

    Attributes:
        name: The name on the command line and in tables.
        takes_masks: Whether painted slices can be prompts.
        takes_clicks: Whether clicks and boxes can be prompts.
    """

    name: str
    takes_masks: bool
    takes_clicks: bool

    def open(self, frames: Frames) -> None:
        """Load a volume, which the following calls of `segment` refer to."""

    def segment(self, annotations: Annotations, mode: PropagationMode = DEFAULT_MODE) -> Prediction:
        """Return the mask for these annotations; it must not depend on earlier calls. Unusable prompts raise UserError."""


def segment_or_empty(method: Method, frames: Frames, annotations: Annotations, mode: PropagationMode = DEFAULT_MODE) -> Prediction:
    """Return what `method.segment` returns, or an empty mask if no prompt says where the structure is.

    Methods would refuse annotations that hold nothing but negative clicks and empty slices.
    """
    if any(p.defines_structure and (p.mask is None or p.mask.any()) for p in annotations.values()):
        return method.segment(annotations, mode)
    return Prediction(np.zeros((len(frames), *frames.size), bool))


def can_take(method: Method, annotations: Annotations) -> bool:
    """Return whether the method takes all of these prompts. Slices that are marked as empty do not count: not every method uses them."""
    prompts = [p for p in annotations.values() if p.mask is None or p.mask.any()]
    return all(method.takes_clicks if p.mask is None else method.takes_masks for p in prompts)


def keep_annotated(mask: np.ndarray, annotations: Annotations, mode: PropagationMode) -> np.ndarray:
    """Return the mask, bool (T, Y, X), or only its annotated slices if the mode says not to propagate."""
    if mode.propagate:
        return mask
    kept = np.zeros_like(mask)
    kept[list(annotations)] = mask[list(annotations)]
    return kept


def click_prompt(clicks: list[Click]) -> SlicePrompt:
    """Return a prompt of clicks on one slice, in their order. If two clicks hit the same pixel, the later one counts.

    >>> click_prompt([(True, 2, 5), (False, 3, 4)]).points.tolist()
    [[5.0, 2.0], [4.0, 3.0]]
    """
    is_positive = {(y, x): positive for positive, y, x in clicks}
    table = np.array([(x, y, positive) for (y, x), positive in is_positive.items()], float).reshape(-1, 3)
    return SlicePrompt(table[:, :2], table[:, 2].astype(np.int32))


def box_prompt(low_yx: tuple[int, int], high_yx: tuple[int, int]) -> SlicePrompt:
    """Return a box prompt from the first and the last pixel inside the box; its edges are the outer edges of these pixels."""
    corners = np.array([[low_yx[1] - 0.5, low_yx[0] - 0.5], [high_yx[1] + 0.5, high_yx[0] + 0.5]])
    return SlicePrompt(corners, np.array([2, 3], np.int32))


def mask_prompt(mask: np.ndarray) -> SlicePrompt:
    """Return a painted slice, bool (Y, X), as a prompt; an empty mask says that the structure is not on the slice."""
    return SlicePrompt(np.zeros((0, 2)), np.zeros(0, np.int32), mask)


def count_clicks(annotations: Annotations) -> int:
    """Return the number of points of all prompts: a box counts as two, a painted slice as none."""
    return sum(len(p.labels) for p in annotations.values())


def to_voxel_prompts(annotations: Annotations, frames: Frames) -> dict:
    """Convert prompts of slices to the keyword arguments of `lib.prompts.volume_prompts.make_prompts`, in voxels (i, j, k)."""
    arguments: dict = {"positive": [], "negative": [], "boxes": [], "masks": {}}
    for t, prompt in annotations.items():
        if prompt.mask is not None:
            arguments["masks"][t] = prompt.mask.T
        corners_xy = [p for p, label in zip(prompt.points, prompt.labels, strict=True) if label > 1]
        if corners_xy:
            # A box ends at the edges of its pixels; half a pixel further in lie the pixels' centres.
            inward = zip(corners_xy, (0.5, -0.5), strict=True)
            arguments["boxes"].append([frames.to_voxel(t, *np.rint(xy[::-1] + shift)) for xy, shift in inward])
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
            if label < 2:
                arguments["positive" if label else "negative"].append(frames.to_voxel(t, y, x))
    return arguments
