"""Fixtures that tests of several packages use."""

import itertools

import numpy as np
import pytest

SPACING_MM = (0.7, 1.3, 5.0)
ORIGIN_MM = (10.0, -20.5, 30.25)


def _signed_permutations():
    """Yield the 48 ways to lay voxel axes along R, A and S: names such as "LPS" with 3x3 matrices of one +-1 per column."""
    letters = ("LR", "PA", "IS")
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((0, 1), repeat=3):
            matrix = np.zeros((3, 3))
            for column, (row, sign) in enumerate(zip(order, signs, strict=True)):
                matrix[row, column] = 2 * sign - 1
            yield "".join(letters[r][s] for r, s in zip(order, signs, strict=True)), matrix


def _rotation(about_x: float, about_z: float) -> np.ndarray:
    """Return the rotation matrix (3, 3) for two angles in radians; it is oblique to every axis."""
    (cx, sx), (cz, sz) = ((np.cos(a), np.sin(a)) for a in (about_x, about_z))
    return np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]]) @ np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])


DIRECTIONS = dict(_signed_permutations())
DIRECTIONS["oblique"] = _rotation(0.3, -0.5)
DIRECTIONS["oblique left-handed"] = _rotation(0.3, -0.5) @ np.diag([1.0, 1.0, -1.0])


@pytest.fixture(params=DIRECTIONS, scope="session")
def affine(request) -> np.ndarray:
    """Return an affine (4, 4) from voxels to mm RAS: each of the 48 orientations and two oblique ones, with unequal spacings."""
    matrix = np.eye(4)
    matrix[:3, :3] = DIRECTIONS[request.param] * SPACING_MM
    matrix[:3, 3] = ORIGIN_MM
    return matrix
