"""Tests of the labels of images in a DICOM store, with a store within the test's process."""

from pathlib import Path

import numpy as np
import pytest
import requests
import SimpleITK as sitk
from fastapi import HTTPException

from lib.common.errors import UserError, VolumeError
from lib.imaging.dicom.segmentations import read_segmentation, write_segmentation
from lib.imaging.dicom.stacks import find_stacks
from lib.imaging.readers import read_grid, read_mask, read_volume
from lib.imaging.volume import Grid
from lib.imaging.writers import write_mask
from lib.serving.datastore import dicom_labels
from lib.serving.datastore.dicom import UNSENT
from lib.serving.datastore.labels import label_names
from lib.serving.training import usable_cases
from tests.imaging.dicom.series import SHAPE, positions_mm, write_single_frames
from tests.serving.datastore.dicom_cases import LABEL_INFO, NAMES, ROWS, TILT_MM, downloaded, make_labels, upload


def test_a_final_label_becomes_a_segmentation_with_the_names_of_its_values(datastore, store, series, tmp_path):
    labels = make_labels()
    labels[8, 8, 5] = 7
    datastore.save_label(series, upload(datastore, series, labels, tmp_path), "final", LABEL_INFO)
    seg = store.segmentations()[0]
    assert [s.SegmentLabel for s in seg.SegmentSequence] == [NAMES[2], NAMES[7]]
    assert seg.PatientName == "王^小東" and seg.StudyInstanceUID == "1.2.3.1"
    for groups in seg.PerFrameFunctionalGroupsSequence:
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        assert np.abs(positions_mm(TILT_MM) - position).max(1).min() < 0.01
    assert (downloaded(datastore, series) == labels).all() and label_names(datastore, series, "final") == NAMES
    info = datastore.get_label_info(series, "final")
    assert info["SeriesInstanceUID"] == seg.SeriesInstanceUID and info["StudyInstanceUID"] == "1.2.3.1"
    assert set(datastore.get_labels_by_image_id(series)) == {"final"} and datastore.get_unlabeled_images() == []


def test_the_only_name_belongs_to_the_only_value(datastore, store, series, tmp_path):
    label_info = {"label_info": [{"name": "liver", "idx": 3}]}
    datastore.save_label(series, upload(datastore, series, make_labels(1), tmp_path), "final", label_info)
    assert store.segmentations()[0].SegmentSequence[0].SegmentLabel == "liver"


def test_bare_voxels_of_ohif(datastore, series, tmp_path):
    pixels = tmp_path / "label.bin"
    pixels.write_bytes(make_labels().astype(np.uint8).tobytes("F"))
    datastore.save_label(series, str(pixels), "final", {})
    assert (downloaded(datastore, series) == make_labels()).all()
    sitk.ReadImage(datastore.get_label_uri(series, "final"))  # also with sheared axes


def shifted(path: Path, datastore, series) -> Path:
    grid = read_grid(datastore.get_image_uri(series))
    affine = grid.affine.copy()
    affine[:3, 3] += (0, 0, 12.5)
    return write_mask(make_labels(), Grid(grid.shape, affine), path / "label.nrrd")


def cropped(path: Path, datastore, series) -> Path:
    grid = read_grid(datastore.get_image_uri(series))
    return write_mask(make_labels()[:, :, :-1], Grid((*SHAPE[:2], SHAPE[2] - 1), grid.affine), path / "label.nrrd")


def short(path: Path, datastore, series) -> Path:
    (path / "label.bin").write_bytes(bytes(np.prod(SHAPE) - 1))
    return path / "label.bin"


def damaged(path: Path, datastore, series) -> Path:
    file = Path(upload(datastore, series, make_labels(), path))
    file.write_bytes(file.read_bytes()[:-20])
    return file


@pytest.mark.parametrize("tag", ["final", "original"])
@pytest.mark.parametrize("make, message", [
    (shifted, "The label lies elsewhere than the image .by 12.5 mm"), (cropped, "The label has shape"), (short, "voxels"),
    (damaged, "The label"),
], ids=["elsewhere", "cropped", "short", "damaged"])  # fmt: skip
def test_labels_that_do_not_fit_are_refused(datastore, store, series, tmp_path, make, message, tag):
    file = make(tmp_path, datastore, series)
    with pytest.raises(VolumeError, match=message):  # The server answers with status 422.
        datastore.save_label(series, str(file), tag, {})
    assert not store.segmentations() and not datastore.get_labels_by_image_id(series)


def test_empty_labels_cannot_become_dicom_seg(datastore, series, tmp_path):
    with pytest.raises(UserError, match="empty"):
        datastore.save_label(series, upload(datastore, series, make_labels(0), tmp_path), "final", {})
    assert not datastore.get_labels_by_image_id(series)


