"""Choose the slice to annotate next, by strategies with a reference and without one.

All strategies work on frames (T, Y, X) along the slicing axis. Annotated slices are never chosen, and slices close to one only when no
other is left, because a click on the annotated slice corrects what is wrong there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lib.imaging import metrics
from lib.imaging.frames import Frames
from lib.imaging.masks import deepest_pixel, slice_areas
from lib.quality.signals import mask_source
from lib.quality.slice_estimates import SliceEstimates

MARGIN_SLICES, MARGIN_MM = 2, 5.0  # A slice within either distance of an annotated one is close to it.
EQUAL_DICE = 0.005  # Estimates this close together count as equal.


@dataclass(frozen=True, eq=False)
class RoundState:
    """The state of a structure after a round of annotation and propagation.

    Attributes:
        frames: The slices.
        reference: Mask bool (T, Y, X) to compare with, or None; only `oracle` needs it.
        estimates: Estimates for each slice, which `estimator`, `wrong_voxels` and proposals need; None for engines without estimates.
        mask: The engine's answer, bool (T, Y, X).
        annotated: Indices of the annotated slices, at least one.
        dice_shift: Added to the expected Dice of slices that are not annotated, see `learned_dice_shift`.
    """

    frames: Frames
    reference: np.ndarray | None
    estimates: SliceEstimates | None
    mask: np.ndarray
    annotated: frozenset[int]
    dice_shift: float = 0.0

    @cached_property
    def area(self) -> np.ndarray:
        """Pixels (T,) of the mask of each slice."""
        return slice_areas(self.mask)

    @property
    def expected_dice(self) -> np.ndarray:
        """Dice (T,) in [0, 1] that is expected of each slice; 1 on annotated slices."""
        iou = self.estimates.expected_iou
        dice = np.clip(2 * iou / (1 + iou) + self.dice_shift, 0, 1)
        dice[sorted(self.annotated)] = 1.0
        return dice

    @property
    def expected_wrong_pixels(self) -> np.ndarray:
        """Number of pixels (T,) expected to be wrong: 2 * area * (1 - Dice); without a mask, the last mask's area * (1 - Dice)."""
        last_area = self.area[mask_source(self.area > 0, sorted(self.annotated))]
        error = 1 - self.expected_dice
        return np.where(self.area > 0, 2 * self.area * error, last_area * error)

    @property
    def expected_volume_dice(self) -> float:
        """Dice in [0, 1] that is expected of the whole mask, if mask and structure are about equally large."""
        total = float(self.area.sum())
        return max(0.0, 1 - float(self.expected_wrong_pixels.sum()) / (2 * total)) if total else 0.0

    def candidates(self) -> np.ndarray:
        """Return the slices (N,) that may be chosen."""
        t = np.arange(len(self.mask))
        distance = np.abs(t[:, None] - sorted(self.annotated)).min(1)
        is_far = distance > max(MARGIN_SLICES, MARGIN_MM / self.frames.slice_mm)
        return t[is_far] if is_far.any() else t[distance > 0]

    def extent(self) -> tuple[int, int]:
        """Return the first and last slice with a mask or an annotation."""
        slices = np.union1d(np.flatnonzero(self.area), sorted(self.annotated))
        return int(slices[0]), int(slices[-1])


Strategy = Callable[[RoundState], int | None]  # Returns the slice to annotate next, or None if there is none.


