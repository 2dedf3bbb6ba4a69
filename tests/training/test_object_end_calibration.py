"""Tests of the calibration of the object's end: its results are written into the checkpoint."""

import shutil

import numpy as np

from lib.model import checkpoints
from lib.training import object_end_calibration
from lib.training.generated_volumes import generate_volume


def test_a_generated_volume_has_structures_that_end():
    volume, labels, structures = generate_volume(0, slices=24, size=64)
    assert volume.shape == (64, 64, 24) and labels.shape == (24, 64, 64)
    for value in structures:
        assert 2 < (labels == value).any((1, 2)).sum() <= 0.8 * 24
    same_volume, _, _ = generate_volume(0, slices=24, size=64)
    np.testing.assert_array_equal(volume.array, same_volume.array)


def test_the_best_limits_are_written_into_the_checkpoint(tmp_path, monkeypatch):
    path = shutil.copy(checkpoints.EMBEDDED, tmp_path / "copy.safetensors")
    before = checkpoints.metadata(checkpoints.find(path))
    volume, labels, structures = generate_volume(3, slices=10, size=48)
    monkeypatch.setattr(object_end_calibration, "generate_volume", lambda n: (volume, labels, structures[:1]))
    outcomes = object_end_calibration.calibrate(path, volumes=1, limits=((0.2, 0.0), (0.7, 4.0)))
    best = max(outcomes, key=lambda pair: outcomes[pair][0])
    after = checkpoints.metadata(checkpoints.find(path))
    assert (float(after["presence_drop"]), float(after["presence_gain"])) == best
    assert after.get("slice_quality") == before.get("slice_quality")
    assert checkpoints.find(path).config == checkpoints.find("embedded").config


def test_a_file_that_was_not_calibrated_has_no_metadata(tmp_path):
    path = tmp_path / "x.pt"
    path.touch()
    assert checkpoints.metadata(checkpoints.Checkpoint("x", "c", 256, path)) == {}
