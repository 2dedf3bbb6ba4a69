"""Read image files of any kind into a `Volume`, and label maps onto the grid of an image. Voxel indices stay those of the file.

Every way in uses these functions: the command line, studies folders, uploads, DICOM stores, evaluation and training.
"""

import logging
import re
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation

from lib.common.errors import VolumeError
from lib.imaging import geometry
from lib.imaging.dicom.reading import DICOM_ERRORS, read_dicom, read_dicom_grid
from lib.imaging.formats.itk_files import ITK_ENDINGS, read_itk, read_itk_grid
from lib.imaging.formats.nifti import NIFTI_ENDINGS, read_nifti, read_nifti_grid
from lib.imaging.volume import Grid, Volume, check_affine

logger = logging.getLogger(__name__)

_ROUNDING = 1e-3  # How far a value in a label map may lie from a whole number.
_MAX_LABEL = np.iinfo(np.int32).max
# The errors that nibabel, SimpleITK and pydicom raise on damaged files.
READ_ERRORS = (
    OSError, EOFError, zlib.error, RuntimeError, ValueError, OverflowError,
    nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError, *DICOM_ERRORS,
)  # fmt: skip


def read_volume(path: str | Path, *, channel: int | None = None, spacing_mm: tuple[float, float, float] | None = None) -> Volume:
    """Read the volume at `path`: an image file, or a DICOM file or folder, whose n-th volume is named by "#n" at the end.

    Args:
        channel: Index of the channel or time point of a 4D image, or of the volume in a DICOM series with several.
        spacing_mm: Distances of the voxels along i, j and k, for DICOM images that do not state them; otherwise None.

    Raises:
        VolumeError: There is no image or there are several, it is not clear where its voxels lie, or it is damaged, too large or not a
            volume (see `make_volume`).
    """
    return _read(Path(path), channel, spacing_mm, as_label=False)


def read_grid(path: str | Path) -> Grid:
    """Return the voxel grid of the image or label map at `path` (see `read_volume`) without reading its voxels.

    Raises:
        VolumeError: As `read_volume` raises it.
    """
    path = Path(path)
    kind = _kind(path)
    readers = {"nifti": read_nifti_grid, "itk": read_itk_grid, "dicom": read_dicom_grid}
    grid = _with_clear_errors(path, lambda: readers[kind](path))
    check_affine(grid.affine, path.name)
    return grid


def read_mask(path: str | Path, image: Volume | Grid) -> np.ndarray:
    """Read a label map onto the grid of `image`, int32 (I, J, K). Its axes may have another order and other directions than the image's.

    Raises:
        VolumeError: It cannot be read, does not fit the image (see `check_fits`), has several layers, or holds other than whole numbers
            of at most 32 bits.
    """
    label = _read(Path(path), None, None, as_label=True)
    orientation = check_fits(label.grid, image.grid if isinstance(image, Volume) else image, label.name)
    array = apply_orientation(label.array, orientation)
    if array.dtype.kind == "f":
        deviation = np.abs(array - np.rint(array))
        if deviation.max() > _ROUNDING:
            raise VolumeError(f"{label.name} holds {array.flat[deviation.argmax()]:g}; the values of a label map are whole numbers.")
        array = np.rint(array)
    if not np.can_cast(array.dtype, np.int32) and (array.max() > _MAX_LABEL or array.min() < -_MAX_LABEL):
        raise VolumeError(f"{label.name} holds values beyond {_MAX_LABEL}: give its structures smaller numbers.")
    return array.astype(np.int32)


def check_fits(label: Grid, image: Grid, name: str) -> np.ndarray:
    """Check that the voxels of a label map lie where those of its image lie, to within half a voxel.

    Args:
        name: Name of the label map for the message.

    Returns:
        The orientation (3, 2) of the label map's axes among the image's axes, as `nibabel.orientations.apply_orientation` takes it.

    Raises:
        VolumeError: The label map has another shape, or lies elsewhere.
    """
    has_place = image.planar or not label.planar  # The place in space of a 2D file says nothing beside that of a volume.
    orientation = io_orientation(np.linalg.inv(image.affine) @ label.affine if has_place else np.eye(4))
    shape = tuple(np.take(label.shape, np.argsort(orientation[:, 0])))
    if shape != tuple(image.shape):
        raise VolumeError(f"{name} has shape {tuple(label.shape)}, but the image has {tuple(image.shape)}.")
    affine = label.affine @ inv_ornt_aff(orientation, label.shape)
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(shape) - 1)
    offset_mm = np.linalg.norm(geometry.to_mm(affine, corners) - geometry.to_mm(image.affine, corners), axis=1).max()
    if has_place and offset_mm > 0.5 * geometry.spacing(image.affine).min():
        raise VolumeError(f"{name} lies elsewhere than the image (by {offset_mm:.3g} mm): resample it to the image.")
    return orientation


def _kind(path: Path) -> str:
    """Return "nifti", "itk" or "dicom", by the ending of the name; folders and files with other endings can only be DICOM."""
    if not path.exists():
        base = path.with_name(re.sub(r"#\d+$", "", path.name))
        if base == path or not base.exists():
            raise VolumeError(f"There is no image at {path.name}.")
        return "dicom"
    name = path.name.lower()
    if path.is_dir():
        return "dicom"
    return "nifti" if name.endswith(NIFTI_ENDINGS) else "itk" if name.endswith(ITK_ENDINGS) else "dicom"


def _read(path: Path, channel: int | None, spacing_mm, *, as_label: bool) -> Volume:
    kind = _kind(path)
    if spacing_mm is not None and kind != "dicom":
        raise VolumeError(f"{path.name} states its voxel size itself: leave out the spacing.")
    if kind == "dicom":
        return _with_clear_errors(path, lambda: read_dicom(path, channel, spacing_mm))
    read = read_nifti if kind == "nifti" else read_itk
    return _with_clear_errors(path, lambda: read(path, channel, as_label=as_label))


def _with_clear_errors(path: Path, read):
    """Return the result of `read()`; turn the errors of the libraries into a VolumeError with one sentence."""
    try:
        return read()
    except VolumeError:
        raise
    except MemoryError as e:
        raise VolumeError(f"{path.name} does not fit into memory.") from e
    except READ_ERRORS as e:
        logger.warning("Reading %s failed: %s", path, e)
        raise VolumeError(f"{path.name} could not be read: it is damaged, incomplete or not a medical image.") from e
