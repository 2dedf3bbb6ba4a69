"""Test the protocol of Dong et al. on masks that are written by hand."""

import numpy as np
import pytest

from lib.evaluation.protocols import dong
from lib.evaluation.protocols.steps import ProtocolPlan
from tests.evaluation.simulated_methods import ScriptedMethod, make_target, mask_from_text

EMPTY = mask_from_text(*["........"] * 5)
SQUARE = mask_from_text("........", ".###....", ".###....", ".###....", "........")
BAR = mask_from_text("........", "........", "......##", "......##", "........")
DOT = mask_from_text(".....#..", "........", "........", "........", "........")


def plan(mode="described", *settings):
    return ProtocolPlan(mode, np.random.default_rng(0), settings)


def make_reference(slice_count, filled):
    """Return a reference with SQUARE on the filled slices."""
    return np.stack([SQUARE if t in filled else EMPTY for t in range(slice_count)])


def test_settings():
    assert len(dong.SETTINGS) == len(set(dong.SETTINGS)) == 24 and set(dong.SETTINGS) < set(dong.ALL_SETTINGS)
    assert len(set(dong.ALL_SETTINGS)) == len(dong.ALL_SETTINGS) == 4 * 4 * 2 * 2 + 4 * 2, "a reference mask leaves no choice of masks"


@pytest.mark.parametrize("filled, first, median, three", [
    ([4], [4], [4], [4]),
    ([2, 3], [2], [3], [2, 3]),
    ([2, 3, 7, 8], [2], [7], [2, 3, 7]),  # step 1, four of them: the first three
    ([1, 2, 3, 4, 5], [1], [3], [2, 3, 4]),  # step 1, five of them: without the first
    (list(range(2, 14)), [2], [8], [2, 5, 8]),  # step 3: 2, 5, 8, 11
    (list(range(13)), [0], [6], [3, 6, 9]),  # step 3: 0, 3, 6, 9, 12
])  # fmt: skip
def test_choose_slices(filled, first, median, three):
    reference = make_reference(16, filled)
    assert dong.choose_slices(reference, "first") == first
    assert dong.choose_slices(reference, "median") == median
    assert dong.choose_slices(reference, "three") == three


def test_largest_slice():
    assert dong.choose_slices(np.stack([EMPTY, BAR, SQUARE, SQUARE, DOT]), "largest") == [2]


def test_largest_components():
    assert [int(p.sum()) for p in dong.find_largest_components(SQUARE | BAR | DOT, 3)] == [9, 4, 1]
    assert [int(p.sum()) for p in dong.find_largest_components(SQUARE | BAR | DOT, 2)] == [9, 4]
    diagonal = mask_from_text("........", ".###....", ".###....", ".###....", "....#...")
    assert dong.find_largest_components(diagonal, 3)[0].sum() == 10, "joined at a corner"
    two = mask_from_text("##......", "........", "......##", "........", "........")
    assert dong.find_largest_components(two, 1)[0][0, 0], "the first of equals"


def test_point_is_one_of_the_deepest_pixels():
    wide = mask_from_text("........", ".#####..", ".#####..", ".#####..", "........")  # deepest: (2, 2), (2, 3), (2, 4)
    clicks = {dong.choose_inner_point(wide, np.random.default_rng(s)) for s in range(40)}
    assert clicks == {(True, 2, 2), (True, 2, 3), (True, 2, 4)}


@pytest.mark.parametrize("which, points, labels", [
    ("point", [[[2, 2]]], [[1]]),
    ("box", [[[0.5, 0.5], [3.5, 3.5]]], [[2, 3]]),
    ("boxes", [[[0.5, 0.5], [3.5, 3.5]], [[5.5, 1.5], [7.5, 3.5]], [[4.5, -0.5], [5.5, 0.5]]], [[2, 3]] * 3),
])  # fmt: skip
def test_prompts_of_a_slice(which, points, labels):
    prompts = dong.make_slice_prompts(SQUARE | BAR | DOT, which, np.random.default_rng(0))
    assert [p.points.tolist() for p in prompts] == points and [p.labels.tolist() for p in prompts] == labels


