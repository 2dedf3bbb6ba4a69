"""Tests of checking prompts and of sorting them by slice."""

import numpy as np
import pytest

from lib.common.errors import PromptError
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.prompts.volume_prompts import group_by_slice, make_prompts

VOLUME = Volume(np.zeros((10, 12, 8), np.int16))
INSIDE = [(5, 5, 5)]


def painted(*pixels, shape=(10, 12)):
    """Return a bool array with only the given pixels set."""
    mask = np.zeros(shape, bool)
    for pixel in pixels:
        mask[pixel] = True
    return mask


def prompts_by_slice(axis=2, **prompts):
    """Check the prompts against `VOLUME` and sort them by slice along `axis`."""
    return group_by_slice(make_prompts(VOLUME, axis=axis, **prompts), Frames.of(VOLUME, window="0,1", axis=axis))


@pytest.mark.parametrize(
    ("given", "index"),
    [((1, 2, 3), (1, 2, 3)), ([1.4, 1.6, 2.9], (1, 2, 3)), (("1", "2", "3"), (1, 2, 3)), ((-0.3, 11.4, 7.4), (0, 11, 7))],
)
def test_a_click_is_rounded_to_a_voxel(given, index):
    assert make_prompts(VOLUME, positive=[given]).positive == (index,)


def test_clicks_keep_their_order_and_repetitions_are_removed():
    clicks = [(5, 5, 5), (1, 1, 1), (5, 5, 5), (3, 3, 3)]
    assert make_prompts(VOLUME, positive=clicks).positive == ((5, 5, 5), (1, 1, 1), (3, 3, 3))


@pytest.mark.parametrize(
    ("click", "message"),
    [
        ((10, 5, 5), r"\(10, 5, 5\) lies outside the volume of 10 x 12 x 8"),
        ((5, 12, 5), "outside"),
        ((5, 5, -1), "outside"),
        ((1e30, 5, 5), "outside"),
        ((np.nan, 5, 5), "three numbers"),
        ((5, np.inf, 5), "three numbers"),
        ((5, 5), "three numbers"),
        ((5, 5, 5, 5), "three numbers"),
        (5, "three numbers"),
        (None, "three numbers"),
        ("abc", "three numbers"),
        (("a", 5, 5), "three numbers"),
        (([1], 2, [3, 4]), "three numbers"),
        ({"x": 1}, "three numbers"),
    ],
)
@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_malformed_and_outside_clicks_are_refused(click, message, kind):
    with pytest.raises(PromptError, match=message):
        make_prompts(VOLUME, **({"positive": INSIDE} | {kind: [click]}))


def test_a_voxel_clicked_both_as_inside_and_outside_is_refused():
    with pytest.raises(PromptError, match=r"\(5, 5, 5\) is clicked both"):
        make_prompts(VOLUME, positive=[(5, 5, 5)], negative=[(5, 5.2, 5)])


@pytest.mark.parametrize(
    ("corners", "expected"),
    [
        (((2, 3, 4), (6, 7, 4)), ((2, 3, 4), (6, 7, 4))),
        (((6, 3, 4), (2, 7, 4)), ((2, 3, 4), (6, 7, 4))),  # the other pair of corners
        (((-5, 3, 4), (6, 99, 4)), ((0, 3, 4), (6, 11, 4))),
        (((-1e30, -1e30, 4), (1e30, 1e30, 4)), ((0, 0, 4), (9, 11, 4))),
        (((1.6, 2.4, 4), (6.4, 6.6, 4)), ((2, 2, 4), (6, 7, 4))),
        (((2, 3, 0), (6, 7, 7)), ((2, 3, 0), (6, 7, 7))),
    ],
)
def test_box_corners_are_sorted_rounded_and_clipped(corners, expected):
    assert make_prompts(VOLUME, boxes=[corners]).boxes == (expected,)
    assert make_prompts(VOLUME, roi=corners).roi == expected


@pytest.mark.parametrize(
    ("corners", "message"),
    [
        (((2, 3, 4), (2, 3, 4)), "empty"),
        (((2, 3, 4), (2, 7, 4)), "empty"),  # a line
        (((-9, 3, 4), (0, 7, 4)), "empty"),  # only a line of it lies inside the volume
        (((-9, 3, 4), (-2, 7, 4)), "outside"),
        (((2, 3, 8), (6, 7, 9)), "outside"),
        (((1e30, 3, 4), (2e30, 7, 4)), "outside"),
        (((2, 3), (6, 7)), "two corners"),
        (((2, 3, 4),), "two corners"),
        (((2, 3, 4), (6, np.nan, 4)), "two corners"),
        (((2, 3, 4), ("x", 7, 4)), "two corners"),
        (7, "two corners"),
    ],
)
@pytest.mark.parametrize("kind", ["box", "roi"])
def test_empty_malformed_and_outside_boxes_are_refused(corners, message, kind):
    with pytest.raises(PromptError, match=message):
        make_prompts(VOLUME, positive=INSIDE, **({"boxes": [corners]} if kind == "box" else {"roi": corners}))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "Nothing says where"),
        ({"negative": INSIDE}, "Nothing says where"),
        ({"absent": [1, 2]}, "Nothing says where"),
        ({"masks": {3: painted()}}, "Nothing says where"),
        ({"masks": {3: painted((1, 1), shape=(12, 10))}}, r"painted slice 3 has shape \(12, 10\); \(10, 12\)"),
        ({"masks": {8: painted((1, 1))}}, "no slice 8; slices go from 0 to 7"),
        ({"positive": INSIDE, "absent": [-1]}, "no slice -1"),
    ],
)
def test_prompts_that_show_no_structure_or_no_slice_are_refused(prompts, message):
    with pytest.raises(PromptError, match=message):
        make_prompts(VOLUME, **prompts)


