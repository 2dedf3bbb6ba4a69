"""Tests that unreadable files and failed writing give a clear message and leave no incomplete file."""

import gzip
import os
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from lib.common.errors import OptionError, VolumeError
from lib.imaging import writers
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.study_files import LABEL_ENDINGS
from lib.imaging.volume import Volume
from lib.imaging.writers import write_mask
from lib.samples.sample_data import write_dicom

# Noise cannot be compressed, so a file cut in half lacks half of the voxels.
NOISE = np.random.default_rng(0).integers(0, 255, (16, 17, 18)).astype(np.uint8)
VOLUME = Volume(NOISE, np.diag([-1.0, -2.0, 3.0, 1.0]))
UNREADABLE = "could not be read: it is damaged, incomplete or not a medical image"
NAMES = ("a.nii", "a.nii.gz", "a.nrrd", "a.seg.nrrd", "a.mha", "a.mhd", "a.dcm", "a")


# --- reading ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "content", [b"", b"Dear radiologist,\n" * 50, gzip.compress(b"no image" * 99)], ids=["empty", "text", "gzip"]
)
def test_files_that_are_no_images_are_refused(name, content, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VolumeError, match=f"^{name} {UNREADABLE}"):
        read_volume(tmp_path / name)


@pytest.mark.parametrize("ending", LABEL_ENDINGS)
@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.95])
def test_truncated_files_are_refused(ending, compress, share, tmp_path):
    path = write_mask(NOISE, VOLUME, tmp_path / f"a{ending}", compress=compress)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(VolumeError, match=UNREADABLE):
        read_volume(path)


@pytest.mark.parametrize(
    ("offset", "format", "value", "message"),
    [
        (42, "h", -4, UNREADABLE),  # a negative number of voxels
        (42, "h", 0, "no voxels"),
        (70, "h", 9999, UNREADABLE),  # unknown datatype
        (108, "f", -5, UNREADABLE),  # The voxels would start before the header ends.
        (108, "f", 1e9, UNREADABLE),
        (280, "f", np.nan, "unusable affine"),
        (280, "f", 0, "unusable affine"),  # the first of the three diagonal entries
    ],
)
def test_damaged_nifti_headers_are_refused(offset, format, value, message, tmp_path):
    path = write_mask(NOISE, VOLUME, tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    struct.pack_into("<" + format, content, offset, value)
    path.write_bytes(content)
    with pytest.raises(VolumeError, match=message):
        read_volume(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 4, 5, 2), np.int16), "a.nii has 2 channels or time points"),
        (np.zeros((3, 4, 5, 2, 2), np.int16), "a.nii has 5 axes"),
        (np.full((3, 4, 5), np.nan, np.float32), "a.nii holds no finite value"),
    ],
)
def test_nifti_files_that_are_no_volume_are_refused(array, message, tmp_path):
    nib.save(nib.Nifti1Image(array, np.eye(4)), tmp_path / "a.nii")
    with pytest.raises(VolumeError, match=message):
        read_volume(tmp_path / "a.nii")


def test_cifti_files_are_refused(tmp_path):
    axes = nib.cifti2.SeriesAxis(0, 1, 3), nib.cifti2.ScalarAxis(["a", "b"])
    nib.save(nib.Cifti2Image(np.zeros((3, 2), np.float32), axes), tmp_path / "a.dscalar.nii")
    with pytest.raises(VolumeError, match="a.dscalar.nii has no affine"):
        read_volume(tmp_path / "a.dscalar.nii")


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(VolumeError, match="no image at a.nii"):
        read_volume(tmp_path / "a.nii")


def test_folders_without_exactly_one_series_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="holds no DICOM series"):
        read_volume(tmp_path)
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(VolumeError, match="holds no DICOM series"):
        read_volume(tmp_path)
    small = Volume(np.zeros((3, 4, 5), np.int16))
    write_dicom(small, tmp_path / "one", modality="CT", description="one")
    write_dicom(small, tmp_path / "other", modality="CT", description="other")
    for file in (tmp_path / "other").iterdir():
        file.rename(tmp_path / "one" / f"other_{file.name}")
    with pytest.raises(VolumeError, match=r"one holds 2 volumes: choose one of one#1 \((one|other), 5 slices of 3 x 4 pixels\); one#2 "):
        read_volume(tmp_path / "one")


