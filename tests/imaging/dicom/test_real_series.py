"""DICOM series as real people have them: the block lies where the slices' positions place it, or they are refused with the reason."""

import shutil
from copy import deepcopy

import numpy as np
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    RLELossless,
)

from lib.common.errors import VolumeError
from lib.imaging.readers import read_grid, read_volume
from lib.imaging.volume import Volume
from lib.imaging.writers import write_mask
from tests.conftest import DIRECTIONS
from tests.imaging.real_cases import (
    BRIGHT,
    LPS,
    SHAPE,
    UID,
    affine_of_itk,
    assert_block_lies_right,
    block_image,
    copies,
    dicom_file,
    dicom_slice,
    lps_affine,
    read_back,
    save_dicom,
    series,
    set_pixels,
    tilted_affine,
)

IMAGE = block_image()
OBLIQUE = lps_affine(DIRECTIONS["oblique"])
PLANES = {
    "axial": lps_affine(), "from the head": lps_affine(np.diag([1, 1, -1])), "oblique": OBLIQUE,
    "oblique, backwards": OBLIQUE @ np.diag([1, 1, -1, 1]),
    "sagittal": lps_affine([[0, 0, 1], [1, 0, 0], [0, -1, 0]]), "coronal": lps_affine([[1, 0, 0], [0, 0, 1], [0, -1, 0]]),
    "prone": lps_affine(np.diag([-1, -1, 1])), "tilted": tilted_affine(), "tilted backwards": tilted_affine(-25),
}  # fmt: skip


def assert_series_is_right(path, affine_lps, **options) -> Volume:
    """Check a series' block and grid, and that each slice lies where the file says from which it was read; return the volume."""
    volume = read_volume(path)
    assert_block_lies_right(volume, affine_lps, **options)
    np.testing.assert_allclose(read_grid(path).affine, volume.affine)
    assert read_grid(path).shape == volume.shape and len(volume.source_frames) == volume.shape[2]
    for k, frame in enumerate(volume.source_frames):
        ds = read_back(frame.path)
        assert ds.SOPInstanceUID == frame.sop_instance_uid and frame.number == 1
        offset_mm = (LPS @ volume.affine)[:3] @ (0, 0, k, 1) - np.array(ds.ImagePositionPatient, float)
        assert np.linalg.norm(offset_mm) < 0.02
    return volume


# --- where the slices lie --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("plane", PLANES)
def test_orientations(tmp_path, plane):
    volume = assert_series_is_right(save_dicom(series(PLANES[plane]), tmp_path / "in"), PLANES[plane])
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
    assert_series_is_right(save_dicom([images[n] for n in order], tmp_path / "in"), OBLIQUE)


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
    assert_series_is_right(save_dicom(images, tmp_path / "in"), lps_affine())


def test_one_slice(tmp_path):
    path = save_dicom(series()[5:6], tmp_path / "in")
    volume = read_volume(path)
    assert volume.shape == (14, 12, 1)
    np.testing.assert_allclose((LPS @ volume.affine)[:3, 3], (-20, 13, 55))
    np.testing.assert_allclose(volume.spacing_mm, (1.5, 2, 3))


# --- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["I{}", "S01.MR.HEAD.0003.{:04d}.2018.05.20.IMA", "{}.DCM", "äöü {}.dcm", "PAT/ST/SE/{}"])
def test_names_of_files(tmp_path, name):
    (tmp_path / "in" / "PAT" / "ST" / "SE").mkdir(parents=True)
    assert_series_is_right(save_dicom(series(OBLIQUE), tmp_path / "in", name=name), OBLIQUE)


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_files_without_preamble(tmp_path, syntax):
    assert_series_is_right(save_dicom(series(OBLIQUE), tmp_path / "in", syntax=syntax, preamble=False), OBLIQUE)


def test_other_files_in_the_folder_are_left_out(tmp_path):
    folder = save_dicom(series(OBLIQUE), tmp_path / "in")
    first = folder / "000.dcm"
    for name in ("._000.dcm", ".hidden.dcm"):
        shutil.copy(first, folder / name)
    (folder / "DICOMDIR").write_bytes(first.read_bytes())
    for name in ("Thumbs.db", "notes.txt", "preview.png", "empty.dcm"):
        (folder / name).write_bytes(b"" if name == "empty.dcm" else b"no image " * 50)
    assert_series_is_right(folder, OBLIQUE)


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
    assert_series_is_right(folder, OBLIQUE)


