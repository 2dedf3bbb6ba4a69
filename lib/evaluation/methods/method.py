"""What is evaluated: anything that turns prompts on a few slices into masks of all slices, behind one small interface."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from lib.engine.result import Result
from lib.imaging.frames import Frames
from lib.prompts.volume_prompts import SlicePrompt

Click = tuple[bool, int, int]  # positive, y, x
Annotations = dict[int, SlicePrompt]  # of each annotated slice, in the order in which the slices were annotated


@dataclass(frozen=True)
class How:
    """How prompts are to be used.

    Attributes:
        propagate: False fills the annotated slices only.
        direction: "both" from the annotated slices, or "forward" (towards higher slice indices).
        one_by_one: the clicks of the first annotated slice are decoded one after the other, each with the logits of those before.
        conditioning: False, where a method knows the difference: slices annotated after the first one are corrections that the
            memory forgets (the default of SAM 2's video predictor).
    """

    propagate: bool = True
    direction: str = "both"
    one_by_one: bool = False
    conditioning: bool = True


PLAIN = How()


@dataclass(frozen=True, eq=False)
class Answer:
    """What came out: mask bool (T, Y, X); result of this project's engine, None of others."""

    mask: np.ndarray
    result: Result | None = None


class Method(Protocol):
    """A segmentation method under evaluation. It sees frames and prompts, never the reference.

    Attributes:
        name: as on the command line and in tables.
        takes_masks: whether painted slices can be prompts.
    """

    name: str
    takes_masks: bool

    def open(self, frames: Frames) -> None:
        """Takes a volume; the next calls are about it."""

    def segment(self, annotations: Annotations, how: How = PLAIN) -> Answer:
        """The mask of these annotations alone, whatever was asked before.

        Raises:
            UserError: prompts that the method cannot use.
        """


def ask(method: Method, frames: Frames, annotations: Annotations, how: How = PLAIN) -> Answer:
    """`method.segment`; nothing at all where no prompt says where the structure is (methods would refuse that)."""
    if any(p.defines_structure and (p.mask is None or p.mask.any()) for p in annotations.values()):
        return method.segment(annotations, how)
    return Answer(np.zeros((len(frames), *frames.size), bool))


def clicks(points: list[Click]) -> SlicePrompt:
    """Clicks on one slice, in their order. Of two on one pixel the later one counts.

    >>> clicks([(True, 2, 5), (False, 3, 4)]).points.tolist()
    [[5.0, 2.0], [4.0, 3.0]]
    """
    last = {(y, x): positive for positive, y, x in points}
    table = np.array([(x, y, positive) for (y, x), positive in last.items()], float).reshape(-1, 3)
    return SlicePrompt(table[:, :2], table[:, 2].astype(np.int32))


def box(low: tuple[int, int], high: tuple[int, int]) -> SlicePrompt:
    """A box by its first and last pixel (y, x), both inside; its edges are those of the pixels."""
    corners = np.array([[low[1] - 0.5, low[0] - 0.5], [high[1] + 0.5, high[0] + 0.5]])
    return SlicePrompt(corners, np.array([2, 3], np.int32))


def painted(mask: np.ndarray) -> SlicePrompt:
    """A mask bool (Y, X) as prompt; an empty one says "not here"."""
    return SlicePrompt(np.zeros((0, 2)), np.zeros(0, np.int32), mask)


def count_clicks(annotations: Annotations) -> int:
    """Points in all; a box counts as the two points that it is, a painted slice as none."""
    return sum(len(p.labels) for p in annotations.values())


def to_voxels(annotations: Annotations, frames: Frames) -> dict:
    """The same as keywords of `lib.prompts.volume_prompts.make_prompts`: voxels (i, j, k)."""
    out: dict = {"positive": [], "negative": [], "boxes": [], "masks": {}}
    for t, prompt in annotations.items():
        if prompt.mask is not None:
            stack = np.zeros((len(frames), *prompt.mask.shape), bool)
            stack[t] = prompt.mask
            out["masks"][t] = frames.to_volume(stack).take(t, frames.axis)
        corners = [p for p, label in zip(prompt.points, prompt.labels, strict=True) if label > 1]
        if corners:
            inside = zip(corners, (0.5, -0.5), strict=True)
            out["boxes"].append([frames.to_voxel(t, *np.rint(c[::-1] + edge)) for c, edge in inside])
        for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
            if label < 2:
                out["positive" if label else "negative"].append(frames.to_voxel(t, y, x))
    return out
