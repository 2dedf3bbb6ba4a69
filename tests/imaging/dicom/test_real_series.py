"""DICOM series as real people have them: the block lies where the positions of the slices place it."""

import shutil
from copy import deepcopy

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from lib.common.errors import VolumeError
from lib.imaging.readers import read_volume
from lib.imaging.writers import write_mask
from tests.imaging.block_checks import affine_of_itk, assert_dicom_is_right
from tests.imaging.real_cases import (
    BRIGHT,
    IMAGE,
    LPS,
    OBLIQUE,
    SHAPE,
    UID,
    copies,
    dicom_file,
    dicom_slice,
    lps_affine,
    read_back,
    save_dicom,
    series,
    tilted_affine,
)

PLANES = {
    "axial": lps_affine(), "from the head": lps_affine(np.diag([1, 1, -1])), "oblique": OBLIQUE,
    "oblique, backwards": OBLIQUE @ np.diag([1, 1, -1, 1]),
    "sagittal": lps_affine([[0, 0, 1], [1, 0, 0], [0, -1, 0]]), "coronal": lps_affine([[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "prone": lps_affine(np.diag([-1, -1, 1])), "tilted": tilted_affine(), "tilted backwards": tilted_affine(-25),
}  # fmt: skip


# --- where the slices lie --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("plane", PLANES)
def test_orientations(tmp_path, plane):
    volume = assert_dicom_is_right(save_dicom(series(PLANES[plane]), tmp_path / "in"), PLANES[plane])
    assert volume.shape == SHAPE
    for ending in (".nrrd", ".seg.nrrd", ".mha"):
        mask = write_mask(volume.array > BRIGHT, volume, tmp_path / f"mask{ending}")
        np.testing.assert_allclose(LPS @ volume.affine, affine_of_itk(mask), atol=1e-5)


@pytest.mark.parametrize("numbers", ["all the same", "none", "shuffled", "reversed"])
def test_slices_are_sorted_by_position_alone(tmp_path, numbers):
    images = series(OBLIQUE)
    order = np.random.default_rng(2).permutation(len(images))
    for ds, n in zip(images, order, strict=True):
        ds.InstanceNumber = {"all the same": 1, "none": None, "shuffled": int(n), "reversed": 99 - ds.InstanceNumber}[numbers]
    assert_dicom_is_right(save_dicom([images[n] for n in order], tmp_path / "in"), OBLIQUE)


def test_positions_and_directions_may_be_rounded(tmp_path):
    images, noise = series(OBLIQUE), np.random.default_rng(3)
    for ds in images:
        ds.ImagePositionPatient = [f"{float(v) + noise.uniform(-0.005, 0.005):.3f}" for v in ds.ImagePositionPatient]
        ds.ImageOrientationPatient = [f"{float(v):.4f}" for v in ds.ImageOrientationPatient]
        ds.PixelSpacing = [f"{float(v) + noise.uniform(-1e-5, 1e-5):.7f}" for v in ds.PixelSpacing]
    save_dicom(images, tmp_path / "in")
    volume = read_volume(tmp_path / "in")
    offset_mm = np.linalg.norm(LPS @ volume.affine @ (9, 3.5, 5.5, 1) - OBLIQUE @ (9, 3.5, 5.5, 1))
    assert volume.shape == SHAPE and offset_mm < 0.03


@pytest.mark.parametrize("thickness", [None, "", "0", "6", "1"])
def test_the_thickness_of_slices_is_not_their_distance(tmp_path, thickness):
    images = series()
    for ds in images:
        ds.SliceThickness, ds.SpacingBetweenSlices = thickness, thickness
    assert_dicom_is_right(save_dicom(images, tmp_path / "in"), lps_affine())


def test_one_slice(tmp_path):
    path = save_dicom(series()[5:6], tmp_path / "in")
    volume = read_volume(path)
    assert volume.shape == (14, 12, 1)
    np.testing.assert_allclose((LPS @ volume.affine)[:3, 3], (-20, 13, 55))
    np.testing.assert_allclose(volume.spacing_mm, (1.5, 2, 3))


def test_positions_may_be_replaced_by_a_stated_voxel_size(tmp_path):
    images = series()
    for ds in images:
        del ds.ImagePositionPatient, ds.ImageOrientationPatient
    folder = save_dicom(images, tmp_path / "head")
    with pytest.raises(VolumeError, match="--spacing"):
        read_volume(folder)
    volume = read_volume(folder, spacing_mm=(1.5, 2.0, 3.0))
    np.testing.assert_array_equal(volume.array, IMAGE)
    np.testing.assert_allclose(volume.spacing_mm, (1.5, 2, 3))
    assert volume.warnings
    np.testing.assert_allclose(read_volume(folder, spacing_mm=(1, 1, 4)).spacing_mm, (1.5, 2, 4), err_msg="what files state counts")
    images[3].PixelSpacing = ["1", "1"]
    with pytest.raises(VolumeError, match="differ in pixel size"):
        read_volume(save_dicom(images, tmp_path / "other"), spacing_mm=(1.5, 2.0, 3.0))


def test_a_single_slice_without_thickness_carries_a_warning(tmp_path):
    ds = series()[0]
    assert not read_volume(dicom_file(ds, tmp_path / "a.dcm")).warnings
    del ds.SliceThickness
    volume = read_volume(dicom_file(ds, tmp_path / "b.dcm"))
    assert volume.spacing_mm[2] == 1 and "The thickness of b.dcm is unknown" in volume.warnings[0]


# --- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["I{}", "S01.MR.HEAD.0003.{:04d}.2018.05.20.IMA", "{}.DCM", "äöü {}.dcm", "PAT/ST/SE/{}"])
def test_names_of_files(tmp_path, name):
    (tmp_path / "in" / "PAT" / "ST" / "SE").mkdir(parents=True)
    assert_dicom_is_right(save_dicom(series(OBLIQUE), tmp_path / "in", name=name), OBLIQUE)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_files_without_preamble(tmp_path, syntax):
    assert_dicom_is_right(save_dicom(series(OBLIQUE), tmp_path / "in", syntax=syntax, preamble=False), OBLIQUE)


def test_other_files_in_the_folder_are_left_out(tmp_path):
    folder = save_dicom(series(OBLIQUE), tmp_path / "in")
    first = folder / "000.dcm"
    for name in ("._000.dcm", ".hidden.dcm"):
        shutil.copy(first, folder / name)
    (folder / "DICOMDIR").write_bytes(first.read_bytes())
    for name in ("Thumbs.db", "notes.txt", "preview.png", "empty"):
        (folder / name).write_bytes(b"" if name == "empty" else b"no image " * 50)
    assert_dicom_is_right(folder, OBLIQUE)


@pytest.mark.parametrize("kind", ["RTSTRUCT", "SR", "KO", "PR", "RTDOSE", "SEG"])
@pytest.mark.parametrize("same_series", [True, False])
def test_objects_that_are_no_images_are_left_out(tmp_path, kind, same_series):
    classes = {"RTSTRUCT": "481.3", "SR": "88.67", "KO": "88.59", "PR": "11.1", "RTDOSE": "481.2", "SEG": "66.4"}
    other = dicom_slice(np.zeros((12, 14), np.uint16), 900, sop_class=f"1.2.840.10008.5.1.4.1.1.{classes[kind]}", modality=kind)
    if kind not in ("RTDOSE", "SEG"):
        for name in ("Rows", "Columns", "PixelData", "BitsAllocated", "BitsStored", "HighBit"):
            delattr(other, name)
    if not same_series:
        other.SeriesInstanceUID = UID + "77"
    folder = save_dicom(series(OBLIQUE), tmp_path / "in")
    dicom_file(other, folder / "other.dcm")
    assert_dicom_is_right(folder, OBLIQUE)


@pytest.mark.parametrize("charset, patient", [
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), ("ISO_IR 192", "Müller^Jürgen"), ("GB18030", "王^小东"), ("ISO_IR 100", "Müller^Jürgen"),
])  # fmt: skip
def test_names_of_patients(tmp_path, charset, patient):
    images = series(OBLIQUE)
    for ds in images:
        ds.SpecificCharacterSet, ds.PatientName, ds.SeriesDescription = charset, patient, "block"
    assert_dicom_is_right(save_dicom(images, tmp_path / "in"), OBLIQUE)


def test_an_unknown_character_set_does_not_matter(tmp_path):
    folder = save_dicom(series(OBLIQUE), tmp_path / "in")
    for file in folder.iterdir():
        ds = read_back(file)
        ds.SpecificCharacterSet = "ISO_IR 999"
        ds.save_as(file)
    assert_dicom_is_right(folder, OBLIQUE)


# --- several volumes in one series -----------------------------------------------------------------------------------
def brighter(images, number):
    """Return copies of images of which every value is higher by `number`."""
    result = copies(images, number)
    for ds in result:
        ds.PixelData = (np.frombuffer(ds.PixelData, np.uint16) + number).astype(np.uint16).tobytes()
    return result


MARKS = {
    "EchoTime": ("10", "20", "30"), "EchoNumbers": (1, 2, 3), "TemporalPositionIdentifier": (1, 2, 3), "AcquisitionNumber": (1, 2, 3),
    "TriggerTime": ("0", "300", "600"), "ContentTime": ("120000", "120010", "120020"), "AcquisitionTime": ("120000", "120010", "120020"),
    "ImageType": (["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"], ["ORIGINAL", "PRIMARY", "R"]), "InstanceNumber": None,
}  # fmt: skip


@pytest.mark.parametrize("mark, interleaved", [*((mark, n % 2 == 1) for n, mark in enumerate(MARKS)), ("InstanceNumber", True)])
def test_phases_and_echoes_are_volumes_of_their_own(tmp_path, mark, interleaved):
    volumes = [series(OBLIQUE), *(brighter(series(OBLIQUE), n) for n in (1, 2))]
    for n, images in enumerate(volumes):
        for ds in images:
            if MARKS[mark]:
                setattr(ds, mark, MARKS[mark][n])
    images = [ds for slices in zip(*volumes, strict=True) for ds in slices] if interleaved else sum(volumes, [])
    folder = save_dicom(images, tmp_path / "heart")
    with pytest.raises(VolumeError, match="3 volumes.*heart#1 .*heart#2 .*heart#3 "):
        read_volume(folder)
    for n in range(3):
        volume = assert_dicom_is_right(tmp_path / f"heart#{n + 1}", OBLIQUE)
        np.testing.assert_array_equal(volume.array, IMAGE + n)
        np.testing.assert_array_equal(read_volume(folder, channel=n).array, volume.array)
    for wrong in ("heart#0", "heart#4"):
        with pytest.raises(VolumeError, match="choose one of heart#1"):
            read_volume(tmp_path / wrong)


def test_a_localizer_in_the_series_is_a_volume_of_its_own(tmp_path):
    localizer = dicom_slice(np.full((12, 14), 30, np.uint16), 99)
    localizer.ImageOrientationPatient, localizer.ImagePositionPatient = ["1", "0", "0", "0", "0", "-1"], ["-20", "20", "60"]
    localizer.PixelSpacing, localizer.SliceThickness = ["2", "2"], "5"
    folder = save_dicom([localizer, *series()], tmp_path / "head")
    with pytest.raises(VolumeError, match="2 volumes.*head#1 .*9 slices.*head#2 .*1 slice "):
        read_volume(folder)
    assert_dicom_is_right(tmp_path / "head#1", lps_affine())
    assert read_volume(tmp_path / "head#2").shape == (14, 12, 1)


def test_one_folder_with_two_series(tmp_path):
    other = brighter(series(OBLIQUE), 1)
    for ds in other:
        ds.SeriesInstanceUID, ds.SeriesNumber, ds.SeriesDescription = UID + "88", 5, "second"
    folder = save_dicom(deepcopy(series()) + other, tmp_path / "both")
    with pytest.raises(VolumeError, match="2 volumes.*both#1 .*both#2 .*second"):
        read_volume(folder)
    assert_dicom_is_right(tmp_path / "both#1", lps_affine())
    assert_dicom_is_right(tmp_path / "both#2", OBLIQUE)
