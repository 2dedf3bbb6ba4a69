"""Masks become smooth across slices, within the edges of the image."""

import numpy as np
import pytest
import torch

from lib.imaging.metrics import dice
from lib.model.sam2_network import ABSENT_LOGIT
from lib.propagation.tracks import Tracks
from lib.propagation.volume_smoothing import smooth_tracks
from tests.propagation.drawn_shapes import CLEAR, draw_slice
from tests.propagation.test_mask_refiner import Features, Frames, disc

LAST = 8


def tracks_of(masks):
    logits = torch.from_numpy(np.where(masks, 3.0, -3.0).astype(np.float32))
    logits[~torch.from_numpy(masks.any((1, 2)))] = ABSENT_LOGIT
    return Tracks(logits, *(torch.zeros(len(masks)) for _ in range(3)))


def features_of(cylinder):
    """Return slices of four times the masks' resolution that show a bright cylinder."""
    large = np.kron(cylinder, np.ones((4, 4))).astype(bool)
    return Features(Frames(np.stack([draw_slice(large, CLEAR, seed) for seed in range(LAST + 1)])))


@pytest.fixture(scope="module")
def cylinder():
    return disc(32, 32, 12)


def smooth(masks, cylinder, annotated=(0,), low=0, high=LAST):
    return smooth_tracks(tracks_of(masks), features_of(cylinder), annotated, low, high).logits.numpy() > 0


def test_a_slice_that_disagrees_with_its_neighbours_is_mended(cylinder):
    masks = np.stack([cylinder] * (LAST + 1))
    masks[4] &= ~disc(32, 38, 6)
    assert dice(masks[4], cylinder) < 0.86
    assert dice(smooth(masks, cylinder)[4], cylinder) > 0.95


def test_masks_do_not_spread_across_edges_of_the_image(cylinder):
    masks = np.stack([cylinder] * (LAST + 1))
    assert all(dice(m, cylinder) > 0.97 for m in smooth(masks, cylinder))


def test_annotated_slices_stay_as_they_are(cylinder):
    masks = np.stack([cylinder] * (LAST + 1))
    masks[4] = disc(20, 20, 5)
    np.testing.assert_array_equal(smooth(masks, cylinder, annotated=(0, 4))[4], masks[4])


def test_slices_outside_the_range_stay_empty(cylinder):
    masks = np.stack([cylinder] * (LAST + 1))
    masks[:3] = masks[7:] = False
    result = smooth(masks, cylinder, annotated=(4,), low=3, high=6)
    assert not result[:3].any() and not result[7:].any() and result[3:7].any((1, 2)).all()


def test_no_mask_stays_no_mask(cylinder):
    masks = np.zeros((LAST + 1, *cylinder.shape), bool)
    assert not smooth(masks, cylinder).any()
