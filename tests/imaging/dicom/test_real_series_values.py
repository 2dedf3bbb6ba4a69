"""Values of DICOM series as real people have them: transfer syntaxes, types of pixels, slopes, colours."""

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

from lib.imaging.readers import read_volume
from lib.imaging.volume import Volume
from tests.imaging.block_checks import assert_block_lies_right, assert_dicom_is_right
from tests.imaging.real_cases import (
    BRIGHT,
    IMAGE,
    OBLIQUE,
    SHAPE,
    block_image,
    lps_affine,
    read_back,
    save_dicom,
    series,
    set_pixels,
)


# --- transfer syntaxes -----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_uncompressed_syntaxes(tmp_path, syntax):
    images = series(OBLIQUE)
    if syntax == ExplicitVRBigEndian:
        for ds in images:
            ds.PixelData = np.frombuffer(ds.PixelData, "<u2").astype(">u2").tobytes()
    volume = assert_dicom_is_right(save_dicom(images, tmp_path / "in", syntax=syntax), OBLIQUE)
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
    np.testing.assert_array_equal(assert_dicom_is_right(folder, OBLIQUE).array, IMAGE)


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
    volume = assert_dicom_is_right(save_dicom(images, tmp_path / "in"), lps_affine(), threshold=5)
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
    volume = assert_dicom_is_right(save_dicom(images, tmp_path / "in"), lps_affine(), threshold=low + (125 if stored < 12 else BRIGHT))
    np.testing.assert_array_equal(volume.array, values)


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint32, np.int32])
def test_types_of_pixels(tmp_path, dtype):
    scale = 10 if dtype in (np.uint8, np.int8) else 1
    images = series(intercept=0)
    for k, ds in enumerate(images):
        set_pixels(ds, (IMAGE[:, :, k].T // scale).astype(dtype))
    volume = assert_dicom_is_right(save_dicom(images, tmp_path / "in"), lps_affine(), threshold=BRIGHT / scale)
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
    assert_dicom_is_right(save_dicom(images, tmp_path / "in"), lps_affine(), threshold=150)
