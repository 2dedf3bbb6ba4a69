"""The same prompts give the same mask to the last voxel, whatever else was asked, by whomever, in which order."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging.volume import Volume

SETS, CLIENTS = 7, 3


@pytest.fixture(scope="module")
def volume():
    """Two bright balls of different size in noise, 14 slices of 64 x 64."""
    x, y, z = np.meshgrid(np.arange(64), np.arange(64), np.arange(14), indexing="ij")
    balls = (((x - 24) / 12) ** 2 + ((y - 34) / 12) ** 2 + ((z - 6) / 4.5) ** 2 < 1) | ((x - 50) ** 2 + (y - 14) ** 2 + (3 * (z - 8)) ** 2 < 64)
    return Volume((60 + 110 * balls + np.random.default_rng(0).normal(0, 8, balls.shape)).astype(np.float32), np.diag([1.0, 1.0, 3.0, 1.0]))


def random_prompts(seed: int) -> dict:
    """Return one to five clicks on one to three slices, sometimes with a box or a slice that is said to be empty."""
    rng = np.random.default_rng(seed)
    slices = rng.choice(14, rng.integers(1, 4), replace=False)
    clicks = [(int(rng.integers(10, 56)), int(rng.integers(8, 50)), int(rng.choice(slices))) for _ in range(rng.integers(1, 6))]
    inside = clicks[: max(1, len(clicks) * 2 // 3)]
    prompts = {"positive": inside, "negative": [c for c in clicks if c not in inside]}
    others = sorted(set(range(14)) - {c[2] for c in clicks})
    if rng.random() < 0.3:
        prompts["boxes"] = [[(12, 20, others[0]), (38, 48, others[0])]]
    if rng.random() < 0.3:
        prompts["absent"] = [others[-1]]
    return prompts


def segment(segmenter: Segmenter, volume: Volume, seed: int) -> np.ndarray:
    options = Options(components="all", obey=True, refine=True)
    return segmenter.segment(volume, segmenter.prompts(volume, options, **random_prompts(seed)), options).mask


@pytest.fixture(scope="module")
def alone(volume):
    """The mask of each set of prompts, all asked of one engine, one after the other."""
    segmenter = Segmenter()
    masks = [segment(segmenter, volume, seed) for seed in range(SETS)]
    assert sum(mask.sum() > 50 for mask in masks) > SETS // 2, "most of them find something"
    return masks


def test_in_another_order(volume, alone):
    segmenter = Segmenter()
    for seed in np.random.default_rng(1).permutation(SETS).tolist():
        np.testing.assert_array_equal(segment(segmenter, volume, seed), alone[seed])


def test_beside_other_clients_and_the_background(volume, alone):
    segmenter = Segmenter()
    segmenter.prefetch(volume)

    def client(number: int) -> list[tuple[int, np.ndarray]]:
        order = np.random.default_rng(number).permutation(SETS).tolist()
        return [(seed, segment(segmenter, volume, seed)) for seed in order]

    with ThreadPoolExecutor(CLIENTS) as pool:
        for answers in pool.map(client, range(CLIENTS)):
            for seed, mask in answers:
                np.testing.assert_array_equal(mask, alone[seed])


def test_on_a_fresh_engine(volume, alone):
    for seed in range(SETS):
        np.testing.assert_array_equal(segment(Segmenter(), volume, seed), alone[seed])
