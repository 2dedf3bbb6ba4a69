"""Random walks end at the seed that no edge of the image keeps them from."""

import numpy as np
import pytest

from lib.propagation.random_walk import INSIDE, OUTSIDE, walk_to_seeds


def seeds(shape, **places):
    result = np.zeros(shape, np.int8)
    result[places["inside"]], result[places["outside"]] = INSIDE, OUTSIDE
    return result


def test_a_walk_hardly_crosses_an_edge():
    image = np.zeros((5, 12, 20), np.float32)
    image[:, :, 14:] = 2.0
    probability = walk_to_seeds(image, seeds(image.shape, inside=(2, 6, 2), outside=(2, 6, 18)))
    assert probability[:, :, :14].min() > 0.7 and probability[:, :, 14:].max() < 0.3


@pytest.mark.parametrize("axis", range(3))
def test_in_an_even_image_the_nearer_seed_decides(axis):
    first, last = ([slice(None)] * 3 for _ in range(2))
    first[axis], last[axis] = 0, -1
    probability = walk_to_seeds(np.zeros((9, 9, 9), np.float32), seeds((9, 9, 9), inside=tuple(first), outside=tuple(last)))
    profile = np.moveaxis(probability, axis, 0).mean((1, 2))
    assert profile == pytest.approx(np.linspace(1, 0, 9), abs=0.03)


def test_seeds_keep_their_side():
    marked = seeds((4, 6, 6), inside=(1, 2, 2), outside=(2, 4, 4))
    probability = walk_to_seeds(np.random.default_rng(0).normal(size=(4, 6, 6)).astype(np.float32), marked)
    assert probability[1, 2, 2] == 1 and probability[2, 4, 4] == 0 and probability.min() > -0.05 and probability.max() < 1.05
