"""Tests of finding labelled images in small folders of both layouts."""

import json

import nibabel as nib
import numpy as np
import pytest

from lib.common.errors import UserError, VolumeError
from lib.imaging.datasets import Case, case_from_files, find_cases, read_cases
from lib.imaging.readers import read_volume
from lib.imaging.writers import write_mask
from tests.imaging.real_cases import save_dicom, series

LABELS = {"0": "background", "1": "liver", "3": "spleen"}


def save(path, *values, shape=(5, 4, 3)):
    """Save an image with these values in its first voxels and 0 elsewhere; return its path."""
    array = np.zeros(shape, np.uint8)
    array.ravel()[: len(values)] = values
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return path


def test_images_of_one_name_are_cases_of_their_own(tmp_path):
    rows = [{"image": f"./{patient}/flair.nii.gz", "label": f"./{patient}/seg.nii.gz"} for patient in ("p1", "p2")]
    rows.append({"image": "p3/other.nii.gz", "label": "p3/seg.nii.gz"})
    (tmp_path / "dataset.json").write_text(json.dumps({"training": rows}))
    assert [c.name for c in read_cases(tmp_path)] == ["p1_flair", "p2_flair", "other"]


@pytest.fixture
def decathlon(tmp_path):
    """Return a folder with a dataset.json in the layout of the Medical Segmentation Decathlon, but without the images."""
    rows = [
        {"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"},
        {"image": "imagesTr/b.nii.gz", "label": "labelsTr/b.nii.gz", "labels": {"0": "background", "2": "tumour"}},
    ]
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": LABELS, "training": rows, "test": ["./imagesTs/c.nii.gz"]}))
    return tmp_path


@pytest.fixture
def datastore(tmp_path):
    """Return a folder like MONAI Label's: two images with final labels, one without, and a final label whose image is gone."""
    for name in ("a", "b", "unlabelled"):
        save(tmp_path / f"{name}.nii.gz", 7)
    save(tmp_path / "labels/final/a.nii.gz", 1, 1, 3)
    save(tmp_path / "labels/final/b.nii.gz", 2)
    save(tmp_path / "labels/final/gone.nii.gz", 1)
    save(tmp_path / "labels/original/unlabelled.nii.gz", 1)
    (tmp_path / "datastore_v2.json").write_text("{}")
    return tmp_path


@pytest.mark.parametrize("read", [read_cases, find_cases])
def test_decathlon_folders(decathlon, read):
    a, b = decathlon / "imagesTr/a.nii.gz", decathlon / "labelsTr/a.nii.gz"
    first, second = read(str(decathlon))
    assert first == Case("a", a, b, {1: "liver", 3: "spleen"}), "without the background"
    assert (second.name, second.labels) == ("b", {2: "tumour"}), "an entry's own labels replace the common ones"


def test_a_datastore_gives_the_images_with_final_labels(datastore):
    a, b = find_cases(datastore)
    assert a == Case("a", datastore / "a.nii.gz", datastore / "labels/final/a.nii.gz", {1: "label_1", 3: "label_3"})
    assert (b.name, b.labels) == ("b", {2: "label_2"})


def test_labels_belong_to_images_as_the_server_lists_them(tmp_path):
    """The images are those of a studies folder with subfolders and DICOM; a label of 3D Slicer has an ending of two words."""
    save(tmp_path / "p/b.nii.gz", 7)
    save_dicom(series(), tmp_path / "ct")
    save(tmp_path / "labels/final/p_b.nii.gz", 1)
    volume = read_volume(tmp_path / "ct")
    write_mask(np.ones(volume.shape, np.uint8), volume, tmp_path / "labels/final/ct.seg.nrrd")
    cases = find_cases(tmp_path)
    assert [(c.name, c.image, c.labels) for c in cases] == [
        ("ct", tmp_path / "ct", {1: "label_1"}), ("p_b", tmp_path / "p/b.nii.gz", {1: "label_1"})
    ]  # fmt: skip


def test_a_dataset_json_takes_precedence_over_labels_of_the_datastore(datastore):
    row = {"image": "unlabelled.nii.gz", "label": "labels/original/unlabelled.nii.gz"}
    (datastore / "dataset.json").write_text(json.dumps({"labels": LABELS, "training": [row]}))
    assert [c.name for c in find_cases(datastore)] == ["unlabelled"]


@pytest.mark.parametrize("read", [read_cases, find_cases])
@pytest.mark.parametrize("content", ["", "{", "{}", '{"labels": {}}'])
def test_a_broken_dataset_json_is_refused(tmp_path, read, content):
    (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(UserError, match="dataset.json"):
        read(tmp_path)


def test_folders_of_another_layout_are_refused(tmp_path):
    save(tmp_path / "a.nii.gz", 7)
    save(tmp_path / "labels/original/a.nii.gz", 1)
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="dataset.json.*labels/final"):
            find_cases(folder)
        with pytest.raises(UserError, match="dataset.json"):
            read_cases(folder)


def test_labels_without_their_images_are_no_cases(tmp_path):
    save(tmp_path / "a.nii.gz", 7)
    save(tmp_path / "labels/final/gone.nii.gz", 1)
    with pytest.raises(UserError, match="labels/final"):
        find_cases(tmp_path)


def test_a_label_of_another_shape_is_refused(tmp_path):
    image = save(tmp_path / "a.nii.gz", 7)
    label = save(tmp_path / "labels/final/a.nii.gz", 1, shape=(5, 4, 2))
    with pytest.raises(VolumeError, match="shape"):
        case_from_files(image, label)
    with pytest.raises(UserError, match="shape"):
        find_cases(tmp_path)


def test_an_empty_label_has_no_structures(tmp_path):
    assert case_from_files(save(tmp_path / "a.nii.gz", 7), save(tmp_path / "b.nii.gz")).labels == {}
