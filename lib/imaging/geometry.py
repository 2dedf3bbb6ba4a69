"""Compute with affines and choose slicing axes. Voxel indices are (i, j, k) as stored; positions are in mm, RAS+ as in NIfTI."""

import numpy as np

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def spacing(affine: np.ndarray) -> np.ndarray:
    """Return the voxel sizes (3,) in mm of a 4x4 affine.

    >>> spacing(np.diag([-2.0, 1.0, 5.0, 1.0])).tolist()
    [2.0, 1.0, 5.0]
    """
    return np.sqrt((np.asarray(affine, float)[:3, :3] ** 2).sum(0))


def is_valid_affine(affine: np.ndarray) -> bool:
    """Return whether an affine is a finite 4x4 matrix whose axes have a length and do not lie in one plane, in any unit."""
    affine = np.asarray(affine, float)
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        return False
    sizes = spacing(affine)
    return bool(sizes.min() > 1e-12 and abs(np.linalg.det(affine[:3, :3] / sizes)) > 1e-3)


def has_shear(affine: np.ndarray, tolerance: float = 1e-4) -> bool:
    """Return whether the axes of an affine are not perpendicular: the cosine of an angle between two is above `tolerance`.

    ITK refuses NIfTI files with more shear than about 2e-4.

    >>> has_shear(np.diag([-1.0, 2, 3, 1])), has_shear(np.array([[1, 0, 0, 0], [0, 1, 0.3, 0], [0, 0, 1, 0], [0, 0, 0, 1]]))
    (False, True)
    """
    directions = np.asarray(affine, float)[:3, :3] / spacing(affine)
    return bool(np.abs(directions.T @ directions - np.eye(3)).max() > tolerance)


def ras_from_itk(origin, spacing_mm, direction) -> np.ndarray:
    """Return the 4x4 RAS affine of an ITK image with this origin (3,), spacing (3,) and direction (9,), which are in LPS."""
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(direction, float).reshape(3, 3) * np.asarray(spacing_mm, float)
    affine[:3, 3] = origin
    return LPS_FROM_RAS @ affine


def itk_from_ras(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the origin (3,), spacing (3,) and direction (9,) in LPS of a 4x4 RAS affine, as ITK needs them.

    The direction of a sheared affine is not orthonormal. ITK and SimpleITK carry it exactly in NRRD and MetaImage files.
    """
    lps = LPS_FROM_RAS @ np.asarray(affine, float)
    sizes = spacing(lps)
    return lps[:3, 3], sizes, (lps[:3, :3] / sizes).ravel()


def to_mm(affine: np.ndarray, ijk) -> np.ndarray:
    """Return the positions (..., 3) in mm RAS of voxel indices (..., 3)."""
    return np.asarray(ijk, float) @ affine[:3, :3].T + affine[:3, 3]


def slicing_axis(shape, spacing_mm) -> int:
    """Return the axis (0, 1 or 2) along which the slices of a volume were probably acquired.

    This is the axis with clearly larger spacing, otherwise the one with clearly fewer voxels, otherwise the last one. If the volume
    is a single slice, it is the axis with one voxel.

    >>> slicing_axis((512, 512, 30), (0.7, 0.7, 5.0)), slicing_axis((20, 256, 256), (4.0, 1.0, 1.0))
    (2, 0)
    >>> slicing_axis((197, 233, 189), (1.0, 1.0, 1.0)), slicing_axis((240, 16, 240), (1.0, 1.0, 1.0))
    (2, 1)
    """
    sizes, counts = np.asarray(spacing_mm, float), np.asarray(shape[:3], float)
    if (counts == 1).sum() == 1:
        return int(np.argmin(counts))
    if sizes.max() >= 1.2 * np.median(sizes):  # The spacings of reformatted "isotropic" volumes differ by a few per cent.
        return int(np.argmax(sizes))
    if counts.min() * 2 <= np.median(counts):
        return int(np.argmin(counts))
    return 2