# --- writing ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.png", "a", "a.mhd", "nrrd", "a.nii.bz2"])
def test_unknown_endings_are_refused(name, tmp_path):
    with pytest.raises(OptionError, match="supported endings are .seg.nrrd, .nii.gz"):
        write_mask(NOISE, VOLUME, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("dtype", ["float32", "bool", "str", "object", "complex64", "nonsense", None, 7])
def test_other_than_integer_dtypes_are_refused(dtype, tmp_path):
    with pytest.raises(OptionError, match="result_dtype .*use for example uint8"):
        write_mask(NOISE, VOLUME, tmp_path / "a.nrrd", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("ending", LABEL_ENDINGS)
@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64"])
def test_masks_are_written_in_each_dtype(ending, dtype, tmp_path):
    voxels = read_volume(write_mask(NOISE > 100, VOLUME, tmp_path / f"a{ending}", dtype=dtype)).array
    assert voxels.dtype == dtype
    np.testing.assert_array_equal(voxels, NOISE > 100)


@pytest.mark.parametrize("ending", [".nrrd", ".seg.nrrd"])
@pytest.mark.parametrize(("compress", "encoding"), [(False, b"encoding: raw"), (True, b"encoding: gzip")])
def test_nrrd_encoding(ending, compress, encoding, tmp_path):
    path = write_mask(NOISE, VOLUME, tmp_path / f"a{ending}", compress=compress)
    header, _, voxels = path.read_bytes().partition(b"\n\n")
    assert encoding in header.splitlines()
    assert (voxels == NOISE.tobytes("F")) is (not compress)


@pytest.mark.parametrize("ending", LABEL_ENDINGS)
def test_writing_leaves_one_readable_file(ending, tmp_path):
    path = write_mask(NOISE, VOLUME, tmp_path / "new" / "folder" / f"a{ending}")
    assert list(path.parent.iterdir()) == [path]
    assert os.stat(path).st_mode & 0o777 == 0o644


WRITERS = [(".nii.gz", nib, "save"), (".nii", nib, "save"), (".nrrd", writers.nrrd, "write"), (".mha", sitk, "WriteImage"),
           (".seg.nrrd", writers.nrrd, "write")]  # fmt: skip


@pytest.mark.parametrize(("ending", "module", "function"), [*WRITERS, (".nrrd", os, "replace")])
@pytest.mark.parametrize("before", [None, b"an older mask"])
def test_a_failure_while_writing_changes_nothing(ending, module, function, before, tmp_path, monkeypatch):
    def fill_the_disk(*args, **_):
        for path in (a for a in args if isinstance(a, str)):
            with open(path, "wb") as file:
                file.write(b"half a mask")
        raise OSError("No space left on device")

    path = tmp_path / f"a{ending}"
    if before:
        path.write_bytes(before)
    monkeypatch.setattr(module, function, fill_the_disk)
    with pytest.raises(OSError, match="No space left"):
        write_mask(NOISE, VOLUME, path)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_an_empty_mask_in_a_seg_nrrd_has_an_empty_extent(tmp_path):
    path = write_mask(np.zeros_like(NOISE), VOLUME, tmp_path / "a.seg.nrrd")
    assert not read_volume(path).array.any()
    assert b"Segment0_Extent:=0 -1 0 -1 0 -1" in path.read_bytes()


def test_a_missing_dicom_slice_is_refused(tmp_path):
    volume = Volume(np.zeros((8, 8, 6), np.int16))
    write_dicom(volume, tmp_path, modality="CT", description="gap")
    assert read_volume(tmp_path).shape == (8, 8, 6)
    (tmp_path / "0003.dcm").unlink()
    with pytest.raises(VolumeError, match="missing"):
        read_volume(tmp_path)


def test_a_label_map_at_another_position_is_refused(tmp_path):
    volume = Volume(np.zeros((8, 8, 6), np.int16))
    path = write_mask(np.ones((8, 8, 6), bool), volume, tmp_path / "m.nii.gz")
    assert read_mask(path, volume).all()
    flipped = Volume(volume.array, np.diag([-1.0, 1, 1, 1]))
    with pytest.raises(VolumeError, match="elsewhere"):
        read_mask(path, flipped)
