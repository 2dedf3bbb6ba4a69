"""Read NIfTI, NRRD, MHA/MHD and DICOM series into a `Volume`. Voxel indices stay those of the file."""

import logging
import math
import os
import re
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import SimpleITK as sitk

from lib.common.errors import VolumeError
from lib.imaging import geometry
from lib.imaging.volume import Volume, make_volume

logger = logging.getLogger(__name__)

_POSITION = ["ImagePositionPatient", "ImageOrientationPatient"]
NIFTI_ENDINGS = (".nii", ".nii.gz")
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
MAX_MEGAVOXELS = 1100  # enough for 1024 x 1024 x 1024 voxels; the environment variable SAM2_MAX_MEGAVOXELS sets another limit
# The errors that nibabel and SimpleITK raise on damaged files.
READ_ERRORS = (
    OSError, EOFError, zlib.error, RuntimeError, ValueError, OverflowError,
    nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError,
)  # fmt: skip


def read_volume(path: str | Path, *, channel: int | None = None) -> Volume:
    """Read the volume at `path`: an image file, a single DICOM file, or a folder with one DICOM series.

    Args:
        channel: Index of the channel or time point to read from a 4D image.

    Raises:
        VolumeError: There is no image or there are several series, or the image is damaged, too large or not a volume (see
            `make_volume`).
    """
    path = Path(path)
    if not path.exists():
        raise VolumeError(f"There is no image at {path.name}.")
    try:
        if path.is_dir():
            return _from_itk(_read_series(path), path.name, channel)
        name = path.name.lower()
        if name.endswith(NIFTI_ENDINGS):
            return _read_nifti(path, channel)
        if name.endswith(ITK_ENDINGS):
            if name.endswith((".mha", ".mhd")):
                _check_dimensions(path)
            _check_data_file(path)
            return _from_itk(_checked_reader(path, path.name).Execute(), path.name, channel)
        return _from_itk(_checked_reader(path, path.name, "GDCMImageIO").Execute(), path.name, channel)
    except VolumeError:
        raise
    except MemoryError as e:
        raise VolumeError(f"{path.name} does not fit into memory.") from e
    except READ_ERRORS as e:
        logger.warning("Reading %s failed: %s", path, e)
        raise VolumeError(f"{path.name} could not be read: it is damaged, incomplete or not a medical image.") from e


def read_mask(path: str | Path, volume: Volume) -> np.ndarray:
    """Read a label map that lies on the grid of `volume`, int32 (I, J, K).

    Raises:
        VolumeError: It cannot be read, has another shape, or lies elsewhere in space by more than half a voxel.
    """
    mask = read_volume(path)
    if mask.shape != volume.shape:
        raise VolumeError(f"{Path(path).name} has shape {mask.shape}, but the image has {volume.shape}.")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.shape) - 1)
    offset_mm = np.linalg.norm(geometry.to_mm(mask.affine, corners) - geometry.to_mm(volume.affine, corners), axis=1).max()
    if offset_mm > 0.5 * volume.spacing_mm.min() and not mask.planar:
        raise VolumeError(f"{Path(path).name} lies elsewhere than the image (by {offset_mm:.1f} mm): resample it to the image.")
    return np.rint(mask.array).astype(np.int32)


def _check_size(shape, name: str) -> None:
    """Raise VolumeError if the product of `shape`, as a header claims it, is above the limit.

    This must happen before anything is allocated for the image, because a file of a few bytes can claim terabytes.
    """
    setting = os.environ.get("SAM2_MAX_MEGAVOXELS") or str(MAX_MEGAVOXELS)
    try:
        limit = float(setting)
    except ValueError as e:
        raise VolumeError(f"SAM2_MAX_MEGAVOXELS must be a number of million voxels; it is {setting!r}.") from e
    megavoxels = math.prod(int(n) for n in shape) / 1e6
    if megavoxels > limit:
        raise VolumeError(
            f"{name} claims {megavoxels:,.0f} million voxels; up to {limit:,g} million are read (SAM2_MAX_MEGAVOXELS sets another limit)."
        )


def _check_dimensions(path: Path) -> None:
    """Raise VolumeError if a MetaImage header (MHA, MHD) claims so many dimensions that ITK, and thus the server, would crash."""
    with open(path, "rb") as file:
        head = file.read(2**20)
    if b"ElementDataFile" not in head:
        raise ValueError("no end of the header")
    claimed = {c.strip() for c in re.findall(rb"^\s*NDims\s*[=:](.*)$", head, re.M)}
    if claimed - {b"2", b"3", b"4"}:
        raise VolumeError(f"{path.name} claims to have other than two to four axes.")


def _check_data_file(path: Path) -> None:
    """Raise VolumeError if a header refers to a data file outside its folder.

    With such a header, a user who may upload images could read any file of the server.
    """
    with open(path, "rb") as file:
        head = file.read(2**20).replace(b"\r\n", b"\n")
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        head, end, _ = head.partition(b"\n\n")
        data_files = re.findall(rb"^\s*data ?file\s*:\s*(.*?)\s*$", head, re.I | re.M)
        if path.suffix.lower() == ".nrrd" and not end:
            raise ValueError("no end of the header")
    else:  # The field ElementDataFile ends a MetaImage header.
        data_files = [n for n in re.findall(rb"^\s*ElementDataFile\s*[=:]\s*(.*?)\s*$", head, re.M)[:1] if n != b"LOCAL"]
    has_data_file = path.suffix.lower() in (".nhdr", ".mhd")  # These formats consist of two files in one folder.
    if any(not has_data_file or n.upper() == b"LIST" or not re.fullmatch(rb"[^/\\%\s]+", n) for n in data_files):
        raise VolumeError(f"The header of {path.name} names another file: save the image as one file.")


