"""Read NIfTI-1 and NIfTI-2, as single files or as pairs of .hdr and .img, compressed or not whatever the ending says.

Where the voxels lie is what ITK makes of the header (the choice between qform and sform, files with neither, units), because 3D Slicer
and the other viewers of this field show that. ITK refuses affines with shear, and NIfTI-2 files: for these the affine of nibabel counts.
"""

import gzip
import tempfile
from pathlib import Path
from typing import BinaryIO

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from lib.common.errors import VolumeError
from lib.imaging import geometry
from lib.imaging.formats.size_limit import check_size
from lib.imaging.volume import Grid, Volume, make_volume

NIFTI_ENDINGS = (".nii", ".nii.gz", ".hdr", ".img", ".hdr.gz", ".img.gz")
_PAIR = {".hdr": ".img", ".img": ".hdr"}
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 1e-3}  # by the lower three bits of xyzt_units; other values mean mm
_GEOMETRY_FIELDS = (
    "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z",
    "srow_x", "srow_y", "srow_z", "xyzt_units",
)  # fmt: skip


def read_nifti(path: Path, channel: int | None = None, *, as_label: bool = False) -> Volume:
    """Return the volume in a NIfTI file.

    Args:
        channel: Index of the channel or time point of an image with four axes.
        as_label: Refuse colours and scaled values, which would change the numbers of a label map.

    Raises:
        VolumeError: The file is no volume, or too large.
        ImageFileError, HeaderDataError, OSError, ...: The file is damaged; see `lib.imaging.readers.READ_ERRORS`.
    """
    header = nifti_header(path)
    if 3000 <= int(header["intent_code"]) < 3100:  # CIFTI, whose file names end in .nii too
        raise VolumeError(f"{path.name} has no affine.")
    if as_label:
        _check_label(header, path.name)
    with _open(_part(path, ".img")) as file:
        data = nib.arrayproxy.ArrayProxy(file, header, mmap=False)  # A memory map would end the process if the file became shorter.
        shape = _without_length_one(data.shape)
        has_channel = len(shape) == 4 and channel is not None and 0 <= channel < shape[3]
        weight = -(-data.dtype.itemsize // 8)  # A voxel of 16 bytes counts as two.
        check_size((*(shape[:3] if has_channel else shape), weight), path.name)
        if has_channel:
            array = np.asarray(data[..., channel])  # This reads only the chosen channel.
            array = array.reshape(shape[:3], order="F")
        elif (data.slope == 1 and data.inter == 0) or data.dtype.kind == "c":
            array = np.asarray(data).reshape(shape, order="F")
        else:
            array = np.asarray(data, np.float32).reshape(shape, order="F")
    return make_volume(array, _affine(path, header), name=path.name, channel=channel)


def read_nifti_grid(path: Path) -> Grid:
    """Return the voxel grid of a NIfTI file; the errors are those of `read_nifti`."""
    header = nifti_header(path)
    shape = _without_length_one(header.get_data_shape())
    if len(shape) < 2 or 0 in shape:
        raise VolumeError(f"{path.name} has no voxels (shape {shape}).")
    return Grid(tuple(int(n) for n in (*shape, 1)[:3]), _affine(path, header), planar=len(shape) == 2)


def nifti_header(path: str | Path) -> nib.Nifti1Header:
    """Return the fixed part of a NIfTI-1 or NIfTI-2 header, with harmless mistakes of other writers corrected.

    `nibabel.load` would also read the header's extensions, whose claimed size it does not check.

    Raises:
        VolumeError: It is the header of an Analyze 7.5 file.
        ImageFileError, HeaderDataError, OSError: The file is damaged or is not a NIfTI file.
    """
    header = _stored_header(Path(path))
    is_single = header["magic"].item() == header.single_magic
    if is_single and header["vox_offset"] == 0:
        header["vox_offset"] = header.single_vox_offset
    if not np.isfinite(header["scl_slope"]) or header["scl_slope"] == 0:
        header["scl_slope"], header["scl_inter"] = 1, 0
    if not np.isfinite(header["scl_inter"]):
        header["scl_inter"] = 0
    count = int(header["dim"][0])
    if 3 < count < 8:  # Some writers leave trailing lengths at 0.
        header["dim"][4 : count + 1] = np.where(header["dim"][4 : count + 1] == 0, 1, header["dim"][4 : count + 1])
    pair_class = {nib.Nifti1Header: nib.nifti1.Nifti1PairHeader, nib.Nifti2Header: nib.nifti2.Nifti2PairHeader}[type(header)]
    return (type(header) if is_single else pair_class)(header.binaryblock, endianness=header.endianness)  # This checks the rest.


def _stored_header(path: Path) -> nib.Nifti1Header:
    """Return the header as it is stored: nibabel's checks would change codes and negative voxel sizes, which ITK uses as they are."""
    with _open(_part(path, ".hdr")) as file:
        block = file.read(nib.Nifti2Header.sizeof_hdr)
    for header_class in (nib.Nifti1Header, nib.Nifti2Header):
        if header_class.may_contain_header(block):
            return header_class(block[: header_class.sizeof_hdr], check=False)
    if nib.AnalyzeHeader.may_contain_header(block[:348]) and nifti_pair(path):
        raise VolumeError(f"{path.name} is an Analyze 7.5 file, which does not tell left from right: convert it to NIfTI.")
    raise nib.filebasedimages.ImageFileError("no NIfTI header")


def nifti_pair(path: Path) -> tuple[Path, Path] | None:
    """Return the header file and the voxel file of a pair of which `path` is one, or None for single files."""
    return (_part(path, ".hdr"), _part(path, ".img")) if _part(path, ".hdr") != _part(path, ".img") else None


def _part(path: Path, kind: str) -> Path:
    """Return the file of a pair that has this kind of ending, .hdr or .img; single files are returned as they are."""
    name, zipped = (path.name[:-3], path.name[-3:]) if path.name.lower().endswith(".gz") else (path.name, "")
    ending = Path(name).suffix
    if ending.lower() not in _PAIR or ending.lower() == kind:
        return path
    other = kind.upper() if ending.isupper() else kind
    candidates = [path.with_name(name[: -len(ending)] + other + z) for z in dict.fromkeys((zipped, "", ".gz"))]
    return next((p for p in candidates if p.exists()), candidates[0])


def _open(path: Path) -> BinaryIO:
    """Open a file, through gzip if its first bytes say so: endings are often wrong."""
    with open(path, "rb") as file:
        is_compressed = file.read(2) == b"\x1f\x8b"
    return (gzip.open if is_compressed else open)(path, "rb")


def _without_length_one(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return a shape without axes of length one behind the third; ITK stores channels on the fifth axis, behind an empty fourth."""
    return tuple(shape[:3]) + tuple(n for n in shape[3:] if n != 1)


def _check_label(header, name: str) -> None:
    """Raise VolumeError if a label map holds colours, or if its values are scaled: rounding could give them other numbers."""
    if header.get_data_dtype().names:
        raise VolumeError(f"{name} holds colours: save one label map in which every structure has a number.")
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    if (slope, inter) != (1, 0):
        raise VolumeError(f"{name} has a header that scales its values (by {slope:g}, plus {inter:g}): save the label map without scaling.")


def _affine(path: Path, header) -> np.ndarray:
    """Return the affine (4, 4) in mm RAS: ITK's, or nibabel's where ITK refuses the header.

    Args:
        header: The result of `nifti_header`.

    Raises:
        VolumeError: The sform is sheared and the qform lies elsewhere: ITK shows the qform without a word, other viewers the sform.
    """
    affine = _itk_affine(_stored_header(path))
    mm_per_unit = np.diag([_MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)] * 3 + [1])
    if affine is None:
        return mm_per_unit @ header.get_best_affine()
    sform = mm_per_unit @ header.get_sform()
    if header["sform_code"] > 0 and geometry.is_valid_affine(sform) and geometry.has_shear(sform, 1e-3):
        last_voxel = np.array((*header.get_data_shape(), 1, 1)[:3]) - 1
        offset_mm = np.linalg.norm(geometry.to_mm(sform, last_voxel) - geometry.to_mm(affine, last_voxel))
        if offset_mm > 0.5 * geometry.spacing(affine).min():
            raise VolumeError(
                f"The sform of {path.name} is sheared, and its qform lies up to {offset_mm:.3g} mm elsewhere, so viewers show the image at "
                "different places: resample it to perpendicular axes, or set the qform code to 0."
            )
    return affine


def _itk_affine(header) -> np.ndarray | None:
    """Return the affine (4, 4) in mm RAS that ITK reads from a stored header, or None if it refuses it."""
    small = nib.Nifti1Header()  # The same geometry with a single voxel, so ITK meets none of the file's other contents.
    small.set_data_dtype(np.uint8)
    small.set_data_shape((1, 1, 1))
    for name in _GEOMETRY_FIELDS:
        small[name] = header[name]
    sizes = header["pixdim"][:4].astype(float)
    small["pixdim"][:4] = np.where((sizes == 0) & (np.arange(4) > 0), 1, sizes)
    small["vox_offset"], small["magic"] = 352, b"n+1"
    with tempfile.NamedTemporaryFile(suffix=".nii") as file:
        file.write(small.binaryblock + bytes(5))
        file.flush()
        reader = sitk.ImageFileReader()
        reader.SetFileName(file.name)
        reader.SetImageIO("NiftiImageIO")
        try:
            reader.ReadImageInformation()
        except RuntimeError:
            return None
    return geometry.ras_from_itk(reader.GetOrigin(), reader.GetSpacing(), reader.GetDirection())
