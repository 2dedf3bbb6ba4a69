"""The protocol of Dong et al. on masks drawn by hand."""

import numpy as np
import pytest

from lib.evaluation.protocols import dong
from lib.evaluation.protocols.steps import Plan
from tests.evaluation.drawing import Scripted, drawn, target_of

EMPTY = drawn(*["........"] * 5)
SQUARE = drawn("........", ".###....", ".###....", ".###....", "........")
BAR = drawn("........", "........", "......##", "......##", "........")
DOT = drawn(".....#..", "........", "........", "........", "........")


def plan(mode="described", *settings):
    return Plan(mode, np.random.default_rng(0), settings)


def truth_with(total, filled):
    return np.stack([SQUARE if t in filled else EMPTY for t in range(total)])


def test_settings():
    assert len(dong.SETTINGS) == len(set(dong.SETTINGS)) == 24 and set(dong.SETTINGS) < set(dong.ALL)
    assert len(set(dong.ALL)) == len(dong.ALL) == 4 * 4 * 2 * 2 + 4 * 2, "a reference mask leaves no choice of masks"


@pytest.mark.parametrize("filled, first, median, three", [
    ([4], [4], [4], [4]),
    ([2, 3], [2], [3], [2, 3]),
    ([2, 3, 7, 8], [2], [7], [2, 3, 7]),  # step 1, four of them: the first three
    ([1, 2, 3, 4, 5], [1], [3], [2, 3, 4]),  # step 1, five of them: without the first
    (list(range(2, 14)), [2], [8], [2, 5, 8]),  # step 3: 2, 5, 8, 11
    (list(range(13)), [0], [6], [3, 6, 9]),  # step 3: 0, 3, 6, 9, 12
])  # fmt: skip
def test_slices(filled, first, median, three):
    reference = truth_with(16, filled)
    assert dong.choose_slices(reference, "first") == first
    assert dong.choose_slices(reference, "median") == median
    assert dong.choose_slices(reference, "three") == three


def test_largest_slice():
    assert dong.choose_slices(np.stack([EMPTY, BAR, SQUARE, SQUARE, DOT]), "largest") == [2]


def test_largest_components():
    assert [int(p.sum()) for p in dong.largest_components(SQUARE | BAR | DOT, 3)] == [9, 4, 1]
    assert [int(p.sum()) for p in dong.largest_components(SQUARE | BAR | DOT, 2)] == [9, 4]
    diagonal = drawn("........", ".###....", ".###....", ".###....", "....#...")
    assert dong.largest_components(diagonal, 3)[0].sum() == 10, "joined at a corner"
    two = drawn("##......", "........", "......##", "........", "........")
    assert dong.largest_components(two, 1)[0][0, 0], "the first of equals"


def test_point_is_one_of_the_deepest():
    wide = drawn("........", ".#####..", ".#####..", ".#####..", "........")  # deepest: (2, 2), (2, 3), (2, 4)
    found = {dong.inner_point(wide, np.random.default_rng(s)) for s in range(40)}
    assert found == {(True, 2, 2), (True, 2, 3), (True, 2, 4)}


@pytest.mark.parametrize("which, points, labels", [
    ("point", [[[2, 2]]], [[1]]),
    ("box", [[[0.5, 0.5], [3.5, 3.5]]], [[2, 3]]),
    ("boxes", [[[0.5, 0.5], [3.5, 3.5]], [[5.5, 1.5], [7.5, 3.5]], [[4.5, -0.5], [5.5, 0.5]]], [[2, 3]] * 3),
])  # fmt: skip
def test_prompts_of_a_slice(which, points, labels):
    found = dong.slice_prompts(SQUARE | BAR | DOT, which, np.random.default_rng(0))
    assert [p.points.tolist() for p in found] == points and [p.labels.tolist() for p in found] == labels


def test_points_are_one_in_each_of_three_components():
    (found,) = dong.slice_prompts(SQUARE | BAR | DOT, "points", np.random.default_rng(0))
    pixels = [(int(y), int(x)) for x, y in found.points]
    assert pixels[0] == (2, 2) and BAR[pixels[1]] and pixels[2] == (0, 5) and found.labels.tolist() == [1, 1, 1]


def test_reference_mask():
    (found,) = dong.slice_prompts(SQUARE | BAR, "mask", np.random.default_rng(0))
    np.testing.assert_array_equal(found.mask, SQUARE | BAR)


def test_choice_of_the_mask():
    masks, iou = np.stack([SQUARE, BAR, DOT]), np.array([0.2, 0.9, 0.8])
    np.testing.assert_array_equal(dong.chosen_mask(masks, iou, "first"), SQUARE)
    np.testing.assert_array_equal(dong.chosen_mask(masks, iou, "best"), BAR)


def run(mode, *settings, reference):
    asked = []

    def propose(frames, t, prompt):
        asked.append((t, prompt))
        return np.stack([SQUARE, BAR, DOT]), np.array([0.2, 0.9, 0.8])

    method = Scripted(reference)
    return asked, method, list(dong.steps(method, target_of(reference), plan(mode, *settings), propose))


def test_a_step_has_the_chosen_mask_as_prompt():
    reference = truth_with(6, [1, 2, 3])
    _, method, (first, best) = run("described", "median/point/forward/first", "median/point/both/best", reference=reference)
    np.testing.assert_array_equal(first.annotations[2].mask, SQUARE)
    np.testing.assert_array_equal(best.annotations[2].mask, BAR)
    assert [how.direction for _, how in method.asked] == ["forward", "both"]


def test_masks_of_several_boxes_are_joined():
    asked, _, (step,) = run("described", "first/boxes/both/first", reference=np.stack([SQUARE | BAR] * 2))
    assert len(asked) == 2 and [t for t, _ in asked] == [0, 0]
    np.testing.assert_array_equal(step.annotations[0].mask, SQUARE)


def test_three_slices_start_at_the_middle_one():
    _, _, (step,) = run("published", "three/mask/both/reference", reference=truth_with(8, [1, 2, 3, 4, 5]))
    assert list(step.annotations) == [3, 2, 4] and step.shown == 3


def test_a_point_is_the_same_in_all_settings_of_a_slice():
    asked, _, _ = run("described", *[s for s in dong.SETTINGS if s.startswith("largest/point")], reference=truth_with(4, [1, 2]))
    assert len({tuple(p.points.ravel()) for _, p in asked}) == 1 and len(asked) == 4


@pytest.mark.parametrize("mode, direction, weights", [
    ("described", "both", [0, 1, 1, 1, 1, 0]), ("described", "forward", [0, 1, 1, 1, 1, 0]),
    ("published", "both", [0, 2, 2, 2, 1, 0]),  # slices 1 to 4 have foreground, 3 is the median
    ("published", "forward", [0, 1, 1, 1, 1, 0]),
])  # fmt: skip
def test_what_counts(mode, direction, weights):
    _, _, (step,) = run(mode, f"median/point/{direction}/first", reference=truth_with(6, [1, 2, 3, 4]))
    assert step.counting.weights.tolist() == weights


def test_an_empty_proposal_finds_nothing():
    reference = truth_with(3, [1])
    method = Scripted(reference)
    (step,) = dong.steps(
        method, target_of(reference), plan("described", "first/point/both/first"), lambda *_: (np.stack([EMPTY]), np.array([1.0]))
    )
    assert method.asked == [] and not step.answer.mask.any()
