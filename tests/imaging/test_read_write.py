"""Tests that the indices and positions of voxels survive every format and orientation."""

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

from lib.common.errors import OptionError, VolumeError
from lib.imaging import geometry
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.study_files import LABEL_ENDINGS
from lib.imaging.volume import Volume
from lib.imaging.writers import write_image, write_mask
from lib.samples.sample_data import write_dicom

SHAPE, MARKED = (4, 5, 6), (1, 3, 2)
RAMP = np.arange(120, dtype=np.int16).reshape(SHAPE)
AXIAL_LPS = np.array([[-0.7, 0, 0, 10], [0, -1.3, 0, 20.5], [0, 0, 5, -30.25], [0, 0, 0, 1]])


def marked_volume(affine) -> Volume:
    """Return a volume in which only the voxel `MARKED` is 1."""
    array = np.zeros(SHAPE, np.uint8)
    array[MARKED] = 1
    return Volume(array, affine)


def save_nifti(array, path, affine=AXIAL_LPS):
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def assert_marked(volume: Volume, affine):
    """Check that the volume has this affine and that its marked voxel has the right index and position."""
    assert volume.shape == SHAPE
    assert np.argwhere(volume.array == 1).tolist() == [list(MARKED)]
    np.testing.assert_allclose(volume.affine, affine, atol=1e-3)
    np.testing.assert_allclose(geometry.to_mm(volume.affine, MARKED), geometry.to_mm(affine, MARKED), atol=1e-3)


# --- every orientation -----------------------------------------------------------------------------------------------
def test_reading_a_nifti_file_of_nibabel(affine, tmp_path):
    assert_marked(read_volume(save_nifti(marked_volume(affine).array, tmp_path / "a.nii.gz", affine)), affine)


@pytest.mark.parametrize("ending", LABEL_ENDINGS)
def test_writing_and_reading_each_format(affine, ending, tmp_path):
    path = write_mask(marked_volume(affine).array, marked_volume(affine), tmp_path / f"a{ending}")
    assert_marked(read_volume(path), affine)
    # SimpleITK, as an independent reader, must find the marked voxel at the same position; it computes in mm LPS.
    image = sitk.ReadImage(str(path))
    assert image[MARKED] == 1
    position = np.array(image.TransformIndexToPhysicalPoint(MARKED)) * (-1, -1, 1)
    np.testing.assert_allclose(position, geometry.to_mm(affine, MARKED), atol=1e-3)


def test_pynrrd_reads_a_seg_nrrd(affine, tmp_path):
    array, header = nrrd.read(str(write_mask(marked_volume(affine).array, marked_volume(affine), tmp_path / "a.seg.nrrd", label="liver")))
    assert np.argwhere(array).tolist() == [list(MARKED)]
    position = (header["space origin"] + MARKED @ header["space directions"]) * (-1, -1, 1)
    np.testing.assert_allclose(position, geometry.to_mm(affine, MARKED), atol=1e-3)
    assert (header["space"], header["Segment0_Name"]) == ("left-posterior-superior", "liver")
    assert header["Segment0_Extent"] == "1 1 3 3 2 2"


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("filled", [[], [0], [5], [2, 3]])
def test_empty_slices_of_a_raw_nrrd_read_as_zeros(filled, dtype, tmp_path):
    mask = np.zeros((7, 8, 6), bool)
    mask[2:4, 3:5, filled] = True
    path = write_mask(mask, Volume(mask.astype(np.int16), np.eye(4)), tmp_path / "a.nrrd", dtype=dtype, compress=False)
    content, header = nrrd.read(str(path))
    np.testing.assert_array_equal(content, mask)
    assert content.dtype == dtype and path.read_bytes().partition(b"\n\n")[2] == mask.astype(dtype).tobytes("F")


@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.uint16, ">i2"])
@pytest.mark.parametrize("affine", ["RAS", "LPI", "oblique", "oblique left-handed"], indirect=True)
def test_an_image_keeps_values_place_and_warnings(affine, dtype, tmp_path):
    affine = affine.copy()
    affine[:3, 2] += 0.3 * affine[:3, 1]  # sheared
    volume = Volume(RAMP.astype(dtype), affine, warnings=("Die Lage von Prüfung \\ 1 ist unbekannt.", "頭部"))
    result = read_volume(write_image(volume, tmp_path / "a.nrrd"))
    np.testing.assert_array_equal(result.array, volume.array)
    np.testing.assert_allclose(result.affine, affine, atol=1e-6)
    assert result.warnings == volume.warnings


