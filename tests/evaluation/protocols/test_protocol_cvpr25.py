"""Test the protocol of the interactive challenge of CVPR 2025: boxes, clicks, classes, steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import ndimage

from lib.evaluation.methods.method import DEFAULT_MODE, Prediction
from lib.evaluation.protocols import cvpr25
from lib.evaluation.protocols.cvpr25 import Box, find_box, find_click, make_annotations
from lib.evaluation.protocols.target import Target
from tests.evaluation.simulated_methods import make_target

masks = arrays.arrays(bool, st.tuples(*[st.integers(1, 7)] * 3))


def make_block(*ranges, shape=(9, 20, 20)):
    """Return a block of voxels, bool (T, Y, X), given by its first and last index along each axis."""
    mask = np.zeros(shape, bool)
    mask[tuple(slice(low, high + 1) for low, high in ranges)] = True
    return mask


def test_the_box_lies_on_the_slice_of_the_middle_voxel():
    """Slices 2, 3 and 6 have 4, 4 and 30 pixels: the 20th of 38 voxels is on slice 6, which is not in the middle of the extent."""
    reference = make_block((2, 3), (4, 5), (4, 5)) | make_block((6, 6), (2, 7), (10, 14))
    assert find_box(reference) == Box(6, (2, 10), (7, 14), 2, 6)


@pytest.mark.parametrize("reference, low, high", [
    (make_block((3, 3), (4, 4), (2, 8)), (4, 2), (5, 8)),  # one pixel high
    (make_block((3, 3), (19, 19), (19, 19)), (18, 18), (19, 19)),  # a single voxel in the corner
])  # fmt: skip
def test_a_box_that_could_not_be_drawn_is_widened(reference, low, high):
    box = find_box(reference)
    assert (box.low_yx, box.high_yx) == (low, high)


def test_a_click_at_the_centre_of_the_largest_error():
    """A missed block of 5 x 5 x 5 voxels has its centre at (4, 7, 7); a smaller excess block elsewhere gets no click."""
    reference = make_block((2, 6), (5, 9), (5, 9))
    excess = make_block((3, 5), (15, 17), (15, 17))
    assert find_click(excess, reference) == (True, 4, 7, 7)
    assert find_click(reference, excess) == (False, 4, 7, 7), "marked in excess"
    assert find_click(reference, reference) is None


def test_missed_and_excess_voxels_that_touch_are_one_error():
    """Missed and excess blocks of 5 x 5 x 5 voxels side by side have their middle where they meet, and 245 voxels elsewhere are fewer."""
    missed, excess = make_block((2, 6), (2, 6), (2, 6)), make_block((2, 6), (2, 6), (7, 11))
    elsewhere = make_block((2, 6), (10, 16), (11, 17))
    positive, t, y, x = find_click(excess | elsewhere, missed)
    assert (t, y) == (4, 4) and x in range(4, 10) and positive == (x < 7)


def test_corners_connect_an_error():
    """Two blocks of 2 x 2 x 2 that meet at a corner are larger than one block of 12 voxels."""
    touching = make_block((1, 2), (1, 2), (1, 2)) | make_block((3, 4), (3, 4), (3, 4))
    alone = make_block((1, 3), (10, 11), (10, 11))
    positive, t, y, x = find_click(np.zeros_like(alone), touching | alone)
    assert positive and touching[t, y, x]


def test_of_equally_large_errors_the_first_counts():
    first, second = make_block((1, 3), (15, 17), (15, 17)), make_block((5, 7), (2, 4), (2, 4))
    assert find_click(np.zeros_like(first), first | second) == (True, 2, 16, 16)


def test_beyond_the_edge_of_the_volume_is_outside():
    """The error fills a corner of the volume; its deepest voxel is in its middle and not at the edge."""
    assert find_click(np.zeros((9, 20, 20), bool), make_block((0, 4), (0, 4), (0, 4))) == (True, 2, 2, 2)


def test_ties_are_broken_as_by_the_organisers():
    """All ten voxels of a line are one voxel deep: NumPy's global generator, seeded with 42, chooses number 1 of 10."""
    line = make_block((4, 4), (6, 6), (3, 12))
    np.random.seed(42)
    chosen = int(np.random.choice(10))
    assert find_click(np.zeros_like(line), line) == (True, 4, 6, 3 + chosen)
    assert find_click(np.zeros_like(line), line) == (True, 4, 6, 3 + chosen), "each click is seeded afresh"


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_clicks_lie_deepest_in_the_largest_error(data):
    """Components and distances are computed once more, by another library and by trying all pairs of voxels."""
    reference = data.draw(masks)
    mask = data.draw(arrays.arrays(bool, reference.shape))
    click = find_click(mask, reference)
    if click is None:
        assert (mask == reference).all()
        return
    positive, *voxel = click
    assert mask[tuple(voxel)] != reference[tuple(voxel)] and positive == reference[tuple(voxel)]
    components, count = ndimage.label(mask != reference, np.ones((3, 3, 3)))
    largest = max(range(1, count + 1), key=lambda n: ((components == n).sum(), -np.flatnonzero(components == n)[0]))
    padded = np.pad(components == largest, 1)
    inside, outside = np.argwhere(padded), np.argwhere(~padded)
    depth = ((inside[:, None] - outside[None]) ** 2).sum(-1).min(1)
    deepest = (inside[depth == depth.max()] - 1).tolist()
    np.random.seed(42)
    assert voxel == deepest[np.random.choice(len(deepest))]
    swapped = find_click(reference, mask)
    assert list(swapped[1:]) == voxel and swapped[0] != positive, "the error region does not depend on which mask is right"


