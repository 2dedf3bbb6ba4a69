"""DICOM SEG made of label maps."""

import os
import tempfile
from pathlib import Path

import numpy as np
from monailabel.datastore.utils.colors import GENERIC_ANATOMY_COLORS

from lib.imaging.dicom.reading import choose_stack
from lib.imaging.dicom.segmentations import SOFTWARE_VERSION, label_values, write_segmentation
from lib.imaging.dicom.stacks import Stack
from lib.imaging.readers import read_grid, read_mask
from lib.imaging.volume import Grid
from lib.serving.datastore.labels import unique_names
from lib.serving.datastore.uploaded_labels import read_label, segment_rows, write_labels


def write_labels_as_segmentation(labels: np.ndarray, stack: Stack, rows: list[dict], path: Path, checkpoint: str = "") -> Path:
    """Write a label map (I, J, K) as DICOM SEG with the names and colours of its `segment_rows`, and return the path.

    The series is described by the names; the name of the checkpoint is the version of the algorithm.

    Raises:
        VolumeError: The label map is empty or does not fit the stack.
    """
    names = unique_names(label_values(labels), {row["idx"]: row["name"] for row in rows})
    colors = {row["idx"]: color for row in rows if (color := _color(row)) is not None}
    return write_segmentation(labels, stack, names, path, colors=colors, description=f"SAM 2: {', '.join(names.values())}",
                              version=checkpoint or SOFTWARE_VERSION)  # fmt: skip


def _color(row: dict) -> tuple | None:
    """Return the colour (red, green, blue) from 0 to 255 in a row, else the usual one of the structure, or None."""
    color = row.get("color")
    if isinstance(color, (list, tuple)) and len(color) >= 3 and all(isinstance(c, (int, float)) for c in color[:3]):
        return tuple(color[:3])
    return GENERIC_ANATOMY_COLORS.get(str(row.get("name")))


def binary_to_image(reference_image, label) -> str:
    """Return the path of a temporary image file with the voxels of a .bin file, in place of MONAI Label's function of this name."""
    image = read_grid(reference_image)
    return str(write_labels(read_label(label, image), image, _temporary_file(".nrrd")))


def nifti_to_dicom_seg(series_dir, label, label_info, **_) -> str:
    """Return the path of a temporary DICOM SEG with a label map, in place of MONAI Label's function of this name.

    Args:
        series_dir: Folder of the series; with "#n" behind for its n-th volume.
        label: Image file with the label map.
    """
    stack = choose_stack(Path(series_dir))
    labels = read_mask(label, Grid(stack.shape, stack.affine))
    return str(write_labels_as_segmentation(labels, stack, segment_rows(label_info, labels), _temporary_file(".dcm")))


def _temporary_file(ending: str) -> Path:
    handle, path = tempfile.mkstemp(prefix="sam2_", suffix=ending)
    os.close(handle)
    return Path(path)
