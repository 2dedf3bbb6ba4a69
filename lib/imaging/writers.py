"""Write masks on the grid of their volume as NIfTI, NRRD, MHA or 3D Slicer's .seg.nrrd, and volumes as NRRD.

The affine is written exactly, also if it is sheared, as that of a CT with a tilted gantry is. ITK, and thus 3D Slicer, reads such NRRD and
MHA files and refuses such NIfTI files.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

import nibabel as nib
import nrrd
import numpy as np
import SimpleITK as sitk

from lib.common.atomic_files import replaced_file
from lib.common.errors import OptionError
from lib.imaging import geometry
from lib.imaging.formats.itk_files import WARNINGS_FIELD
from lib.imaging.study_files import LABEL_ENDINGS
from lib.imaging.volume import Grid, Volume

MAX_SEGMENTS_HEADER_BYTES = 2**22


def write_mask(
    mask: np.ndarray, volume: Volume | Grid, path: str | Path, *, dtype="uint8", compress=True, label: str | Mapping[int, str] = "segment",
) -> Path:  # fmt: skip
    """Write `mask`, bool or integer (I, J, K), on the grid of `volume`; return the path.

    The file is replaced atomically: if writing fails, an older file stays as it was.

    Args:
        path: File to write; its ending, one of `LABEL_ENDINGS`, chooses the format.
        dtype: NumPy integer type of the stored voxels.
        compress: Whether to compress NRRD and MHA files with gzip. Files named .nii.gz always are, .nii never.
        label: Name of the segment in a .seg.nrrd, or the names of several by their values.

    Raises:
        ValueError: The mask has another shape than the grid.
        OptionError: The ending or `dtype` is unknown, or a value of the mask does not fit into `dtype`.
        OSError: The disk is full or not writable.
    """
    if mask.shape != tuple(volume.shape):
        raise ValueError(f"The mask has shape {mask.shape}, but the grid has {tuple(volume.shape)}.")
    path = Path(path)
    ending = mask_extension(path.name)
    try:
        voxel_type = np.dtype(dtype)
    except (TypeError, ValueError, SyntaxError) as e:
        raise OptionError(f"Unknown result_dtype {dtype!r}; use for example uint8.") from e
    if voxel_type.kind not in "ui":
        raise OptionError(f"The result_dtype {dtype!r} is no integer type; use for example uint8.")
    limits = np.iinfo(voxel_type)
    if not np.can_cast(mask.dtype, voxel_type) and (mask.min() < limits.min or mask.max() > limits.max):
        raise OptionError(f"The values {mask.min()} to {mask.max()} do not fit into {voxel_type}.")
    # A bool mask can be viewed as bytes, which avoids a copy.
    mask = mask.view(voxel_type) if mask.dtype == bool and voxel_type.itemsize == 1 else mask.astype(voxel_type)
    with replaced_file(path, ending) as temporary:
        if ending in (".nii", ".nii.gz"):
            image = nib.Nifti1Image(mask, volume.affine, dtype=voxel_type)  # With an explicit dtype, nibabel accepts 64 bits.
            image.header.set_xyzt_units("mm")
            nib.save(image, str(temporary))
        elif ending.endswith(".nrrd"):
            segments = ({1: label} if isinstance(label, str) else label) if ending == ".seg.nrrd" else {}
            _write_nrrd(mask, volume, str(temporary), compress, segments)
        else:
            _write_itk(mask, volume, str(temporary), compress)
    return path


def write_image(volume: Volume, path: str | Path) -> Path:
    """Write a volume as an uncompressed NRRD file with its affine and warnings, and return the path; the file is replaced atomically.

    Raises:
        OSError: The disk is full or not writable.
    """
    array = volume.array.astype(volume.array.dtype.newbyteorder("="), copy=False)
    header = _nrrd_header(volume, compress=False)
    if volume.warnings:
        header[WARNINGS_FIELD] = quote(json.dumps(volume.warnings))
    with replaced_file(Path(path)) as temporary:
        _write_raw(array, header, temporary)
    return Path(path)


def mask_extension(name: str) -> str:
    """Return the ending of a file name that chooses the format.

    >>> mask_extension("liver.seg.nrrd"), mask_extension("a.nii.gz")
    ('.seg.nrrd', '.nii.gz')

    Raises:
        OptionError: The ending is not one of `LABEL_ENDINGS`.
    """
    for ending in LABEL_ENDINGS:
        if name.lower().endswith(ending):
            return ending
    raise OptionError(f"Cannot write {name!r}; supported endings are {', '.join(LABEL_ENDINGS)}.")


def _write_itk(mask, volume, path, compress) -> None:
    image = sitk.GetImageFromArray(mask.transpose(2, 1, 0))
    origin, sizes, direction = geometry.itk_from_ras(volume.affine)
    image.SetOrigin(origin.tolist())
    image.SetSpacing(sizes.tolist())
    image.SetDirection(direction.tolist())
    sitk.WriteImage(image, path, useCompression=bool(compress))


def _write_nrrd(mask, volume, path, compress, segments: Mapping[int, str]) -> None:
    """Write a NRRD file; with names of segments by their values, write a segmentation like those of 3D Slicer."""
    header, names = _nrrd_header(volume, compress), []
    for n, (value, segment_name) in enumerate(segments.items()):
        names.append(segment_name.replace("\\", "\\\\").replace("\r", " ").replace("\n", "\\n").encode(errors="replace"))
        is_inside = mask == value if len(segments) > 1 else mask
        filled = [np.flatnonzero(is_inside.any(others)) for others in ((1, 2), (0, 2), (0, 1))]
        header |= {
            f"Segment{n}_ID": f"Segment_{n + 1}",
            f"Segment{n}_Name": "?" * len(names[-1]),
            f"Segment{n}_LabelValue": str(value),
            f"Segment{n}_Layer": "0",
            f"Segment{n}_Extent": " ".join(f"{f[0]} {f[-1]}" if len(f) else "0 -1" for f in filled),
        }
    if compress:
        nrrd.write(path, mask, header=header, index_order="F")
    else:
        _write_raw(mask, header, path)
    if names:
        with open(path, "r+b") as file:  # pynrrd writes only ASCII and does not escape line ends, so the names are filled in here.
            written = file.read(MAX_SEGMENTS_HEADER_BYTES)
            for n, name in enumerate(names):
                field = b"Segment%d_Name:=" % n
                file.seek(written.index(field) + len(field))
                file.write(name)


def _nrrd_header(volume: Volume, compress: bool) -> dict:
    """Return the fields of a NRRD header that say where the voxels lie and how they are stored."""
    lps = geometry.LPS_FROM_RAS @ volume.affine
    return {
        "space": "left-posterior-superior",
        "space directions": lps[:3, :3].T,
        "space origin": lps[:3, 3],
        "kinds": ["domain"] * 3,
        "encoding": "gzip" if compress else "raw",
    }


def _write_raw(mask, header, path) -> None:
    """Write an uncompressed NRRD file slice by slice; pynrrd would make a copy of the whole array.

    Empty slices are skipped: most are empty, and the gaps that `seek` and `truncate` leave in the file read as zeros.
    """
    header_bytes = io.BytesIO()
    nrrd.write(header_bytes, np.empty((0, 0, 0), mask.dtype), header=header, index_order="F")
    with open(path, "wb") as file:
        file.write(header_bytes.getvalue().replace(b"sizes: 0 0 0", b"sizes: %d %d %d" % mask.shape, 1))
        start = file.tell()
        for k, plane in enumerate(mask.transpose(2, 1, 0)):
            if plane.any():
                file.seek(start + k * plane.nbytes)
                file.write(np.ascontiguousarray(plane))
        file.truncate(start + mask.nbytes)
