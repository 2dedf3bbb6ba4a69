"""Features that do not fit on the device, with tensors of 40 bytes."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch

from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.model import checkpoints
from lib.model.feature_cache import FeatureCache
from lib.model.feature_overflow import FeatureOverflow
from lib.model.features import SliceFeatures


def tensors(value: float):
    return torch.full((5,), float(value)), torch.full((5,), -float(value))


def same(kept, value):
    return kept is not None and all(torch.equal(a, b) for a, b in zip(kept, tensors(value), strict=True))


def test_the_oldest_is_forgotten_first():
    overflow = FeatureOverflow(host_bytes=80)
    for n in (1, 2, 3):
        overflow.put(("a", n), tensors(n))
        overflow.get(("a", 1))
    assert same(overflow.get(("a", 1)), 1) and overflow.get(("a", 2)) is None and same(overflow.get(("a", 3)), 3)


def test_nothing_is_kept_without_memory_or_folder():
    overflow = FeatureOverflow(host_bytes=0)
    overflow.put(("a",), tensors(1))
    assert overflow.get(("a",)) is None


def test_files_outlive_the_process_and_damaged_ones_are_removed(tmp_path):
    FeatureOverflow(host_bytes=0, folder=tmp_path / "cache").put(("a", 1), tensors(1))
    again = FeatureOverflow(host_bytes=0, folder=tmp_path / "cache")
    assert same(again.get(("a", 1)), 1) and again.get(("b", 1)) is None
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(file.read_bytes()[:-9])
    assert again.get(("a", 1)) is None and not list((tmp_path / "cache").iterdir())


def test_the_folder_is_bounded(tmp_path):
    overflow = FeatureOverflow(host_bytes=0, folder=tmp_path, folder_bytes=500)
    for n in range(8):
        overflow.put(("a", n), tensors(n))
    files = list(tmp_path.iterdir())
    assert 0 < sum(f.stat().st_size for f in files) <= 500
    assert same(overflow.get(("a", 7)), 7)


def test_a_full_disk_costs_no_request(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.model.feature_overflow.save_file", full)
    overflow = FeatureOverflow(host_bytes=0, folder=tmp_path)
    overflow.put(("a",), tensors(1))
    assert overflow.get(("a",)) is None and not list(tmp_path.iterdir())


@pytest.mark.parametrize("folder", [False, True])
def test_slices_from_the_overflow_come_back_as_they_were_without_encoding(tmp_path, folder):
    model = checkpoints.load(checkpoints.find("embedded"))
    noise = np.random.default_rng(0).integers(0, 255, (32, 32, 5), dtype=np.int16)
    frames = Frames.of(Volume(noise), axis=2, window="0,255")
    overflow = FeatureOverflow(host_bytes=0 if folder else 1 << 30, folder=tmp_path if folder else None)
    features = SliceFeatures(model, frames, torch.device("cpu"), nullcontext, 2, limit_bytes=1, overflow=overflow, key=("v",))
    first = [features.gather([t])[0] for t in range(5)]
    assert len(features.missing(range(5))) == 4
    assert features.ensure([0]) == 0, "taken back, not encoded"
    features.gather([0, 3, 0])  # 0 is there, 3 is not, and there is room for one only
    for t in range(5):
        assert all(torch.equal(a, b) for a, b in zip(features.gather([t])[0], first[t], strict=True))


def test_volumes_that_make_room_are_put_aside():
    model = checkpoints.load(checkpoints.find("embedded"))
    cache = FeatureCache(limit_bytes=1, overflow=FeatureOverflow(host_bytes=1 << 30))
    for name, seed in (("a", 0), ("b", 1)):
        noise = np.random.default_rng(seed).integers(0, 255, (32, 32, 2), dtype=np.int16)
        frames = Frames.of(Volume(noise), axis=2, window="0,255")

        def make(frames=frames, name=name):
            return SliceFeatures(model, frames, torch.device("cpu"), nullcontext, 2, 1 << 30, cache.overflow, (name,))

        cache.get((name,), make).ensure([0, 1])
        cache.trim()
    assert cache.overflow.get(("a", 0)) is not None and cache.overflow.get(("b", 0)) is None
