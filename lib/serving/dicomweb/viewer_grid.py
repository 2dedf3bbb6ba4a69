"""The voxel grid of an image as DICOM viewers count it, and the way from there to the image's own grid and back.

A viewer receives an image slice by slice along its third voxel axis: i counts the columns and j the rows of a slice, as in the image. The
viewer sorts the slices by their position, so its k ascends along the normal cross(row direction, column direction). This is the image's own
k, unless the image's axes are left-handed in LPS; then slice k of the image is slice K - 1 - k of the viewer. Nothing is resampled, so a
mask goes both ways voxel by voxel. DICOM stacks are right-handed by construction.

A request that names an image by its SeriesInstanceUID, as those of OHIF do, counts voxels like this; so does the answer.
"""

import json
from contextlib import suppress
from dataclasses import replace

import numpy as np

from lib.imaging import geometry
from lib.imaging.frames import resolve_axis
from lib.imaging.volume import Grid, Volume

VIEWER_REQUEST = "counts_as_viewer"  # Field of an inference request that the server sets if its voxels are those of the viewer.


def is_reversed(affine: np.ndarray) -> bool:
    """Return whether a viewer counts the slices of an image with this affine (mm RAS) the other way round.

    >>> is_reversed(np.diag([-1.0, -1, 1, 1])), is_reversed(np.diag([-1.0, 1, 1, 1]))
    (False, True)
    """
    return bool(np.linalg.det((geometry.LPS_FROM_RAS @ np.asarray(affine, float))[:3, :3]) < 0)


def to_viewer(image: Grid, ijk) -> np.ndarray:
    """Return voxel indices (..., 3) of an image as a viewer counts them.

    >>> to_viewer(Grid((4, 5, 6), np.diag([-1.0, 1, 1, 1])), (1, 2, 0)).tolist()
    [1, 2, 5]
    """
    ijk = np.array(ijk)
    if is_reversed(image.affine):
        ijk[..., 2] = image.shape[2] - 1 - ijk[..., 2]
    return ijk


def from_viewer(image: Grid, ijk) -> np.ndarray:
    """Return voxel indices (..., 3) that a viewer counts as indices of the image. Counting backwards twice changes nothing."""
    return to_viewer(image, ijk)


def mask_to_viewer(image: Grid, mask: np.ndarray) -> np.ndarray:
    """Return a view of a mask (I, J, K) of an image on the grid of a viewer."""
    return mask[:, :, ::-1] if is_reversed(image.affine) else mask


def mask_from_viewer(image: Grid, mask: np.ndarray) -> np.ndarray:
    """Return a view of a mask (I, J, K) on the grid of a viewer as a mask of the image."""
    return mask_to_viewer(image, mask)


def viewer_grid(image: Grid) -> Grid:
    """Return the grid of a viewer: the same voxels at the same places, counted as the viewer does."""
    if not is_reversed(image.affine):
        return image
    backwards = np.eye(4)
    backwards[2, 2:] = -1, image.shape[2] - 1
    return replace(image, affine=np.asarray(image.affine, float) @ backwards)


def displayed_grid(image: Grid) -> Grid:
    """Return the grid, with the voxels counted as in the image, whose places are those at which OHIF draws the voxels.

    OHIF draws slices perpendicular to their normal above the first one that it counts, so it shows no shear (checked in OHIF v3).
    """
    viewed, turned = (np.asarray(a, float) for a in (viewer_grid(image).affine, image.affine))
    lps, (column_mm, row_mm, _) = geometry.LPS_FROM_RAS @ viewed, geometry.spacing(viewed)
    x = lps[:3, 0] / column_mm
    y = lps[:3, 1] - x * (x @ lps[:3, 1])
    y /= np.linalg.norm(y)
    normal = np.cross(x, y)
    lps[:3, :3] = np.stack([x * column_mm, y * row_mm, normal * (normal @ lps[:3, 2])], axis=1)
    back = np.linalg.inv(viewed) @ turned  # From the image's voxels to the viewer's.
    return replace(image, affine=geometry.LPS_FROM_RAS @ lps @ np.rint(back))


def request_from_viewer(request: dict, volume: Volume, axis: str) -> dict:
    """Return an inference request whose voxels and slices are those of the image; `VIEWER_REQUEST` says if they were a viewer's.

    What is no number stays as it is, because the parser of requests refuses it with a sentence. The option `z_range` always counts as the
    image does.

    Args:
        axis: The option of this name.
    """
    if not request.get(VIEWER_REQUEST) or not is_reversed(volume.affine):
        return request
    last, request = volume.shape[2] - 1, dict(request)

    def values(field: str) -> list:
        value = request.get(field)
        if isinstance(value, str):
            with suppress(json.JSONDecodeError):
                value = json.loads(value)
        return list(value) if isinstance(value, (list, tuple)) else []

    def turned(value):
        return last - value if isinstance(value, (int, float)) else value

    def turned_point(point):
        return [*point[:2], turned(point[2])] if isinstance(point, (list, tuple)) and len(point) == 3 else point

    for field in ("foreground", "background"):
        if points := values(field):
            request[field] = [turned_point(p) for p in points]
    if boxes := values("boxes"):
        request["boxes"] = [[*map(turned_point, box)] if isinstance(box, (list, tuple)) else box for box in boxes]
    if len(roi := values("roi")) == 6 and any(roi):  # A region of zeros means none.
        request["roi"] = [*roi[:4], *map(turned, roi[4:])]
    if resolve_axis(volume, axis) == 2:
        for field in ("absent", "mask_slices"):
            if slices := values(field):
                request[field] = [*map(turned, slices)]
        request["slice"] = turned(request.get("slice"))
    return request
