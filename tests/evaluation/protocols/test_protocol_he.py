"""The protocol of He et al. on masks drawn by hand."""

import numpy as np
import pytest

from lib.evaluation.methods.method import How
from lib.evaluation.protocols import he
from lib.evaluation.protocols.steps import Plan
from tests.evaluation.drawing import Scripted, drawn, target_of


def plan(mode="described", seed=0):
    return Plan(mode, np.random.default_rng(seed))


EMPTY = drawn(*["........"] * 6)
SQUARE = drawn("........", ".####...", ".####...", ".####...", ".####...", "........")
CORE = drawn("........", "........", "..##....", "..##....", "........", "........")  # of SQUARE, eroded
FAR = drawn(".....###", ".....###", ".....###", "........", "........", "........")
LOW = drawn("........", "........", "........", ".....###", ".....###", ".....###")
THIN = drawn("########", "........", "........", "........", "........", "########")


def test_first_click_is_in_the_largest_component_nearest_its_centroid():
    """Centroid of the four slices of SQUARE is (2.5, 2.5, 2.5); of the equally near voxels the first. FAR is larger on its slice,
    and smaller as a whole."""
    reference = np.stack([EMPTY, SQUARE, SQUARE, SQUARE, SQUARE, EMPTY, FAR | LOW])
    assert he.first_voxel(reference) == (2, 2, 2)


def test_first_click_of_a_ring_lies_on_it():
    ring = drawn("........", ".#####..", ".#...#..", ".#...#..", ".#####..", "........")
    assert he.first_voxel(ring[None]) == (0, 1, 3), "the centroid (2.5, 3) is not foreground; rows 1 and 4 are equally near"


def test_components_are_joined_at_corners():
    reference = np.stack([drawn("##......", "##......", "........"), drawn("........", "........", "..##...."),
                      drawn("........", "....##..", "....##..")])  # fmt: skip
    assert he.first_voxel(reference) == (1, 2, 2), "8 + 2 voxels in one piece have their centroid at (1, 1.1, 2.5)"


@pytest.mark.parametrize("region, expected", [
    (SQUARE, CORE), (FAR, drawn("........", "......#.", "........", "........", "........", "........")),
    (THIN, EMPTY), (EMPTY, EMPTY),
])  # fmt: skip
def test_erosion(region, expected):
    """By 3 x 3, and from the image's edge too."""
    np.testing.assert_array_equal(he.eroded(region), expected)


@pytest.mark.parametrize("region, described, published", [
    (drawn("........", ".....###", ".....###", ".....###"), (2, 6), (3, 5)),  # means 2 and 6; of all numbers 4
    (CORE, (2, 2), (2, 2)),  # 2.5 and 2.5: four equally near, the first
    (drawn("#......#", "........"), (0, 0), (0, 0)),  # described (0, 3.5): the first of two; published (1.75, 1.75)
    (drawn("...#####", "........"), (0, 5), (0, 3)),  # described (0, 5); published (2.5, 2.5)
])  # fmt: skip
def test_centre(region, described, published):
    """Published: the pixel nearest (m, m), m the mean of all row and column numbers."""
    assert he.centre(region, published=False) == described
    assert he.centre(region, published=True) == published


@pytest.mark.parametrize("mask, reference, click", [
    (EMPTY, SQUARE, (True, 2, 2)),  # all of it is missed
    (SQUARE, EMPTY, (False, 2, 2)),  # all of it is too much
    (FAR, SQUARE, (True, 2, 2)),  # 4 pixels are missed, 1 is too much
    (SQUARE, FAR, (False, 2, 2)),  # the other way round
    (FAR, LOW, (True, 4, 6)),  # 1 and 1: missed wins
    (SQUARE, SQUARE, None),
    (EMPTY, THIN, None),  # nothing is left after erosion
    (THIN, EMPTY, None),
])  # fmt: skip
def test_next_click(mask, reference, click):
    assert he.next_click(mask, reference, published=False) == click


def test_published_clicks_are_off_centre():
    """LOW's eroded pixel is one, so its centre is the same; a wide region's is not."""
    wide = drawn("........", "........", "........", "..######", "..######", "..######")
    assert he.next_click(EMPTY, LOW, published=True) == (True, 4, 6)
    assert he.next_click(EMPTY, wide, published=False) == (True, 4, 4), "eroded (4, 3..6), centre 4.5: the first of 4 and 5"
    assert he.next_click(EMPTY, wide, published=True) == (True, 4, 4), "m = (4 + 4.5) / 2 = 4.25"
    tall = np.rot90(drawn(*["########"] * 3, *["........"] * 5))  # columns 0..2, all 8 rows
    assert he.next_click(np.zeros((8, 8), bool), tall, published=False) == (True, 3, 1), "eroded (1..6, 1), centre 3.5"
    assert he.next_click(np.zeros((8, 8), bool), tall, published=True) == (True, 2, 1), "m = (3.5 + 1) / 2 = 2.25"


