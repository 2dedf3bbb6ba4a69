"""NIfTI files as real people have them: the block lies where 3D Slicer (ITK) shows it, or the file is refused with the reason."""

import gzip
import itertools
import shutil
import struct

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from lib.common.errors import VolumeError
from lib.imaging.readers import read_grid, read_mask, read_volume
from lib.imaging.writers import write_mask
from tests.conftest import DIRECTIONS
from tests.imaging.block_checks import affine_of_itk, assert_block_lies_right, bright_centre, centre_lps_mm
from tests.imaging.real_cases import (
    BLOCK,
    BRIGHT,
    IMAGE,
    LPS,
    OBLIQUE,
    SHAPE,
    block_image,
    lps_affine,
    nifti_bytes,
    tilted_affine,
    write_nifti,
)

MOVED = lps_affine(origin=(14.0, -22.0, 9.0))


# --- where the voxels lie --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("qform_code, sform_code", itertools.product((-1, 0, 1, 2, 3, 4, 5, 6, 100), repeat=2))
def test_the_choice_between_qform_and_sform_is_that_of_itk(tmp_path, qform_code, sform_code):
    path, content = tmp_path / "a.nii", bytearray(nifti_bytes(IMAGE, MOVED, qform=OBLIQUE))
    struct.pack_into("<hh", content, 252, qform_code, sform_code)
    path.write_bytes(content)
    assert_block_lies_right(read_volume(path), affine_of_itk(path))
    np.testing.assert_allclose(LPS @ read_grid(path).affine, affine_of_itk(path), atol=1e-5)


def test_qform_and_sform_alone(tmp_path):
    for codes in ({"qform_code": 0}, {"sform_code": 0}, {"qform_code": 4, "sform_code": 0}, {"qform_code": 0, "sform_code": 2}):
        assert_block_lies_right(read_volume(write_nifti(tmp_path / "a.nii", affine_lps=OBLIQUE, **codes)), OBLIQUE)


@pytest.mark.parametrize("unit, mm", [("meter", 1000.0), ("mm", 1.0), ("micron", 1e-3), ("unknown", 1.0)])
@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1)])
def test_units(tmp_path, unit, mm, codes):
    stored = OBLIQUE.copy()
    stored[:3] /= mm
    path = write_nifti(tmp_path / "a.nii.gz", affine_lps=stored, unit=unit, qform_code=codes[0], sform_code=codes[1])
    assert_block_lies_right(read_volume(path), affine_of_itk(path))
    assert_block_lies_right(read_volume(path), OBLIQUE)


@pytest.mark.parametrize("fields", [
    {"pixdim": [-1, 1.5, 2, 3, 0, 0, 0, 0]}, {"pixdim": [0, 1.5, 2, 3, 0, 0, 0, 0]}, {"pixdim": [1, 0, 0, 0, 0, 0, 0, 0]},
    {"pixdim": [1, -1.5, 2, 3, 0, 0, 0, 0]}, {"pixdim": [1, 1.5, 2, -3, 0, 0, 0, 0], "sform_code": 0}, {"pixdim": [1, 1, 1, 1, 0, 0, 0, 0]},
    {"quatern_b": np.nan}, {"qoffset_x": np.nan, "qform_code": 0}, {"srow_x": [0] * 4},
    {"xyzt_units": 2 + 8}, {"xyzt_units": 2 + 16}, {"xyzt_units": 0}, {"xyzt_units": 63},
    {"qform_code": 0, "sform_code": 0}, {"qform_code": 0, "sform_code": 0, "unit": "micron"},
    {"sform_code": 0, "quatern_d": 1.0000002}, {"sform_code": 0, "quatern_b": 0.6, "quatern_c": 0.6, "quatern_d": 0.5291503},
])  # fmt: skip
def test_headers_with_small_mistakes_are_read_as_itk_reads_them(tmp_path, fields):
    path = write_nifti(tmp_path / "a.nii.gz", **fields)
    assert_block_lies_right(read_volume(path), affine_of_itk(path))


@pytest.mark.parametrize("unit, mm", [("mm", 1.0), ("micron", 1e-3)])
def test_sheared_images(tmp_path, unit, mm):
    stored = tilted_affine()
    stored[:3] /= mm
    path = write_nifti(tmp_path / "a.nii.gz", affine_lps=stored, unit=unit, qform_code=0)
    volume = read_volume(path)
    assert_block_lies_right(volume, tilted_affine())
    for ending in (".nrrd", ".seg.nrrd", ".mha"):
        written = write_mask(volume.array > BRIGHT, volume, tmp_path / f"mask{ending}")
        np.testing.assert_allclose(affine_of_itk(written), tilted_affine(), atol=1e-4)


