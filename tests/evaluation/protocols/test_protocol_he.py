"""Test the protocol of He et al. on masks that are written by hand."""

import numpy as np
import pytest

from lib.evaluation.methods.method import PropagationMode
from lib.evaluation.protocols import he
from lib.evaluation.protocols.steps import ProtocolPlan
from tests.evaluation.simulated_methods import ScriptedMethod, make_target, mask_from_text


def plan(mode="described", seed=0):
    return ProtocolPlan(mode, np.random.default_rng(seed))


EMPTY = mask_from_text(*["........"] * 6)
SQUARE = mask_from_text("........", ".####...", ".####...", ".####...", ".####...", "........")
CORE = mask_from_text("........", "........", "..##....", "..##....", "........", "........")  # of SQUARE, eroded
FAR = mask_from_text(".....###", ".....###", ".....###", "........", "........", "........")
LOW = mask_from_text("........", "........", "........", ".....###", ".....###", ".....###")
THIN = mask_from_text("########", "........", "........", "........", "........", "########")


def test_first_click_is_in_the_largest_component_nearest_its_centroid():
    """The centroid of the four slices of SQUARE is (2.5, 2.5, 2.5), and the first of the equally near voxels is taken. The last slice has
    more foreground than each of these, but its components are smaller."""
    reference = np.stack([EMPTY, SQUARE, SQUARE, SQUARE, SQUARE, EMPTY, FAR | LOW])
    assert he.find_first_voxel(reference) == (2, 2, 2)


def test_first_click_of_a_ring_lies_on_it():
    ring = mask_from_text("........", ".#####..", ".#...#..", ".#...#..", ".#####..", "........")
    assert he.find_first_voxel(ring[None]) == (0, 1, 3), "the centroid (2.5, 3) is not foreground; rows 1 and 4 are equally near"


def test_components_are_joined_at_corners():
    reference = np.stack([mask_from_text("##......", "##......", "........"), mask_from_text("........", "........", "..##...."),
                      mask_from_text("........", "....##..", "....##..")])  # fmt: skip
    assert he.find_first_voxel(reference) == (1, 2, 2), "8 + 2 voxels in one piece have their centroid at (1, 1.1, 2.5)"


@pytest.mark.parametrize("region, expected", [
    (SQUARE, CORE), (FAR, mask_from_text("........", "......#.", "........", "........", "........", "........")),
    (THIN, EMPTY), (EMPTY, EMPTY),
])  # fmt: skip
def test_erosion(region, expected):
    """Regions are eroded by 3 x 3 pixels, also from the edge of the image."""
    np.testing.assert_array_equal(he.erode(region), expected)


@pytest.mark.parametrize("region, described, published", [
    (mask_from_text("........", ".....###", ".....###", ".....###"), (2, 6), (3, 5)),  # means 2 and 6; of all numbers 4
    (CORE, (2, 2), (2, 2)),  # 2.5 and 2.5: four equally near, the first
    (mask_from_text("#......#", "........"), (0, 0), (0, 0)),  # described (0, 3.5): the first of two; published (1.75, 1.75)
    (mask_from_text("...#####", "........"), (0, 5), (0, 3)),  # described (0, 5); published (2.5, 2.5)
])  # fmt: skip
def test_centre(region, described, published):
    """As published, it is the pixel nearest (m, m), where m is the mean of all row and column numbers."""
    assert he.find_centre(region, as_published=False) == described
    assert he.find_centre(region, as_published=True) == published


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
    assert he.choose_next_click(mask, reference, as_published=False) == click


def test_published_clicks_are_off_centre():
    """LOW is eroded to one pixel, so that its centre is the same; the centre of a region that is taller than wide is not."""
    wide = mask_from_text("........", "........", "........", "..######", "..######", "..######")
    assert he.choose_next_click(EMPTY, LOW, as_published=True) == (True, 4, 6)
    assert he.choose_next_click(EMPTY, wide, as_published=False) == (True, 4, 4), "eroded (4, 3..6), centre 4.5: the first of 4 and 5"
    assert he.choose_next_click(EMPTY, wide, as_published=True) == (True, 4, 4), "m = (4 + 4.5) / 2 = 4.25"
    tall = np.rot90(mask_from_text(*["########"] * 3, *["........"] * 5))  # columns 0..2, all 8 rows
    assert he.choose_next_click(np.zeros((8, 8), bool), tall, as_published=False) == (True, 3, 1), "eroded (1..6, 1), centre 3.5"
    assert he.choose_next_click(np.zeros((8, 8), bool), tall, as_published=True) == (True, 2, 1), "m = (3.5 + 1) / 2 = 2.25"


def test_corrections():
    """SQUARE (4 pixels after erosion) is missed and FAR (1 pixel) is excess: each gets a click, and the larger a random one."""
    clicks = he.choose_corrections(FAR, SQUARE, plan())
    assert clicks[:2] == [(True, 2, 2), (False, 1, 6)] and len(clicks) == 3
    assert clicks[2][0] is True and CORE[clicks[2][1:]]
    clicks = he.choose_corrections(SQUARE, FAR, plan())
    assert clicks[:2] == [(True, 1, 6), (False, 2, 2)] and clicks[2][0] is False and CORE[clicks[2][1:]]
    assert he.choose_corrections(FAR, LOW, plan()) == [(True, 4, 6), (False, 1, 6), (True, 4, 6)], "equally large: the missed one"
    assert he.choose_corrections(SQUARE, SQUARE, plan()) == [] and he.choose_corrections(THIN, EMPTY, plan()) == []
    assert [c[0] for c in he.choose_corrections(EMPTY, SQUARE, plan())] == [True, True], "only one error, so two clicks"


