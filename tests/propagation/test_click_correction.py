"""What the correction network sees lies where it lies in the slice, and what it answers comes back to the same place."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.imaging.masks import bounding_box
from lib.imaging.metrics import dice
from lib.model.correction_network import CHANNELS, CORRECTION_NETWORK
from lib.model.u_net import SIDE
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.click_correction import correct_displayed, network_input
from tests.propagation.drawn_shapes import CLEAR, SHAPES, clicks_at, draw_shape, draw_slice


def disc(shape, y, x, radius):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def displayed_again(inputs):
    """Stands for a network that answers with the displayed mask."""
    return 3 * torch.atanh(inputs[:, 5].clamp(-0.999, 0.999))


@given(
    st.integers(40, 300), st.integers(40, 300), st.floats(0.1, 0.9), st.floats(0.1, 0.9), st.floats(4, 40), st.booleans(),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_an_answer_comes_back_to_its_place(height, width, y_share, x_share, radius, is_inside):
    y, x = int(y_share * height), int(x_share * width)
    mask = disc((height, width), y, x, radius)
    image = np.random.default_rng(0).normal(size=mask.shape).astype(np.float32)
    logits = correct_displayed(displayed_again, image, clicks_at((y, x, is_inside)), np.where(mask, 5.0, -5.0))
    assert logits.shape == mask.shape and logits.dtype == np.float32
    assert dice(logits > 0, mask) > 0.9


@pytest.mark.parametrize("channel", [1, 3])
def test_a_click_lies_where_it_was_made(channel):
    """A network that answers with a map of clicks is largest at the click."""
    click = 70, 121
    prompt = SlicePrompt(np.array([click[::-1], (80, 60)], float), np.array([1, 0] if channel == 1 else [0, 1], np.int32))
    displayed = np.where(disc((150, 200), 80, 100, 30), 5.0, -5.0)
    logits = correct_displayed(lambda inputs: inputs[:, channel], np.zeros((150, 200)), prompt, displayed)
    assert np.hypot(*np.subtract(np.unravel_index(logits.argmax(), logits.shape), click)) <= 1.5


@given(st.integers(40, 200), st.integers(40, 200), st.floats(0.1, 0.7), st.floats(0.1, 0.7), st.integers(2, 40), st.integers(2, 40))
@settings(max_examples=40, deadline=None)
def test_a_box_lies_where_it_was_drawn(height, width, y_share, x_share, rows, columns):
    """A network that answers with the map of the box gives the pixels of the box."""
    y, x = int(y_share * height), int(x_share * width)
    box = np.zeros((height, width), bool)
    box[y : y + rows, x : x + columns] = True
    _, rows, columns = bounding_box(box[None])
    corners = [(columns.start, rows.start), (columns.stop - 1, rows.stop - 1)]
    prompt = SlicePrompt(np.array(corners, float), np.array([2, 3], np.int32))
    logits = correct_displayed(lambda inputs: inputs[:, -1] - 0.5, np.zeros(box.shape), prompt, np.full(box.shape, -5.0))
    assert dice(logits > 0, box) > 0.9


def test_an_even_image_and_no_displayed_mask_are_fine():
    logits = correct_displayed(CORRECTION_NETWORK.load_shipped(), np.full((64, 80), 7, np.int16), clicks_at((30, 40, True)), np.full((64, 80), -5.0))
    assert np.isfinite(logits).all()


def test_the_input_has_a_channel_for_the_displayed_mask_and_nothing_for_missing_clicks():
    inputs = network_input(torch.rand(SIDE, SIDE), [], [(3, 4)], torch.full((SIDE, SIDE), -3.0))
    assert inputs.shape == (CHANNELS, SIDE, SIDE)
    assert not inputs[1:3].any() and inputs[3, 3, 4] == 1 and inputs[4, 3, 4] == 1
    assert torch.allclose(inputs[5], torch.tensor(-1.0).tanh())
    assert not inputs[6].any()
    assert torch.equal(network_input(inputs[0], [], [], inputs[5], np.array([[2.5, 7.5], [5.5, 9.5]]))[6].nonzero()[[0, -1]], torch.tensor([[3, 8], [5, 9]]))


@pytest.mark.parametrize("name", sorted(set(SHAPES) - {"thin_wall"}))
def test_the_network_that_ships_keeps_what_is_right_already(name):
    shape = draw_shape(name)
    y, x = np.argwhere(shape)[len(np.argwhere(shape)) // 2]
    displayed = np.where(shape, 4.0, -4.0)
    assert dice(correct_displayed(CORRECTION_NETWORK.load_shipped(), draw_slice(shape, CLEAR), clicks_at((y, x, True)), displayed) > 0, shape) > 0.8