@pytest.mark.parametrize("size_mm", [8e-6, 1e-3, 1e3])
def test_voxels_of_any_size(tmp_path, size_mm):
    affine = lps_affine(spacing_mm=(size_mm, size_mm, 5 * size_mm), origin=np.array([3, 4, 5]) * size_mm)
    path = write_nifti(tmp_path / "a.nii.gz", affine_lps=affine)
    volume = read_volume(path)
    assert_block_lies_right(volume, affine)
    mask = write_mask(volume.array > BRIGHT, volume, tmp_path / "mask.nrrd")
    np.testing.assert_allclose(bright_centre(block_image(), affine_of_itk(mask)), centre_lps_mm(affine), rtol=1e-4)


def test_nifti_2(tmp_path):
    image = nib.Nifti2Image(IMAGE, LPS @ OBLIQUE)
    image.header.set_qform(LPS @ OBLIQUE, 1)
    nib.save(image, tmp_path / "a.nii.gz")
    assert_block_lies_right(read_volume(tmp_path / "a.nii.gz"), OBLIQUE)
    image.header.set_xyzt_units("micron")
    nib.save(image, tmp_path / "b.nii")
    assert_block_lies_right(read_volume(tmp_path / "b.nii"), np.diag([1e-3, 1e-3, 1e-3, 1]) @ OBLIQUE)


# --- files -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "A.NII.GZ", "A.NII", "scan.2024.01.nii.gz", "with space ä.nii"])
@pytest.mark.parametrize("compressed", [True, False])
def test_compression_is_found_by_the_content(tmp_path, name, compressed):
    content = nifti_bytes(IMAGE)
    (tmp_path / name).write_bytes(gzip.compress(content) if compressed else content)
    assert_block_lies_right(read_volume(tmp_path / name), lps_affine())


@pytest.mark.parametrize("header, voxels", [("b.hdr", "b.img"), ("B.HDR", "B.IMG"), ("b.hdr.gz", "b.img.gz"), ("b.hdr", "b.img.gz")])
def test_pairs_are_read_by_either_name(tmp_path, header, voxels):
    nib.save(nib.Nifti1Pair(IMAGE, LPS @ OBLIQUE), tmp_path / "pair.hdr")
    for source, name in (("pair.hdr", header), ("pair.img", voxels)):
        content = (tmp_path / source).read_bytes()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    for name in (header, voxels):
        assert_block_lies_right(read_volume(tmp_path / name), OBLIQUE)
        assert read_grid(tmp_path / name).shape == SHAPE


def test_a_half_pair_is_refused(tmp_path):
    nib.save(nib.Nifti1Pair(IMAGE, LPS @ OBLIQUE), tmp_path / "b.hdr")
    shutil.move(tmp_path / "b.img", tmp_path / "c.img")
    for name in ("b.hdr", "c.img"):
        with pytest.raises(VolumeError):
            read_volume(tmp_path / name)


def test_big_endian(tmp_path):
    assert_block_lies_right(read_volume(write_nifti(tmp_path / "a.nii.gz", affine_lps=OBLIQUE, endian=">")), OBLIQUE)


def test_headers_of_other_writers(tmp_path):
    plain = nifti_bytes(IMAGE, OBLIQUE)
    extended = nifti_bytes(IMAGE, OBLIQUE, vox_offset=384)
    extended = extended[:348] + b"\1\0\0\0" + struct.pack("<ii", 32, 6) + b"a comment".ljust(24, b"\0") + extended[352:]
    contents = {
        "no vox_offset": nifti_bytes(IMAGE, OBLIQUE, vox_offset=0), "an extension": extended, "more bytes at the end": plain + bytes(999),
        "compressed in two parts": gzip.compress(plain[:1000]) + gzip.compress(plain[1000:]),
        "zeros behind the compressed part": gzip.compress(plain) + bytes(512), "fields that say nothing of the place": nifti_bytes(
            IMAGE, OBLIQUE, dim_info=57, intent_code=1002, slice_code=3, cal_max=7, descrip=b"x" * 80),
    }  # fmt: skip
    for content in contents.values():
        (tmp_path / "a.nii").write_bytes(content)
        assert_block_lies_right(read_volume(tmp_path / "a.nii"), OBLIQUE)


