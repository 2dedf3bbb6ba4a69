"""Writes masks on the grid of their volume: NIfTI, NRRD, MHA and Slicer's .seg.nrrd."""

import io
import os
import tempfile
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import SimpleITK as sitk

from lib.common.errors import OptionError
from lib.imaging import geometry
from lib.imaging.volume import Volume

NAME = b"Segment0_Name:="
EXTENSIONS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")  # no .mhd: it is two files


def write_mask(
    mask: np.ndarray, volume: Volume, path: str | Path, *, dtype="uint8", compress=True, label="segment"
) -> Path:
    """Writes `mask` (I, J, K) with the affine of `volume`; the file appears complete or not at all.

    Args:
        path: its ending chooses the format, see EXTENSIONS.
        dtype: NumPy integer type of the voxels.
        compress: gzip inside NRRD and MHA (.nii.gz always, .nii never).
        label: the segment's name in a .seg.nrrd.

    Raises:
        OptionError: unknown ending or dtype.
        OSError: the disk is full or not writable.
    """
    path = Path(path)
    ending = mask_extension(path.name)
    try:
        kind = np.dtype(dtype)
    except TypeError as e:
        raise OptionError(f"Unknown result_dtype {dtype!r}; use for example uint8.") from e
    if kind.kind not in "ui":
        raise OptionError(f"The result_dtype {dtype!r} is no integer type; use for example uint8.")
    mask = mask.view(kind) if mask.dtype == bool and kind.itemsize == 1 else mask.astype(kind)  # no copy where none is needed
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(suffix=ending, dir=path.parent)
    os.close(handle)
    try:
        if ending in (".nii", ".nii.gz"):
            image = nib.Nifti1Image(mask, volume.affine, dtype=kind)  # 64 bits only when asked for
            image.header.set_xyzt_units("mm")
            nib.save(image, temporary)
        elif ending.endswith(".nrrd"):
            _write_nrrd(mask, volume, temporary, compress, label if ending == ".seg.nrrd" else None)
        else:
            _write_itk(mask, volume, temporary, compress)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def mask_extension(name: str) -> str:
    """The format's ending of a file name.

    >>> mask_extension("liver.seg.nrrd"), mask_extension("a.nii.gz")
    ('.seg.nrrd', '.nii.gz')

    Raises:
        OptionError: none of EXTENSIONS.
    """
    for ending in EXTENSIONS:
        if name.lower().endswith(ending):
            return ending
    raise OptionError(f"Cannot write {name!r}; supported endings are {', '.join(EXTENSIONS)}.")


def _write_itk(mask, volume, path, compress) -> None:
    image = sitk.GetImageFromArray(mask.transpose(2, 1, 0))
    origin, sizes, direction = geometry.itk_from_ras(volume.affine)
    image.SetOrigin(origin.tolist())
    image.SetSpacing(sizes.tolist())
    image.SetDirection(direction.tolist())
    sitk.WriteImage(image, path, useCompression=bool(compress))


def _write_nrrd(mask, volume, path, compress, segment: str | None) -> None:
    """With the name of a segment, a segmentation as 3D Slicer writes it."""
    lps = geometry.LPS_FROM_RAS @ volume.affine
    header = {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip" if compress else "raw",
    }
    name = b""
    if segment is not None:
        name = segment.replace("\\", "\\\\").replace("\r", " ").replace("\n", "\\n").encode(errors="replace")
        filled = [np.flatnonzero(mask.any(others)) for others in ((1, 2), (0, 2), (0, 1))]
        header |= {
            "Segment0_ID": "Segment_1",
            "Segment0_Name": "?" * len(name),
            "Segment0_LabelValue": "1",
            "Segment0_Layer": "0",
            "Segment0_Extent": " ".join(f"{f[0]} {f[-1]}" if len(f) else "0 -1" for f in filled),
        }
    if compress:
        nrrd.write(path, mask, header=header, index_order="F")
    else:
        _write_raw(mask, header, path)
    if segment is not None:
        with open(path, "r+b") as file:  # pynrrd writes ASCII only, and does not escape line ends
            file.seek(file.read(1 << 16).index(NAME) + len(NAME))
            file.write(name)


def _write_raw(mask, header, path) -> None:
    """As pynrrd would, but slice by slice: it makes a copy of the whole mask. Empty slices, most of them, need no writing."""
    empty = io.BytesIO()
    nrrd.write(empty, np.empty((0, 0, 0), mask.dtype), header=header, index_order="F")
    with open(path, "wb") as file:
        file.write(empty.getvalue().replace(b"sizes: 0 0 0", b"sizes: %d %d %d" % mask.shape, 1))
        start = file.tell()
        for n, plane in enumerate(mask.transpose(2, 1, 0)):
            if plane.any():
                file.seek(start + n * plane.nbytes)
                file.write(np.ascontiguousarray(plane))
        file.truncate(start + mask.nbytes)
