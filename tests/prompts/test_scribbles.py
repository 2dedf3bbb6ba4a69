"""Tests of the prompts made from painted slices and strokes, on hand-made masks with slices of 8 x 12 pixels."""

import numpy as np
import pytest

from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.prompts.scribbles import MAX_CLICKS_PER_SLICE, points_along_strokes, prompts_from_layers, split_layers

T = 6
FRAMES = Frames.of(Volume(np.zeros((12, 8, T), np.float32)), axis=2)


def rectangle(slices, rows=(2, 6), columns=(3, 8)):
    """Return a mask (T, 8, 12) with one rectangle on each of the given slices."""
    mask = np.zeros((T, 8, 12), bool)
    for t in slices:
        mask[t, rows[0] : rows[1], columns[0] : columns[1]] = True
    return mask


EMPTY = rectangle(())


def test_layers_are_identified_by_their_names():
    labels = np.array([[[0, 1, 2, 3, 4]]])
    info = [{"name": "liver", "id": 1}, {"name": "spleen", "id": 2}, {"name": "background_scribbles", "id": 3}, {"name": "foreground_scribbles", "id": 4}]
    layers = split_layers(labels, info, "spleen")
    assert [layer.nonzero()[2].tolist() for layer in layers] == [[2], [4], [3]]
    assert [int(layer.sum()) for layer in split_layers(labels, [], "spleen")] == [4, 0, 0]
    assert [int(layer.sum()) for layer in split_layers(labels, [{"name": "x"}, "?"], "spleen")] == [0, 0, 0]


def test_without_a_previous_mask_every_slice_of_the_segment_is_painted():
    prompts = prompts_from_layers(rectangle([1, 3]), EMPTY, EMPTY, FRAMES)
    assert sorted(prompts["masks"]) == [1, 3] and not prompts["positive"]
    assert prompts["masks"][3].tolist() == rectangle([3])[3].T.tolist(), "(I, J) of slice 3"


def test_only_edited_slices_and_those_annotated_before_are_kept():
    previous_mask = rectangle(range(T))
    segment = previous_mask.copy()
    segment[4] = rectangle([4], columns=(3, 11))[4]
    prompts = prompts_from_layers(segment, EMPTY, EMPTY, FRAMES, previous_mask, annotated=[1])
    assert sorted(prompts["masks"]) == [1, 4] and prompts["masks"][4].sum() == 32


def test_an_emptied_slice_becomes_an_empty_painted_slice():
    segment = rectangle(range(5))
    prompts = prompts_from_layers(segment, EMPTY, EMPTY, FRAMES, rectangle(range(T)))
    assert list(prompts["masks"]) == [5] and not prompts["masks"][5].any()


def test_slices_emptied_by_a_new_start_are_no_prompts():
    prompts = prompts_from_layers(rectangle([0], columns=(0, 3)), EMPTY, EMPTY, FRAMES, rectangle(range(1, T)), annotated=[3])
    assert list(prompts["masks"]) == [0]


def test_strokes_become_clicks_and_do_not_count_as_edits():
    previous_mask = rectangle(range(T))
    stroke = rectangle([2], rows=(3, 4), columns=(4, 7))
    segment = previous_mask & ~stroke  # Slicer exports only the topmost layer of each voxel.
    prompts = prompts_from_layers(segment, stroke, EMPTY, FRAMES, previous_mask)
    assert prompts["masks"] == {} and prompts["negative"] == []
    assert sorted(prompts["positive"]) == [(4, 3, 2), (5, 3, 2), (6, 3, 2)]


def test_strokes_on_a_painted_slice_change_its_painting():
    stroke = rectangle([1], rows=(2, 3), columns=(8, 10))
    prompts = prompts_from_layers(rectangle([1]), stroke, EMPTY, FRAMES)
    assert prompts["masks"][1].sum() == 22 and prompts["positive"] == []
    prompts = prompts_from_layers(rectangle([1]), EMPTY, rectangle([1], rows=(2, 3)), FRAMES)
    assert prompts["masks"][1].sum() == 15


@pytest.mark.parametrize("rows, columns, expected", [
    ((3, 4), (2, 3), [(3, 2)]),  # a dot
    ((3, 4), (2, 9), [(3, 5), (3, 2), (3, 8)]),  # a line: its middle, then both ends
])  # fmt: skip
def test_points_along_a_stroke(rows, columns, expected):
    assert points_along_strokes(rectangle([0], rows, columns)[0]) == expected


def test_the_number_of_points_on_a_slice_is_limited():
    dots = np.zeros((9, 40), bool)
    dots[::2, ::2] = True
    assert len(points_along_strokes(dots)) == MAX_CLICKS_PER_SLICE
