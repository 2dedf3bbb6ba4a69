"""Masks that follow the image while they are tracked, on drawn slices and with a network that never looks."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from lib.imaging.metrics import dice
from lib.propagation.mask_refiner import (
    PRIOR_LIMIT,
    MaskRefiner,
    PassRefiner,
    keep_touching,
    signed_depth,
    smooth_within_edges,
)
from tests.propagation.drawn_shapes import CLEAR, draw_slice

SIDE = 64


@dataclass
class Frames:
    """Slices of a volume, (T, Y, X)."""

    stack: np.ndarray


@dataclass
class Features:
    """The part of `SliceFeatures` that a refiner needs: slices that fill a square of four times the masks' side."""

    frames: Frames
    side: int = 4 * SIDE
    height: int = 4 * SIDE
    width: int = 4 * SIDE


def disc(y, x, radius):
    rows, columns = np.ogrid[:SIDE, :SIDE]
    return (rows - y) ** 2 + (columns - x) ** 2 <= radius**2


def logits_of(mask):
    """Return logits as networks give them, unsure at the border."""
    return torch.from_numpy(np.clip(signed_depth(mask), -5, 5).astype(np.float32))


def features_of(masks, difference=CLEAR):
    return Features(Frames(np.stack([draw_slice(m, difference, seed) for seed, m in enumerate(masks)])))


def follow(features, start, steps):
    """Return the masks that a pass refines, and whether the object is there, with a network that always answers what it remembers."""
    refiner, masks, presence = PassRefiner(features, [(0, logits_of(start))]), [], []
    for t in range(1, steps + 1):
        masks.append(refiner.refine(t, logits_of(masks[-1] if masks else start)).numpy() > 0)
        presence.append(refiner.is_present())
        if presence[-1]:
            refiner.accept()
    return masks, presence


def test_a_mask_follows_what_the_network_does_not_see():
    shapes = [disc(32, 32 + t / 2, 8 + t / 2) for t in range(5)]  # It moves and grows.
    masks, presence = follow(features_of(shapes), shapes[0], 4)
    assert dice(masks[-1], shapes[-1]) > max(0.9, dice(shapes[0], shapes[-1]) + 0.1)
    assert all(presence)


def test_the_object_ends_where_it_no_longer_looks_like_itself_and_does_not_come_back():
    shapes = [disc(32, 32, 10)] * 4 + [np.zeros((SIDE, SIDE), bool)] * 4 + [disc(32, 32, 10)] * 2
    _, presence = follow(features_of(shapes), shapes[0], 9)
    assert presence == [True] * 3 + [False] * 6


@pytest.mark.parametrize("place", [32, 56])
def test_the_object_is_there_between_two_slices_that_show_it_in_the_same_place(place):
    empty = np.zeros((SIDE, SIDE), bool)
    shapes = [disc(32, 32, 8), empty, empty, empty, empty, disc(32, place, 6)]
    refiner = MaskRefiner([PassRefiner(features_of(shapes), [(0, logits_of(shapes[0])), (5, logits_of(shapes[5]))])])
    presence, scores = [], torch.tensor([1.0])
    for t in range(1, 5):
        refiner.refine([t], logits_of(shapes[0])[None])
        presence.append(bool(refiner.decide_presence(scores, scores) > 0))
    assert all(presence) == (place == 32)


def test_masks_do_not_spread_into_what_looks_the_same():
    vessel = disc(32, 20, 6)
    features = Features(Frames(np.full((3, SIDE, SIDE), 100.0)))
    refiner = MaskRefiner([PassRefiner(features, [(0, logits_of(vessel))])])
    answer = logits_of(vessel)[None]
    assert not refiner._passes[0].is_active
    assert torch.equal(refiner.refine([1], answer), answer)
    scores = torch.tensor([-3.0])
    assert torch.equal(refiner.decide_presence(scores, torch.tensor([2.0])), scores), "the older rule decides"


