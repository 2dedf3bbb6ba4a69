"""The estimate of slice quality is fitted to labelled volumes and written where the engine finds it; the engine is drawn by hand."""

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

T = 40
COLUMN = SIGNALS.index("alike")


class Engine:
    """Leaves out every fourth slice of the reference, and its signal `alike` tells which."""

    def prompts(self, volume, options, **prompts):
        return prompts

    def segment(self, volume, prompts, options):
        mask = volume.array > 0
        mask[..., ::4] = False
        known = np.zeros((T, len(SIGNALS)))
        known[1::2, COLUMN] = 1  # of the slices with a mask, those that are right
        right = np.arange(T) % 2 == 1
        mask[:10, :, 2::4] = False  # half of the mask on the others
        assert right.sum() == T // 2
        return SimpleNamespace(mask=mask, signals=known)


def made(count):
    for _ in range(count):
        array = np.zeros((20, 20, T), np.float32)
        array[4:16, 4:16] = 1
        labels = (array.transpose(2, 1, 0) > 0).astype(np.uint8)
        yield Volume(array, np.eye(4)), labels, [1]


@pytest.fixture
def path(tmp_path):
    return shutil.copy(checkpoints.EMBEDDED, tmp_path / "copy.safetensors")


def test_what_signals_tell_is_learned_and_kept(path, monkeypatch):
    monkeypatch.setattr(estimator_calibration, "Segmenter", Engine)
    options = Options(checkpoint=str(path), axis="2", window="0,1")
    assert estimator_calibration.fit(path, made(8), options, 8) > 0.9
    estimator = QualityEstimator.from_json(checkpoints.metadata(checkpoints.find(path))["slice_quality"])
    x = np.zeros((2, len(SIGNALS)))
    x[1, COLUMN] = 1
    worse, better = estimator(x, np.ones(2, bool))
    assert worse < 0.6 and better > 0.9


@pytest.mark.parametrize("count", [1, 2])
def test_too_little_to_learn_from(path, monkeypatch, count):
    monkeypatch.setattr(estimator_calibration, "Segmenter", Engine)
    with pytest.raises(UserError, match="more labelled volumes"):
        estimator_calibration.fit(path, made(count), Options(checkpoint=str(path), axis="2", window="0,1"), count)


def test_beside_files_that_cannot_hold_it(tmp_path):
    path = tmp_path / "x.pt"
    path.touch()
    checkpoint = replace(checkpoints.find("embedded"), path=path)
    checkpoints.set_metadata(path, slice_quality="{}")
    checkpoints.set_metadata(path, presence_drop="1.0")
    assert checkpoints.metadata(checkpoint) == {"slice_quality": "{}", "presence_drop": "1.0"}
    (tmp_path / "x.pt.json").write_text("{")
    with pytest.raises(checkpoints.CheckpointError, match="calibrate again"):
        checkpoints.metadata(checkpoint)
