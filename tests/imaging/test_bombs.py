"""Tests that harmful files are refused: small files that claim huge images, crash ITK or refer to other files."""

import gzip
import struct
import tracemalloc
import zlib

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from lib.common.errors import VolumeError
from lib.imaging.formats.nifti import nifti_header
from lib.imaging.readers import read_volume
from lib.imaging.volume import Volume
from lib.samples.sample_data import write_dicom

SHAPE = (30000, 30000, 3000)
HUGE = r"claims [\d,]+ million voxels; up to 1,100 million are read"
RAMP = np.arange(120, dtype=np.int16).reshape(4, 5, 6)


def write_nifti(path, shape, dtype=np.int16, header_class=nib.Nifti1Header, offset=0, content=bytes(100)):
    """Write a NIfTI file whose header claims this shape and which has only `content` after the header."""
    header = header_class()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header["vox_offset"], header["magic"] = offset or header.single_vox_offset, header.single_magic
    header.set_sform(np.eye(4), 1)
    content = header.binaryblock + content
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)


def write_nrrd(path, encoding="gzip", shape=SHAPE, kinds="domain domain domain"):
    """Write a NRRD file of a few bytes whose header claims this shape."""
    head = f"NRRD0004\ntype: short\ndimension: {len(shape)}\nsizes: {' '.join(map(str, shape))}\nkinds: {kinds}\nendian: little\n"
    path.write_bytes(f"{head}encoding: {encoding}\n\n".encode() + gzip.compress(bytes(100)))


def write_metaimage(path, compressed=True, shape=SHAPE, data="LOCAL", dimensions=3):
    """Write a MetaImage file of a few bytes whose header claims this shape and number of dimensions."""
    head = f"ObjectType = Image\nNDims = {dimensions}\nBinaryData = True\nCompressedData = {compressed}\n"
    head += "CompressedDataSize = 12\n" if compressed else ""
    head += f"DimSize = {' '.join(map(str, shape))}\nElementType = MET_SHORT\nElementDataFile = {data}\n"
    path.write_bytes(head.encode() + zlib.compress(bytes(100)))


def write_dicom_bomb(path, frames=1):
    """Write a DICOM series whose files each claim 65535 x 65535 x `frames` voxels; return its folder."""
    write_dicom(Volume(RAMP), path, modality="CT", description="bomb")
    for file in path.iterdir():
        header = pydicom.dcmread(file)
        header.Rows = header.Columns = 65535
        if frames > 1:
            header.NumberOfFrames = frames
        header.save_as(file)
    return path


@pytest.mark.parametrize("dimensions", ["65536", "-1", "11", "0", "99999999999", "x"])
def test_numbers_of_dimensions_that_crash_itk_are_refused(dimensions, tmp_path):
    write_metaimage(tmp_path / "a.mha", shape=RAMP.shape, dimensions=dimensions)
    with pytest.raises(VolumeError, match="^a.mha claims to have other than two to four axes"):
        read_volume(tmp_path / "a.mha")


@pytest.mark.parametrize("name, write", [
    ("a.nii.gz", lambda p: write_nifti(p, SHAPE)),
    ("a.nii", lambda p: write_nifti(p, SHAPE)),
    ("four.nii.gz", lambda p: write_nifti(p, (512, 512, 300, 20000))),
    ("two.nii", lambda p: write_nifti(p, (2**20, 2**20, 2**20), header_class=nib.Nifti2Header)),
    ("wide.nii.gz", lambda p: write_nifti(p, (1000, 1000, 1000), np.complex128)),
    ("a.nrrd", write_nrrd),
    ("raw.nrrd", lambda p: write_nrrd(p, "raw")),
    ("vector.nrrd", lambda p: write_nrrd(p, shape=(3, 1000, 1000, 900), kinds="vector domain domain domain")),
    ("a.nhdr", lambda p: write_nrrd(p, "raw")),
    ("a.mha", write_metaimage),
    ("raw.mha", lambda p: write_metaimage(p, False)),
    ("a.mhd", lambda p: write_metaimage(p, data="a.raw")),
])  # fmt: skip
def test_headers_that_claim_huge_images_are_refused(name, write, tmp_path):
    write(tmp_path / name)
    with pytest.raises(VolumeError, match=f"^{name} {HUGE}"):
        read_volume(tmp_path / name)


