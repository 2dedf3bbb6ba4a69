"""Where OHIF and 3D Slicer show a slice, and how they turn it, for grids in every orientation."""

import nibabel as nib
import numpy as np
import pytest

from lib.imaging.geometry import LPS_FROM_RAS
from lib.imaging.volume import Grid
from lib.serving.web.viewers import locate_in_viewers, ohif_slice_number, viewer_orientation


def make_grid(*columns, shape=(20, 20, 80)):
    """Return a grid whose affine has these columns (mm RAS per voxel) and the origin (-7, 11, 13) mm RAS."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = np.transpose(columns), (-7, 11, 13)
    return Grid(shape, affine)


SAGITTAL, CORONAL = make_grid((0, 3, 0), (0, 0, 3), (5, 0, 0)), make_grid((3, 0, 0), (0, 0, 3), (0, -5, 0))
OBLIQUE = Grid((20, 20, 80), nib.affines.from_matvec(nib.eulerangles.euler2mat(0.2, 0.1, 0.15) @ np.diag([-3, -3, 5.0]), (-7, 11, 13)))


@pytest.mark.parametrize("grid, plane, point_lps_mm, expected", [
    # Read off the viewports of OHIF v3 (MONAI Label 0.8.5) in Chromium.
    (SAGITTAL, "axial", (-193, -41, 60), (4, 20)), (SAGITTAL, "sagittal", (-208, -41, 43), (37, 80)),
    (SAGITTAL, "sagittal", (-168, -41, 43), (45, 80)), (SAGITTAL, "coronal", (-193, -21, 43), (4, 20)),
    (CORONAL, "coronal", (-23, 204, 43), (37, 80)), (CORONAL, "sagittal", (-40, 189, 43), (4, 20)),
    (CORONAL, "axial", (-23, 189, 20), (18, 20)),
    (OBLIQUE, "axial", (10.358, 54.053, 222.004), (38, 82)), (OBLIQUE, "sagittal", (-9.04, 54.053, 206.796), (12, 36)),
    (OBLIQUE, "coronal", (10.358, 30.381, 206.796), (29, 42)),
])  # fmt: skip
def test_ohif_numbers_are_those_that_ohif_displays(grid, plane, point_lps_mm, expected):
    assert ohif_slice_number(grid, plane, point_lps_mm) == expected


def test_every_orientation_names_its_slices(affine):
    grid = Grid((6, 7, 8), affine)
    for axis in range(3):
        locations = [locate_in_viewers(grid, axis, t) for t in range(grid.shape[axis])]
        if locations[0]["oblique"]:
            continue
        numbers = [x["ohif"]["number"] for x in locations]
        assert sorted(numbers) == list(range(1, grid.shape[axis] + 1)) and numbers in (sorted(numbers), sorted(numbers)[::-1])
        assert np.allclose(np.abs(np.diff([x["slicer"]["offset_mm"] for x in locations])), np.linalg.norm(affine[:3, axis]))


def test_thumbnails_are_turned_as_in_the_viewers(affine):
    """A voxel further to the patient's left, back or feet is further right or down."""
    grid = Grid((6, 7, 8), affine)
    for axis in range(3):
        transpose, flip_rows, flip_columns = viewer_orientation(grid, axis)
        x, y = (a for a in range(3) if a != axis)
        down, right = ((x, y) if transpose else (y, x))
        columns = (LPS_FROM_RAS @ grid.affine)[:3, right] * (-1 if flip_columns else 1)
        rows = (LPS_FROM_RAS @ grid.affine)[:3, down] * (-1 if flip_rows else 1)
        plane = locate_in_viewers(grid, axis, 0)["plane"]
        assert columns[1 if plane == "sagittal" else 0] > 0
        assert rows[1] > 0 if plane == "axial" else rows[2] < 0