def test_formats_and_dicom_agree(tmp_path):
    volume = Volume(RAMP, AXIAL_LPS)
    write_dicom(volume, tmp_path / "series", modality="CT", description="test")
    paths = [write_mask(RAMP, volume, tmp_path / f"a{e}", dtype="int16") for e in LABEL_ENDINGS]
    for path in (tmp_path / "series", save_nifti(RAMP, tmp_path / "b.nii"), *paths):
        result = read_volume(path)
        np.testing.assert_array_equal(result.array, RAMP)
        np.testing.assert_allclose(result.affine, AXIAL_LPS, atol=1e-3)


def test_dicom_slices_are_sorted_by_position(tmp_path):
    write_dicom(Volume(RAMP, AXIAL_LPS), tmp_path, modality="MR", description="test")
    for k, name in enumerate("fbdaec"):
        (tmp_path / f"{k + 1:04d}.dcm").rename(tmp_path / name)
    np.testing.assert_array_equal(read_volume(tmp_path).array, RAMP)
    assert read_volume(tmp_path / "f").array[:, :, 0].tolist() == RAMP[:, :, 0].tolist()  # A single file is a single slice.


def test_a_2d_image_keeps_its_position(tmp_path):
    image = sitk.GetImageFromArray(RAMP[:, :, 0].T.copy())
    image.SetSpacing((2, 3))
    image.SetOrigin((7, 8))
    for name in ("a.nrrd", "a.mha", "a.nii.gz"):
        sitk.WriteImage(image, str(tmp_path / name))
        volume = read_volume(tmp_path / name)
        assert (volume.shape, volume.planar) == ((4, 5, 1), True)
        np.testing.assert_array_equal(volume.array[:, :, 0], RAMP[:, :, 0])
        np.testing.assert_allclose(geometry.to_mm(volume.affine, (1, 1, 0)), (-9, -11, 0), atol=1e-3)


# --- contents of files -------------------------------------------------------------------------------------------------
def test_reading_one_channel(tmp_path):
    nifti = save_nifti(np.stack([RAMP, RAMP + 1], -1), tmp_path / "a.nii.gz")
    series = sitk.JoinSeries([sitk.GetImageFromArray((RAMP + n).transpose(2, 1, 0)) for n in (0, 1)])
    vector = sitk.GetImageFromArray(np.stack([RAMP, RAMP + 1], -1).transpose(2, 1, 0, 3), isVector=True)
    sitk.WriteImage(series, str(tmp_path / "b.mha"))
    sitk.WriteImage(vector, str(tmp_path / "c.nrrd"))
    for path in (nifti, tmp_path / "b.mha", tmp_path / "c.nrrd"):
        np.testing.assert_array_equal(read_volume(path, channel=1).array, RAMP + 1)
        for channel in (None, 2):
            with pytest.raises(VolumeError, match="2 channels or time points: choose one of 0 to 1"):
                read_volume(path, channel=channel)


@pytest.mark.parametrize("name", ["a.nrrd", "a.mha"])
def test_rgb_becomes_luminance(name, tmp_path):
    rgb = np.zeros((6, 5, 4, 3), np.uint8) + np.array([100, 50, 10], np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(rgb, isVector=True), str(tmp_path / name))
    volume = read_volume(tmp_path / name)
    assert volume.shape == SHAPE
    np.testing.assert_allclose(volume.array, 60.39, rtol=1e-5)


def test_scaled_values_values_that_are_not_finite_and_single_slices(tmp_path):
    array = RAMP / 4.0
    array[0, 0, 0] = np.nan
    assert read_volume(save_nifti(array, tmp_path / "a.nii")).array[0, 0, 0] == 0.25
    image = nib.Nifti1Image(RAMP, AXIAL_LPS)
    image.header.set_slope_inter(2, -100)
    nib.save(image, tmp_path / "b.nii")
    np.testing.assert_array_equal(read_volume(tmp_path / "b.nii").array, nib.load(tmp_path / "b.nii").get_fdata())
    one_slice = read_volume(save_nifti(RAMP[:, :, :1], tmp_path / "c.nii"))
    assert (one_slice.shape, one_slice.planar) == ((4, 5, 1), False)
    assert read_volume(save_nifti(RAMP[:, :, 0], tmp_path / "d.nii")).planar


