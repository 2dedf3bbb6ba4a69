"""Reads NIfTI, NRRD, MHA/MHD and DICOM series into a `Volume` with the file's own voxel indices."""

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
MAX_MEGAVOXELS = 1100  # 1024 x 1024 x 1024; the environment variable SAM2_MAX_MEGAVOXELS sets another limit
# What nibabel and SimpleITK raise on damaged files.
READ_ERRORS = (
    OSError, EOFError, zlib.error, RuntimeError, ValueError, OverflowError,
    nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError,
)  # fmt: skip


def read_volume(path: str | Path, *, channel: int | None = None) -> Volume:
    """The volume at `path`: an image file, one DICOM file, or a folder with one DICOM series.

    Args:
        channel: of a 4D image, which one.

    Raises:
        VolumeError: nothing there, not an image, damaged, too large, several series, or not a volume (see `make_volume`).
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
            _check_alone(path)
            return _from_itk(_reader(path, path.name).Execute(), path.name, channel)
        return _from_itk(_reader(path, path.name, "GDCMImageIO").Execute(), path.name, channel)
    except VolumeError:
        raise
    except MemoryError as e:
        raise VolumeError(f"{path.name} does not fit into memory.") from e
    except READ_ERRORS as e:
        logger.warning("Reading %s failed: %s", path, e)
        raise VolumeError(f"{path.name} could not be read: it is damaged, incomplete or not a medical image.") from e


def read_mask(path: str | Path, volume: Volume) -> np.ndarray:
    """A label map on the grid of `volume`, integer (I, J, K).

    Raises:
        VolumeError: unreadable, of another shape, or elsewhere in space by more than half a voxel.
    """
    mask = read_volume(path)
    if mask.shape != volume.shape:
        raise VolumeError(f"{Path(path).name} has shape {mask.shape}, but the image has {volume.shape}.")
    corners = np.array(list(np.ndindex(2, 2, 2))) * (np.array(volume.shape) - 1)
    away = np.linalg.norm(geometry.to_mm(mask.affine, corners) - geometry.to_mm(volume.affine, corners), axis=1)
    if away.max() > 0.5 * volume.spacing_mm.min() and not mask.planar:
        raise VolumeError(f"{Path(path).name} lies elsewhere than the image (by {away.max():.1f} mm): resample it to the image.")
    return np.rint(mask.array).astype(np.int32)


def _check_size(shape, name: str) -> None:
    """Refuses what a header claims, before anything is allocated for it: a file of a few bytes can claim terabytes."""
    text = os.environ.get("SAM2_MAX_MEGAVOXELS") or str(MAX_MEGAVOXELS)
    try:
        limit = float(text)
    except ValueError as e:
        raise VolumeError(f"SAM2_MAX_MEGAVOXELS must be a number of million voxels; it is {text!r}.") from e
    claimed = math.prod(int(n) for n in shape) / 1e6
    if claimed > limit:
        raise VolumeError(
            f"{name} claims {claimed:,.0f} million voxels; up to {limit:,g} million are read (SAM2_MAX_MEGAVOXELS sets another limit)."
        )


def _check_dimensions(path: Path) -> None:
    """Refuses headers of MetaImage (MHA, MHD) that claim so many dimensions that ITK would crash, and the server with it."""
    with open(path, "rb") as file:
        head = file.read(2**20)
    if b"ElementDataFile" not in head:
        raise ValueError("no end of the header")
    claimed = {c.strip() for c in re.findall(rb"^\s*NDims\s*[=:](.*)$", head, re.M)}
    if claimed - {b"2", b"3", b"4"}:
        raise VolumeError(f"{path.name} claims to have other than two to four axes.")


def _check_alone(path: Path) -> None:
    """Refuses headers that name files elsewhere: whoever may upload an image could look into any file of the server with them."""
    with open(path, "rb") as file:
        head = file.read(2**20).replace(b"\r\n", b"\n")
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        head, end, _ = head.partition(b"\n\n")
        named = re.findall(rb"^\s*data ?file\s*:\s*(.*?)\s*$", head, re.I | re.M)
        if path.suffix.lower() == ".nrrd" and not end:
            raise ValueError("no end of the header")
    else:  # this field ends the header
        named = [n for n in re.findall(rb"^\s*ElementDataFile\s*[=:]\s*(.*?)\s*$", head, re.M)[:1] if n != b"LOCAL"]
    in_folder = path.suffix.lower() in (".nhdr", ".mhd")  # formats of two files
    if any(not in_folder or n.upper() == b"LIST" or not re.fullmatch(rb"[^/\\%\s]+", n) for n in named):
        raise VolumeError(f"The header of {path.name} names another file: save the image as one file.")


def nifti_header(path: str | Path) -> nib.Nifti1Header:
    """The fixed part of a NIfTI-1 or -2 header; `nibabel.load` also reads extensions, and believes whatever size they claim.

    Raises:
        ImageFileError, HeaderDataError, OSError: no NIfTI file, or damaged.
    """
    with nib.openers.ImageOpener(str(path)) as file:
        block = file.read(nib.Nifti2Header.sizeof_hdr)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(block):
            return kind(block[: kind.sizeof_hdr])
    raise nib.filebasedimages.ImageFileError("no NIfTI header")


def _read_nifti(path: Path, channel: int | None) -> Volume:
    header = nifti_header(path)
    if 3000 <= int(header["intent_code"]) < 3100:  # CIFTI, which ends in .nii too
        raise VolumeError(f"{path.name} has no affine.")
    data = nib.arrayproxy.ArrayProxy(str(path), header)
    one = len(data.shape) == 4 and channel is not None and 0 <= channel < data.shape[3]
    wide = -(-data.dtype.itemsize // 8)  # a voxel of 16 bytes counts as two
    _check_size((*(data.shape[:3] if one else data.shape), wide), path.name)
    if one:
        array = np.asarray(data[..., channel])  # only that channel is read
    elif data.slope == 1 and data.inter == 0:
        array = np.asarray(data)
    else:
        array = np.asarray(data, np.float32)
    return make_volume(array, header.get_best_affine(), name=path.name, channel=channel)


def _reader(file, name: str, kind: str = "", files: int = 1) -> sitk.ImageFileReader:
    """A reader of `file` (one of `files` of a series), which is not too large."""
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(file))
    reader.SetImageIO(kind)
    reader.ReadImageInformation()
    _check_size((*reader.GetSize(), reader.GetNumberOfComponents(), files), name)
    return reader


def _read_series(folder: Path) -> sitk.Image:
    series = sitk.ImageSeriesReader.GetGDCMSeriesIDs(str(folder))
    if len(series) != 1:
        found = "no DICOM series" if not series else f"{len(series)} DICOM series"
        raise VolumeError(f"The folder {folder.name} holds {found}; one is needed.")
    files = sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder), series[0])
    first = _reader(files[0], folder.name, "GDCMImageIO", len(files))  # ITK reads only series whose slices have one size
    if len(files) == 1:
        return first.Execute()
    _check_gaps(files, folder.name)
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(files)
    return reader.Execute()


def _check_gaps(files, name: str) -> None:
    """Refuses a series with a slice missing or twice: ITK would spread the rest evenly, and masks would lie elsewhere."""
    headers = [pydicom.dcmread(f, stop_before_pixels=True, specific_tags=_POSITION) for f in files]
    if any("ImagePositionPatient" not in h or "ImageOrientationPatient" not in h for h in headers):
        return
    across = np.asarray(headers[0].ImageOrientationPatient, float)
    normal = np.cross(across[:3], across[3:])
    steps = np.diff([np.dot(np.asarray(h.ImagePositionPatient, float), normal) for h in headers])
    if np.abs(steps - np.median(steps)).max() > 0.1 * abs(np.median(steps)) + 1e-3:
        raise VolumeError(f"The slices of {name} are not evenly spaced: a slice is missing or there twice.")


def _from_itk(image: sitk.Image, name: str, channel: int | None) -> Volume:
    array = sitk.GetArrayFromImage(image)  # (K, J, I) or (K, J, I, components)
    colour = image.GetNumberOfComponentsPerPixel()
    if colour > 1 and image.HasMetaDataKey("Segment0_ID"):
        raise VolumeError(f"{name} holds overlapping segments in {colour} layers: save it from Slicer without 'Allow overlapping segments'.")
    if colour in (3, 4) and channel is None and array.dtype == np.uint8:
        array = array[..., :3].astype(np.float32) @ np.float32([0.299, 0.587, 0.114])
        colour = 1
    axes = tuple(reversed(range(image.GetDimension())))
    array = array.transpose((*axes, image.GetDimension()) if colour > 1 else axes)
    dimension = image.GetDimension()
    if dimension == 3:
        affine = geometry.ras_from_itk(image.GetOrigin(), image.GetSpacing(), image.GetDirection())
    elif dimension == 2:
        direction = np.eye(3)
        direction[:2, :2] = np.asarray(image.GetDirection()).reshape(2, 2)
        affine = geometry.ras_from_itk((*image.GetOrigin(), 0.0), (*image.GetSpacing(), 1.0), direction)
        if colour > 1:  # channels stay the fourth axis; without them `make_volume` adds the third and notes it
            array = array[:, :, None]
    else:
        direction = np.asarray(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
        affine = geometry.ras_from_itk(image.GetOrigin()[:3], image.GetSpacing()[:3], direction)
    return make_volume(array, affine, name=name, channel=channel)