def test_analyze_files_are_refused(tmp_path):
    nib.analyze.AnalyzeImage(IMAGE, LPS @ lps_affine()).to_filename(str(tmp_path / "a.hdr"))
    for name in ("a.hdr", "a.img"):
        with pytest.raises(VolumeError, match="Analyze 7.5"):
            read_volume(tmp_path / name)


def test_a_sheared_sform_beside_a_qform_elsewhere_is_refused(tmp_path):
    path = write_nifti(tmp_path / "a.nii.gz", affine_lps=tilted_affine(), qform=lps_affine())
    for read in (read_volume, read_grid):
        with pytest.raises(VolumeError, match="qform"):
            read(path)


# --- values ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("slope, inter, factor, offset", [
    (np.nan, np.nan, 1, 0), (np.nan, 0, 1, 0), (1, np.nan, 1, 0), (0, 0, 1, 0), (0, 7, 1, 0), (np.inf, 0, 1, 0), (1, np.inf, 1, 0),
    (2, -1024, 2, -1024), (0.5, 0, 0.5, 0), (-1, 0, -1, 0),
])  # fmt: skip
def test_slopes(tmp_path, slope, inter, factor, offset):
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", scl_slope=slope, scl_inter=inter))
    np.testing.assert_allclose(volume.array, IMAGE * factor + offset)


@pytest.mark.parametrize("dim", [
    (3, *SHAPE, 0, 0, 0, 0), (4, *SHAPE, 0, 0, 0, 0), (5, *SHAPE, 0, 0, 0, 0), (4, *SHAPE, 1, 0, 0, 0), (5, *SHAPE, 1, 1, 1, 1),
    (7, *SHAPE, 1, 1, 1, 1), (3, *SHAPE, -1, 7, 0, 99),
])  # fmt: skip
def test_lengths_of_axes_that_are_not_used(tmp_path, dim):
    assert_block_lies_right(read_volume(write_nifti(tmp_path / "a.nii.gz", dim=dim)), lps_affine())
    assert read_grid(tmp_path / "a.nii.gz").shape == SHAPE


@pytest.mark.parametrize("dtype", ["u1", "i1", "u2", "i4", "u4", "i8", "u8", "f4", "f8"])
def test_types_of_voxels(tmp_path, dtype):
    array = block_image(dtype=np.float64)
    array = (array / 10 if dtype in ("u1", "i1") else array).astype(dtype)
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", array))
    assert_block_lies_right(volume, lps_affine(), threshold=50 if dtype in ("u1", "i1") else BRIGHT)


@pytest.mark.parametrize("dtype", [np.complex64, np.complex128])
@pytest.mark.parametrize("slope", [1.0, 0.5])
def test_complex_values_become_magnitudes(tmp_path, dtype, slope):
    phase = np.random.default_rng(1).uniform(0, 6.28, SHAPE)
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", (IMAGE * np.exp(1j * phase)).astype(dtype), scl_slope=slope))
    np.testing.assert_allclose(volume.array / volume.array.max(), IMAGE / 1000, atol=1e-4)
    assert_block_lies_right(volume, lps_affine(), threshold=volume.array.max() / 2)


@pytest.mark.parametrize("names", ["RGB", "RGBA"])
def test_colours_become_luminance(tmp_path, names):
    colours = np.zeros(SHAPE, [(n, "u1") for n in names])
    for n in names:
        colours[n] = 255 if n == "A" else IMAGE // 10
    assert_block_lies_right(read_volume(write_nifti(tmp_path / "a.nii.gz", colours)), lps_affine(), threshold=50)


