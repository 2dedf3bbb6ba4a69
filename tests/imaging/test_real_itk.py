"""NRRD and MetaImage files as real people have them: the block lies where the format places it, or the file is refused with the reason."""

import gzip
import zlib

import numpy as np
import pytest

from lib.common.errors import VolumeError
from lib.imaging.readers import read_grid, read_mask, read_volume
from lib.imaging.writers import write_mask
from tests.conftest import DIRECTIONS
from tests.imaging.block_checks import affine_of_itk, assert_block_lies_right
from tests.imaging.real_cases import (
    BRIGHT,
    IMAGE,
    LPS,
    META_GRID,
    SHAPE,
    block_image,
    lps_affine,
    nrrd_fields,
    tilted_affine,
    vectors,
    write_metaimage,
    write_nrrd,
)

OBLIQUE = lps_affine(DIRECTIONS["oblique left-handed"])
SPACES = {
    "left-posterior-superior": (1, 1, 1), "LPS": (1, 1, 1), "right-anterior-superior": (-1, -1, 1), "RAS": (-1, -1, 1),
    "left-anterior-superior": (1, -1, 1), "LAS": (1, -1, 1), "scanner-xyz": (1, 1, 1), "3D-right-handed": (1, 1, 1),
}  # fmt: skip


# --- NRRD ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("affine", [lps_affine(), OBLIQUE, tilted_affine()], ids=["straight", "oblique", "sheared"])
def test_nrrd_spaces(tmp_path, space, affine):
    stored = np.diag([*SPACES[space], 1.0]) @ affine
    path = write_nrrd(tmp_path / "a.nrrd", nrrd_fields(stored, space=space))
    volume = read_volume(path)
    assert_block_lies_right(volume, affine)
    np.testing.assert_allclose(LPS @ read_grid(path).affine, affine, atol=1e-6)
    for ending in (".nrrd", ".seg.nrrd", ".mha"):
        written = write_mask(volume.array > BRIGHT, volume, tmp_path / f"mask{ending}")
        np.testing.assert_allclose(affine_of_itk(written), affine, atol=1e-5)


@pytest.mark.parametrize("unit, mm", [("mm", 1), ("um", 1e-3), ("µm", 1e-3), ("m", 1000), ("cm", 10), ("", 1)])
def test_nrrd_units(tmp_path, unit, mm):
    stored = OBLIQUE.copy()
    stored[:3] /= mm
    volume = read_volume(write_nrrd(tmp_path / "a.nrrd", nrrd_fields(stored, space_units=" ".join([f'"{unit}"'] * 3))))
    assert_block_lies_right(volume, OBLIQUE)
    assert bool(volume.warnings) == (mm != 1), "3D Slicer takes the numbers for mm"


def test_nrrd_axes_with_different_units_are_refused(tmp_path):
    with pytest.raises(VolumeError, match="different units"):
        read_volume(write_nrrd(tmp_path / "a.nrrd", nrrd_fields(space_units='"mm" "mm" "cm"')))


@pytest.mark.parametrize("fields", [
    {"spacings": "1.5 2 3"}, {"spacings": "1.5 2 3", "kinds": "domain domain domain"}, {"spacings": "1.5 2 3", "axis mins": "0 0 0"},
    {"spacings": "1.5 2 3", "centers": "cell cell cell", "units": '"mm" "mm" "mm"'},
    {"space dimension": "3", "space directions": vectors(lps_affine()[:3, :3]), "space origin": "(0,0,0)"},
    {"space": "left-posterior-superior", "space directions": vectors(lps_affine()[:3, :3])},
])  # fmt: skip
def test_nrrd_without_a_full_place_is_read_as_itk_reads_it(tmp_path, fields):
    path = write_nrrd(tmp_path / "a.nrrd", fields)
    assert_block_lies_right(read_volume(path), affine_of_itk(path))