def nifti_header(path: str | Path) -> nib.Nifti1Header:
    """Return the fixed part of a NIfTI-1 or NIfTI-2 header.

    `nibabel.load` would also read the header's extensions, whose claimed size it does not check.

    Raises:
        ImageFileError, HeaderDataError, OSError: The file is damaged or is not a NIfTI file.
    """
    with nib.openers.ImageOpener(str(path)) as file:
        block = file.read(nib.Nifti2Header.sizeof_hdr)
    for header_class in (nib.Nifti1Header, nib.Nifti2Header):
        if header_class.may_contain_header(block):
            return header_class(block[: header_class.sizeof_hdr])
    raise nib.filebasedimages.ImageFileError("no NIfTI header")


def _read_nifti(path: Path, channel: int | None) -> Volume:
    header = nifti_header(path)
    if 3000 <= int(header["intent_code"]) < 3100:  # CIFTI, whose file names end in .nii too
        raise VolumeError(f"{path.name} has no affine.")
    data = nib.arrayproxy.ArrayProxy(str(path), header)
    has_channel = len(data.shape) == 4 and channel is not None and 0 <= channel < data.shape[3]
    weight = -(-data.dtype.itemsize // 8)  # A voxel of 16 bytes counts as two.
    _check_size((*(data.shape[:3] if has_channel else data.shape), weight), path.name)
    if has_channel:
        array = np.asarray(data[..., channel])  # This reads only the chosen channel.
    elif data.slope == 1 and data.inter == 0:
        array = np.asarray(data)
    else:
        array = np.asarray(data, np.float32)
    return make_volume(array, header.get_best_affine(), name=path.name, channel=channel)


def _checked_reader(file, name: str, image_io: str = "", file_count: int = 1) -> sitk.ImageFileReader:
    """Return a reader of `file` after checking the claimed size of the whole image, which has `file_count` such files."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.SetImageIO(image_io)
    reader.ReadImageInformation()
    _check_size((*reader.GetSize(), reader.GetNumberOfComponents(), file_count), name)
    return reader


def _read_series(folder: Path) -> sitk.Image:
    series_uids = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series_uids) != 1:
        content = "no DICOM series" if not series_uids else f"{len(series_uids)} DICOM series"
        raise VolumeError(f"The folder {folder.name} holds {content}; one is needed.")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series_uids[0])
    first = _checked_reader(files[0], folder.name, "GDCMImageIO", len(files))  # ITK refuses series whose slices differ in size.
    if len(files) == 1:
        return first.Execute()
    _check_slice_distances(files, folder.name)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    return reader.Execute()


def _check_slice_distances(files, name: str) -> None:
    """Raise VolumeError if a slice of a series is missing or duplicate.

    ITK would place the other slices at even distances, so masks would lie in the wrong place.
    """
    headers = [pydicom.dcmread(f, stop_before_pixels=True, specific_tags=_POSITION) for f in files]
    if any("ImagePositionPatient" not in h or "ImageOrientationPatient" not in h for h in headers):
        return
    in_plane = np.asarray(headers[0].ImageOrientationPatient, float)
    normal = np.cross(in_plane[:3], in_plane[3:])
    distances_mm = np.diff([np.dot(np.asarray(h.ImagePositionPatient, float), normal) for h in headers])
    if np.abs(distances_mm - np.median(distances_mm)).max() > 0.1 * abs(np.median(distances_mm)) + 1e-3:
        raise VolumeError(f"The slices of {name} are not evenly spaced: a slice is missing or there twice.")


def _from_itk(image: sitk.Image, name: str, channel: int | None) -> Volume:
    array = sitk.GetArrayFromImage(image)  # (K, J, I) or (K, J, I, components)
    components = image.GetNumberOfComponentsPerPixel()
    if components > 1 and image.HasMetaDataKey("Segment0_ID"):
        raise VolumeError(
            f"{name} holds overlapping segments in {components} layers: save it from Slicer without 'Allow overlapping segments'."
        )
    if components in (3, 4) and channel is None and array.dtype == np.uint8:  # RGB(A) becomes luminance.
        array = array[..., :3].astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
        components = 1
    dimension = image.GetDimension()
    axes = tuple(reversed(range(dimension)))
    array = array.transpose((*axes, dimension) if components > 1 else axes)
    if dimension == 3:
        affine = geometry.ras_from_itk(image.GetOrigin(), image.GetSpacing(), image.GetDirection())
    elif dimension == 2:
        direction = np.eye(3)
        direction[:2, :2] = np.asarray(image.GetDirection()).reshape(2, 2)
        affine = geometry.ras_from_itk((*image.GetOrigin(), 0.0), (*image.GetSpacing(), 1.0), direction)
        if components > 1:  # Channels must be the fourth axis. Without channels, `make_volume` adds the third and sets `planar`.
            array = array[:, :, None]
    else:
        direction = np.asarray(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
        affine = geometry.ras_from_itk(image.GetOrigin()[:3], image.GetSpacing()[:3], direction)
    return make_volume(array, affine, name=name, channel=channel)
