"""Tests of affines and slicing axes; the fixture `affine` covers all orientations."""

import numpy as np
import pytest

from lib.imaging import geometry


def test_spacing_is_the_length_of_the_columns(affine):
    np.testing.assert_allclose(geometry.spacing(affine), (0.7, 1.3, 5.0))


def test_conversion_to_itk_and_back(affine):
    origin, sizes, direction = geometry.itk_from_ras(affine)
    matrix = direction.reshape(3, 3)
    np.testing.assert_allclose(matrix.T @ matrix, np.eye(3), atol=1e-12)
    np.testing.assert_allclose(geometry.ras_from_itk(origin, sizes, direction), affine, atol=1e-12)


def test_conversion_of_one_affine_to_itk():
    """Voxels measure 2 x 3 x 4 mm along R, A and S; in LPS the first two axes and coordinates of the origin change sign."""
    affine = np.array([[2, 0, 0, 5], [0, 3, 0, -6], [0, 0, 4, 7], [0, 0, 0, 1.0]])
    origin, sizes, direction = geometry.itk_from_ras(affine)
    assert origin.tolist() == [-5, 6, 7]
    assert sizes.tolist() == [2, 3, 4]
    assert direction.tolist() == [-1, 0, 0, 0, -1, 0, 0, 0, 1]


def test_a_sheared_affine_is_converted_exactly():
    affine = np.eye(4)
    affine[0, 1] = 0.2
    origin, sizes, direction = geometry.itk_from_ras(affine)
    np.testing.assert_allclose(sizes, [1, np.hypot(1, 0.2), 1])
    np.testing.assert_allclose(geometry.ras_from_itk(origin, sizes, direction), affine)


@pytest.mark.parametrize(("affine", "valid"), [
    (np.diag([8e-6, 8e-6, 4e-5, 1]), True),  # voxels of some nanometres, as in electron microscopy
    (np.diag([1, 0, 1, 1]), False), (np.diag([1, np.nan, 1, 1]), False),
    (np.array([[1, 1, 0, 0], [0, 1e-5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]), False),  # The first two axes nearly coincide.
])  # fmt: skip
def test_validity_of_affines_in_any_unit(affine, valid):
    assert geometry.is_valid_affine(affine) is valid


def test_to_mm():
    affine = np.array([[0, -2, 0, 10], [1, 0, 0, 20], [0, 0, 5, 30], [0, 0, 0, 1.0]])
    assert geometry.to_mm(affine, (1, 2, 3)).tolist() == [6, 21, 45]
    assert geometry.to_mm(affine, [[0, 0, 0], [0, 0, 1]]).tolist() == [[10, 20, 30], [10, 20, 35]]


@pytest.mark.parametrize(
    ("affine", "valid"),
    [
        (np.eye(4), True),
        (np.diag([-0.05, 0.05, 0.05, 1]), True),  # microscopy
        (np.diag([1, 0, 1, 1]), False),
        (np.diag([1, np.nan, 1, 1]), False),
        (np.diag([1, np.inf, 1, 1]), False),
        (np.eye(3), False),
    ],
)
def test_is_valid_affine(affine, valid):
    assert geometry.is_valid_affine(affine) == valid


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "axis"),
    [
        ((512, 512, 30), (0.7, 0.7, 5.0), 2),  # axial CT
        ((20, 256, 256), (4.0, 1.0, 1.0), 0),  # sagittal MR
        ((256, 24, 256), (1.0, 3.0, 1.0), 1),  # coronal MR
        ((128, 128, 400), (1.0, 1.0, 5.0), 2),  # whole-body CT: spacing outweighs the number of slices
        ((240, 16, 240), (1.0, 1.0, 1.0), 1),  # equal spacings, few slices
        ((512, 512, 1), (0.5, 0.5, 0.5), 2),
        ((512, 256, 1), (1.0, 2.0, 1.0), 2),  # one slice with oblong pixels
        ((1, 256, 256), (1.0, 2.0, 1.0), 0),
        ((197, 233, 189), (1.0, 1.0, 1.0), 2),  # no axis stands out
        ((100, 100, 100), (1.1, 1.0, 1.0), 2),  # resampled, nearly isotropic
        ((100, 100, 100), (1.2, 1.0, 1.0), 0),
    ],
)
def test_slicing_axis(shape, spacing_mm, axis):
    assert geometry.slicing_axis(shape, spacing_mm) == axis