def test_a_mask_must_have_the_shape_of_the_volume(tmp_path):
    mask = (RAMP % 3).astype(np.float32)
    path = save_nifti(mask, tmp_path / "a.nii")
    np.testing.assert_array_equal(read_mask(path, Volume(RAMP, read_volume(path).affine)), RAMP % 3)
    with pytest.raises(VolumeError, match=r"has shape \(4, 5, 5\), but the image has \(4, 5, 6\)"):
        read_mask(save_nifti(mask[:, :, 1:], tmp_path / "b.nii"), Volume(RAMP))


def test_values_that_would_become_other_numbers_are_refused(tmp_path):
    labels = np.zeros(SHAPE, np.uint32)
    labels[MARKED] = 2**32 - 1
    for dtype in (np.uint32, np.float32):
        with pytest.raises(VolumeError, match="a.nii holds values beyond 2147483647"):
            read_mask(save_nifti(labels.astype(dtype), tmp_path / "a.nii"), Volume(RAMP, AXIAL_LPS))
    with pytest.raises(OptionError, match="The values 0 to 300 do not fit into uint8"):
        write_mask(RAMP * 0 + np.int16(300) * (RAMP == 1), Volume(RAMP), tmp_path / "b.nii")


def test_a_2d_mask_of_a_2d_image_must_lie_where_the_image_lies(tmp_path):
    image = sitk.GetImageFromArray((RAMP[:, :, 0] % 3).T.copy())
    image.SetSpacing((2, 3))
    for name, origin in (("image", (7, 8)), ("other", (7, 80))):
        image.SetOrigin(origin)
        sitk.WriteImage(image, str(tmp_path / f"{name}.nrrd"))
    volume = read_volume(tmp_path / "image.nrrd")
    np.testing.assert_array_equal(read_mask(tmp_path / "image.nrrd", volume), volume.array)
    with pytest.raises(VolumeError, match="lies elsewhere"):
        read_mask(tmp_path / "other.nrrd", volume)
    single_slice = Volume(RAMP[:, :, :1], AXIAL_LPS)  # of a DICOM file, for example
    np.testing.assert_array_equal(read_mask(tmp_path / "other.nrrd", single_slice), volume.array)


def reoriented(array, affine, axes, flips):
    """Return the same voxels at the same places with permuted and reversed axes: the array and its affine."""
    for axis in flips:
        affine = affine @ np.array([[-1 if i == j == axis else i == j for j in range(4)] for i in range(4)], float)
        affine[:3, 3] -= affine[:3, axis] * (array.shape[axis] - 1)
        array = np.flip(array, axis)
    return array.transpose(axes), affine[:, [*axes, 3]]


@pytest.mark.parametrize("axes, flips", [((0, 1, 2), (0,)), ((0, 1, 2), (0, 1, 2)), ((2, 1, 0), ()), ((1, 2, 0), (2,)), ((2, 0, 1), (0, 1))])
@pytest.mark.parametrize("affine", ["LPS", "oblique"], indirect=True)
def test_a_mask_in_another_orientation_comes_onto_the_grid_of_the_image(affine, axes, flips, tmp_path):
    mask = RAMP % 3
    turned, turned_affine = reoriented(mask, affine, axes, flips)
    for position in (MARKED, (0, 0, 0)):  # The helper of this test must keep every voxel in its place.
        ijk = np.array([RAMP.shape[a] - 1 - position[a] if a in flips else position[a] for a in axes])
        np.testing.assert_allclose(geometry.to_mm(turned_affine, ijk), geometry.to_mm(affine, position), atol=1e-6)
    np.testing.assert_array_equal(read_mask(save_nifti(turned, tmp_path / "a.nii", turned_affine), Volume(RAMP, affine)), mask)
    np.testing.assert_array_equal(read_mask(save_nifti(mask, tmp_path / "b.nii", affine), Volume(turned, turned_affine)), turned)
    for offset_mm in (3, -30):
        turned_affine[:3, 3] += offset_mm
        with pytest.raises(VolumeError, match="lies elsewhere than the image"):
            read_mask(save_nifti(turned, tmp_path / "c.nii", turned_affine), Volume(RAMP, affine))
