"""The values of DICOM frames: decoded, with the sign and the scaling that their headers state."""

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixel_data_handlers.util import apply_color_lut, apply_modality_lut

from lib.common.errors import VolumeError
from lib.imaging.dicom.frames import functional_group, numbers, read_dataset
from lib.imaging.dicom.stacks import Stack
from lib.imaging.formats.size_limit import check_size
from lib.imaging.volume import LUMINANCE


def read_values(stack: Stack, name: str) -> np.ndarray:
    """Return the values of a stack, (I, J, K), as integers where the scaling of all frames is whole, else float32.

    Args:
        name: Name of the volume for messages.

    Raises:
        VolumeError: The stack is too large, or a file has changed or lacks its pixels.
        lib.imaging.dicom.frames.DICOM_ERRORS: The pixels are damaged or compressed in an unknown way.
    """
    check_size(stack.shape, name)
    columns, rows, count = stack.shape
    values, previous, decoded = None, None, None
    for k, frame in enumerate(stack.frames):
        if frame.path != previous:
            dataset, previous = read_dataset(frame.path), frame.path
            if dataset is None or not any(f in dataset for f in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")):
                raise VolumeError(f"{frame.path.name} holds no pixels: it is incomplete.")
            check_size((int(dataset.Rows), int(dataset.Columns), int(dataset.get("NumberOfFrames") or 1)), name)
            decoded = stored_values(dataset)
        plane = _scaled(decoded[frame.number - 1], dataset, frame.number - 1, frame.path.name)
        if values is None:
            values = np.empty((count, rows, columns), plane.dtype)
        elif plane.dtype != values.dtype:
            values = values.astype(np.result_type(values.dtype, plane.dtype))
        values[k] = plane
    return values.transpose(2, 1, 0)


def stored_values(dataset: Dataset) -> np.ndarray:
    """Return the stored values of an object's frames, (frames, rows, columns); colours become luminance."""
    array = dataset.pixel_array
    colours = str(dataset.get("PhotometricInterpretation", ""))
    if colours == "PALETTE COLOR":
        array, colours = apply_color_lut(array, dataset), "RGB"
    if int(dataset.get("SamplesPerPixel", 1)) > 1 or colours == "RGB":
        # The first component of the YBR colour spaces is the luminance.
        array = array[..., 0] if colours.startswith("YBR") else array[..., :3].astype(np.float32) @ LUMINANCE
    elif array.dtype.kind in "ui":
        array = _without_unused_bits(array, dataset)
    return array if array.ndim == 3 else array[None]


def _without_unused_bits(array: np.ndarray, dataset: Dataset) -> np.ndarray:
    """Return integers without the bits that do not belong to the value (overlays, for example), with the sign of the stored bits."""
    allocated, stored = 8 * array.dtype.itemsize, int(dataset.get("BitsStored") or 8 * array.dtype.itemsize)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    if not 0 < stored < allocated:
        return array
    shift = max(int(dataset.get("HighBit", stored - 1)) + 1 - stored, 0)
    # Shifting up and down again removes the upper bits and, for signed values, repeats the sign.
    return (array << (allocated - stored - shift)) >> (allocated - stored)


def _scaled(plane: np.ndarray, dataset: Dataset, index: int, name: str) -> np.ndarray:
    """Return a frame (rows, columns) with its rescale slope and intercept applied, or the lookup table that takes their place."""
    transformation = functional_group(dataset, index, "PixelValueTransformationSequence")
    slope, intercept = (
        next((float(v[0]) for d in (transformation, dataset) if (v := numbers(d, keyword, 1, name)) is not None), default)
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if slope == 0 and plane.any():
        raise VolumeError(f"RescaleSlope of {name} is 0, so its values are unknown: repair the file.")
    if "ModalityLUTSequence" in dataset and "RescaleSlope" not in dataset and dataset.ModalityLUTSequence:
        return apply_modality_lut(plane, dataset)
    if plane.dtype.kind not in "ui" or not (slope.is_integer() and intercept.is_integer()):
        return (plane * slope + intercept).astype(np.float32)
    limits = [float(v) * slope + intercept for v in (plane.min(), plane.max())]
    dtype = next((t for t in (np.int16, np.int32) if np.iinfo(t).min <= min(limits) and max(limits) <= np.iinfo(t).max), np.float32)
    if (slope, intercept) == (1, 0):
        return plane.astype(dtype)
    return (plane.astype(np.int64) * int(slope) + int(intercept)).astype(dtype)
