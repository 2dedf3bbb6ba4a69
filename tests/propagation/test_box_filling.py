"""The mask of a box fills the box, whatever the network answers; on drawn shapes and in general."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from lib.imaging.metrics import dice
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.box_filling import MIN_BOX_IOU, box_iou, box_pixels, fill_box
from tests.propagation.drawn_shapes import CLEAR, NOISE, SHAPES, WEAK, box_round, draw_shape, draw_slice

NOTHING = np.full((96, 96), -1024.0, np.float32)


@pytest.mark.parametrize("difference", [CLEAR, WEAK])
@pytest.mark.parametrize("name", SHAPES)
def test_a_box_finds_every_shape_even_if_the_network_finds_nothing(name, difference):
    shape = draw_shape(name)
    mask = fill_box(draw_slice(shape, difference), box_round(shape), NOTHING) > 0
    assert box_iou(mask, shape) >= MIN_BOX_IOU
    assert dice(mask, shape) > (0.85 if difference == CLEAR else 0.6)


def test_the_hole_of_a_ring_is_not_taken_for_the_ring():
    ring = draw_shape("ring")
    rows, columns = np.ogrid[:96, :96]
    hole = np.where((rows - 48) ** 2 + (columns - 48) ** 2 < 14**2, 5.0, -5.0)
    assert dice(fill_box(draw_slice(ring, CLEAR), box_round(ring), hole) > 0, ring) > 0.9


def test_a_mask_with_clear_borders_is_kept_within_the_box():
    dot = draw_shape("dot")
    leaking = np.where(dot, 5.0, -5.0)
    leaking[10:20, 10:20] = 5.0
    mask = fill_box(draw_slice(dot, CLEAR), box_round(dot), leaking) > 0
    assert dice(mask, dot) > 0.9 and not mask[:30, :30].any()


def test_what_goes_on_outside_of_the_box_is_not_taken_for_the_structure():
    y, x = np.mgrid[:96, :96] - 48.0
    in_rows = abs(y) < 24
    shape = (abs(x) < 12 + 12 * (y / 24) ** 2) & in_rows
    dark = (abs(x) < 30) & (abs(y) < 26) & ~shape  # On both sides of the shape, and beyond the box.
    image = ndimage.gaussian_filter(np.where(shape, CLEAR, np.where(dark, -CLEAR, 0.7 * CLEAR)), 0.8)
    noise = ndimage.gaussian_filter(np.random.default_rng(0).normal(size=image.shape), 0.7)
    assert dice(fill_box((image + NOISE * noise).astype(np.float32), box_round(shape), NOTHING) > 0, shape) > 0.8


def test_a_box_is_also_answered_by_what_corrects_beside_the_network():
    shape = draw_shape("ring")
    rows, columns = np.ogrid[:96, :96]
    wrong = np.where((rows - 48) ** 2 + (columns - 48) ** 2 < 30**2, 4.0, -4.0).astype(np.float32)
    image = np.zeros((96, 96), np.float32)  # Says nothing.
    alone, corrected = (
        fill_box(image, box_round(shape), wrong / 4, c) > 0 for c in (None, lambda *_: np.where(shape, 4.0, -4.0).astype(np.float32))
    )
    assert dice(corrected, shape) > 0.9 > dice(alone, shape)


@pytest.mark.parametrize("name", SHAPES)
def test_a_box_is_filled_whatever_corrects_beside_the_network(name):
    shape = draw_shape(name)
    mask = fill_box(draw_slice(shape, WEAK), box_round(shape), NOTHING, lambda *_: np.where(shape, -4.0, 4.0)) > 0
    assert box_iou(mask, shape) >= MIN_BOX_IOU


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 38), st.integers(0, 38), st.integers(1, 39), st.integers(1, 39), st.integers(0, 10**6),
    st.sampled_from(["none", "all", "noise"]), st.booleans(),
)  # fmt: skip
def test_every_box_is_filled(top, left, height, width, seed, answer, is_flat):
    random = np.random.default_rng(seed)
    bottom, right = min(top + height, 39), min(left + width, 39)
    prompt = SlicePrompt(np.array([(left - 0.5, top - 0.5), (right + 0.5, bottom + 0.5)]), np.array([2, 3], np.int32))
    image = np.zeros((40, 40), np.float32) if is_flat else random.normal(size=(40, 40)).astype(np.float32)
    logits = {"none": np.full((40, 40), -1024.0), "all": np.full((40, 40), 9.0), "noise": random.normal(size=(40, 40))}[answer]
    box = np.zeros((40, 40), bool)
    box[top : bottom + 1, left : right + 1] = True
    assert box_pixels(prompt, (40, 40)) == (slice(top, bottom + 1), slice(left, right + 1))
    result = fill_box(image, prompt, logits.astype(np.float32))
    assert np.isfinite(result).all() and not (result > 0)[~box].any()
    assert box_iou(result > 0, box) >= MIN_BOX_IOU
