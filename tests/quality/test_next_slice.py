"""Choices of the next slice, on masks drawn by hand: slices of 20 x 20 with one square each."""

from dataclasses import replace

import numpy as np
import pytest

from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.quality import next_slice
from lib.quality.next_slice import (
    STRATEGIES,
    RoundState,
    learned_dice_shift,
    pick_worst_slice,
    propose_next_slice,
    slice_errors,
)
from lib.quality.slice_estimates import SliceEstimates


def squares(*sides):
    out = np.zeros((len(sides), 20, 20), bool)
    for mask, side in zip(out, sides, strict=True):
        low = 10 - side // 2
        mask[low : low + side, low : low + side] = True
    return out


def round_state(mask, annotated, iou=None, reference=None, slice_mm=1.0, presence=None, agreement=None):
    """Return the state after a round with these expected IoU, presence and agreement (default: 1, 1 and none) of each slice."""
    count = len(mask)
    frames = Frames.of(Volume(np.zeros((20, 20, count), np.float32), np.diag([1.0, 1.0, slice_mm, 1.0])), axis=2)
    ones, none = np.ones(count), np.full(count, np.nan)
    estimates = SliceEstimates(
        ones, ones if presence is None else presence, none if agreement is None else agreement, np.zeros((count, 1)),
        ones if iou is None else np.array(iou, float),
    )  # fmt: skip
    return RoundState(frames, reference, estimates, mask, frozenset(annotated))


def test_every_slice_counts_against_a_reference():
    dice, wrong = slice_errors(squares(4, 4, 0, 0), squares(4, 0, 4, 0))
    assert dice.tolist() == [1, 0, 0, 1] and wrong.tolist() == [0, 16, 16, 0]


@pytest.mark.parametrize("dice, wrong, tie, expected", [
    ([0.9, 0.5, 0.7], [1, 1, 9], 0.0, 1),
    ([0.5, 0.5, 0.5], [1, 9, 3], 0.0, 1),  # ties by wrong pixels
    ([0.5, 0.5, 0.5], [9, 9, 3], 0.0, 0),  # then the first
    ([0.500, 0.504, 0.7], [1, 9, 99], 0.005, 1),  # as good as equal
])  # fmt: skip
def test_worst(dice, wrong, tie, expected):
    assert pick_worst_slice(np.array(dice), np.array(wrong), np.arange(3), tie) == expected
    assert pick_worst_slice(np.array(dice), np.array(wrong), np.array([], int)) is None


@pytest.mark.parametrize("slice_mm, annotated, expected", [
    (1.0, [6], [0, 12, 13]),  # more than 5 mm away
    (5.0, [6], [0, 1, 2, 3, 9, 10, 11, 12, 13]),  # more than two slices away
    (1.0, [3, 9], [0, 1, 2, 4, 5, 6, 7, 8, 10, 11, 12, 13]),  # nothing is far: all that is not annotated
])  # fmt: skip
def test_candidates_keep_away_from_annotations(slice_mm, annotated, expected):
    assert round_state(squares(*[4] * 14), annotated, slice_mm=slice_mm).candidates().tolist() == expected


def test_with_everything_annotated_nobody_chooses():
    full = round_state(squares(4, 4), [0, 1], reference=squares(4, 4))
    assert all(choose(full) is None for choose in STRATEGIES.values()) and propose_next_slice(full) is None


def test_oracle_takes_the_lowest_dice_and_is_content_when_all_is_right():
    reference = squares(4, 4, 4, 4, 4, 4, 4)
    assert next_slice.oracle(round_state(squares(4, 4, 4, 4, 2, 4, 0), [0], reference=reference, slice_mm=5)) == 6
    assert next_slice.oracle(round_state(squares(4, 4, 4, 4, 2, 4, 4), [0], reference=reference, slice_mm=5)) == 4
    assert next_slice.oracle(round_state(reference, [0], reference=reference, slice_mm=5)) is None


def test_estimator_takes_the_lowest_expectation_among_equals_the_larger_error():
    s = round_state(squares(4, 4, 4, 4, 4, 8, 4), [0], iou=[1, 0.1, 0.9, 0.3, 0.9, 0.3, 0.9], slice_mm=5)
    assert next_slice.estimator(s) == 5, "slice 1 is too close to the annotation"


def test_wrong_voxels_prefers_large_slices():
    s = round_state(squares(4, 4, 4, 2, 4, 10, 4), [0], iou=[1, 1, 1, 0.2, 1, 0.5, 1], slice_mm=5)
    assert (next_slice.estimator(s), next_slice.wrong_voxels(s)) == (3, 5)
    assert next_slice.largest_area(s) == 5


def test_expectations_follow_from_iou():
    s = round_state(squares(4, 4, 0), [0], iou=[1, 0.5, 0.8])
    assert s.expected_dice.tolist() == pytest.approx([1, 2 / 3, 8 / 9])
    assert s.expected_wrong_pixels.tolist() == pytest.approx([0, 2 * 16 / 3, 16 / 9]), "of the empty slice, of the mask as last seen"
    assert s.expected_volume_dice == pytest.approx(1 - (32 / 3 + 16 / 9) / 64)
    assert replace(s, dice_shift=-0.1).expected_dice.tolist() == pytest.approx([1, 2 / 3 - 0.1, 8 / 9 - 0.1])


@pytest.mark.parametrize("name, annotated, expected", [
    ("largest_gap", [8], 13),  # between the annotation and 19, the first slice beyond the mask
    ("uniform", [10], 2),  # an end of the mask
    ("uniform", [2, 18], 10),
    ("uniform", [2, 10, 18], 6),
])  # fmt: skip
def test_spreading_strategies(name, annotated, expected):
    mask = squares(0, 0, *[4] * 17, 0, 0)
    assert STRATEGIES[name](round_state(mask, annotated, slice_mm=5)) == expected


def test_random_is_the_same_for_the_same_seed():
    s = round_state(squares(*[4] * 40), [20])
    picks = {next_slice.random(s, seed) for seed in range(20)}
    assert len(picks) > 5 and next_slice.random(s, 3) == next_slice.random(s, 3)


@pytest.mark.parametrize("side, iou, presence, agreement, prompt, words", [
    (4, 0.2, 0.9, 0.9, "box", "worst"),
    (4, 0.6, 0.9, 0.9, "click", "worst"),
    (4, 0.2, 0.1, 0.9, "absent", "not be on this slice"),
    (4, 0.2, 0.9, 0.3, "click", "disagrees"),
    (0, 0.2, 0.1, 0.9, "click", "too early"),
])  # fmt: skip
def test_a_proposal_says_what_to_do_and_where(side, iou, presence, agreement, prompt, words):
    s = round_state(squares(4, 4, 4, 4, 4, side), [0], iou=[1, 1, 1, 1, 1, iou], slice_mm=5, presence=np.full(6, presence), agreement=np.full(6, agreement))
    p = propose_next_slice(s)
    assert (p.slice, p.prompt) == (5, prompt) and words in p.reason
    assert p.point[2] == 5 and 8 <= p.point[0] < 12, "on the structure, where it was last seen"


def test_learned_shift_is_shrunk():
    assert learned_dice_shift([], []) == 0
    assert learned_dice_shift([0.9], [0.6]) == pytest.approx(-0.1)
    assert learned_dice_shift([0.9] * 8, [0.6] * 8) == pytest.approx(-0.24)
