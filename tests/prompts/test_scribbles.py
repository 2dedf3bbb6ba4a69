"""Painted slices and strokes become prompts; masks drawn by hand, slices of 8 x 12."""

import numpy as np
import pytest

from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.prompts.scribbles import MOST, points_along_strokes, prompts_from_layers, split_layers

T = 6
FRAMES = Frames.of(Volume(np.zeros((12, 8, T), np.float32)), axis=2)


def block(slices, rows=(2, 6), columns=(3, 8)):
    out = np.zeros((T, 8, 12), bool)
    for t in slices:
        out[t, rows[0] : rows[1], columns[0] : columns[1]] = True
    return out


NOTHING = block(())


def test_layers_are_told_by_their_names():
    labels = np.array([[[0, 1, 2, 3, 4]]])
    info = [{"name": "liver", "id": 1}, {"name": "spleen", "id": 2}, {"name": "background_scribbles", "id": 3}, {"name": "foreground_scribbles", "id": 4}]
    found = split_layers(labels, info, "spleen")
    assert [f.nonzero()[2].tolist() for f in found] == [[2], [4], [3]]
    assert [int(f.sum()) for f in split_layers(labels, [], "spleen")] == [4, 0, 0]
    assert [int(f.sum()) for f in split_layers(labels, [{"name": "x"}, "?"], "spleen")] == [0, 0, 0]


def test_without_an_answer_every_slice_of_the_segment_is_painted():
    prompts = prompts_from_layers(block([1, 3]), NOTHING, NOTHING, FRAMES)
    assert sorted(prompts["masks"]) == [1, 3] and not prompts["positive"]
    assert prompts["masks"][3].tolist() == block([3])[3].T.tolist(), "(I, J) of slice 3"


def test_only_edited_slices_and_those_annotated_before_are_kept():
    last = block(range(T))
    now = last.copy()
    now[4] = block([4], columns=(3, 11))[4]
    prompts = prompts_from_layers(now, NOTHING, NOTHING, FRAMES, last, annotated=[1])
    assert sorted(prompts["masks"]) == [1, 4] and prompts["masks"][4].sum() == 32


def test_an_emptied_slice_says_not_here():
    now = block(range(5))
    prompts = prompts_from_layers(now, NOTHING, NOTHING, FRAMES, block(range(T)))
    assert list(prompts["masks"]) == [5] and not prompts["masks"][5].any()


def test_who_begins_anew_does_not_say_that_the_rest_is_empty():
    prompts = prompts_from_layers(block([0], columns=(0, 3)), NOTHING, NOTHING, FRAMES, block(range(1, T)), annotated=[3])
    assert list(prompts["masks"]) == [0]


def test_strokes_are_clicks_and_hide_no_edit():
    last = block(range(T))
    stroke = block([2], rows=(3, 4), columns=(4, 7))
    now = last & ~stroke  # Slicer exports the layer that lies on top
    prompts = prompts_from_layers(now, stroke, NOTHING, FRAMES, last)
    assert prompts["masks"] == {} and prompts["negative"] == []
    assert sorted(prompts["positive"]) == [(4, 3, 2), (5, 3, 2), (6, 3, 2)]


def test_strokes_on_a_painted_slice_belong_to_it():
    stroke = block([1], rows=(2, 3), columns=(8, 10))
    prompts = prompts_from_layers(block([1]), stroke, NOTHING, FRAMES)
    assert prompts["masks"][1].sum() == 22 and prompts["positive"] == []
    prompts = prompts_from_layers(block([1]), NOTHING, block([1], rows=(2, 3)), FRAMES)
    assert prompts["masks"][1].sum() == 15


@pytest.mark.parametrize("rows, columns, expected", [
    ((3, 4), (2, 3), [(3, 2)]),  # a dot
    ((3, 4), (2, 9), [(3, 5), (3, 2), (3, 8)]),  # a line: middle, then both ends
])  # fmt: skip
def test_points_along_a_stroke(rows, columns, expected):
    assert points_along_strokes(block([0], rows, columns)[0]) == expected


def test_many_strokes_give_not_too_many_points():
    dots = np.zeros((9, 40), bool)
    dots[::2, ::2] = True
    assert len(points_along_strokes(dots)) == MOST