def test_corrections():
    """Missed: SQUARE (4 pixels after erosion); too much: FAR (1): a click on each, and a random one in the larger."""
    made = he.correction(FAR, SQUARE, plan())
    assert made[:2] == [(True, 2, 2), (False, 1, 6)] and len(made) == 3
    assert made[2][0] is True and CORE[made[2][1:]]
    made = he.correction(SQUARE, FAR, plan())
    assert made[:2] == [(True, 1, 6), (False, 2, 2)] and made[2][0] is False and CORE[made[2][1:]]
    assert he.correction(FAR, LOW, plan()) == [(True, 4, 6), (False, 1, 6), (True, 4, 6)], "equally large: the missed one"
    assert he.correction(SQUARE, SQUARE, plan()) == [] and he.correction(THIN, EMPTY, plan()) == []
    assert [c[0] for c in he.correction(EMPTY, SQUARE, plan())] == [True, True], "only one error, so two clicks"


def test_random_clicks_come_from_the_seed():
    drawn_ones = {he.correction(EMPTY, SQUARE, plan(seed=s))[1] for s in range(20)}
    assert drawn_ones == {(True, y, x) for y in (2, 3) for x in (2, 3)}
    assert he.correction(EMPTY, SQUARE, plan(seed=3)) == he.correction(EMPTY, SQUARE, plan(seed=3))


def test_worst_slice():
    """Dice: 1 (both empty), 0 (9 wrong), 1, 0 (4 + 9 wrong), 0 (16 wrong, none in the reference)."""
    reference = np.stack([EMPTY, FAR, SQUARE, LOW, EMPTY])
    mask = np.stack([EMPTY, EMPTY, SQUARE, CORE, SQUARE])
    assert he.worst_slice(mask, reference, published=False) == 4, "of three with Dice 0 the most wrong pixels"
    assert he.worst_slice(mask, reference, published=True) == 3, "only slices with foreground"
    assert he.worst_slice(mask[:3], reference[:3], published=False) == 1
    assert he.worst_slice(mask[[1, 1]], reference[[1, 1]], published=False) == 0, "the first of equals"
    half = np.stack([SQUARE, CORE])
    assert he.worst_slice(half, np.stack([SQUARE, SQUARE]), published=False) == 1, "8 / 20 is less than 1"


def rounds(mode, answers, reference=None):
    reference = np.stack([EMPTY, SQUARE, SQUARE, SQUARE, EMPTY]) if reference is None else reference
    method = Scripted(*answers)
    found = list(he.steps(method, target_of(reference), Plan(mode, np.random.default_rng(0), ("full",))))
    return method, found


@pytest.mark.parametrize("mode, count", [("described", 5), ("published", 4)])
def test_clicks_of_the_first_slice(mode, count):
    """A method that never learns gets five clicks; of `published` the fifth is not submitted. A click on the same pixel counts once."""
    shifted = np.stack([EMPTY, *[np.roll(SQUARE, s, 1) for s in (3, 3, 3)], EMPTY])
    method, found = rounds(mode, [shifted])
    alone = [a for a, how in method.asked if not how.propagate]
    assert len(alone) == count - 1, "after each click but the last the slice is looked at"
    assert all(list(a) == [2] for a in alone)
    first = found[0].annotations[2]
    assert first.points.tolist()[0] == [2, 2] and first.labels.tolist()[0] == 1


def test_no_further_click_when_the_first_slice_is_right():
    reference = np.stack([EMPTY, SQUARE, SQUARE, SQUARE, EMPTY])
    method, found = rounds("described", [reference])
    assert len(found) == 1 and found[0].round == 1, "and no further slice when all are"
    assert [how.propagate for _, how in method.asked] == [False, True]
    assert found[0].annotations[2].points.tolist() == [[2, 2]]


@pytest.mark.parametrize("mode, second", [("described", 4), ("published", 1)])
def test_the_second_slice(mode, second):
    """First slice right; slice 1 missed (16 wrong, Dice 0), slice 4 all too much (20 wrong, Dice 0, nothing in the reference)."""
    too_much = drawn("........", ".#####..", ".#####..", ".#####..", ".#####..", "........")
    reference = np.stack([EMPTY, SQUARE, SQUARE, SQUARE, EMPTY])
    answer = np.stack([EMPTY, EMPTY, SQUARE, SQUARE, too_much])
    _, found = rounds(mode, [answer, answer, reference])
    assert [s.shown for s in found] == [2, second]
    assert list(found[1].annotations) == [2, second], "in the order of annotation"
    labels = found[1].annotations[second].labels.tolist()
    assert labels == ([0, 0] if mode == "described" else [1, 1])


@pytest.mark.parametrize("mode", ["described", "published"])
def test_at_most_eight_slices(mode):
    reference = np.stack([SQUARE] * 12)
    _, found = rounds(mode, [np.zeros_like(reference)], reference)
    assert [s.round for s in found] == list(range(1, 9)) and found[0].how == How(one_by_one=True, conditioning=mode == "described")


def test_background_is_removed_before_propagation():
    reference = np.stack([EMPTY, SQUARE, EMPTY, SQUARE, SQUARE, EMPTY])
    method = Scripted(reference[[1, 3, 4]])
    found = list(he.steps(method, target_of(reference), Plan("described", np.random.default_rng(0), ("background removed",))))
    assert len(method.frames) == 3 and found[0].target.index.tolist() == [1, 3, 4]
    np.testing.assert_array_equal(found[0].target.reference, reference[[1, 3, 4]])
    # The voxels of each slice are the number of the slice in the whole volume.
    assert method.frames.stack[:, 0, 0].tolist() == [1, 3, 4]
