"""The inference task with a stand-in for the engine."""

from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from lib.engine.result import Result
from lib.quality.slice_estimates import SliceEstimates
from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.inference.checkpoint_catalog import CheckpointCatalog
from lib.serving.inference.tasks import Sam2Task, VolumeCache

SHAPE = (12, 12, 6)


def make_result() -> Result:
    mask = np.zeros(SHAPE, bool)
    mask[4:8, 4:8, 1:5] = True
    ones = np.ones(SHAPE[2])
    return Result(mask, 2, (3,), SliceEstimates(ones, ones, ones * np.nan, np.zeros((SHAPE[2], 1)), ones / 2))


@pytest.mark.parametrize("later_digest", ["first", "second", ""], ids=["the same image", "exchanged", "removed"])
def test_a_mask_is_remembered_only_if_its_image_is_still_there(tmp_path, later_digest):
    digests = {"scan": "first"}

    def segment(*_):
        digests["scan"] = later_digest
        return make_result()

    nib.save(nib.Nifti1Image(np.zeros(SHAPE, np.int16), np.eye(4)), tmp_path / "scan.nii.gz")
    records = AnnotationRecords(tmp_path / "records", digests.get)
    engine = SimpleNamespace(segment=segment, prefetch=lambda *_: None)
    task = Sam2Task(engine, VolumeCache(), ["liver"], CheckpointCatalog.of("embedded", tmp_path), records)
    request = {"image": str(tmp_path / "scan.nii.gz"), "image_id": "scan", "image_digest": "first", "label": "liver"}
    _, answer = task({**request, "foreground": [[5, 5, 3]]})
    assert answer["voxels"] == 64 and answer["next_slice"]["slice"] != 3
    assert list(records.for_image("scan")) == (["liver"] if later_digest == "first" else [])
