"""Test small copies of the folder layout of every data set."""

import json
import sys
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from lib.common.errors import UserError
from lib.evaluation.dataset_layouts import detect_dataset, select_cases


def write_images(folder, *names):
    """Write small images with these names."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        nib.save(nib.Nifti1Image(np.zeros((3, 3, 2), np.uint8), np.eye(4)), path)


LAYOUTS = {
    "BTCV": (
        ["img/img0001.nii.gz", "label/label0001.nii.gz", "img/img0004.nii.gz", "label/label0004.nii.gz", "img/img0061.nii.gz"],
        [("img0001", "label/label0001.nii.gz"), ("img0004", "label/label0004.nii.gz")], {1: "spleen", 6: "liver", 13: "left adrenal gland"},
    ),
    "AbdomenCT-1K": (
        ["AbdomenCT-1K-ImagePart1/Case_00001_0000.nii.gz", "AbdomenCT-1K-ImagePart2/Case_00501_0000.nii.gz", "Mask/Case_00001.nii.gz",
         "Mask/Case_00501.nii.gz", "AbdomenCT-1K-ImagePart2/Case_00502_0000.nii.gz"],
        [("Case_00001_0000", "Mask/Case_00001.nii.gz"), ("Case_00501_0000", "Mask/Case_00501.nii.gz")], {1: "liver", 2: "kidney"},
    ),
    "FLARE22": (
        ["images/FLARE22_Tr_0001_0000.nii.gz", "labels/FLARE22_Tr_0001.nii.gz", "images/FLARE22_Tr_0002_0000.nii.gz"],
        [("FLARE22_Tr_0001_0000", "labels/FLARE22_Tr_0001.nii.gz")], {1: "liver", 13: "left kidney"},
    ),
    "BraTS2020": (
        [f"BraTS20_Training_00{n}/BraTS20_Training_00{n}_{kind}.nii.gz" for n in (1, 2) for kind in ("t1", "flair", "seg")],
        [(f"BraTS20_Training_00{n}_flair", f"BraTS20_Training_00{n}/BraTS20_Training_00{n}_seg.nii.gz") for n in (1, 2)],
        {1: "whole tumour", 2: "whole tumour", 4: "whole tumour"},
    ),
    "CT-ORG": (
        ["volume-0.nii.gz", "labels-0.nii.gz", "volume-10.nii.gz", "labels-10.nii.gz", "volume-2.nii.gz", "labels-2.nii.gz"],
        [("volume-0", "labels-0.nii.gz"), ("volume-2", "labels-2.nii.gz"), ("volume-10", "labels-10.nii.gz")], {1: "liver", 6: "brain"},
    ),
}  # fmt: skip
SUBFOLDERS = {"BTCV": "RawData/Training", "FLARE22": "Training/FLARE22_LabeledCase50", "BraTS2020": "MICCAI_BraTS2020_TrainingData",
         "CT-ORG": "OrganSegmentations"}  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("in_subfolder", [False, True])
def test_layouts_are_recognized(tmp_path, name, in_subfolder):
    """The layout may start in the folder itself or in the subfolder into which the archive is unpacked."""
    files, pairs, labels = LAYOUTS[name]
    root = tmp_path / SUBFOLDERS.get(name, "") if in_subfolder else tmp_path
    write_images(root, *files)
    data = detect_dataset(tmp_path)
    assert data.name == name
    assert [(c.name, c.label) for c in data.cases] == [(case, root / label) for case, label in pairs]
    assert all(c.image.is_file() and labels.items() <= c.labels.items() for c in data.cases)


@pytest.mark.parametrize("folder, name, expected", [
    ("Task09_Spleen", "Spleen", "MSD09"), ("mine", "my data", "my data"), ("mine", None, "mine"),
])  # fmt: skip
def test_decathlon(tmp_path, folder, name, expected):
    root = tmp_path / folder
    write_images(root, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    row = {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}
    content = {"labels": {"0": "background", "1": "spleen"}, "training": [row]} | ({"name": name} if name else {})
    (root / "dataset.json").write_text(json.dumps(content))
    data = detect_dataset(root)
    assert data.name == expected and [(c.name, c.labels) for c in data.cases] == [("a", {1: "spleen"})]


@pytest.mark.parametrize("folder, download, words", [
    ("nowhere", True, "no folder"), ("Task09_Spleen", False, "--download"), (".", False, "no known layout"),
])  # fmt: skip
def test_other_folders_are_refused(tmp_path, folder, download, words):
    with pytest.raises(UserError, match=words):
        detect_dataset(tmp_path / folder, download)


def test_a_broken_dataset_json_is_named_in_the_error(tmp_path):
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(UserError, match="dataset.json"):
        detect_dataset(tmp_path)


def test_download_goes_to_the_folder(tmp_path, monkeypatch):
    """MONAI's class downloads the task; the test replaces it, because there may be no network."""
    def download_task(root, task, section, download, cache_num):
        assert (task, section, download, cache_num) == ("Task09_Spleen", "training", True, 0)
        write_images(root / task, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
        row = {"image": "imagesTr/a.nii.gz", "label": "labelsTr/a.nii.gz"}
        (root / task / "dataset.json").write_text(json.dumps({"labels": {"1": "spleen"}, "training": [row]}))

    monkeypatch.setitem(sys.modules, "monai.apps", SimpleNamespace(DecathlonDataset=download_task))
    data = detect_dataset(tmp_path / "data" / "Task09_Spleen", download=True)
    assert data.name == "MSD09" and len(data.cases) == 1


def test_a_failed_download_is_a_user_error(tmp_path, monkeypatch):
    def download_task(*_, **__):
        raise RuntimeError("no route to host")

    monkeypatch.setitem(sys.modules, "monai.apps", SimpleNamespace(DecathlonDataset=download_task))
    with pytest.raises(UserError, match="no route"):
        detect_dataset(tmp_path / "Task09_Spleen", download=True)


def test_select_cases(tmp_path):
    write_images(tmp_path, *LAYOUTS["CT-ORG"][0])
    cases = detect_dataset(tmp_path).cases
    assert [c.name for c in select_cases(cases, limit=2)] == ["volume-0", "volume-2"]
    assert [c.name for c in select_cases(cases, ("volume-10", "volume-0"))] == ["volume-0", "volume-10"], "in the order of the data"
    with pytest.raises(UserError, match="volume-7"):
        select_cases(cases, ("volume-7",))