@settings(max_examples=60, deadline=None)
@given(masks.filter(lambda m: m.any() and min(m.shape[1:]) > 1))
def test_the_box_encloses_the_middle_slice(reference):
    box = find_box(reference)
    pixels = np.argwhere(reference[box.middle])
    assert len(pixels) and (pixels >= box.low_yx).all() and (pixels <= box.high_yx).all()
    assert reference[box.first].any() and reference[box.last].any() and not reference[: box.first].any()
    assert not reference[box.last + 1 :].any() and (np.array(box.low_yx) < box.high_yx).all()


def test_prompts_of_a_box_and_clicks():
    """The slices beyond the box are empty; a click on the slice of the box joins it; equal clicks count once."""
    clicks = [(True, 4, 3, 5), (False, 1, 0, 0), (True, 5, 1, 2), (True, 5, 1, 2)]
    annotations = make_annotations(Box(4, (2, 3), (5, 7), 2, 6), clicks, (9, 8, 9))
    assert list(annotations) == [4, 1, 7, 5]
    assert annotations[4].points.tolist() == [[2.5, 1.5], [7.5, 5.5], [5, 3]] and annotations[4].labels.tolist() == [2, 3, 1]
    assert all(a.mask is not None and not a.mask.any() for a in (annotations[1], annotations[7]))
    assert annotations[1].labels.tolist() == [0] and annotations[5].points.tolist() == [[2, 1]]
    assert list(make_annotations(Box(4, (2, 3), (5, 7), 0, 8), [], (9, 8, 9))) == [4], "there is nothing beyond the volume"


def test_a_voxel_of_two_masks_belongs_to_the_smaller():
    large, small = make_block((2, 6), (2, 12), (2, 12)), make_block((3, 4), (10, 14), (10, 14))
    separated = cvpr25.separate_classes({"large": large, "small": small})
    np.testing.assert_array_equal(separated["small"], small)
    np.testing.assert_array_equal(separated["large"], large & ~small)


class BoxMethod:
    """Predicts what a function of the annotations returns.

    Attributes:
        requests: The annotations and modes of all calls.
    """

    name, takes_masks, takes_clicks = "box", False, True

    def __init__(self, answers):
        self.answers, self.requests = answers, []

    def open(self, frames):
        self.frames = frames

    def segment(self, annotations, mode=DEFAULT_MODE):
        self.requests.append((annotations, mode))
        return Prediction(self.answers(annotations))


def run(method, references):
    """Return the steps of each class as lists."""
    frames = make_target(next(iter(references.values()))).frames
    targets = {name: Target.with_all_slices(frames, reference) for name, reference in references.items()}
    steps = {name: [] for name in references}
    for name, step in cvpr25.run_steps(method, targets):
        steps[name].append(step)
    return steps


def test_only_classes_with_errors_get_clicks():
    """The first class is right from the box on; the second one misses its last slice until it gets a click there."""
    right, wrong = make_block((2, 6), (2, 6), (2, 6)), make_block((2, 6), (12, 16), (12, 16))

    def answer(annotations):
        if annotations[4].points[0, 0] < 2.5:
            return right
        has_click = any((a.labels == 1).any() for a in annotations.values())
        return wrong if has_click else wrong & ~make_block((6, 6), (0, 19), (0, 19))

    method = BoxMethod(answer)
    steps = run(method, {"right": right, "wrong": wrong})
    assert [s.round for s in steps["right"]] == [s.round for s in steps["wrong"]] == list(range(6))
    assert len(method.requests) == 3, "one box each, and one click"
    assert [list(s.annotations) for s in steps["wrong"][:2]] == [[4, 1, 7], [4, 1, 7, 6]]
    assert steps["wrong"][1].last_annotated == 6 and steps["wrong"][0].last_annotated == 4
    np.testing.assert_array_equal(steps["wrong"][0].prediction.mask, wrong & ~make_block((6, 6), (0, 19), (0, 19)))
    np.testing.assert_array_equal(steps["wrong"][5].prediction.mask, wrong)
    assert all(s.seconds == 0 for s in steps["right"][1:]) and steps["wrong"][1].seconds > 0 and steps["wrong"][2].seconds == 0
    assert {mode.box_slices for _, mode in method.requests} == {(2, 6)}


def test_clicks_accumulate_and_follow_the_methods_own_errors():
    """A method that never answers is clicked at the same place five times; the prompts hold that click once."""
    reference = make_block((2, 6), (2, 6), (2, 6))
    steps = run(BoxMethod(lambda annotations: np.zeros_like(reference)), {"a": reference})["a"]
    assert [s.annotations[4].labels.tolist() for s in steps] == [[2, 3]] + [[2, 3, 1]] * 5
    assert all(s.annotations[4].points.tolist()[2] == [4, 4] for s in steps[1:])


def test_the_errors_are_those_of_the_label_map():
    """The larger class covers the smaller one, which is right; the larger one is wrong only where the smaller one lies in it."""
    outer = make_block((2, 6), (2, 14), (2, 14))
    inner = make_block((3, 5), (6, 10), (6, 10))
    steps = run(BoxMethod(lambda a: inner if a[4].points[0, 0] > 2 else outer), {"outer": outer & ~inner, "inner": inner})
    assert all((s.prediction.mask == s.target.reference).all() for name in steps for s in steps[name])
