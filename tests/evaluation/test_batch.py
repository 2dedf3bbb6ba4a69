"""Test the pre-annotation of a folder of images."""

import json

import nibabel as nib
import numpy as np
import pytest

import main
from lib.common.errors import UserError
from lib.engine.options import Options
from lib.evaluation import batch
from lib.evaluation.distribute import run_in_process


@pytest.fixture
def studies(balls, tmp_path):
    """Return a folder of three images and a folder with prompts of the first in JSON and of the second as a label map."""
    folder, prompts = tmp_path / "studies", tmp_path / "prompts"
    folder.mkdir()
    prompts.mkdir()
    for n in range(3):
        (folder / f"ball_{n}.nii.gz").write_bytes((balls / "imagesTr" / f"ball_{n}.nii.gz").read_bytes())
    requests = {"large": {"foreground": [[16, 20, 4]], "background": [[2, 2, 4]]}, "small": {"boxes": [[[30, 18, 4], [42, 30, 4]]]}}
    (prompts / "ball_0.json").write_text(json.dumps(requests))
    labels = nib.load(balls / "labelsTr" / "ball_1.nii.gz")
    painted = np.asarray(labels.dataobj).copy()
    painted[:, :, [t for t in range(8) if t != 4]] = 0
    nib.save(nib.Nifti1Image(painted, labels.affine), prompts / "ball_1.nii.gz")
    return folder, prompts


def no_progress(reports, total):
    """Return the reports without displaying progress."""
    return reports


def read_labels(path):
    """Return the voxels of a label map."""
    return np.asarray(nib.load(path).dataobj)


def test_label_maps_where_servers_find_them(studies, balls):
    folder, prompts = studies
    assert main.main(["batch", "--studies", str(folder), "--prompts", str(prompts), "--device", "cpu"]) == 0
    out = folder / "labels" / "original"
    assert sorted(p.name for p in out.iterdir()) == ["ball_0.json", "ball_0.nii.gz", "ball_1.json", "ball_1.nii.gz"]
    assert json.loads((out / "ball_0.json").read_text()) == {"large": 1, "small": 2}
    assert json.loads((out / "ball_1.json").read_text()) == {"label_1": 1, "label_2": 2}
    for n in (0, 1):
        reference, labels = read_labels(balls / "labelsTr" / f"ball_{n}.nii.gz"), read_labels(out / f"ball_{n}.nii.gz")
        for value in (1, 2):
            overlap = ((reference == value) & (labels == value)).sum()
            assert 2 * overlap / ((reference == value).sum() + (labels == value).sum()) > 0.6, (n, value)
    np.testing.assert_array_equal(read_labels(out / "ball_1.nii.gz")[:, :, 4], reference[:, :, 4], "a painted slice stays as it is")


def test_finished_images_are_left_alone(studies, tmp_path):
    cases = batch.find_cases_with_prompts(*studies)
    assert [c.name for c in cases] == ["ball_0", "ball_1"], "without the image that has no prompts"
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "ball_0.nii.gz").write_bytes(b"")
    reports = list(batch.run_cases(cases, tmp_path / "out", Options(), run_in_process, no_progress))
    assert [r["case"] for r in reports] == ["ball_1"] and reports[0]["voxels"]["label_1"] > 100
    again = list(batch.run_cases(cases[:1], tmp_path / "out", Options(), run_in_process, no_progress, resume=False))
    assert [r["case"] for r in again] == ["ball_0"]


@pytest.mark.parametrize("content, words", [
    ("{", "does not map"), ("[1, 2]", "does not map"), ("{}", "no prompts"), ('{"liver": {}}', "click inside"),
    ('{"liver": {"foreground": [[1, 2, 300]]}}', "outside the volume"), ('{"liver": 7}', "does not map"),
])  # fmt: skip
def test_wrong_prompts_do_not_stop_the_others(studies, tmp_path, content, words):
    folder, prompts = studies
    (prompts / "ball_0.json").write_text(content)
    cases = batch.find_cases_with_prompts(folder, prompts)
    reports = list(batch.run_cases(cases, tmp_path / "out", Options(), run_in_process, no_progress))
    assert words in reports[0]["error"] and "error" not in reports[1] and not (tmp_path / "out" / "ball_0.nii.gz").exists()


def test_wrong_folders(studies, tmp_path):
    folder, prompts = studies
    for pair in ((tmp_path / "nowhere", prompts), (folder, tmp_path / "nowhere")):
        with pytest.raises(UserError, match="no folder"):
            batch.find_cases_with_prompts(*pair)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="NAME.json"):
        batch.find_cases_with_prompts(folder, tmp_path / "empty")
