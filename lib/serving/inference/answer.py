"""The answer to an inference request: the mask file and the JSON fields."""

import math
import os
import tempfile

import numpy as np

from lib.engine.request import parse_bool, uploaded_label_path
from lib.engine.result import Result
from lib.imaging.volume import Volume
from lib.imaging.writers import mask_extension, write_mask


def structure_name(request: dict) -> str | None:
    """Return the name of the structure, if the request has one.

    With an uploaded label map, 3D Slicer sends the name as "selected_label_name", because "label" then is the path of the upload.
    """
    name = request.get("selected_label_name" if uploaded_label_path(request) else "label")
    return name if isinstance(name, str) and name.strip() else None


def requested_extension(request: dict) -> str:
    """Return the file extension of the mask; an unknown one raises UserError, before any work is done."""
    extension = str(request.get("result_extension") or ".nii.gz")
    return mask_extension("mask" + (extension if extension.startswith(".") else "." + extension))


def write_result(result: Result, volume: Volume, request: dict, extension: str) -> str:
    """Write the mask to a new temporary file, which MONAI Label deletes after it has sent it, and return its path."""
    handle, path = tempfile.mkstemp(prefix="sam2_", suffix=extension)
    os.close(handle)
    try:
        write_mask(
            result.mask, volume, path, dtype=str(request.get("result_dtype") or "uint8"),
            compress=parse_bool(request.get("result_compress")), label=structure_name(request) or "segment",
        )  # fmt: skip
    except BaseException:
        os.unlink(path)
        raise
    return path


def json_answer(result: Result, volume: Volume, checkpoint: str, request: dict) -> dict:
    """Return the JSON fields that describe a result; numbers that do not exist are None."""
    def numbers(values) -> list:
        return [None if math.isnan(v) else round(float(v), 4) for v in np.asarray(values, float)]

    voxels = int(result.areas.sum())
    return {
        "label": structure_name(request),
        "axis": result.axis,
        "annotated_slices": list(result.annotated),
        "slices_with_object": int(np.count_nonzero(result.areas)),
        "slices_encoded": result.encoded_count,
        "predicted_iou": numbers(result.estimates.predicted_iou),
        "presence": numbers(result.estimates.presence),
        "direction_agreement": numbers(result.estimates.agreement),
        "expected_iou": numbers(result.estimates.expected_iou),
        "voxels": voxels,
        "millilitres": round(float(voxels * np.prod(volume.spacing_mm) / 1000), 3),
        "checkpoint": checkpoint,
    }
