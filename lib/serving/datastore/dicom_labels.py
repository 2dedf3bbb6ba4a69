"""Labels of images in a DICOM store: what clients upload, checked against the image, and the DICOM SEG that is made of it."""

import os
import tempfile
from pathlib import Path

import numpy as np
from monailabel.datastore.utils.colors import GENERIC_ANATOMY_COLORS

from lib.common.errors import VolumeError
from lib.imaging.dicom.reading import choose_stack
from lib.imaging.dicom.segmentations import label_values, write_segmentation
from lib.imaging.dicom.stacks import Stack
from lib.imaging.readers import read_grid, read_mask
from lib.imaging.volume import Grid
from lib.imaging.writers import write_mask


def read_label(path: str | Path, image: Grid) -> np.ndarray:
    """Return an uploaded label map, int32 (I, J, K): an image file, or the bare voxels (.bin, uint8, i fastest) that OHIF sends.

    Raises:
        VolumeError: It does not fit the image, or cannot be read.
    """
    path = Path(path)
    if path.suffix == ".bin":
        voxels = np.fromfile(path, np.uint8)
        if voxels.size != np.prod(image.shape):
            size = " x ".join(map(str, image.shape))
            raise VolumeError(f"The label has {voxels.size} voxels, but the image has {size}: reload the image and submit it again.")
        return voxels.reshape(image.shape, order="F").astype(np.int32)
    try:
        return read_mask(path, image)
    except VolumeError as e:
        text = str(e).replace(path.name, "the label")  # The file has a temporary name, which no user knows.
        raise VolumeError(text[0].upper() + text[1:]) from e


def write_labels(labels: np.ndarray, image: Grid, path: Path) -> Path:
    """Write a label map (I, J, K) with the smallest type of whole numbers that holds its values, and return the path."""
    return write_mask(labels, image, path, dtype=np.min_scalar_type(int(labels.max(initial=0))).name)


def segment_rows(label_info, labels: np.ndarray) -> list[dict]:
    """Return the rows {"name", "idx" (value), "color"} of a client's `label_info` for the values in a label map, in their order.

    Args:
        label_info: List of {"name", "idx" or "id", "color"}, also for values that the label map does not hold. A row without value belongs
            to the value of its place in the list. The only row belongs to the only value, whatever its number.
    """
    listed = label_info if isinstance(label_info, list) else []
    pairs = ((row.get("idx", row.get("id", n)), row) for n, row in enumerate(listed, 1) if isinstance(row, dict))
    rows = {int(value): row for value, row in pairs if str(value).isdigit()}
    values = label_values(labels)
    if len(rows) == len(values) == 1:
        rows = {values[0]: next(iter(rows.values()))}
    return [{**rows.get(v, {}), "name": str(rows.get(v, {}).get("name") or f"segment {v}"), "idx": v} for v in values]


def write_labels_as_segmentation(labels: np.ndarray, stack: Stack, rows: list[dict], path: Path) -> Path:
    """Write a label map (I, J, K) as DICOM SEG with the names and colours of its `segment_rows`, and return the path.

    Raises:
        VolumeError: The label map is empty or does not fit the stack.
    """
    names = {row["idx"]: row["name"] for row in rows}
    colors = {row["idx"]: color for row in rows if (color := _color(row)) is not None}
    return write_segmentation(labels, stack, names, path, colors=colors, description="SAM 2 segmentation")


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
