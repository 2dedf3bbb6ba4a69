"""Read NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) by SimpleITK."""

import json
import re
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import SimpleITK as sitk

from lib.common.errors import VolumeError
from lib.imaging import geometry
from lib.imaging.formats.size_limit import check_size
from lib.imaging.volume import LUMINANCE, Grid, Volume, make_volume

WARNINGS_FIELD = "sam2_warnings"  # Key of a NRRD header under which warnings of the first reader are kept, as quoted JSON.
ITK_ENDINGS = (".nrrd", ".nhdr", ".mha", ".mhd")
_MM_PER_UNIT = {
    "nm": 1e-6, "um": 1e-3, "µm": 1e-3, "μm": 1e-3, "micron": 1e-3, "microns": 1e-3, "micrometer": 1e-3,
    "mm": 1.0, "millimeter": 1.0, "cm": 10.0, "centimeter": 10.0, "m": 1000.0, "meter": 1000.0,
}  # fmt: skip

sitk.ProcessObject.SetGlobalWarningDisplay(False)  # ITK would print warnings about headers that the readers here deal with.


def read_itk(path: Path, channel: int | None = None, *, as_label: bool = False) -> Volume:
    """Return the volume in a NRRD or MetaImage file.

    Args:
        channel: Index of the channel of an image with several.
        as_label: Refuse several channels, of which three would otherwise be taken for colours.

    Raises:
        VolumeError: The file is no volume, too large, or refers to files elsewhere.
        RuntimeError, OSError, ...: The file is damaged; see `lib.imaging.readers.READ_ERRORS`.
    """
    reader, mm_per_unit = _open(path)
    check_size((*reader.GetSize(), reader.GetNumberOfComponents()), path.name)
    image = reader.Execute()
    array = sitk.GetArrayFromImage(image)  # (K, J, I) or (K, J, I, components)
    components, dimension = image.GetNumberOfComponentsPerPixel(), image.GetDimension()
    if components > 1 and image.HasMetaDataKey("Segment0_ID"):
        raise VolumeError(
            f"{path.name} holds overlapping segments in {components} layers: save it from Slicer without 'Allow overlapping segments'."
        )
    if components > 1 and as_label:
        raise VolumeError(f"{path.name} holds {components} layers: save one label map in which every structure has a number.")
    if components in (3, 4) and channel is None and array.dtype == np.uint8:  # RGB(A) becomes luminance.
        array = array[..., :3].astype(np.float32) @ LUMINANCE
        components = 1
    axes = tuple(reversed(range(dimension)))
    array = array.transpose((*axes, dimension) if components > 1 else axes)
    if dimension == 2 and components > 1:  # Channels must be the fourth axis. Without channels, `make_volume` adds the third.
        array = array[:, :, None]
    warnings = _stored_warnings(image)
    if mm_per_unit != 1:
        warnings += (f"{path.name} states its positions in a unit of {mm_per_unit:g} mm, which 3D Slicer takes for 1 mm.",)
    return make_volume(array, _affine(image, mm_per_unit), name=path.name, channel=channel, warnings=warnings)


def _stored_warnings(image: sitk.Image) -> tuple[str, ...]:
    """Return the warnings that `lib.imaging.writers.write_image` has stored with a volume."""
    if not image.HasMetaDataKey(WARNINGS_FIELD):
        return ()
    try:
        return tuple(str(w) for w in json.loads(unquote(image.GetMetaData(WARNINGS_FIELD))))
    except (ValueError, TypeError):  # The field is another program's.
        return ()


def read_itk_grid(path: Path) -> Grid:
    """Return the voxel grid of a NRRD or MetaImage file; the errors are those of `read_itk`."""
    reader, mm_per_unit = _open(path)
    dimension = reader.GetDimension()
    return Grid(tuple((*reader.GetSize(), 1)[:3]), _affine(reader, mm_per_unit), planar=dimension == 2)


def data_file(path: Path) -> Path | None:
    """Return the file of the voxels that the header of a .nhdr or .mhd names, or None if there is none; raise VolumeError as `read_itk`."""
    names = _data_file_names(path, _head(path))
    return path.with_name(names[0]) if names else None


