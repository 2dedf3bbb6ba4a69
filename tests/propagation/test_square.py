"""What lies in a slice lies at the same place of its square, and comes back from there."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lib.imaging.metrics import dice
from lib.model.u_net import SIDE
from lib.propagation.square import Square


def disc(shape, y, x, radius):
    rows, columns = np.ogrid[: shape[0], : shape[1]]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


@given(st.integers(30, 200), st.integers(30, 200), st.floats(0.2, 0.8), st.floats(0.2, 0.8), st.floats(0.6, 5.0))
@settings(max_examples=40, deadline=None)
def test_a_mask_comes_back_to_its_place(height, width, y_share, x_share, zoom):
    y, x = y_share * height, x_share * width
    mask = disc((height, width), y, x, 0.3 * SIDE / zoom)
    square = Square(np.array([y, x]), zoom)
    cut, _ = square.cut(np.where(mask, 1.0, -1.0))
    assert dice(square.enlarge(cut, mask.shape, -1.0) > 0, mask) > 0.9


def test_a_point_lies_where_its_pixel_is_cut():
    image = np.zeros((120, 150))
    image[70, 40] = 1.0
    square = Square(np.array([60.0, 50.0]), 3.0)
    row, column = square.from_slice(np.array([[70, 40]]))[0]
    cut = square.cut(image)[0].numpy()
    assert np.hypot(*np.subtract(np.unravel_index(cut.argmax(), cut.shape), (row, column))) <= 1.5


def test_beyond_the_square_the_slice_is_what_it_was_and_beyond_the_slice_the_square_knows_it():
    square = Square(np.array([10.0, 10.0]), 2.0)
    values = square.enlarge(square.cut(np.ones((100, 100)))[0], (100, 100), np.full((100, 100), -7.0))
    assert values[10, 10] == 1 and values[90, 90] == -7
    assert not square.cut(np.ones((100, 100)))[1][0, 0] and square.cut(np.ones((100, 100)))[1][48, 48]
