"""Which slice should be annotated next? Choices with a reference and without, on what one round of segmentation leaves behind.

All work on frames (T, Y, X) along the slicing axis. Slices that are annotated are never chosen, slices close to one only when
no other is left: what is wrong there, a click on the annotated slice mends.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lib.engine.result import Result
from lib.imaging import metrics
from lib.imaging.frames import Frames
from lib.imaging.masks import deepest_pixel, slice_areas
from lib.quality.estimator import mask_source

MARGIN_SLICES, MARGIN_MM = 2, 5.0
TIE = 0.005  # estimates this close together are equal


@dataclass(frozen=True, eq=False)
class RoundState:
    """The state after a round.

    Attributes:
        mask: bool (T, Y, X), the answer. reference: the same of the reference, or None. annotated: indices of annotated slices.
        result: what the engine said of the mask; None for engines that say nothing.
        shift: is added to the expected Dice of slices that are not annotated, see `learned_shift`.
    """

    frames: Frames
    reference: np.ndarray | None
    result: Result | None
    mask: np.ndarray
    annotated: frozenset[int]
    shift: float = 0.0

    @cached_property
    def area(self) -> np.ndarray:
        """Pixels (T,) of the mask of each slice."""
        return slice_areas(self.mask)

    @property
    def expected_dice(self) -> np.ndarray:
        """(T,) in [0, 1], from the expected IoU; 1 on annotated slices."""
        iou = self.result.expected_iou
        dice = np.clip(2 * iou / (1 + iou) + self.shift, 0, 1)
        dice[sorted(self.annotated)] = 1.0
        return dice

    @property
    def expected_wrong(self) -> np.ndarray:
        """Pixels (T,) expected to be wrong: of a mask as much missed as in excess, of an empty slice a mask as last seen."""
        area = self.area
        last = area[mask_source(area > 0, sorted(self.annotated))]
        dice = self.expected_dice
        return np.where(area > 0, 2 * area * (1 - dice), last * (1 - dice))

    @property
    def expected_volume_dice(self) -> float:
        """In [0, 1]: expected right pixels against the size of mask and structure, which is about that of the mask."""
        total = float(self.area.sum())
        return max(0.0, 1 - float(self.expected_wrong.sum()) / (2 * total)) if total else 0.0

    def candidates(self) -> np.ndarray:
        """Slices (N,) that may be chosen."""
        t = np.arange(len(self.mask))
        near = np.abs(t[:, None] - sorted(self.annotated)).min(1)
        far = near > max(MARGIN_SLICES, MARGIN_MM / self.frames.slice_mm)
        return t[far] if far.any() else t[near > 0]

    def extent(self) -> tuple[int, int]:
        """First and last slice with a mask or an annotation."""
        filled = np.union1d(np.flatnonzero(self.area), sorted(self.annotated))
        return int(filled[0]), int(filled[-1])


def slice_errors(mask: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Dice and number of wrong pixels (T,) of each slice; every slice counts, both empty = 1, one empty = 0 (He et al. 2024)."""
    return metrics.slice_dice(mask, reference, 0), (mask ^ reference).sum((1, 2))


def pick_worst_slice(dice: np.ndarray, wrong: np.ndarray, allowed: np.ndarray, tie: float = 0.0) -> int | None:
    """Of the slices `allowed`, the one of lowest Dice; among those within `tie` of it, that of most wrong pixels, then the first."""
    if not len(allowed):
        return None
    equal = allowed[dice[allowed] <= dice[allowed].min() + tie]
    return int(equal[wrong[equal].argmax()])


def oracle(scene: RoundState) -> int | None:
    """He et al. 2024: the lowest Dice with the reference, ties by wrong pixels; None when every slice is right."""
    dice, wrong = slice_errors(scene.mask, scene.reference)
    allowed = scene.candidates()
    return pick_worst_slice(dice, wrong, allowed[wrong[allowed] > 0])


def estimator(scene: RoundState) -> int | None:
    """The lowest expected Dice, ties by expected wrong pixels."""
    return pick_worst_slice(scene.expected_dice, scene.expected_wrong, scene.candidates(), TIE)


def wrong_voxels(scene: RoundState) -> int | None:
    """The most pixels expected to be wrong."""
    return pick_worst_slice(-scene.expected_wrong, scene.expected_wrong, scene.candidates())


def largest_gap(scene: RoundState) -> int | None:
    """The middle of the longest stretch without annotation, between the ends of the mask."""
    low, high = scene.extent()
    return _nearest(scene, _middle_of_gap([low - 1, *scene.annotated, high + 1]))


def uniform(scene: RoundState) -> int | None:
    """Ends of the mask first, then always the middle of the longest stretch: an even spread."""
    low, high = scene.extent()
    for end in (low, high):
        if min(abs(end - a) for a in scene.annotated) > (high - low) // 4:
            return _nearest(scene, end)
    return _nearest(scene, _middle_of_gap(list(scene.annotated)))


def largest_area(scene: RoundState) -> int | None:
    """The largest mask."""
    return pick_worst_slice(-scene.area, scene.area, scene.candidates())


def random(scene: RoundState, seed: int = 0) -> int | None:
    """Any slice; the same for the same annotations and seed."""
    allowed = scene.candidates()
    draw = np.random.default_rng([seed, *sorted(scene.annotated)])
    return int(draw.choice(allowed)) if len(allowed) else None


STRATEGIES: dict[str, Callable[[RoundState], int | None]] = {
    s.__name__: s for s in (oracle, estimator, wrong_voxels, largest_gap, uniform, largest_area, random)
}


@dataclass(frozen=True)
class Proposal:
    """What to do next.

    Attributes:
        slice: index along the slicing axis. expected_dice: of its mask.
        prompt: "click", "box" or "absent". point: a voxel on the slice where to look, or None. reason: a sentence.
    """

    slice: int
    expected_dice: float
    prompt: str
    point: tuple[int, int, int] | None
    reason: str


def propose_next_slice(scene: RoundState, choose: Callable[[RoundState], int | None] = estimator) -> Proposal | None:
    """The next slice and what to do there; None if there is no slice left."""
    t = choose(scene)
    if t is None:
        return None
    dice, result = float(scene.expected_dice[t]), scene.result
    source = int(mask_source(scene.area > 0, sorted(scene.annotated))[t])
    centre = deepest_pixel(scene.mask[source])
    point = None if centre is None else scene.frames.to_voxel(t, *centre)
    if not scene.mask[t].any():
        return Proposal(t, dice, "click", point, "The mask may have ended too early.")
    if result.present[t] < 0.5:
        return Proposal(t, dice, "absent", point, "The structure may not be on this slice any more.")
    if result.agreement[t] < 0.7:
        return Proposal(t, dice, "click", point, "What comes from the annotated slices on both sides disagrees here.")
    return Proposal(t, dice, "click" if dice > 0.5 else "box", point, "The mask is probably the worst here.")


def learned_dice_shift(expected: list[float], true: list[float]) -> float:
    """Mean error of earlier expectations, shrunk towards 0: what corrections say of the estimates in this volume."""
    return float(np.subtract(true, expected).sum() / (len(true) + 2)) if true else 0.0


def _middle_of_gap(points: list[int]) -> int:
    points = sorted(set(points))
    gaps = np.diff(points)
    n = int(gaps.argmax()) if len(gaps) else 0
    return (points[n] + points[min(n + 1, len(points) - 1)]) // 2


def _nearest(scene: RoundState, t: int) -> int | None:
    allowed = scene.candidates()
    return int(allowed[np.abs(allowed - t).argmin()]) if len(allowed) else None