def _open(path: Path) -> tuple[sitk.ImageFileReader, float]:
    """Return a reader that has read the header of a file after it was checked, and the length of its unit in mm."""
    head = _head(path)
    is_metaimage = path.suffix.lower() in (".mha", ".mhd")
    if is_metaimage:
        _check_metaimage(head, path.name)
    _data_file_names(path, head)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("MetaImageIO" if is_metaimage else "NrrdImageIO")  # ITK does not know endings in upper case.
    reader.ReadImageInformation()
    return reader, _mm_per_unit(head, is_metaimage, path.name)


def _head(path: Path) -> bytes:
    """Return the first megabyte of a file, with the line ends of Unix; of NRRD files, only the header."""
    with open(path, "rb") as file:
        head = file.read(2**20).replace(b"\r\n", b"\n")
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        head, end, _ = head.partition(b"\n\n")
        if path.suffix.lower() == ".nrrd" and not end:
            raise ValueError("no end of the header")
    elif b"ElementDataFile" not in head:
        raise ValueError("no end of the header")
    return head


def _check_metaimage(head: bytes, name: str) -> None:
    """Raise VolumeError for MetaImage headers with which ITK, and thus the server, would crash or read wrong values."""
    claimed = {c.strip() for c in re.findall(rb"^\s*NDims\s*[=:](.*)$", head, re.M)}
    if claimed - {b"2", b"3", b"4"}:
        raise VolumeError(f"{name} claims to have other than two to four axes.")
    if re.search(rb"^\s*CompressedData\s*[=:]\s*T", head, re.M | re.I) and b"CompressedDataSize" not in head:
        raise VolumeError(f"{name} does not say how long its compressed data are (CompressedDataSize), so they would be read wrongly.")


def _data_file_names(path: Path, head: bytes) -> list[str]:
    """Return the names of the data files in a header, or raise VolumeError if one lies outside the header's folder.

    With such a header, a user who may upload images could read any file of the server.
    """
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        names = re.findall(rb"^\s*data ?file\s*:\s*(.*?)\s*$", head, re.I | re.M)
    else:  # The field ElementDataFile ends a MetaImage header.
        names = [n for n in re.findall(rb"^\s*ElementDataFile\s*[=:]\s*(.*?)\s*$", head, re.M)[:1] if n.upper() != b"LOCAL"]
    has_data_file = path.suffix.lower() in (".nhdr", ".mhd")  # These formats consist of two files in one folder.
    if any(not has_data_file or n.upper().startswith(b"LIST") or not re.fullmatch(rb"[^/\\%\x00-\x1f]+", n) for n in names):
        raise VolumeError(f"The header of {path.name} names another file: save the image as one file.")
    return [n.decode(errors="surrogateescape") for n in names]


def _mm_per_unit(head: bytes, is_metaimage: bool, name: str) -> float:
    """Return the length in mm of the unit in which a header states positions; files without a unit, and unknown units, mean mm.

    Raises:
        VolumeError: The axes have different units.
    """
    text = head.decode(errors="replace")
    if is_metaimage:
        words = re.findall(r"^\s*DistanceUnits\s*[=:]\s*(\S+)", text, re.M)
    else:
        lines = re.findall(r"^(?:space )?units\s*:\s*(.*)$", text, re.I | re.M)
        words = [w for line in lines for w in re.findall(r'"([^"]*)"', line)]
    lengths = {_MM_PER_UNIT[w.strip().lower()] for w in words if w.strip().lower() in _MM_PER_UNIT}
    if len(lengths) > 1:
        raise VolumeError(f"The axes of {name} have different units ({', '.join(words)}): save it with millimetres on all axes.")
    return lengths.pop() if lengths else 1.0


def _affine(image: sitk.Image | sitk.ImageFileReader, mm_per_unit: float) -> np.ndarray:
    """Return the affine (4, 4) in mm RAS of an ITK image with two to four axes, of which the first three count."""
    dimension = image.GetDimension()
    count = min(dimension, 3)
    direction, sizes_mm, origin_mm = np.eye(3), np.ones(3), np.zeros(3)
    direction[:count, :count] = np.reshape(image.GetDirection(), (dimension, dimension))[:count, :count]
    sizes_mm[:count] = np.array(image.GetSpacing()[:count]) * mm_per_unit
    origin_mm[:count] = np.array(image.GetOrigin()[:count]) * mm_per_unit
    return geometry.ras_from_itk(origin_mm, sizes_mm, direction)
