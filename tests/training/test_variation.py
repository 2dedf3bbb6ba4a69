"""Varied crops and clips still fit their masks, and corrupt masks are wrong as tracking is."""

import numpy as np
import pytest

from lib.imaging.metrics import dice
from lib.model.u_net import SIDE
from lib.training.correction_crops import CROP_SIDE
from lib.training.variation import corrupt, vary
from tests.training.drawn_discs import disc


@pytest.mark.parametrize("seed", range(8))
def test_a_varied_crop_still_fits_its_mask(seed):
    mask = disc(CROP_SIDE, 72, 72, 24)
    masks = np.stack([mask, disc(CROP_SIDE, 72, 60, 20)])
    pictures, references = vary((masks * 200).astype(np.uint8), masks, SIDE, np.random.default_rng(seed))
    assert pictures.shape == references.shape == (2, SIDE, SIDE) and 16 <= references.sum() < 1.8 * SIDE**2
    inside, outside = pictures.numpy()[references], pictures.numpy()[~references]
    assert abs(inside.mean() - outside.mean()) > 2 * min(inside.std(), outside.std())


def test_corrupt_masks_are_wrong_but_not_elsewhere():
    reference = disc(SIDE, 48, 48, 20)
    dices = [dice(corrupt(reference, np.random.default_rng(seed)), reference) for seed in range(12)]
    assert 0.5 < np.median(dices) < 0.97 and min(dices) > 0


def test_weak_errors_are_smaller():
    reference = disc(SIDE, 48, 48, 20)
    strong, weak = (np.mean([dice(corrupt(reference, np.random.default_rng(seed), s), reference) for seed in range(12)]) for s in (1.0, 0.4))
    assert strong < weak < 1