def test_dicom_files_that_claim_huge_images_are_refused(tmp_path):
    series = write_dicom_bomb(tmp_path / "series")
    with pytest.raises(VolumeError, match=f"^series cannot be used: 0001.dcm {HUGE}"):
        read_volume(series)
    file = sorted(write_dicom_bomb(tmp_path / "frames", 3000).iterdir())[0]
    with pytest.raises(VolumeError, match=f"^{file.name} {HUGE}"):
        read_volume(file)


def test_the_slices_of_a_series_are_counted_together(tmp_path, monkeypatch):
    write_dicom(Volume(RAMP), tmp_path, modality="CT", description="long")
    monkeypatch.setenv("SAM2_MAX_MEGAVOXELS", "0.000119")  # Each slice has only 20 of the 120 voxels.
    with pytest.raises(VolumeError, match="voxels"):
        read_volume(tmp_path)


@pytest.mark.parametrize("name", ["a.png", "a.dcm", "a"])
def test_a_picture_is_no_volume(name, tmp_path):
    """A PNG that claims 60000 x 60000 pixels is refused, because under such names only DICOM is read."""
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 0, 0, 0, 0))
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b""))
    with pytest.raises(VolumeError, match="not a medical image"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("size", [-100, 0, 2**31 - 16, 200_000_000])
def test_extensions_of_nifti_are_not_unpacked(size, tmp_path):
    """For an extension, nibabel would read as many bytes as the header claims, and the whole file if the number is negative."""
    path = tmp_path / "a.nii.gz"
    extension = b"\x01\0\0\0" + struct.pack("<ii", size, 6) + bytes(200_000_000)
    write_nifti(path, RAMP.shape, offset=200_000_000, content=extension)
    tracemalloc.start()
    try:
        assert read_volume(path).shape == nifti_header(path).get_data_shape() == RAMP.shape
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nrrd", "a.mha"])
def test_the_limit_of_voxels_can_be_set(name, tmp_path, monkeypatch):
    sitk.WriteImage(sitk.GetImageFromArray(RAMP.transpose(2, 1, 0)), str(tmp_path / name))
    for megavoxels in ("0.00012", "1e9", ""):
        monkeypatch.setenv("SAM2_MAX_MEGAVOXELS", megavoxels)
        np.testing.assert_array_equal(read_volume(tmp_path / name).array, RAMP)
    for megavoxels, message in (("0.000119", "up to 0.000119 million"), ("many", "must be a number")):
        monkeypatch.setenv("SAM2_MAX_MEGAVOXELS", megavoxels)
        with pytest.raises(VolumeError, match=message):
            read_volume(tmp_path / name)


def test_only_the_chosen_channel_counts_towards_the_limit(tmp_path, monkeypatch):
    monkeypatch.setenv("SAM2_MAX_MEGAVOXELS", "0.00012")
    nib.save(nib.Nifti1Image(np.stack([RAMP] * 9, -1), np.eye(4)), tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "a.nii.gz", channel=4).array, RAMP)
    with pytest.raises(VolumeError, match="voxels"):
        read_volume(tmp_path / "a.nii.gz")


NRRD = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 5 6\nencoding: raw\n"
META = "ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = 4 5 6\nElementType = MET_UCHAR\n"


@pytest.mark.parametrize("name, header", [
    ("a.nrrd", NRRD + "data file: {secret}\n\n"), ("a.nrrd", NRRD + "datafile: own.raw\n\n"), ("a.nhdr", NRRD + "data file: ../secret\n\n"),
    ("a.nhdr", NRRD + "data file: LIST\n../secret\n"), ("a.mha", META + "ElementDataFile = {secret}\n"),
    ("a.mha", META + "ElementDataFile : LIST\n../secret\n"), ("a.mhd", META + "ElementDataFile = ../secret\n"),
])  # fmt: skip
def test_headers_that_refer_to_other_files_are_refused(name, header, tmp_path):
    (tmp_path / "studies").mkdir()
    for file in (tmp_path / "secret", tmp_path / "studies" / "own.raw"):
        file.write_bytes(bytes(range(120)))
    (tmp_path / "studies" / name).write_text(header.format(secret=tmp_path / "secret"))
    with pytest.raises(VolumeError, match="names another file"):
        read_volume(tmp_path / "studies" / name)


@pytest.mark.parametrize("ending", [".nhdr", ".mhd"])
def test_formats_of_two_files_can_be_read_from_a_folder(ending, tmp_path):
    sitk.WriteImage(sitk.GetImageFromArray(RAMP.transpose(2, 1, 0)), str(tmp_path / f"a{ending}"))
    np.testing.assert_array_equal(read_volume(tmp_path / f"a{ending}").array, RAMP)