@pytest.mark.parametrize(("axis", "shape", "last"), [(0, (12, 8), 9), (1, (10, 8), 11), (2, (10, 12), 7)])
def test_slices_count_along_the_axis(axis, shape, last):
    prompts = make_prompts(VOLUME, masks={last: painted((1, 2), shape=shape)}, absent=[0, 0], axis=axis)
    assert (list(prompts.masks), prompts.absent) == ([last], (0,))
    grouped = group_by_slice(prompts, Frames.of(VOLUME, window="0,1", axis=axis))
    assert np.argwhere(grouped[last].mask).tolist() == [[2, 1]]  # (y, x)
    assert not grouped[0].mask.any()
    with pytest.raises(PromptError, match="no slice"):
        make_prompts(VOLUME, positive=INSIDE, absent=[last + 1], axis=axis)


def test_order_of_slices_and_of_the_prompts_on_a_slice():
    """Painted and empty slices come first, then boxes, then clicks; on a slice the box, then positive, then negative clicks."""
    grouped = prompts_by_slice(
        positive=[(1, 2, 6), (3, 4, 0), (5, 6, 6)], negative=[(7, 8, 6), (9, 9, 1)], boxes=[((2, 3, 6), (6, 7, 6))],
        masks={7: painted((1, 1))}, absent=[2],
    )  # fmt: skip
    assert list(grouped) == [7, 2, 6, 0, 1]
    assert grouped[6].points.tolist() == [[1.5, 2.5], [6.5, 7.5], [1, 2], [5, 6], [7, 8]]
    assert grouped[6].labels.tolist() == [2, 3, 1, 1, 0]
    assert (grouped[0].points.tolist(), grouped[0].labels.tolist()) == ([[3, 4]], [1])
    assert (grouped[1].points.tolist(), grouped[1].labels.tolist()) == ([[9, 9]], [0])
    assert {t for t, p in grouped.items() if p.defines_structure} == {7, 2, 6, 0}


@pytest.mark.parametrize(
    ("axis", "box", "t", "corners"),
    [  # x is the first in-plane axis; the box reaches to the outer edges of its corner pixels
        (0, ((4, 2, 3), (4, 6, 7)), 4, [[1.5, 2.5], [6.5, 7.5]]),
        (1, ((2, 4, 3), (6, 4, 7)), 4, [[1.5, 2.5], [6.5, 7.5]]),
        (2, ((0, 0, 4), (9, 11, 4)), 4, [[-0.5, -0.5], [9.5, 11.5]]),
        (2, ((2, 3, 1), (6, 7, 4)), 2, [[1.5, 2.5], [6.5, 7.5]]),  # a thick box applies to its middle slice
    ],
)
def test_box_in_pixels(axis, box, t, corners):
    for grouped in (prompts_by_slice(axis, boxes=[box]), prompts_by_slice(axis, roi=box)):
        assert list(grouped) == [t]
        assert grouped[t].points.tolist() == corners
        assert grouped[t].labels.tolist() == [2, 3]


@pytest.mark.parametrize(
    ("others", "slices"),
    [({"positive": [(4, 4, 6)]}, [6]), ({"boxes": [((2, 3, 0), (6, 7, 0))]}, [0]), ({"masks": {1: painted((4, 4))}}, [1]),
     ({"negative": [(4, 4, 6)]}, [3, 6]), ({"absent": [7]}, [7, 3])],
)  # fmt: skip
def test_region_is_a_box_only_if_nothing_else_shows_the_structure(others, slices):
    assert list(prompts_by_slice(roi=((2, 3, 0), (6, 7, 7)), **others)) == slices


def test_clicks_on_a_painted_slice_belong_to_the_painting():
    painting = painted((4, 4), (4, 5))
    grouped = prompts_by_slice(positive=[(7, 8, 3)], negative=[(4, 5, 3)], masks={3: painting})
    assert np.argwhere(grouped[3].mask).tolist() == [[4, 4], [8, 7]]  # (y, x)
    assert grouped[3].points.shape == (0, 2)
    assert np.argwhere(painting).tolist() == [[4, 4], [4, 5]]  # The user's own array is unchanged.


@pytest.mark.parametrize("prompts", [
    {"positive": [(3, 3, 2)], "absent": [2]},
    {"boxes": [((1, 1, 2), (4, 4, 2))], "absent": [2]},
    {"boxes": [((1, 1, 2), (4, 4, 2)), ((2, 2, 2), (5, 5, 2))]},
])  # fmt: skip
def test_contradictions_on_one_slice_are_refused(prompts):
    volume = Volume(np.zeros((8, 8, 6), np.int16))
    with pytest.raises(PromptError, match="keep one"):
        group_by_slice(make_prompts(volume, **prompts), Frames.of(volume, axis=2))