@pytest.mark.parametrize("is_down", [True, False], ids=["down", "says that nothing was stored"])
def test_a_label_that_the_dicom_store_did_not_accept_is_kept(datastore, store, series, tmp_path, is_down):
    file = upload(datastore, series, make_labels(), tmp_path)
    store.failure, store.keeps = requests.ConnectionError("closed") if is_down else None, False
    with pytest.raises(HTTPException, match="unsent") as e:
        datastore.save_label(series, file, "final", LABEL_INFO)
    assert e.value.status_code == 502
    assert (downloaded(datastore, series, UNSENT) == make_labels()).all() and set(datastore.get_labels_by_image_id(series)) == {UNSENT}
    store.failure, store.keeps = None, True
    datastore.save_label(series, file, "final", LABEL_INFO)
    assert set(datastore.get_labels_by_image_id(series)) == {"final"}


def test_segmentations_of_the_store_become_labels(datastore, store, series, tmp_path):
    stack = find_stacks(tmp_path / "tilted")[0]
    for value, name, year in ((2, "neu", "2026"), (7, "alt", "2020")):
        path = write_segmentation(make_labels(value), stack, {value: name}, tmp_path / f"{name}.dcm")
        store.add(path)
        store.objects[-1].ContentDate = f"{year}0101"
    newest = store.segmentations()[0].SeriesInstanceUID
    assert datastore.get_labeled_images() == [series]
    assert (read_mask(datastore.get_label_uri(newest, "final"), read_volume(datastore.get_image_uri(series))) == make_labels(1)).all()
    assert (downloaded(datastore, series) == make_labels(1)).all() and label_names(datastore, series, "final") == {1: "neu"}
    assert [case.image.name for case in usable_cases(datastore)] == [f"{series}.nrrd"]
    store.objects = [ds for ds in store.objects if ds.Modality != "SEG"]
    assert usable_cases(datastore) == [] and not datastore.get_label_uri(series, "final")


def test_a_segmentation_that_does_not_fit_is_left_out_of_training(datastore, store, series, tmp_path):
    write_single_frames(tmp_path / "elsewhere", 0.0)
    path = write_segmentation(make_labels(), find_stacks(tmp_path / "elsewhere")[0], NAMES, tmp_path / "seg.dcm")
    store.add(path)
    for groups in store.objects[-1].PerFrameFunctionalGroupsSequence:
        groups.PlanePositionSequence[0].ImagePositionPatient = [500.0, 0.0, 0.0]
    with pytest.raises(VolumeError, match="another image"):
        datastore.get_label_uri(series, "final")
    assert usable_cases(datastore) == []


def test_an_answer_as_dicom_seg(datastore, series, tmp_path):
    """As MONAI Label's route asks for it: with the path of the image in the cache without its ending."""
    file = upload(datastore, series, make_labels(1), tmp_path)
    image = datastore.get_image_uri(series).removesuffix(".nrrd")
    path = dicom_labels.nifti_to_dicom_seg(image, file, ROWS[1:2], use_itk=True)
    labels, names = read_segmentation(path, find_stacks(tmp_path / "tilted")[0])
    assert (labels == make_labels(1)).all() and names == {1: "Größe"}
    Path(path).unlink()


@pytest.mark.parametrize("name", ["../../uploads", "/etc"])
def test_series_ids_that_are_paths_are_refused(datastore, name):
    for attempt in (
        lambda: datastore.get_image_uri(name), lambda: datastore.get_label_uri(name, "final"),
        lambda: datastore.save_label(name, "x", "final", {}),
    ):  # fmt: skip
        with pytest.raises(UserError):
            attempt()


def test_training_after_the_cache_was_deleted(open_datastore, store, series, echoes, tmp_path):
    datastore = open_datastore()
    with pytest.raises(VolumeError):
        datastore.get_image_uri(echoes)
    datastore.save_label(series, upload(datastore, series, make_labels(), tmp_path), "final", LABEL_INFO)
    datastore.save_label(f"{echoes}#2", upload(datastore, f"{echoes}#2", make_labels(7), tmp_path), "final", LABEL_INFO)
    before = {case.name: set(case.labels.values()) for case in usable_cases(datastore)}
    (tmp_path / "cache").rename(tmp_path / "deleted")
    after = {case.name: set(case.labels.values()) for case in usable_cases(open_datastore())}
    assert after == before == {series: {"肝臟"}, f"{echoes}#2": {"Größe"}}


def test_a_segmentation_says_what_it_shows(datastore, store, series, tmp_path):
    labels = make_labels(1)
    labels[8, 8, 5] = 2
    info = {"label_info": [{"name": "kidney_left", "idx": 1}, {"name": "肝臟", "idx": 2}], "checkpoint": "tiny v0002"}
    datastore.save_label(series, upload(datastore, series, labels, tmp_path), "final", info)
    seg = store.segmentations()[0]
    kidney, other = seg.SegmentSequence
    kind = kidney.SegmentedPropertyTypeCodeSequence[0]
    assert (kidney.SegmentedPropertyCategoryCodeSequence[0].CodeValue, kind.CodeValue) == ("123037004", "64033007")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert other.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue" and other.SegmentLabel == "肝臟"
    algorithm = kidney.SegmentationAlgorithmIdentificationSequence[0]
    assert (algorithm.AlgorithmName, algorithm.AlgorithmVersion) == ("SAM 2", "tiny v0002")
    assert seg.SeriesDescription == "SAM 2: kidney_left, 肝臟"
