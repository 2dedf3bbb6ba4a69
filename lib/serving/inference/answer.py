"""The answer to an inference request: the mask file and the JSON fields."""

import math
import os
import tempfile

import nibabel as nib
import numpy as np

from lib.common.errors import OptionError
from lib.engine.request import parse_bool
from lib.engine.result import Result
from lib.imaging.geometry import has_shear
from lib.imaging.masks import bounding_box
from lib.imaging.volume import Grid, Volume
from lib.imaging.writers import mask_extension, write_mask
from lib.serving.datastore.labels import structure_name
from lib.serving.dicomweb.viewer_grid import VIEWER_REQUEST, is_reversed, mask_to_viewer, viewer_grid

OHIF_FIELD = "restore_label_idx"  # Only OHIF's own panel sends this field.


def requested_extension(request: dict, volume: Volume) -> str:
    """Return the file extension of the mask: the one that a request names, or else .nii.gz, or .nrrd where NIfTI will not do.

    Raises:
        UserError: The extension is unknown, or ITK, and so 3D Slicer, would refuse the file.
    """
    name, is_sheared = request.get("result_extension"), has_shear(volume.affine)
    extension = str(name or (".nrrd" if is_sheared else ".nii.gz"))
    ending = mask_extension("mask" + (extension if extension.startswith(".") else "." + extension))
    if is_sheared and ending in (".nii", ".nii.gz"):
        raise OptionError(
            f"The axes of {volume.name} are not perpendicular (a tilted gantry, for example), and viewers refuse such NIfTI files: "
            "ask for the result_extension .nrrd."
        )
    return ending


def write_result(result: Result, volume: Volume, request: dict, extension: str) -> tuple[str, dict]:
    """Write the mask to a new temporary file, which MONAI Label deletes after it has sent it.

    Its voxels are counted as the request counts them: as the image does, or as a viewer does. If the request has the field result_crop, the
    file holds only the smallest box around the structure, or a single voxel if the mask is empty.

    Returns:
        The path, and the JSON fields that say what it holds: result_offset is the first voxel [i, j, k] of the box.
    """
    mask, grid, fields = result.mask, volume.grid, {}
    if request.get(VIEWER_REQUEST):
        mask, grid = mask_to_viewer(grid, mask), viewer_grid(grid)
    if parse_bool(request.get("result_crop")):
        box = bounding_box(mask) or (slice(1),) * 3
        offset = [side.start or 0 for side in box]
        mask, affine = mask[box], grid.affine @ nib.affines.from_matvec(np.eye(3), offset)
        grid, fields = Grid(mask.shape, affine), {"result_offset": offset}
    dtype, compress = str(request.get("result_dtype") or "uint8"), parse_bool(request.get("result_compress"))
    handle, path = tempfile.mkstemp(prefix="sam2_", suffix=extension)
    os.close(handle)
    try:
        write_mask(mask, grid, path, dtype=dtype, compress=compress, label=structure_name(request) or "segment")
        if OHIF_FIELD in request and extension == ".nrrd" and not compress and not mask.any():
            with open(path, "ab") as file:  # OHIF's panel changes only structures that are in the answer. Behind the last voxel, it
                file.write(b"\1")  # finds there the structure that it asked for, and empties it. Other readers do not look there.
    except BaseException:
        os.unlink(path)
        raise
    return path, fields


def json_answer(result: Result, volume: Volume, checkpoint: str, request: dict) -> dict:
    """Return the JSON fields that describe a result; numbers that do not exist are None."""
    def numbers(values) -> list:
        return [None if math.isnan(v) else round(float(v), 4) for v in np.asarray(values, float)]

    voxels = int(result.areas.sum())
    return {
        **({"viewer_slices_reversed": is_reversed(volume.affine)} if request.get(VIEWER_REQUEST) else {}),
        "label": structure_name(request) or None,
        "axis": result.axis,
        "annotated_slices": list(result.annotated),
        "slices_with_object": int(np.count_nonzero(result.areas)),
        "slices_encoded": result.encoded_count,
        "predicted_iou": numbers(result.estimates.predicted_iou),
        "presence": numbers(result.estimates.presence),
        "direction_agreement": numbers(result.estimates.agreement),
        "expected_iou": numbers(result.estimates.expected_iou),
        "voxels": voxels,
        "millilitres": round(float(voxels * abs(np.linalg.det(volume.affine[:3, :3])) / 1000), 3),
        "checkpoint": checkpoint,
        "warnings": list(volume.warnings),
    }