def test_intensities_tell_the_end_also_of_what_they_cannot_refine():
    """A bright structure with a dark stripe in patches as bright and as dark: its mask is the network's until only patches are left."""
    rows, columns = np.ogrid[:SIDE, :SIDE]
    patches = np.where((rows // 8 + columns // 8) % 2, 130.0, 100.0)
    shape = disc(32, 32, 12)
    structure = np.where(shape, np.where(abs(columns - 32) < 3, 100.0, 130.0), patches)
    refining = PassRefiner(Features(Frames(np.array([structure] * 5 + [patches] * 5))), [(0, logits_of(shape))])
    refiner, scores, answer, presence = MaskRefiner([refining]), torch.tensor([3.0]), logits_of(shape)[None], []
    assert not refining.is_active and refining.decides_end
    for t in range(1, 10):
        assert torch.equal(refiner.refine([t], answer), answer)
        presence.append(bool(refiner.decide_presence(scores, scores) > 0))
        refiner.accept(presence[-1:])
    assert presence == [True] * 4 + [False] * 5


def test_each_row_of_a_batch_is_refined_alone():
    shapes = [disc(32, 32, 10)] * 4
    features = features_of(shapes)
    refiner = MaskRefiner([PassRefiner(features, [(0, logits_of(shapes[0]))]), PassRefiner(features, [(3, logits_of(disc(20, 20, 3)))])])
    both = refiner.refine([1, 2], torch.stack([logits_of(shapes[0]), logits_of(disc(20, 20, 3))]))
    alone = refiner.select([0]).refine([1], logits_of(shapes[0])[None])
    assert torch.equal(both[:1], alone)


def test_leaps_of_the_area_are_left_to_the_network():
    shapes = [disc(32, 32, 8), disc(32, 32, 14)]
    refiner = PassRefiner(features_of(shapes), [(0, logits_of(shapes[0]))])
    assert refiner.is_active
    refined = refiner.refine(1, logits_of(shapes[0])) > 0
    assert refined.sum() <= 1.3 * shapes[0].sum()


@pytest.mark.parametrize(("side", "height", "width"), [(64, 256, 256), (64, 256, 100), (256, 1024, 700)])
def test_logits_keep_their_size_and_padding_stays_outside(side, height, width):
    features = Features(Frames(np.stack([draw_slice(disc(32, 10, 8), CLEAR)] * 2)), side=4 * side, height=height, width=width)
    logits = torch.full((side, side), -5.0)
    logits[: height // 8, : width // 8] = 5.0
    refined = PassRefiner(features, [(0, logits)]).refine(1, logits)
    assert refined.shape == logits.shape and torch.isfinite(refined).all()
    assert not (refined[:, -(-width * side // (4 * side)) :] > 0).any()


# --- parts -----------------------------------------------------------------------------------------------------------
def test_depth_is_positive_inside_and_far_from_an_empty_mask():
    depth = signed_depth(disc(32, 32, 10))
    assert depth[32, 32] == pytest.approx(10, abs=1) and depth[32, 43] == pytest.approx(-0.5) and depth[0, 0] < -PRIOR_LIMIT
    assert (signed_depth(np.zeros((8, 8), bool)) < 0).all()


def test_smoothing_fills_holes_but_keeps_to_edges():
    shape = disc(32, 32, 12)
    logits = np.where(shape, 3.0, -3.0)
    logits[30:32, 30:32] = -3.0
    smooth = smooth_within_edges(logits, shape.astype(float))
    np.testing.assert_array_equal(smooth > 0, shape)


def test_components_that_do_not_touch_the_previous_mask_go():
    both = np.where(disc(15, 15, 6) | disc(45, 45, 8), 3.0, -3.0)
    np.testing.assert_array_equal(keep_touching(both, disc(16, 16, 3)) > 0, disc(15, 15, 6))
    np.testing.assert_array_equal(keep_touching(both, np.zeros_like(both, bool)) > 0, disc(45, 45, 8))