@pytest.mark.parametrize("charset, patient", [
    (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎"), ("ISO_IR 192", "Müller^Jürgen"), ("GB18030", "王^小东"), ("ISO_IR 100", "Müller^Jürgen"),
])  # fmt: skip
def test_names_of_patients(tmp_path, charset, patient):
    images = series(OBLIQUE)
    for ds in images:
        ds.SpecificCharacterSet, ds.PatientName, ds.SeriesDescription = charset, patient, "block"
    assert_series_is_right(save_dicom(images, tmp_path / "in"), OBLIQUE)


def test_an_unknown_character_set_does_not_matter(tmp_path):
    folder = save_dicom(series(OBLIQUE), tmp_path / "in")
    for file in folder.iterdir():
        ds = read_back(file)
        ds.SpecificCharacterSet = "ISO_IR 999"
        ds.save_as(file)
    assert_series_is_right(folder, OBLIQUE)


# --- transfer syntaxes -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_uncompressed_syntaxes(tmp_path, syntax):
    images = series(OBLIQUE)
    if syntax == ExplicitVRBigEndian:
        for ds in images:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    volume = assert_series_is_right(save_dicom(images, tmp_path / "in", syntax=syntax), OBLIQUE)
    np.testing.assert_array_equal(volume.array, IMAGE)


@pytest.mark.parametrize("compressor", ["RLE", "JPEG", "JPEG2000", "JPEGLS"])
def test_compressed_syntaxes(tmp_path, compressor):
    folder = save_dicom(series(OBLIQUE), tmp_path / "in")
    for file in folder.iterdir():
        ds = read_back(file)
        if compressor == "RLE":
            ds.compress(RLELossless)
        else:
            compress(ds, compressor, tmp_path / "compressed.dcm")
        ds.save_as(file)
    assert len({read_back(f).file_meta.TransferSyntaxUID for f in folder.iterdir()} - {ExplicitVRLittleEndian}) == 1
    np.testing.assert_array_equal(assert_series_is_right(folder, OBLIQUE).array, IMAGE)


def compress(ds: Dataset, compressor: str, temporary) -> None:
    """Compress the pixels of an image without loss by SimpleITK, if its build can do it."""
    writer = sitk.ImageFileWriter()
    writer.SetImageIO("GDCMImageIO")
    writer.SetUseCompression(True)
    writer.SetCompressor(compressor)
    writer.SetFileName(str(temporary))
    writer.Execute(sitk.GetImageFromArray(ds.pixel_array[None]))
    compressed = read_back(temporary)
    if not compressed.file_meta.TransferSyntaxUID.is_compressed:
        pytest.skip(f"This SimpleITK does not write {compressor}.")
    ds.file_meta.TransferSyntaxUID, ds.PixelData = compressed.file_meta.TransferSyntaxUID, compressed.PixelData
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True


# --- values ----------------------------------------------------------------------------------------------------------
def test_every_slice_has_its_own_slope_as_in_pet(tmp_path):
    values = block_image(dtype=np.float32) / 100 + np.random.default_rng(5).uniform(0, 0.01, SHAPE)
    images = series(intercept=0)
    for k, ds in enumerate(images):
        slope = 1.0 if k == 0 else round(values[:, :, k].max() / 30000, 9)
        set_pixels(ds, np.rint(values[:, :, k].T / slope).astype(np.int16))
        ds.RescaleSlope, ds.Modality = f"{slope:.9f}", "PT"
    volume = assert_series_is_right(save_dicom(images, tmp_path / "in"), lps_affine(), threshold=5)
    assert np.abs(volume.array - values)[:, :, 1:].max() < 1e-3


@pytest.mark.parametrize("stored, high, signed, low", [(12, 11, 1, -500), (12, 11, 0, 0), (8, 7, 0, 0), (10, 9, 0, 0), (12, 15, 0, 0)])
def test_bits_that_do_not_belong_to_the_value(tmp_path, stored, high, signed, low):
    values = (IMAGE // 4 if stored < 12 else IMAGE) + low
    images = series(intercept=0)
    for k, ds in enumerate(images):
        mask = (1 << stored) - 1
        overlay = 0 if high == 15 else 0x8000  # A bit above the stored ones, as old overlays have it.
        set_pixels(ds, (((values[:, :, k].T.astype(int) & mask) << (high + 1 - stored)) | overlay).astype(np.uint16))
        ds.BitsStored, ds.HighBit, ds.PixelRepresentation = stored, high, signed
    volume = assert_series_is_right(save_dicom(images, tmp_path / "in"), lps_affine(), threshold=low + (125 if stored < 12 else BRIGHT))
    np.testing.assert_array_equal(volume.array, values)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint32, np.int32])