def test_random_clicks_come_from_the_seed():
    random_clicks = {he.choose_corrections(EMPTY, SQUARE, plan(seed=s))[1] for s in range(20)}
    assert random_clicks == {(True, y, x) for y in (2, 3) for x in (2, 3)}
    assert he.choose_corrections(EMPTY, SQUARE, plan(seed=3)) == he.choose_corrections(EMPTY, SQUARE, plan(seed=3))


def test_worst_slice():
    """The Dice of the slices is 1 (both empty), 0 (9 wrong), 1, 0 (4 + 9 wrong), 0 (16 wrong, nothing in the reference)."""
    reference = np.stack([EMPTY, FAR, SQUARE, LOW, EMPTY])
    mask = np.stack([EMPTY, EMPTY, SQUARE, CORE, SQUARE])
    assert he.find_worst_slice(mask, reference, as_published=False) == 4, "of three with Dice 0 the most wrong pixels"
    assert he.find_worst_slice(mask, reference, as_published=True) == 3, "only slices with foreground"
    assert he.find_worst_slice(mask[:3], reference[:3], as_published=False) == 1
    assert he.find_worst_slice(mask[[1, 1]], reference[[1, 1]], as_published=False) == 0, "the first of equals"
    half = np.stack([SQUARE, CORE])
    assert he.find_worst_slice(half, np.stack([SQUARE, SQUARE]), as_published=False) == 1, "8 / 20 is less than 1"


def run_rounds(mode, masks, reference=None):
    """Return a method that predicts these masks, and the steps of the setting "full"."""
    reference = np.stack([EMPTY, SQUARE, SQUARE, SQUARE, EMPTY]) if reference is None else reference
    method = ScriptedMethod(*masks)
    return method, list(he.run_steps(method, make_target(reference), ProtocolPlan(mode, np.random.default_rng(0), ("full",))))


@pytest.mark.parametrize("mode, count", [("described", 5), ("published", 4)])
def test_clicks_of_the_first_slice(mode, count):
    """A method that never improves gets five clicks; as published the fifth is not submitted. A click on the same pixel counts once."""
    shifted = np.stack([EMPTY, *[np.roll(SQUARE, s, 1) for s in (3, 3, 3)], EMPTY])
    method, steps = run_rounds(mode, [shifted])
    unpropagated = [annotations for annotations, mode in method.requests if not mode.propagate]
    assert len(unpropagated) == count - 1, "the slice is segmented after each click but the last"
    assert all(list(a) == [2] for a in unpropagated)
    first = steps[0].annotations[2]
    assert first.points.tolist()[0] == [2, 2] and first.labels.tolist()[0] == 1


def test_no_further_click_when_the_first_slice_is_right():
    reference = np.stack([EMPTY, SQUARE, SQUARE, SQUARE, EMPTY])
    method, steps = run_rounds("described", [reference])
    assert len(steps) == 1 and steps[0].round == 1, "and no further slice when all are"
    assert [mode.propagate for _, mode in method.requests] == [False, True]
    assert steps[0].annotations[2].points.tolist() == [[2, 2]]


@pytest.mark.parametrize("mode, second", [("described", 4), ("published", 1)])
def test_the_second_slice(mode, second):
    """The first slice is right. Slice 1 is missed (16 wrong, Dice 0), slice 4 is excess (20 wrong, Dice 0, nothing in the reference)."""
    excess = mask_from_text("........", ".#####..", ".#####..", ".#####..", ".#####..", "........")
    reference = np.stack([EMPTY, SQUARE, SQUARE, SQUARE, EMPTY])
    mask = np.stack([EMPTY, EMPTY, SQUARE, SQUARE, excess])
    _, steps = run_rounds(mode, [mask, mask, reference])
    assert [s.last_annotated for s in steps] == [2, second]
    assert list(steps[1].annotations) == [2, second], "in the order of annotation"
    labels = steps[1].annotations[second].labels.tolist()
    assert labels == ([0, 0] if mode == "described" else [1, 1])


@pytest.mark.parametrize("mode", ["described", "published"])
def test_at_most_eight_slices(mode):
    reference = np.stack([SQUARE] * 12)
    _, steps = run_rounds(mode, [np.zeros_like(reference)], reference)
    assert [s.round for s in steps] == list(range(1, 9)) and steps[0].propagation_mode == PropagationMode(
        clicks_one_by_one=True, corrections_condition=mode == "described"
    )


def test_background_is_removed_before_propagation():
    reference = np.stack([EMPTY, SQUARE, EMPTY, SQUARE, SQUARE, EMPTY])
    method = ScriptedMethod(reference[[1, 3, 4]])
    steps = list(he.run_steps(method, make_target(reference), ProtocolPlan("described", np.random.default_rng(0), ("background removed",))))
    assert len(method.frames) == 3 and steps[0].target.source_slices.tolist() == [1, 3, 4]
    np.testing.assert_array_equal(steps[0].target.reference, reference[[1, 3, 4]])
    # The value of each voxel is the index of its slice in the whole volume.
    assert method.frames.stack[:, 0, 0].tolist() == [1, 3, 4]