@pytest.mark.parametrize("header, voxels", [("a.nhdr", "a.raw.gz"), ("subject 1.nhdr", "subject 1.raw.gz"), ("A.NHDR", "A.RAW.GZ")])
def test_nrrd_in_two_files(tmp_path, header, voxels):
    path = write_nrrd(tmp_path / header, nrrd_fields(OBLIQUE), data_file=voxels)
    assert_block_lies_right(read_volume(path), OBLIQUE)
    assert read_grid(path).shape == SHAPE


@pytest.mark.parametrize("kind", ["vector", "list", "RGB-color", "3-vector"])
@pytest.mark.parametrize("first", [True, False])
def test_nrrd_channels_on_the_first_or_last_axis(tmp_path, kind, first):
    channels = np.stack([IMAGE, IMAGE // 2, IMAGE // 3], 0 if first else -1)
    place = vectors(OBLIQUE[:3, :3])
    fields = nrrd_fields(
        OBLIQUE, space_directions=f"none {place}" if first else f"{place} none",
        kinds=f"{kind} domain domain domain" if first else f"domain domain domain {kind}",
    )  # fmt: skip
    path = write_nrrd(tmp_path / "a.nrrd", fields, channels)
    assert_block_lies_right(read_volume(path, channel=0), OBLIQUE)
    np.testing.assert_array_equal(read_volume(path, channel=1).array, IMAGE // 2)
    with pytest.raises(VolumeError, match="3 channels or time points"):
        read_volume(path)


def test_nrrd_with_the_line_ends_of_windows(tmp_path):
    for encoding in ("raw", "gzip"):
        path = write_nrrd(tmp_path / "a.nrrd", nrrd_fields(OBLIQUE), encoding=encoding, line_end=b"\r\n")
        assert_block_lies_right(read_volume(path), OBLIQUE)


@pytest.mark.parametrize("encoding, stored", [
    ("raw", lambda array: array.tobytes("F")), ("ascii", lambda array: " ".join(map(str, array.ravel("F"))).encode()),
    ("hex", lambda array: array.tobytes("F").hex().encode()), ("gzip", lambda array: gzip.compress(array.tobytes("F"))),
])  # fmt: skip
@pytest.mark.parametrize("endian", ["little", "big"])
def test_nrrd_encodings(tmp_path, encoding, stored, endian):
    path = write_nrrd(tmp_path / "a.nrrd", nrrd_fields(OBLIQUE))
    head = path.read_bytes().partition(b"\n\n")[0].replace(b"endian: little", b"endian: " + endian.encode())
    head = head.replace(b"encoding: gzip", b"encoding: " + encoding.encode())
    path.write_bytes(head + b"\n\n" + stored(IMAGE.astype({"little": "<i2", "big": ">i2"}[endian])))
    assert_block_lies_right(read_volume(path), OBLIQUE)


@pytest.mark.parametrize("fields", [
    {"# made": "by hand"}, {"thicknesses": "NaN NaN 3"}, {"centerings": "cell cell cell"}, {"content": "a head"},
    {"measurement frame": "(0,1,0) (1,0,0) (0,0,-1)"}, {"old min": "0"}, {"labels": '"x" "y" "z"'}, {"space units": '"mm" "mm" "mm"'},
])  # fmt: skip
def test_nrrd_fields_that_say_nothing_of_the_place(tmp_path, fields):
    assert_block_lies_right(read_volume(write_nrrd(tmp_path / "a.nrrd", {**nrrd_fields(OBLIQUE), **fields})), OBLIQUE)


@pytest.mark.parametrize("name", ["A.NRRD", "scan.2024.01.nrrd", "with space ä.nrrd"])
def test_nrrd_names(tmp_path, name):
    assert_block_lies_right(read_volume(write_nrrd(tmp_path / name, nrrd_fields(OBLIQUE))), OBLIQUE)


# --- MetaImage -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("affine", [lps_affine(), OBLIQUE, tilted_affine(), lps_affine(np.diag([1, 1, -1]))])
def test_metaimage_matrices(tmp_path, affine):
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    grid = {"TransformMatrix": " ".join(f"{v:.12g}" for v in directions.T.ravel()), "Offset": " ".join(map(str, affine[:3, 3]))}
    path = write_metaimage(tmp_path / "a.mha", {**META_GRID, **grid})
    assert_block_lies_right(read_volume(path), affine)
    np.testing.assert_allclose(LPS @ read_grid(path).affine, affine, atol=1e-6)


@pytest.mark.parametrize("fields", [
    {"Offset": None, "Position": "-20 13 40"}, {"Offset": None, "Origin": "-20 13 40"},
    {"TransformMatrix": None, "Orientation": "1 0 0 0 1 0 0 0 1"}, {"TransformMatrix": None, "Rotation": "1 0 0 0 1 0 0 0 1"},
    {"ElementSpacing": None, "ElementSize": "1.5 2 3"}, {"ElementSize": "1.5 2 9"}, {"ElementNumberOfChannels": "1"},
    {"AnatomicalOrientation": "RAI"}, {"Comment": "made by hand"}, {"DistanceUnits": "mm"}, {"CenterOfRotation": "5 6 7"},
])  # fmt: skip
def test_metaimage_fields(tmp_path, fields):
    path = write_metaimage(tmp_path / "a.mha", {k: v for k, v in {**META_GRID, **fields}.items() if v is not None})
    assert_block_lies_right(read_volume(path), affine_of_itk(path))
    assert_block_lies_right(read_volume(path), lps_affine())


def test_metaimage_with_a_negative_spacing_lies_where_itk_shows_it(tmp_path):
    path = write_metaimage(tmp_path / "a.mha", {**META_GRID, "ElementSpacing": "1.5 2 -3"})
    volume = read_volume(path)
    assert_block_lies_right(volume, lps_affine(np.diag([1, 1, -1])))
    mask = write_mask(volume.array > BRIGHT, volume, tmp_path / "mask.nrrd")
    np.testing.assert_allclose(affine_of_itk(mask), affine_of_itk(path), atol=1e-6)


@pytest.mark.parametrize("unit, mm", [("mm", 1), ("um", 1e-3), ("cm", 10), ("?", 1)])
def test_metaimage_units(tmp_path, unit, mm):
    fields = {**META_GRID, "Offset": f"{-20 / mm} {13 / mm} {40 / mm}", "ElementSpacing": f"{1.5 / mm} {2 / mm} {3 / mm}"}
    assert_block_lies_right(read_volume(write_metaimage(tmp_path / "a.mha", {"DistanceUnits": unit, **fields})), lps_affine())


@pytest.mark.parametrize("header, voxels", [
    ("a.mhd", "a.raw"), ("subject 1.mhd", "subject 1.raw"), ("a.mha", "LOCAL"), ("a.mha", "local"), ("a.mha", "Local"),
    ("A.MHA", "LOCAL"), ("A.MHD", "A.RAW"),
])  # fmt: skip
def test_metaimage_files(tmp_path, header, voxels):
    path = write_metaimage(tmp_path / header, data_file=voxels)
    assert_block_lies_right(read_volume(path), lps_affine())
    assert read_grid(path).shape == SHAPE


@pytest.mark.parametrize("dtype", ["u2", "u4", "i4", "u8", "i8", "f4", "f8"])
def test_types_of_voxels(tmp_path, dtype):
    assert_block_lies_right(read_volume(write_metaimage(tmp_path / "a.mha", array=block_image(dtype=dtype))), lps_affine())


@pytest.mark.parametrize("change", [
    ("CompressedData = False", "CompressedData = True\nCompressedDataSize = %d", lambda array: zlib.compress(array.tobytes("F"))),
    ("BinaryDataByteOrderMSB = False", "BinaryDataByteOrderMSB = True", lambda array: array.astype(">i2").tobytes("F")),
    ("BinaryDataByteOrderMSB = False", "ElementByteOrderMSB = True", lambda array: array.astype(">i2").tobytes("F")),
    ("\n", "\r\n", lambda array: array.tobytes("F")), (" = ", ": ", lambda array: array.tobytes("F")),
], ids=["compressed", "big endian", "big endian, other field", "line ends of Windows", "colons"])  # fmt: skip
def test_metaimage_contents(tmp_path, change):
    path, (old, new, stored) = write_metaimage(tmp_path / "a.mha"), change
    head = path.read_bytes()[: -IMAGE.nbytes]
    body = stored(IMAGE)
    path.write_bytes(head.replace(old.encode(), (new % len(body) if "%d" in new else new).encode()) + body)
    try:
        expected = affine_of_itk(path)
    except RuntimeError:  # ITK refuses colons.
        with pytest.raises(VolumeError):
            read_volume(path)
        return
    assert_block_lies_right(read_volume(path), expected)


@pytest.mark.parametrize("size", [77, -1])
def test_metaimage_voxels_behind_a_header_of_their_file(tmp_path, size):
    path = write_metaimage(tmp_path / "a.mhd", {**META_GRID, "HeaderSize": str(size)}, data_file="a.raw")
    (tmp_path / "a.raw").write_bytes(bytes(77) + IMAGE.tobytes("F"))
    assert_block_lies_right(read_volume(path), lps_affine())


@pytest.mark.parametrize("ending", [".nhdr", ".mhd"])
@pytest.mark.parametrize("name", ["missing.raw", "../a.raw", "/etc/passwd", "sub/a.raw"])
def test_voxels_elsewhere_are_refused(tmp_path, ending, name):
    if ending == ".nhdr":
        path = write_nrrd(tmp_path / "a.nhdr", nrrd_fields(), data_file="a.raw")
    else:
        path = write_metaimage(tmp_path / "a.mhd", data_file="a.raw")
    path.write_bytes(path.read_bytes().replace(b"a.raw", name.encode()))
    with pytest.raises(VolumeError):
        read_volume(path)


# --- label maps ------------------------------------------------------------------------------------------------------
LABELS = (IMAGE > BRIGHT).astype(np.uint8)


@pytest.fixture
def image(tmp_path):
    return read_volume(write_nrrd(tmp_path / "image.nrrd", nrrd_fields()))


def test_a_label_in_another_space_fits(tmp_path, image):
    stored = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps_affine()
    path = write_nrrd(tmp_path / "label.nrrd", nrrd_fields(stored, space="right-anterior-superior"), LABELS * 57)
    np.testing.assert_array_equal(read_mask(path, image), LABELS * 57)


def layered(kind):
    return {"kinds": f"{kind} domain domain domain", "space_directions": f"none {vectors(lps_affine()[:3, :3])}"}


@pytest.mark.parametrize("array, fields, words", [
    (LABELS[:, :, 2:], {}, "shape"), (LABELS, {"space_origin": "(-20,13,43)"}, "elsewhere"),
    (LABELS, {"space_directions": "(1.5,0,0) (0,2,1) (0,0,3)"}, "elsewhere"), (LABELS.astype(np.float32) * 0.5, {}, "whole"),
    (np.stack([LABELS, LABELS]), layered("list"), "layers"),
    (np.stack([LABELS] * 3), layered("RGB-color"), "layers"),
])  # fmt: skip
def test_labels_that_do_not_fit_are_refused(tmp_path, image, array, fields, words):
    path = write_nrrd(tmp_path / "label.nrrd", nrrd_fields(**fields), array)
    for target in (image, image.grid):
        with pytest.raises(VolumeError, match=words) as e:
            read_mask(path, target)
        assert str(tmp_path) not in str(e.value)
