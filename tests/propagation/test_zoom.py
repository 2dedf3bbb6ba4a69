"""Where a slice is decoded again and where a structure is tracked: crops round hand-drawn masks."""

import numpy as np
import torch

from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.zoom import REFINING, TRACKING, best_candidate, surrounding_crop, tracking_crops

NO_POINTS = SlicePrompt(np.zeros((0, 2)), np.zeros(0, np.int32))


def frames(x=100, y=100, spacing=(1, 1, 5)):
    return Frames.of(Volume(np.zeros((x, y, 3), np.int16), np.diag([*spacing, 1.0])), axis=2, window="0,1")


def square(rows, columns, shape=(100, 100)):
    mask = np.zeros(shape, bool)
    mask[slice(*rows), slice(*columns)] = True
    return mask


def test_the_crop_holds_the_structure_with_a_margin():
    rows, columns = surrounding_crop(frames(), [(NO_POINTS, square((40, 60), (30, 45)))], TRACKING)
    assert rows.stop - rows.start == columns.stop - columns.start == 50  # 2 x 20, rounded up to half of 100
    assert rows.start < 40 and rows.stop > 60 and columns.start < 30 and columns.stop > 45


def test_large_structures_and_nothing_at_all_have_no_crop():
    assert surrounding_crop(frames(), [(NO_POINTS, square((10, 90), (10, 90)))], REFINING) is None
    assert surrounding_crop(frames(), [(NO_POINTS, np.zeros((100, 100), bool))], REFINING) is None


def test_a_little_more_mask_gives_the_same_crop():
    crops = [surrounding_crop(frames(), [(NO_POINTS, square((40, 60 + n), (30, 45)))], TRACKING) for n in (0, 1, 2)]
    assert crops[0] == crops[1] == crops[2]


def crops_for(first, **displayed):
    """Return the crops for slices 0..9; keywords like t3 say what slice 3 displays."""
    displayed = {int(t[1:]): s for t, s in displayed.items()}
    return tracking_crops(frames(), first, displayed, list(displayed), 0, 9)


def test_the_first_click_decides_the_crop_while_it_holds_the_rest():
    first = NO_POINTS, square((40, 60), (30, 45))
    crop = surrounding_crop(frames(), [first], TRACKING)
    moved = NO_POINTS, square((44, 64), (36, 51))
    assert surrounding_crop(frames(), [first, moved], TRACKING) != crop
    assert crops_for(first, t2=first, t5=moved) == [(0, 9, crop)]


def test_where_the_rest_does_not_fit_all_annotated_slices_decide():
    first, far, nothing = ((NO_POINTS, square(*s)) for s in (((40, 60), (30, 45)), ((70, 80), (30, 45)), ((0, 0), (0, 0))))
    crop, wider = (surrounding_crop(frames(), s, TRACKING) for s in ([first], [first, far]))
    assert crop != wider
    assert crops_for(first, t5=first, t2=far) == [(0, 5, wider), (5, 9, crop)]
    assert crops_for(first, t2=first, t5=far, t7=first, t8=nothing) == [(0, 2, crop), (2, 7, wider), (7, 9, crop)]
    assert crops_for(first, t0=far, t9=first) == [(0, 9, wider)]


def test_a_first_click_that_displayed_too_much_does_not_decide():
    leaked, small = (NO_POINTS, square((10, 90), (10, 90))), (NO_POINTS, square((40, 50), (40, 50)))
    assert crops_for(leaked, t3=leaked) == [(0, 9, None)]
    assert crops_for(leaked, t3=small) == [(0, 9, surrounding_crop(frames(), [small], TRACKING))]
    half = NO_POINTS, square((30, 55), (30, 55))
    assert crops_for(leaked, t3=half) == [(0, 9, None)]  # not worth to encode a crop for


def test_clicks_outside_the_mask_are_in_the_crop():
    click = SlicePrompt(np.array([[70.0, 20.0]]), np.array([0], np.int32))
    rows, columns = surrounding_crop(frames(), [(click, square((40, 50), (60, 70)))], REFINING)
    assert rows.start <= 20 and columns.stop > 70


def test_the_crop_stays_in_the_slice_and_is_square_in_millimetres():
    wide = frames(x=200, y=50, spacing=(1, 2, 5))  # 200 mm by 100 mm
    rows, columns = surrounding_crop(wide, [(NO_POINTS, square((0, 8), (0, 16), (50, 200)))], TRACKING)
    assert rows.start == columns.start == 0
    assert (rows.stop - rows.start) * 2 == columns.stop - columns.start == 50


def test_prompts_move_with_the_crop():
    click = SlicePrompt(np.array([[70.0, 20.0]]), np.array([1], np.int32), None)
    assert click.cropped(slice(10, 40), slice(60, 90)).points.tolist() == [[10.0, 10.0]]
    painted = SlicePrompt(np.zeros((0, 2)), np.zeros(0, np.int32), square((12, 14), (61, 65)))
    assert painted.cropped(slice(10, 40), slice(60, 90)).mask.sum() == 8


def disc(radius):
    y, x = np.ogrid[:64, :64]
    return (y - 30) ** 2 + (x - 34) ** 2 <= radius**2


def test_agreement_with_the_clicks_comes_first_then_the_clearest_border():
    image = np.where(disc(16), 140, 60).astype(np.uint8)
    candidates = [torch.as_tensor(np.where(disc(r), 3.0, -3.0)) for r in (6, 16, 24)]
    click = SlicePrompt(np.array([[34.0, 30.0]]), np.array([1], np.int32))
    assert best_candidate(image, click, candidates) is candidates[1]
    wider = SlicePrompt(np.array([[34.0, 30.0], [34.0, 50.0]]), np.array([1, 1], np.int32))  # only the largest holds both
    assert best_candidate(image, wider, candidates) is candidates[2]