def slice_errors(mask: np.ndarray, reference: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the Dice (T,) and the number of wrong pixels (T,) of each slice of two masks bool (T, Y, X).

    Every slice counts; the Dice is 1 if both are empty and 0 if one is (He et al. 2024).
    """
    return metrics.slice_dice(mask, reference, 0), slice_areas(mask ^ reference)


def pick_worst_slice(dice: np.ndarray, wrong_pixels: np.ndarray, allowed: np.ndarray, tolerance: float = 0.0) -> int | None:
    """Return the slice of lowest Dice among `allowed`, or None if none is allowed.

    Among those within `tolerance` of the lowest, the one with the most wrong pixels is taken, then the first.
    """
    if not len(allowed):
        return None
    lowest = allowed[dice[allowed] <= dice[allowed].min() + tolerance]
    return int(lowest[wrong_pixels[lowest].argmax()])


def oracle(state: RoundState) -> int | None:
    """Choose the slice of lowest Dice against the reference (He et al. 2024), or None when every slice is right."""
    dice, wrong_pixels = slice_errors(state.mask, state.reference)
    allowed = state.candidates()
    return pick_worst_slice(dice, wrong_pixels, allowed[wrong_pixels[allowed] > 0])


def estimator(state: RoundState) -> int | None:
    """Choose the slice of lowest expected Dice, and among equals the one with the most pixels expected to be wrong."""
    return pick_worst_slice(state.expected_dice, state.expected_wrong_pixels, state.candidates(), EQUAL_DICE)


def wrong_voxels(state: RoundState) -> int | None:
    """Choose the slice with the most pixels expected to be wrong."""
    return pick_worst_slice(-state.expected_wrong_pixels, state.expected_wrong_pixels, state.candidates())


def largest_gap(state: RoundState) -> int | None:
    """Choose the middle of the longest range without annotation between the ends of the mask."""
    low, high = state.extent()
    return _nearest_candidate(state, _middle_of_longest_gap([low - 1, *state.annotated, high + 1]))


def uniform(state: RoundState) -> int | None:
    """Choose the ends of the mask first, then always the middle of the longest gap: an even spread."""
    low, high = state.extent()
    for end in (low, high):
        if min(abs(end - a) for a in state.annotated) > (high - low) // 4:
            return _nearest_candidate(state, end)
    return _nearest_candidate(state, _middle_of_longest_gap(list(state.annotated)))


def largest_area(state: RoundState) -> int | None:
    """Choose the slice with the largest mask."""
    return pick_worst_slice(-state.area, state.area, state.candidates())


def random(state: RoundState, seed: int = 0) -> int | None:
    """Choose a slice at random; it is the same for the same annotations and seed."""
    allowed = state.candidates()
    rng = np.random.default_rng([seed, *sorted(state.annotated)])
    return int(rng.choice(allowed)) if len(allowed) else None


STRATEGIES: dict[str, Strategy] = {s.__name__: s for s in (oracle, estimator, wrong_voxels, largest_gap, uniform, largest_area, random)}


@dataclass(frozen=True)
class Proposal:
    """What an annotator is asked to do next.

    Attributes:
        slice: Index along the slicing axis.
        expected_dice: Expected Dice in [0, 1] of the mask on that slice.
        prompt: "click", "box" or "absent".
        point: Voxel (i, j, k) on the slice where to look, or None.
        reason: A sentence for the annotator.
    """

    slice: int
    expected_dice: float
    prompt: str
    point: tuple[int, int, int] | None
    reason: str


def propose_next_slice(state: RoundState) -> Proposal | None:
    """Return the slice of lowest expected Dice and what to do there, or None if no slice is left. The state must have estimates."""
    t = estimator(state)
    if t is None:
        return None
    dice, estimates = float(state.expected_dice[t]), state.estimates
    source = int(mask_source(state.area > 0, sorted(state.annotated))[t])
    centre = deepest_pixel(state.mask[source])
    point = None if centre is None else state.frames.to_voxel(t, *centre)
    if not state.mask[t].any():
        return Proposal(t, dice, "click", point, "The mask may have ended too early.")
    if estimates.presence[t] < 0.5:
        return Proposal(t, dice, "absent", point, "The structure may not be on this slice any more.")
    if estimates.agreement[t] < 0.7:
        return Proposal(t, dice, "click", point, "What comes from the annotated slices on both sides disagrees here.")
    return Proposal(t, dice, "click" if dice > 0.5 else "box", point, "The mask is probably the worst here.")


def learned_dice_shift(expected: list[float], true: list[float]) -> float:
    """Return the mean of true minus expected Dice over earlier corrections of this volume, shrunk towards 0 where they are few."""
    return float(np.subtract(true, expected).sum() / (len(true) + 2)) if true else 0.0


def _middle_of_longest_gap(slices: list[int]) -> int:
    slices = sorted(set(slices))
    gaps = np.diff(slices)
    n = int(gaps.argmax()) if len(gaps) else 0
    return (slices[n] + slices[min(n + 1, len(slices) - 1)]) // 2


def _nearest_candidate(state: RoundState, t: int) -> int | None:
    allowed = state.candidates()
    return int(allowed[np.abs(allowed - t).argmin()]) if len(allowed) else None
