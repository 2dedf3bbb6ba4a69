"""How OHIF and 3D Slicer name a slice: pure functions of a volume's shape and affine.

Voxel indices are (i, j, k) from 0 as the file stores them. OHIF and 3D Slicer cut along the patient's axes and number slices in their own
ways: OHIF numbers the planes of each viewport from 1, which lies at the head, the patient's right or the back (checked for all three planes
in OHIF v3 as MONAI Label 0.8.5 ships it); Slicer shows an offset in mm RAS.
"""

import numpy as np

from lib.imaging.geometry import LPS_FROM_RAS, spacing, to_mm
from lib.imaging.volume import Grid
from lib.serving.dicomweb.viewer_grid import displayed_grid

PLANES = ("sagittal", "coronal", "axial")  # In the order of the patient's axes at right angles to them: R, A, S.
SLICER_VIEWS = {"sagittal": "Yellow", "coronal": "Green", "axial": "Red"}
# Direction (mm LPS) in which OHIF's slice numbers grow: viewPlaneNormal of cornerstone's MPR cameras.
OHIF_NORMALS = {"sagittal": (1.0, 0.0, 0.0), "coronal": (0.0, -1.0, 0.0), "axial": (0.0, 0.0, -1.0)}
MIN_ALIGNED_COSINE = 0.999  # A slice tilted by less than 2.6 degrees counts as aligned.


def slice_normal(affine: np.ndarray, axis: int) -> np.ndarray:
    """Return the unit vector (3,) in RAS that is normal to the slices along a voxel axis and points towards growing indices.

    >>> slice_normal(np.diag([-2.0, -2.0, 5.0, 1.0]), 1).tolist()
    [0.0, -1.0, 0.0]
    """
    normal = np.linalg.inv(np.asarray(affine, float)[:3, :3])[axis]  # Normal to both in-plane axes, also where the affine is sheared.
    return normal / np.linalg.norm(normal) + 0.0


def anatomical_plane(affine: np.ndarray, axis: int) -> str:
    """Return the anatomical plane closest to the slices along a voxel axis.

    >>> anatomical_plane(np.diag([-2.0, -2.0, 5.0, 1.0]), 2), anatomical_plane(np.diag([-2.0, -2.0, 5.0, 1.0]), 0)
    ('axial', 'sagittal')
    """
    return PLANES[int(np.abs(slice_normal(affine, axis)).argmax())]


def ohif_slice_number(grid: Grid, plane: str, point_lps_mm) -> tuple[int, int]:
    """Return the slice number that OHIF shows in a plane's viewport when it displays a point, and the number of slices there.

    Slices are counted as cornerstone does, one voxel apart between the volume's outermost voxel centres along the viewport's normal.
    `plane` is one of PLANES, `point_lps_mm` is (x, y, z).

    >>> grid = Grid((4, 4, 10), np.diag([-1.0, -1.0, 5.0, 1.0]))
    >>> ohif_slice_number(grid, "axial", (0, 0, 0)), ohif_slice_number(grid, "axial", (0, 0, 45))
    ((10, 10), (1, 10))
    """
    normal = np.array(OHIF_NORMALS[plane])
    affine_lps = LPS_FROM_RAS @ np.asarray(grid.affine, float)
    corners = to_mm(affine_lps, np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape) - 1)) @ normal
    low, high = corners.min(), corners.max()
    if high - low < 1e-6:
        return 1, 1
    count = int(round((high - low) / np.linalg.norm(affine_lps[:3, :3].T @ normal))) + 1
    index = int(np.floor((np.dot(point_lps_mm, normal) - low) / (high - low) * count + 1e-6))
    return min(max(index, 0), count - 1) + 1, count


def locate_in_viewers(grid: Grid, axis: int, t: int, point_ijk=None) -> dict:
    """Return how each viewer names slice `t` along a voxel axis, as the answers of *Next Sample* hold it.

    Args:
        point_ijk: Voxel on the slice to look at, or None for the slice's centre.

    Returns:
        {voxel_axis, voxel_slice (0-based), slices, plane, oblique (the slice is tilted against the viewers' planes), world_lps (mm,
        where OHIF draws it, see `displayed_grid`), world_ras (mm, where it is), ohif: {viewport, number (1-based), count}, slicer: {view, offset_mm}}
    """
    voxel = (np.array(grid.shape, float) - 1) / 2 if point_ijk is None else np.array(point_ijk, float)
    voxel[axis] = t
    ras, displayed = to_mm(np.asarray(grid.affine, float), voxel), displayed_grid(grid)
    plane, lps = anatomical_plane(grid.affine, axis), to_mm(displayed.affine, voxel) * (-1, -1, 1)
    number, count = ohif_slice_number(displayed, plane, lps)
    return {
        "voxel_axis": axis, "voxel_slice": int(t), "slices": int(grid.shape[axis]), "plane": plane,
        "oblique": bool(np.abs(slice_normal(grid.affine, axis)).max() < MIN_ALIGNED_COSINE),
        "world_lps": _round_mm(lps), "world_ras": _round_mm(ras),
        "ohif": {"viewport": f"mpr-{plane}", "number": number, "count": count},
        "slicer": {"view": SLICER_VIEWS[plane], "offset_mm": _round_mm(ras)[PLANES.index(plane)]},
    }  # fmt: skip


def viewer_orientation(grid: Grid, axis: int) -> tuple[bool, bool, bool]:
    """Return how to turn a slice (Y, X) of `lib.imaging.frames.Frames` into what viewers show.

    In viewers columns go to the patient's left (sagittal: to the back) and rows to the back (sagittal and coronal: to the feet).

    Returns:
        Whether to transpose the slice, then to flip its rows, then to flip its columns.

    >>> viewer_orientation(Grid((4, 4, 4), np.diag([-1.0, -1.0, 1.0, 1.0])), 2), viewer_orientation(Grid((4, 4, 4), np.eye(4)), 2)
    ((False, False, False), (False, True, True))
    """
    plane = anatomical_plane(grid.affine, axis)
    down, right = {"axial": ((0, 1, 0), (1, 0, 0)), "coronal": ((0, 0, -1), (1, 0, 0)), "sagittal": ((0, 0, -1), (0, 1, 0))}[plane]
    x, y = ((LPS_FROM_RAS @ grid.affine)[:3, a] / spacing(grid.affine)[a] for a in range(3) if a != axis)
    transpose = bool(abs(np.dot(x, down)) > abs(np.dot(y, down)))
    if transpose:
        x, y = y, x
    return transpose, bool(np.dot(y, down) < 0), bool(np.dot(x, right) < 0)


def _round_mm(mm: np.ndarray) -> list[float]:
    return [round(float(v), 3) + 0.0 for v in mm]
