"""Masks of a volume become one with all of its prompts, also between the slices that have some."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.imaging.frames import Frames
from lib.imaging.metrics import dice
from lib.imaging.volume import Volume
from lib.model.volume_network import VOLUME_NETWORK, VolumeNetwork
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation import prompt_grid
from lib.propagation.volume_correction import adapt_to_prompts
from tests.propagation.drawn_shapes import box_round, clicks_at

COUNT, SIDE = 11, 48
NETWORK = VOLUME_NETWORK.load_shipped()
INSIDE_CLICK = clicks_at((16, 16, True))
OUTSIDE_CLICK = clicks_at((16, 36, False))
ROWS, COLUMNS = np.mgrid[:SIDE, :SIDE]


def disc(row, column, radius):
    return np.hypot(ROWS - row, COLUMNS - column) < radius


ORGAN, NEIGHBOUR = disc(16, 16, 9), disc(16, 36, 8)


def frames_of(slices):
    """Return frames of slices (T, Y, X)."""
    return Frames.of(Volume(np.stack(slices).transpose(2, 1, 0), np.eye(4)), axis=2, window="0,255")


@pytest.fixture(scope="module")
def frames():
    """Slices that show an organ and its neighbour, equally bright."""
    noise = np.random.default_rng(0).normal(0, 8, (COUNT, SIDE, SIDE))
    return frames_of((110 + 70 * (ORGAN | NEIGHBOUR) + noise).astype(np.float32))


def adapted(mask, frames, prompts, low=0, high=COUNT - 1):
    stack = mask.copy()
    adapt_to_prompts(NETWORK, stack, frames, prompts, low, high)
    return stack


def repeated(mask):
    return np.repeat(mask[None], COUNT, 0)


def test_clicks_outside_take_a_neighbour_away_between_them(frames):
    result = adapted(repeated(ORGAN | NEIGHBOUR), frames, {1: INSIDE_CLICK, 3: OUTSIDE_CLICK, 5: OUTSIDE_CLICK, 7: OUTSIDE_CLICK})
    assert (result[[4, 6]] & NEIGHBOUR).sum() < 0.7 * (2 * NEIGHBOUR.sum())
    assert all(dice(m[:, :26], ORGAN[:, :26]) > 0.97 for m in result)


def test_clicks_inside_add_what_is_missing_between_them(frames):
    mask = repeated(ORGAN)
    mask[[5, 6, 8]] = disc(16, 12, 3)
    result = adapted(mask, frames, {2: INSIDE_CLICK, 3: OUTSIDE_CLICK, 7: INSIDE_CLICK})
    assert all(dice(m, ORGAN) > 0.9 for m in result[[5, 6, 8]])


def test_the_structure_ends_where_tracking_has_ended(frames):
    mask = repeated(ORGAN)
    mask[:3] = mask[8:] = False
    result = adapted(mask, frames, {4: INSIDE_CLICK, 6: INSIDE_CLICK})
    assert not result[:3].any() and not result[8:].any() and result[3:8].any((1, 2)).all()


def test_a_mask_that_agrees_with_image_and_prompts_stays(frames):
    result = adapted(repeated(ORGAN), frames, {2: INSIDE_CLICK, 6: OUTSIDE_CLICK})
    assert all(dice(m, ORGAN) > 0.97 for m in result)


def test_prompts_on_one_slice_change_nothing(frames):
    mask = repeated(ORGAN | NEIGHBOUR)
    assert (adapted(mask, frames, {4: clicks_at((16, 16, True), (16, 36, False))}) == mask).all()


@pytest.mark.parametrize(
    "prompt",
    [
        SlicePrompt(np.zeros((0, 2)), np.zeros(0, np.int32), disc(30, 30, 5)),
        SlicePrompt(np.zeros((0, 2)), np.zeros(0, np.int32), np.zeros((SIDE, SIDE), bool)),
        box_round(disc(30, 30, 5)),
        clicks_at((30, 30, True), (16, 16, False)),
    ],
    ids=["painted", "empty", "box", "two clicks"],
)
def test_sure_slices_stay(frames, prompt):
    mask = repeated(ORGAN)
    mask[6] = disc(30, 30, 5) if prompt.mask is None else prompt.mask
    result = adapted(mask, frames, {2: INSIDE_CLICK, 6: prompt})
    assert (result[6] == mask[6]).all()


def test_a_slice_with_one_click_may_change_but_obeys_it(frames):
    mask = repeated(ORGAN)
    mask[6] = ORGAN | NEIGHBOUR
    clicks = {2: INSIDE_CLICK, 4: OUTSIDE_CLICK, 6: clicks_at((30, 12, True)), 8: OUTSIDE_CLICK}
    assert adapted(mask, frames, clicks)[6, 29:32, 11:14].all()


def test_without_training_nothing_changes(frames):
    mask = repeated(ORGAN | NEIGHBOUR)
    stack = mask.copy()
    adapt_to_prompts(VolumeNetwork().eval(), stack, frames, {3: INSIDE_CLICK, 5: OUTSIDE_CLICK}, 0, COUNT - 1)
    assert (stack == mask).sum() >= mask.size - 9 and not stack[5, 35:38, 35:38].any()


def test_slices_between_two_sure_ones_stay(frames):
    mask = repeated(ORGAN)
    mask[[5, 8]] = ORGAN | NEIGHBOUR
    painted = SlicePrompt(np.zeros((0, 2)), np.zeros(0, np.int32), ORGAN)
    result = adapted(mask, frames, {3: painted, 7: painted, 9: OUTSIDE_CLICK})
    assert (result[3:8] == mask[3:8]).all() and dice(result[8], ORGAN) > 0.9


def test_slices_outside_of_the_range_stay(frames):
    mask = repeated(ORGAN | NEIGHBOUR)
    result = adapted(mask, frames, {3: INSIDE_CLICK, 4: OUTSIDE_CLICK, 6: OUTSIDE_CLICK}, low=3, high=7)
    assert (result[:3] == mask[:3]).all() and (result[8:] == mask[8:]).all()
    assert (result[5] & NEIGHBOUR).sum() < 0.7 * NEIGHBOUR.sum()


def test_an_empty_mask_stays_empty(frames):
    assert not adapted(np.zeros((COUNT, SIDE, SIDE), bool), frames, {5: INSIDE_CLICK}).any()


def test_large_volumes_are_shrunk_and_fine_details_stay(frames, monkeypatch):
    monkeypatch.setattr(prompt_grid, "MOST_CELLS", 4000)
    mask = repeated(ORGAN | NEIGHBOUR)
    mask[:, 40, 5:40] = True  # Thinner than a cell.
    result = adapted(mask, frames, {2: INSIDE_CLICK, 4: OUTSIDE_CLICK, 6: OUTSIDE_CLICK})
    assert (result[5] & NEIGHBOUR).sum() < 0.3 * NEIGHBOUR.sum() and result[:, 40, 5:40].all()
    assert all(dice(m[:30, :26], ORGAN[:30, :26]) > 0.9 for m in result)


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_any_shape_and_any_clicks_can_be_adapted(data):
    shape = data.draw(st.tuples(*(st.integers(1, 12) for _ in range(3))))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    frames, mask = frames_of(rng.integers(0, 255, shape).astype(np.float32)), rng.random(shape) > data.draw(st.sampled_from([0.1, 0.5, 0.9]))
    voxel = st.tuples(*(st.integers(0, n - 1) for n in shape), st.booleans())
    prompts = {t: clicks_at((y, x, inside)) for t, y, x, inside in data.draw(st.lists(voxel, min_size=1, max_size=4))}
    result = mask.copy()
    adapt_to_prompts(NETWORK, result, frames, prompts, 0, shape[0] - 1)
    again = mask.copy()
    adapt_to_prompts(NETWORK, again, frames, prompts, 0, shape[0] - 1)
    assert result.shape == shape and (result == again).all()
