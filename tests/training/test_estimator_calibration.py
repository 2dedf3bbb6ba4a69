"""Tests of the calibration of the quality estimate, with a simulated engine: it is fitted and written into the checkpoint."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lib.common.errors import UserError
from lib.engine.options import Options
from lib.imaging.volume import Volume
from lib.model import checkpoints
from lib.quality.estimator import SIGNALS, QualityEstimator
from lib.training import estimator_calibration

SLICES = 40
COLUMN = SIGNALS.index("likeness")


class SimulatedEngine:
    """An engine whose signal `likeness` is 1 on slices with a right mask; other masks are empty or only half of the structure."""

    def prompts(self, volume, options, **prompts):
        return prompts

    def segment(self, volume, prompts, options):
        mask = volume.array > 0
        mask[..., ::4] = False
        signals = np.zeros((SLICES, len(SIGNALS)))
        is_right = np.arange(SLICES) % 2 == 1
        signals[is_right, COLUMN] = 1
        assert is_right.sum() == SLICES // 2
        mask[:10, :, 2::4] = False
        return SimpleNamespace(mask=mask, estimates=SimpleNamespace(signals=signals))


def generate_labelled_volumes(count):
    """Yield the same volume with one structure on all slices `count` times."""
    for _ in range(count):
        array = np.zeros((20, 20, SLICES), np.float32)
        array[4:16, 4:16] = 1
        labels = (array.transpose(2, 1, 0) > 0).astype(np.uint8)
        yield Volume(array, np.eye(4)), labels, [1]


@pytest.fixture
def path(tmp_path):
    return shutil.copy(checkpoints.EMBEDDED, tmp_path / "copy.safetensors")


def test_the_estimate_learns_from_the_signals_and_is_written_into_the_checkpoint(path, monkeypatch):
    monkeypatch.setattr(estimator_calibration, "Segmenter", SimulatedEngine)
    options = Options(checkpoint=str(path), axis="2", window="0,1")
    assert estimator_calibration.fit(path, generate_labelled_volumes(8), options, 8) > 0.9
    estimator = QualityEstimator.from_json(checkpoints.metadata(checkpoints.find(path))["slice_quality"])
    signals = np.zeros((2, len(SIGNALS)))
    signals[1, COLUMN] = 1
    worse, better = estimator.predict(signals, np.ones(2, bool))
    assert worse < 0.6 and better > 0.9


@pytest.mark.parametrize("count", [1, 2])
def test_too_few_volumes_are_refused(path, monkeypatch, count):
    monkeypatch.setattr(estimator_calibration, "Segmenter", SimulatedEngine)
    with pytest.raises(UserError, match="more labelled volumes"):
        estimator_calibration.fit(path, generate_labelled_volumes(count), Options(checkpoint=str(path), axis="2", window="0,1"), count)


def test_metadata_lies_beside_files_that_cannot_hold_it(tmp_path):
    path = tmp_path / "x.pt"
    path.touch()
    checkpoint = replace(checkpoints.find("embedded"), path=path)
    checkpoints.set_metadata(path, slice_quality="{}")
    checkpoints.set_metadata(path, presence_drop="1.0")
    assert checkpoints.metadata(checkpoint) == {"slice_quality": "{}", "presence_drop": "1.0"}
    (tmp_path / "x.pt.json").write_text("{")
    with pytest.raises(checkpoints.CheckpointError, match="calibrate again"):
        checkpoints.metadata(checkpoint)
