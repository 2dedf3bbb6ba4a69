"""Tests of the images of a DICOM store and their cache, with a store within the test's process."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
import SimpleITK as sitk
from monailabel.datastore.local import DataModel, ImageLabelModel
from monailabel.interfaces.exception import ImageNotFoundException

from lib.common.errors import VolumeError
from lib.imaging.readers import read_grid, read_volume
from lib.serving.datastore.folder import FolderDatastore
from tests.imaging.dicom.series import SHAPE, positions_mm, write_single_frames
from tests.serving.datastore.dicom_cases import LABEL_INFO, TILT_MM, make_labels, upload


def test_the_cached_image_lies_where_its_slices_are(datastore, series):
    path = datastore.get_image_uri(series)
    image = sitk.ReadImage(path)  # as 3D Slicer reads it
    corners = [image.TransformIndexToPhysicalPoint((0, 0, k)) for k in range(SHAPE[2])]
    assert np.abs(corners - positions_mm(TILT_MM)).max() < 0.01
    assert (sitk.GetArrayFromImage(image)[:, 0, 0] == 10 * np.arange(SHAPE[2])).all()
    info = datastore.get_image_info(series)
    assert info["StudyInstanceUID"] == "1.2.3.1" and info["Modality"] == "CT" and datastore.list_images() == [series]


def test_volumes_of_one_series_are_images_of_their_own(open_datastore, store, echoes, tmp_path):
    datastore = open_datastore()
    assert datastore.list_images() == [echoes]
    with pytest.raises(VolumeError, match=f"{echoes}#1 .*{echoes}#2 "):
        datastore.get_image_uri(echoes)
    assert datastore.list_images() == open_datastore().list_images() == [f"{echoes}#1", f"{echoes}#2"]
    for n, image in enumerate(datastore.list_images()):
        assert (read_volume(datastore.get_image_uri(image)).array[0, 0] == 10 * np.arange(SHAPE[2]) + n).all()
    with pytest.raises(VolumeError):
        datastore.get_image_uri(f"{echoes}#3")
    datastore.save_label(f"{echoes}#2", upload(datastore, f"{echoes}#2", make_labels(), tmp_path), "final", LABEL_INFO)
    frames = {g.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber % 2
              for g in store.segmentations()[0].PerFrameFunctionalGroupsSequence}  # fmt: skip
    assert frames == {0}, "The frames of the second echo have even numbers."
    other = open_datastore()
    assert other.get_labeled_images() == [f"{echoes}#2"] and other.get_unlabeled_images() == [f"{echoes}#1"]


def test_series_without_images_are_not_listed(datastore, store, series, tmp_path):
    write_single_frames(tmp_path / "sr", SeriesInstanceUID="1.2.3.7")
    store.add(tmp_path / "sr")
    for ds in store.objects[-SHAPE[2] :]:
        ds.Modality = "RTSTRUCT"
    assert datastore.list_images() == [series] and list(datastore.json()["objects"]) == [series]


def test_a_series_that_is_no_volume_answers_with_the_reason(open_datastore, store, gap, series):
    datastore = open_datastore()
    with pytest.raises(VolumeError, match="not evenly spaced"):
        datastore.get_image_uri(gap)
    with pytest.raises(VolumeError, match="not evenly spaced"):
        datastore.save_label(gap, "x.nrrd", "final", {})
    assert datastore.list_images() == [gap, series] and datastore.get_unlabeled_images() == [series]
    with pytest.raises(ImageNotFoundException):
        datastore.get_image_uri("1.9")


def test_a_series_that_is_completed_in_the_store_can_be_opened(open_datastore, store, gap, tmp_path):
    datastore = open_datastore()
    with pytest.raises(VolumeError, match="not evenly spaced"):
        datastore.get_image_uri(gap)
    write_single_frames(tmp_path / "complete", SeriesInstanceUID=gap)
    store.add(tmp_path / "complete" / "1.dcm")
    assert read_grid(datastore.get_image_uri(gap)).shape == SHAPE and datastore.get_unlabeled_images() == [gap]


def test_an_incomplete_series_does_not_stay_in_the_cache(datastore, store, series):
    store.fails_after = 3
    with pytest.raises(requests.ConnectionError):
        datastore.get_image_uri(series)
    store.fails_after = None
    assert read_grid(datastore.get_image_uri(series)).shape == SHAPE


def test_an_image_converted_by_an_earlier_version_is_replaced_and_keeps_its_labels(datastore, series, tmp_path):
    old = Path(datastore._datastore.image_path(), f"{series}.nii.gz")
    nib.save(nib.Nifti1Image(make_labels().astype(np.int16), np.eye(4)), old)
    with datastore._changing() as change:
        change.model.objects[series] = ImageLabelModel(image=DataModel(ext=".nii.gz", info={"SeriesInstanceUID": series}))
    FolderDatastore.save_label(datastore, series, str(old), "original", {})
    assert datastore.get_image_uri(series).endswith(".nrrd") and set(datastore.get_labels_by_image_id(series)) == {"original"}
    assert not old.exists()