def test_points_are_one_in_each_of_three_components():
    (prompt,) = dong.make_slice_prompts(SQUARE | BAR | DOT, "points", np.random.default_rng(0))
    pixels = [(int(y), int(x)) for x, y in prompt.points]
    assert pixels[0] == (2, 2) and BAR[pixels[1]] and pixels[2] == (0, 5) and prompt.labels.tolist() == [1, 1, 1]


def test_reference_mask():
    (prompt,) = dong.make_slice_prompts(SQUARE | BAR, "mask", np.random.default_rng(0))
    np.testing.assert_array_equal(prompt.mask, SQUARE | BAR)


def test_choose_mask():
    masks, iou = np.stack([SQUARE, BAR, DOT]), np.array([0.2, 0.9, 0.8])
    np.testing.assert_array_equal(dong.choose_mask(masks, iou, "first"), SQUARE)
    np.testing.assert_array_equal(dong.choose_mask(masks, iou, "best"), BAR)


def run(mode, *settings, reference):
    """Return the prompts for which masks were proposed, with their slices; the method; and the steps."""
    proposed = []

    def propose_masks(frames, t, prompt):
        proposed.append((t, prompt))
        return np.stack([SQUARE, BAR, DOT]), np.array([0.2, 0.9, 0.8])

    method = ScriptedMethod(reference)
    return proposed, method, list(dong.run_steps(method, make_target(reference), plan(mode, *settings), propose_masks))


def test_the_chosen_mask_is_the_prompt():
    reference = make_reference(6, [1, 2, 3])
    _, method, (first, best) = run("described", "median/point/forward/first", "median/point/both/best", reference=reference)
    np.testing.assert_array_equal(first.annotations[2].mask, SQUARE)
    np.testing.assert_array_equal(best.annotations[2].mask, BAR)
    assert [mode.direction for _, mode in method.requests] == ["forward", "both"]


def test_masks_of_several_boxes_are_joined():
    proposed, _, (step,) = run("described", "first/boxes/both/first", reference=np.stack([SQUARE | BAR] * 2))
    assert len(proposed) == 2 and [t for t, _ in proposed] == [0, 0]
    np.testing.assert_array_equal(step.annotations[0].mask, SQUARE)


def test_three_slices_start_at_the_middle_one():
    _, _, (step,) = run("published", "three/mask/both/reference", reference=make_reference(8, [1, 2, 3, 4, 5]))
    assert list(step.annotations) == [3, 2, 4] and step.last_annotated == 3


def test_a_point_is_the_same_in_all_settings_of_a_slice():
    proposed, _, _ = run("described", *[s for s in dong.SETTINGS if s.startswith("largest/point")], reference=make_reference(4, [1, 2]))
    assert len({tuple(p.points.ravel()) for _, p in proposed}) == 1 and len(proposed) == 4


@pytest.mark.parametrize("mode, direction, weights", [
    ("described", "both", [0, 1, 1, 1, 1, 0]), ("described", "forward", [0, 1, 1, 1, 1, 0]),
    ("published", "both", [0, 2, 2, 2, 1, 0]),  # slices 1 to 4 have foreground, 3 is the median
    ("published", "forward", [0, 1, 1, 1, 1, 0]),
])  # fmt: skip
def test_weights_of_slices(mode, direction, weights):
    _, _, (step,) = run(mode, f"median/point/{direction}/first", reference=make_reference(6, [1, 2, 3, 4]))
    assert step.scored_slices.weights.tolist() == weights


def test_an_empty_proposal_finds_nothing():
    reference = make_reference(3, [1])
    method = ScriptedMethod(reference)
    (step,) = dong.run_steps(
        method, make_target(reference), plan("described", "first/point/both/first"), lambda *_: (np.stack([EMPTY]), np.array([1.0]))
    )
    assert method.requests == [] and not step.prediction.mask.any()