@pytest.mark.parametrize("trailing", [(2,), (1, 2), (1, 1, 2)])
def test_channels_on_any_further_axis(tmp_path, trailing):
    channels = np.stack([IMAGE, 500 - IMAGE // 2], -1).reshape(*SHAPE, *trailing)
    path = write_nifti(tmp_path / "a.nii.gz", channels)
    assert_block_lies_right(read_volume(path, channel=0), lps_affine())
    np.testing.assert_array_equal(read_volume(path, channel=1).array, 500 - IMAGE // 2)
    with pytest.raises(VolumeError, match="2 channels or time points"):
        read_volume(path)


def test_values_that_are_not_finite_and_extreme_ones(tmp_path):
    array = IMAGE.astype(float)
    array[:2], array[:, :1], array[:, :, :1] = np.nan, np.inf, -np.inf
    volume = read_volume(write_nifti(tmp_path / "a.nii.gz", array))
    assert np.isfinite(volume.array).all()
    assert_block_lies_right(volume, lps_affine())
    array = IMAGE.astype(float)
    array[:2] = -np.finfo(float).max
    assert_block_lies_right(read_volume(write_nifti(tmp_path / "b.nii.gz", array)), lps_affine())


@pytest.mark.parametrize("shape, k", [((14, 12, 1), 0), ((14, 12), 0)])
def test_single_slices(tmp_path, shape, k):
    path = write_nifti(tmp_path / "a.nii.gz", IMAGE[:, :, 5].reshape(shape))
    volume = read_volume(path)
    assert volume.shape == (14, 12, 1) and volume.planar == (len(shape) == 2)
    expected = lps_affine()[:3, :3] @ (9.0, 3.5, 0) + lps_affine()[:3, 3]
    np.testing.assert_allclose(bright_centre(volume.array, LPS @ volume.affine), expected, atol=1e-3)


# --- label maps ------------------------------------------------------------------------------------------------------
LABELS = (IMAGE > BRIGHT).astype(np.uint8)


@pytest.fixture
def image(tmp_path):
    return read_volume(write_nifti(tmp_path / "image.nii.gz"))


@pytest.mark.parametrize("array, affine", [
    (LABELS, np.round(lps_affine(), 3) + [[0, 1e-4, 0, 4e-4], [0] * 4, [0] * 4, [0] * 4]), (LABELS * 6.9999, None), (LABELS * 57.0, None),
    (LABELS.astype(np.int64) * 1001, None), (LABELS[..., None], None), (LABELS.astype(np.float32), lps_affine(origin=(-19.6, 13.4, 40.4))),
], ids=["rounded", "almost whole", "float", "int64", "one channel", "less than half a voxel"])  # fmt: skip
def test_labels_that_fit(tmp_path, image, array, affine):
    mask = read_mask(write_nifti(tmp_path / "label.nii.gz", array, affine), image)
    np.testing.assert_array_equal(mask > 0, IMAGE > BRIGHT)
    assert mask[BLOCK].max() == np.rint(array.max())


@pytest.mark.parametrize("array, affine, fields, words", [
    (LABELS[3:], None, {}, "shape"), (LABELS.transpose(1, 0, 2), None, {}, "shape"),
    (LABELS, lps_affine(origin=(-20, 13, 43)), {}, "elsewhere"), (LABELS, lps_affine(DIRECTIONS["oblique"]), {}, "elsewhere"),
    (LABELS, lps_affine(spacing_mm=(1.5, 2.2, 3)), {}, "elsewhere"), (LABELS, tilted_affine(), {"qform_code": 0}, "elsewhere"),
    (LABELS * 255, None, {"scl_slope": 1 / 255}, "scale"), (LABELS, None, {"scl_inter": 1}, "scale"), (LABELS * 0.5, None, {}, "whole"),
    (np.stack([LABELS, LABELS], -1), None, {}, "channels|layers"), (np.full(SHAPE, np.nan, np.float32), None, {}, "finite"),
])  # fmt: skip
def test_labels_that_do_not_fit_are_refused(tmp_path, image, array, affine, fields, words):
    path = write_nifti(tmp_path / "label.nii.gz", array, affine, **fields)
    for target in (image, image.grid):
        with pytest.raises(VolumeError, match=words) as e:
            read_mask(path, target)
        assert str(tmp_path) not in str(e.value)


def test_three_channels_are_no_label_map(tmp_path, image):
    colours = np.zeros(SHAPE, [(n, "u1") for n in "RGB"])
    colours["R"] = LABELS
    with pytest.raises(VolumeError, match="colours"):
        read_mask(write_nifti(tmp_path / "label.nii.gz", colours), image)


def test_a_label_of_another_program_without_codes_fits_its_image(tmp_path):
    path = write_nifti(tmp_path / "image.nii.gz", qform_code=0, sform_code=0)
    label = sitk.GetImageFromArray(LABELS.transpose(2, 1, 0))
    label.CopyInformation(sitk.ReadImage(str(path)))
    sitk.WriteImage(label, str(tmp_path / "label.nii.gz"))
    np.testing.assert_array_equal(read_mask(tmp_path / "label.nii.gz", read_volume(path)), LABELS)