def test_types_of_pixels(tmp_path, dtype):
    scale = 10 if dtype in (np.uint8, np.int8) else 1
    images = series(intercept=0)
    for k, ds in enumerate(images):
        set_pixels(ds, (IMAGE[:, :, k].T // scale).astype(dtype))
    volume = assert_series_is_right(save_dicom(images, tmp_path / "in"), lps_affine(), threshold=BRIGHT / scale)
    np.testing.assert_array_equal(volume.array, IMAGE // scale)


@pytest.mark.parametrize("slope, intercept, sign", [("1", "32768", 1), ("2", "-1024", 1), ("0.5", "-10.25", 1), ("-1", "0", -1)])
def test_slopes_and_intercepts(tmp_path, slope, intercept, sign):
    images = series(intercept=0)
    for k, ds in enumerate(images):
        set_pixels(ds, (IMAGE[:, :, k].T.astype(int) - (32768 if intercept == "32768" else 0)).astype(np.int16))
        ds.RescaleSlope, ds.RescaleIntercept = slope, intercept
    values = (IMAGE.astype(float) - (32768 if intercept == "32768" else 0)) * float(slope) + float(intercept)
    volume = read_volume(save_dicom(images, tmp_path / "in"))
    np.testing.assert_allclose(volume.array, values)


def test_inverted_grey_values_are_those_of_the_file(tmp_path):
    images = series(array=1000 - IMAGE, intercept=0)
    for ds in images:
        ds.PhotometricInterpretation = "MONOCHROME1"
    volume = read_volume(save_dicom(images, tmp_path / "in"))
    values = volume.array if volume.array[8, 3, 5] > BRIGHT else volume.array.max() - volume.array
    assert_block_lies_right(Volume(values, volume.affine), lps_affine())


@pytest.mark.parametrize("colours", ["RGB", "YBR_FULL"])
def test_coloured_slices_become_luminance(tmp_path, colours):
    images = series()
    for k, ds in enumerate(images):
        pixels = np.repeat((IMAGE[:, :, k].T // 5).astype(np.uint8)[..., None], 3, -1)
        pixels[..., 1:] = 128 if colours == "YBR_FULL" else pixels[..., 1:]
        set_pixels(ds, pixels[..., 0])
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration, ds.PixelData = 3, colours, 0, pixels.tobytes()
        ds.RescaleIntercept = "0"
    assert_series_is_right(save_dicom(images, tmp_path / "in"), lps_affine(), threshold=150)


# --- refused ---------------------------------------------------------------------------------------------------------
def without(*ks):
    """Return a change of a series: slices k are missing."""
    return lambda images: [ds for k, ds in enumerate(images) if k not in ks]


def each(change, *ks):
    """Return a change of a series: `change(ds)` is made to slices k, or to all."""
    def apply(images):
        for k, ds in enumerate(images):
            if not ks or k in ks:
                change(ds)
        return images

    return apply


def moved(offset, *ks):
    """Return a change of a series: the slices k, or all those from the fifth on in growing steps, are moved by an offset (3,) in mm."""
    def move(ds, times):
        ds.ImagePositionPatient = [f"{float(v) + times * o:.6f}" for v, o in zip(ds.ImagePositionPatient, offset, strict=True)]

    def apply(images):
        for k, ds in enumerate(images):
            move(ds, max(0, k - 4) if not ks else k in ks)
        return images

    return apply


def set_(**fields):
    return lambda ds: [setattr(ds, k, v) for k, v in fields.items()]


def shrink(ds):
    set_pixels(ds, np.zeros((6, 7), np.uint16))
    ds.PixelSpacing = ["4", "3"]


MISSING = "evenly|missing|distance"
REFUSED = {
    "a missing slice": (without(4), MISSING), "missing slices": (without(3, 4, 5), MISSING), "the second is missing": (without(1), MISSING),
    "every other one is missing from the fifth on": (without(5, 7), MISSING),
    "twice the distance from the fifth on": (moved((0, 0, 3)), MISSING),
    "a copy": (lambda images: images + copies(images[3:4], 1), "twice|same position"),
    "two copies": (lambda images: images + copies(images[3:4], 1) + copies(images[3:4], 2), "twice|same position"),
    "all at one position": (each(set_(ImagePositionPatient=["-20", "13", "40"])), "same position"),
    "a slice beside the others": (moved((4, 0, 0), 5), "beside|line"), "slices that drift away": (moved((1, 0, 0)), "beside|line"),
    "another tilt from the fifth on": (moved((0, 0.7, 0)), "beside|line"),
    "a slice too high": (moved((0, 0, 1.2), 5), "beside|evenly|line"),
    "a slice of another size": (each(shrink, 0), "size"), "several of another size": (each(shrink, 6, 7, 8), "size"),
    "another pixel spacing": (each(set_(PixelSpacing=["1", "0.75"]), 6, 7, 8), "pixel|spacing"),
    "one without position": (each(lambda ds: delattr(ds, "ImagePositionPatient"), 5), "ImagePositionPatient"),
    "no positions": (each(lambda ds: delattr(ds, "ImagePositionPatient")), "ImagePositionPatient"),
    "empty positions": (each(set_(ImagePositionPatient=None)), "ImagePositionPatient"),
    "one empty position": (each(set_(ImagePositionPatient=None), 2), "ImagePositionPatient"),
    "positions of two numbers": (each(set_(ImagePositionPatient=["1", "2"])), "ImagePositionPatient"),
    "positions that are no numbers": (each(set_(ImagePositionPatient=["nan", "13", "40"]), 3), "ImagePositionPatient"),
    "no orientation": (each(lambda ds: delattr(ds, "ImageOrientationPatient")), "ImageOrientationPatient"),
    "orientations of zeros": (each(set_(ImageOrientationPatient=["0"] * 6)), "ImageOrientationPatient"),
    "directions with an angle": (each(set_(ImageOrientationPatient=["1", "0", "0", "0.6", "0.8", "0"])), "ImageOrientationPatient"),
    "no pixel spacing": (each(lambda ds: delattr(ds, "PixelSpacing")), "PixelSpacing"),
    "a pixel spacing of 0": (each(set_(PixelSpacing=["0", "1"])), "PixelSpacing"),
    "no pixels": (each(lambda ds: delattr(ds, "PixelData"), 5), "pixels"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_series_that_are_refused_with_the_reason(tmp_path, kind):
    change, words = REFUSED[kind]
    folder = save_dicom(change(series()), tmp_path / "head")
    with pytest.raises(VolumeError, match=words) as e:
        read_volume(folder)
    assert str(e.value).endswith(".") and str(tmp_path) not in str(e.value)


def test_a_decimal_comma_is_refused(tmp_path):
    folder = save_dicom(series(), tmp_path / "head")
    for file in folder.iterdir():
        file.write_bytes(file.read_bytes().replace(b"-20.000000\\", b"-20,000000\\"))
    with pytest.raises(VolumeError, match="ImagePositionPatient"):
        read_volume(folder)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.95])
def test_a_truncated_file_is_refused(tmp_path, share):
    folder = save_dicom(series(), tmp_path / "head")
    content = (folder / "004.dcm").read_bytes()
    (folder / "004.dcm").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(VolumeError):
        read_volume(folder)


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
        volume = assert_series_is_right(tmp_path / f"heart#{n + 1}", OBLIQUE)
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
    assert_series_is_right(tmp_path / "head#1", lps_affine())
    assert read_volume(tmp_path / "head#2").shape == (14, 12, 1)


def test_one_folder_with_two_series(tmp_path):
    other = brighter(series(OBLIQUE), 1)
    for ds in other:
        ds.SeriesInstanceUID, ds.SeriesNumber, ds.SeriesDescription = UID + "88", 5, "second"
    folder = save_dicom(deepcopy(series()) + other, tmp_path / "both")
    with pytest.raises(VolumeError, match="2 volumes.*both#1 .*both#2 .*second"):
        read_volume(folder)
    assert_series_is_right(tmp_path / "both#1", lps_affine())
    assert_series_is_right(tmp_path / "both#2", OBLIQUE)
