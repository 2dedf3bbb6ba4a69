"""Encoding: each slice once, whoever asks, with the real embedded network."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import numpy as np
import pytest
import torch

import lib.model.features
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.model import checkpoints
from lib.model.features import SliceFeatures
from lib.model.worker_pool import run_all


@pytest.fixture(scope="module")
def model():
    return checkpoints.load(checkpoints.find("embedded"))


@pytest.fixture
def features(model):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 9), dtype=np.int16)
    return SliceFeatures(model, Frames.of(Volume(noise), axis=2, window="0,255"), torch.device("cpu"), nullcontext, 3)


def test_a_slice_is_encoded_once_however_many_ask(features, monkeypatch):
    encoded = []
    encode = features._encode
    monkeypatch.setattr(features, "_encode", lambda slices: encoded.extend(slices) or encode(slices))
    asked = [range(9), range(8, -1, -1), range(2, 7), [4], range(9)]
    with ThreadPoolExecutor(len(asked)) as pool:
        counts = list(pool.map(features.ensure, asked))
    assert sorted(encoded) == list(range(9)) and sum(counts) == 9 and features.missing(range(9)) == []


def test_a_slice_has_the_same_features_alone_and_with_others_whoever_encodes_it(model):
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 9), dtype=np.int16)
    frames = Frames.of(Volume(noise), axis=2, window="0,255")

    def new():
        return SliceFeatures(model, frames, torch.device("cpu"), nullcontext, 1)

    levels = new().gather(range(9))[0]
    with ThreadPoolExecutor(3) as pool:
        for alone, t in zip(pool.map(lambda t: new().gather([t])[0], range(9)), range(9), strict=True):
            assert all(torch.equal(a[:, t], b[:, 0]) for a, b in zip(levels, alone, strict=True))


def test_workers_that_wait_for_each_other_do_not_stand_still(model):
    """Workers need slices that a request outside of them is about to encode, more than there are workers."""
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 24), dtype=np.int16)
    features = SliceFeatures(model, Frames.of(Volume(noise), axis=2, window="0,255"), torch.device("cpu"), nullcontext, 1)
    with ThreadPoolExecutor(4) as pool:
        outside = [pool.submit(features.ensure, range(24)) for _ in range(2)]
        within = [pool.submit(run_all, lambda t: features.ensure([t]), range(24), features.device) for _ in range(2)]
        assert sum(f.result(60) for f in outside) + sum(sum(f.result(60)) for f in within) == 24


def test_features_are_kept_in_half_the_memory_and_cached_ones_equal_new_ones(features, model):
    half = SliceFeatures(model, features.frames, features.device, nullcontext, 3, keep_half=True)
    new, again, exact = half.gather(range(9))[0], half.gather(range(9))[0], features.gather(range(9))[0]
    assert half.bytes == features.bytes / 2 > 0
    for a, b, c in zip(new, again, exact, strict=True):
        assert torch.equal(a, b) and a.dtype == torch.float32
        assert torch.allclose(a, c, rtol=1e-3, atol=1e-4) and not torch.equal(a, c)


def test_memory_is_given_back_now_and_then(features, monkeypatch):
    given = []
    monkeypatch.setattr(lib.model.features, "release_memory", lambda: given.append(len(features.missing(range(9)))))
    features.ensure([0])
    monkeypatch.setattr(lib.model.features, "RELEASE_EVERY_BYTES", 3 * features.bytes)
    for t in range(1, 9):
        features.ensure([t])
    assert given == [6, 3, 0], "after every three slices"


def test_a_failure_to_encode_is_told_and_leaves_nothing_behind(features, monkeypatch):
    with monkeypatch.context() as broken:
        broken.setattr(features, "_encode", lambda slices: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            features.ensure([1, 2])
    assert features.missing([1, 2]) == [1, 2] and features.ensure([1, 2]) == 2


@pytest.mark.parametrize(("size", "spacing"), [((32, 32), (1, 1)), ((300, 200), (1, 1)), ((512, 512), (0.7, 0.7)), ((40, 90), (2.5, 0.5))])
@pytest.mark.parametrize("side", [64, 256])
def test_masks_are_where_logits_of_slices_are_positive(model, size, spacing, side):
    volume = Volume(np.zeros((*size, 2), np.int16), np.diag([*spacing, 3.0, 1.0]))
    features = SliceFeatures(model, Frames.of(volume, axis=2, window="0,255"), torch.device("cpu"), nullcontext, 1)
    logits = torch.full((2, side, side), -3.0)
    low, high = side // 8, side // 3
    logits[0, low:high, low : high + 4] = torch.randn((high - low, high + 4 - low), generator=torch.Generator().manual_seed(side)) + 1
    logits[1, high, high] = 40.0
    expected = features.to_slices(logits).numpy()
    found, rows, columns = features.masks(logits)
    whole = np.zeros(expected.shape, bool)
    whole[:, rows, columns] = found
    clear = np.abs(expected) > 1e-4  # the rest is rounding
    np.testing.assert_array_equal(whole[clear], (expected > 0)[clear])
    assert (expected > 0).any() and found.size < expected.size


def test_a_mask_in_the_padding_is_no_mask(model):
    features = SliceFeatures(model, Frames.of(Volume(np.zeros((90, 40, 2), np.int16)), axis=2), torch.device("cpu"), nullcontext, 1)
    logits = torch.full((1, 64, 64), -3.0)
    logits[0, 50:, :] = 5.0
    found, rows, columns = features.masks(logits)
    assert not (features.to_slices(logits) > 0).any() and not found.any()
    assert np.zeros((1, 40, 90), bool)[[0], rows, columns].shape == found.shape


def test_padding_and_aspect_map_back(model):
    """A slice of 100 x 200 pixels of 2 x 1 mm fills the square; one of 50 x 200 isotropic pixels fills a quarter."""
    for shape, spacing, expected in (((200, 100, 2), (1, 2, 5), (256, 256)), ((200, 50, 2), (1, 1, 5), (64, 256))):
        volume = Volume(np.zeros(shape, np.uint8), np.diag([*spacing, 1.0]))
        f = SliceFeatures(model, Frames.of(volume), torch.device("cpu"), nullcontext, 1)
        assert (f.height, f.width) == expected
        assert f.squares([0]).shape == (1, 256, 256)
        corner = np.array([[shape[0] - 0.5, shape[1] - 0.5]])  # the slice's lower right edge, x then y
        np.testing.assert_allclose(f.to_square(corner), [[expected[1] - 0.5, expected[0] - 0.5]])
        mask = np.zeros((shape[1], shape[0]), bool)
        mask[10:40, 20:160] = True
        logits = f.mask_to_square(mask)[0] * 20 - 10
        back = f.to_slices(logits)[0].numpy() > 0
        assert 2 * (back & mask).sum() / (back.sum() + mask.sum()) > 0.95
