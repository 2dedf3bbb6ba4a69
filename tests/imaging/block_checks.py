"""Checks that the bright block of `real_cases` lies at its place in mm, in a volume, a DICOM file or an image that SimpleITK reads."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from lib.imaging.readers import read_grid, read_volume
from lib.imaging.volume import Volume
from tests.imaging.real_cases import BRIGHT, LPS, read_back

CENTRE_IJK = (9.0, 3.5, 5.5)


def centre_lps_mm(affine_lps) -> np.ndarray:
    """Return the centre (3,) of the block in mm LPS."""
    return np.asarray(affine_lps)[:3, :3] @ CENTRE_IJK + np.asarray(affine_lps)[:3, 3]


def bright_centre(array: np.ndarray, affine: np.ndarray, threshold=BRIGHT) -> np.ndarray:
    """Return the centre (3,) of the voxels above a threshold, in the frame of the affine."""
    return affine[:3, :3] @ np.argwhere(array > threshold).mean(0) + affine[:3, 3]


def assert_block_lies_right(volume: Volume, affine_lps, *, count=12, threshold=BRIGHT) -> None:
    """Check that the block of a volume has its size and lies where `affine_lps` places it, up to a hundredth of a voxel."""
    smallest = np.linalg.norm(np.asarray(affine_lps)[:3, :3], axis=0).min()
    bright = volume.array > threshold
    assert bright.sum() == count
    offset = bright_centre(volume.array, LPS @ volume.affine, threshold) - centre_lps_mm(affine_lps)
    assert np.linalg.norm(offset) < 0.01 * smallest, offset
    determinants = [abs(np.linalg.det(a[:3, :3])) for a in (volume.affine, np.asarray(affine_lps))]
    np.testing.assert_allclose(*determinants, rtol=1e-3)


def affine_of_itk(path: Path) -> np.ndarray:
    """Return the affine (4, 4) of an image in mm LPS, as SimpleITK and so 3D Slicer reads it."""
    image = sitk.ReadImage(str(path))
    n = min(3, image.GetDimension())
    affine = np.eye(4)
    affine[:n, :n] = np.reshape(image.GetDirection(), (image.GetDimension(),) * 2)[:n, :n] * image.GetSpacing()[:n]
    affine[:n, 3] = image.GetOrigin()[:n]
    return affine


def assert_dicom_is_right(path: Path, affine_lps, **options) -> Volume:
    """Check the block and the grid of a DICOM series or object, and that each slice is the frame that states this position.

    Returns:
        The volume.
    """
    volume, grid = read_volume(path), read_grid(path)
    assert_block_lies_right(volume, affine_lps, **options)
    np.testing.assert_allclose(grid.affine, volume.affine)
    assert grid.shape == volume.shape and len(volume.source_frames) == volume.shape[2]
    for k, frame in enumerate(volume.source_frames):
        ds = read_back(frame.path)
        assert ds.SOPInstanceUID == frame.sop_instance_uid
        if "PerFrameFunctionalGroupsSequence" in ds:
            place = ds.PerFrameFunctionalGroupsSequence[frame.number - 1].PlanePositionSequence[0]
        else:
            assert frame.number == 1
            place = ds
        offset_mm = (LPS @ volume.affine)[:3] @ (0, 0, k, 1) - np.array(place.ImagePositionPatient, float)
        assert np.linalg.norm(offset_mm) < 0.02
    return volume
