"""How viewers name a slice: pure functions of a volume's shape and affine.

Voxel indices are (i, j, k) from 0 as the file stores them. OHIF and 3D Slicer cut along the patient's axes and count on their own:
OHIF numbers the planes of each viewport from 1 (at the head, the patient's right, the back: checked in OHIF v3 as MONAI Label 0.8.5
ships it, for all three planes), Slicer shows an offset in mm RAS.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lib.imaging.geometry import LPS_FROM_RAS, spacing, to_mm

PLANES = ("sagittal", "coronal", "axial")  # by the patient's axis across them: right-left, front-back, foot-head
SLICER_VIEWS = {"sagittal": "Yellow", "coronal": "Green", "axial": "Red"}
# Direction (mm LPS) in which OHIF's slice numbers grow: viewPlaneNormal of cornerstone's MPR cameras.
OHIF_NORMALS = {"sagittal": (1.0, 0.0, 0.0), "coronal": (0.0, -1.0, 0.0), "axial": (0.0, 0.0, -1.0)}
ALIGNED = 0.999  # cosine: less than 2.6 degrees off


@dataclass(frozen=True, eq=False)
class Grid:
    """Where the voxels of an image lie.

    Attributes:
        shape: voxels (I, J, K). affine: (4, 4), voxel indices to mm RAS.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray

    @cached_property
    def lps(self) -> np.ndarray:
        """(4, 4), voxel indices to mm LPS, the world of DICOM and OHIF."""
        return LPS_FROM_RAS @ np.asarray(self.affine, float)


def across(affine: np.ndarray, axis: int) -> np.ndarray:
    """Unit vector (3,) in mm RAS across the slices along a voxel axis, on the side of growing indices.

    >>> across(np.diag([-2.0, -2.0, 5.0, 1.0]), 1).tolist()
    [0.0, -1.0, 0.0]
    """
    matrix = np.asarray(affine, float)[:3, :3]
    normal = np.linalg.inv(matrix)[axis]  # at right angles to the two in-plane axes, sheared or not
    return normal / np.linalg.norm(normal) + 0.0


def plane_of(affine: np.ndarray, axis: int) -> str:
    """The anatomical plane closest to the slices along a voxel axis.

    >>> plane_of(np.diag([-2.0, -2.0, 5.0, 1.0]), 2), plane_of(np.diag([-2.0, -2.0, 5.0, 1.0]), 0)
    ('axial', 'sagittal')
    """
    return PLANES[int(np.abs(across(affine, axis)).argmax())]


def ohif_number(grid: Grid, plane: str, world_lps) -> tuple[int, int]:
    """The slice number that OHIF shows in the viewport of a plane when that stands on a point, and how many there are.

    As cornerstone counts: planes one voxel apart between the volume's outermost voxel centres along the viewport's normal.

    Args:
        plane: of PLANES. world_lps: (3,) in mm LPS.

    >>> grid = Grid((4, 4, 10), np.diag([-1.0, -1.0, 5.0, 1.0]))
    >>> ohif_number(grid, "axial", (0, 0, 0)), ohif_number(grid, "axial", (0, 0, 45)), ohif_number(grid, "sagittal", (3, 0, 0))
    ((10, 10), (1, 10), (4, 4))
    """
    normal = np.array(OHIF_NORMALS[plane])
    corners = to_mm(grid.lps, np.array(list(np.ndindex(2, 2, 2))) * (np.array(grid.shape) - 1)) @ normal
    low, high = corners.min(), corners.max()
    step = np.linalg.norm(grid.lps[:3, :3].T @ normal)
    if high - low < 1e-6:
        return 1, 1
    count = int(round((high - low) / step)) + 1
    index = int(np.floor((np.dot(world_lps, normal) - low) / (high - low) * count + 1e-6))
    return min(max(index, 0), count - 1) + 1, count


def viewer_numbers(grid: Grid, axis: int, t: int, point=None) -> dict:
    """How each viewer names slice `t` along a voxel axis.

    Args:
        point: voxel (i, j, k) on the slice to look at, None for the slice's centre.

    Returns:
        voxel_axis, voxel_slice (0-based), slices, plane, oblique (the slice is tilted against the viewers' planes), world_lps and
        world_ras (mm), ohif: {viewport, number (1-based), count}, slicer: {view, offset_mm}.
    """
    centre = (np.array(grid.shape, float) - 1) / 2
    centre[axis] = t
    voxel = centre if point is None else np.array(point, float)
    voxel[axis] = t
    normal = across(grid.affine, axis)
    ras = to_mm(np.asarray(grid.affine, float), voxel)
    plane, lps = plane_of(grid.affine, axis), ras * (-1, -1, 1)
    number, count = ohif_number(grid, plane, lps)
    return {
        "voxel_axis": axis, "voxel_slice": int(t), "slices": int(grid.shape[axis]), "plane": plane,
        "oblique": bool(np.abs(normal).max() < ALIGNED),
        "world_lps": _rounded(lps), "world_ras": _rounded(ras),
        "ohif": {"viewport": f"mpr-{plane}", "number": number, "count": count},
        "slicer": {"view": SLICER_VIEWS[plane], "offset_mm": _rounded(ras)[PLANES.index(plane)]},
    }  # fmt: skip


def as_viewed(grid: Grid, axis: int) -> tuple[bool, bool, bool]:
    """How to turn a slice (Y, X) of `lib.imaging.frames.Frames` into what viewers show: (transpose, then flip rows, then flip columns).

    Columns go to the patient's left (sagittal: to the back), rows to the back (sagittal, coronal: to the feet).

    >>> as_viewed(Grid((4, 4, 4), np.diag([-1.0, -1.0, 1.0, 1.0])), 2), as_viewed(Grid((4, 4, 4), np.eye(4)), 2)
    ((False, False, False), (False, True, True))
    """
    plane = plane_of(grid.affine, axis)
    down, right = {"axial": ((0, 1, 0), (1, 0, 0)), "coronal": ((0, 0, -1), (1, 0, 0)), "sagittal": ((0, 0, -1), (0, 1, 0))}[plane]
    x, y = (grid.lps[:3, a] / spacing(grid.affine)[a] for a in range(3) if a != axis)
    transpose = bool(abs(np.dot(x, down)) > abs(np.dot(y, down)))
    if transpose:
        x, y = y, x
    return transpose, bool(np.dot(y, down) < 0), bool(np.dot(x, right) < 0)


def _rounded(mm: np.ndarray) -> list[float]:
    return [round(float(v), 3) + 0.0 for v in mm]
