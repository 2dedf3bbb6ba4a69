"""Masks carried from slice to slice by patches: discs that move, rest, and vanish."""

import numpy as np
import pytest

from lib.propagation.mask_matching import REACH, carry_mask


def disc(y, x, radius=10):
    rows, columns = np.ogrid[:64, :64]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def image(mask, seed=0):
    return np.where(mask, 0.7, 0.3) + np.random.default_rng(seed).normal(0, 0.02, mask.shape)


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


@pytest.mark.parametrize("step", [(0, 0), (3, 0), (0, -3), (2, 3)])
def test_a_mask_moves_with_its_structure(step):
    before, after = disc(30, 30), disc(30 + step[0], 30 + step[1])
    assert dice(carry_mask(before, image(before, 0), image(after, 1)), after) > 0.97


def test_a_part_of_a_structure_moves_with_it_where_its_texture_tells():
    texture = np.random.default_rng(3).random((64, 64))
    part = disc(30, 30) & (np.arange(64) < 30)
    assert dice(carry_mask(part, texture, np.roll(texture, (2, -3), (0, 1))), np.roll(part, (2, -3), (0, 1))) > 0.97


def test_a_mask_follows_no_farther_than_its_reach():
    before, after = disc(30, 20, 4), disc(30, 20 + 4 * REACH, 4)
    assert not (carry_mask(before, image(before), image(after)) & after).any()


def test_without_any_match_the_mask_stays():
    before, nothing = disc(30, 30, 2), np.zeros((64, 64), bool)
    assert (carry_mask(before, image(before), np.full((64, 64), 0.3)) == before).all()
    assert not carry_mask(nothing, image(before), image(before)).any()


@pytest.mark.parametrize("y, x", [(0, 0), (63, 30), (2, 62)])
def test_at_the_edge_of_the_image(y, x):
    mask = disc(y, x)
    assert dice(carry_mask(mask, image(mask, 0), image(mask, 1)), mask) > 0.97
