"""Makers of image files for tests: a bright block at a known place, on any grid, in files whose header fields the test chooses."""

import gzip
from copy import deepcopy
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.filebase import DicomFileLike
from pydicom.filewriter import write_dataset
from pydicom.sequence import Sequence
from pydicom.uid import (
    CTImageStorage,
    EnhancedCTImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from tests.conftest import DIRECTIONS

SHAPE = (14, 12, 9)
SPACING_MM = (1.5, 2.0, 3.0)
ORIGIN_LPS_MM = (-20.0, 13.0, 40.0)
BLOCK = (slice(8, 11), slice(3, 5), slice(5, 7))  # It lies in the middle of no axis, so that a flip is noticed.
BRIGHT = 500  # Between the values of the background and of the block.
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # From mm RAS to mm LPS and back.


def block_image(shape=SHAPE, dtype=np.int16) -> np.ndarray:
    """Return an image (I, J, K) with values from 0 to 99, and 1000 in the block."""
    array = np.random.default_rng(0).integers(0, 100, shape).astype(dtype)
    array[BLOCK] = 1000
    return array


def lps_affine(directions=None, *, spacing_mm=SPACING_MM, origin=ORIGIN_LPS_MM) -> np.ndarray:
    """Return an affine (4, 4) from voxels to mm LPS; `directions` (3, 3) has the direction of each axis as a column."""
    affine = np.eye(4)
    affine[:3, :3] = (np.eye(3) if directions is None else np.asarray(directions, float)) * spacing_mm
    affine[:3, 3] = origin
    return affine


def tilted_affine(degrees: float = 18.0) -> np.ndarray:
    """Return the affine (mm LPS) of a CT with a tilted gantry: rows lean, the table moves straight, so the axes are sheared."""
    angle = np.deg2rad(degrees)
    return lps_affine(np.column_stack([(1, 0, 0), (0, np.cos(angle), -np.sin(angle)), (0, 0, 1)]))


IMAGE = block_image()
OBLIQUE = lps_affine(DIRECTIONS["oblique"])


# --- NIfTI -----------------------------------------------------------------------------------------------------------
def nifti_bytes(array, affine_lps=None, *, qform=None, qform_code=1, sform_code=1, unit="mm", endian="<", dim=None, **fields) -> bytes:
    """Return the content of a NIfTI-1 file.

    Args:
        affine_lps: Place of the voxels, in the header's unit.
        qform: Another affine (mm LPS) for the qform.
        dim: The field `dim` as it is stored; None for that of the array.
        **fields: Any other fields of the header, set last.
    """
    affine = LPS @ (lps_affine() if affine_lps is None else affine_lps)
    header = nib.Nifti1Header(endianness=endian)
    header.set_data_dtype(array.dtype)
    header.set_data_shape(array.shape)
    header.set_qform(affine if qform is None else LPS @ qform, qform_code)
    header.set_sform(affine, sform_code)
    header.set_xyzt_units(unit)
    header["scl_slope"], header["scl_inter"], header["vox_offset"] = 1, 0, 352
    if dim is not None:
        header["dim"] = dim
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + bytes(4) + array.astype(array.dtype.newbyteorder(endian)).tobytes("F")


def write_nifti(path: Path, array=None, affine_lps=None, **fields) -> Path:
    """Write a NIfTI-1 file (see `nifti_bytes`), compressed if its name ends in .gz; return the path."""
    content = nifti_bytes(block_image() if array is None else array, affine_lps, **fields)
    path.write_bytes(gzip.compress(content) if path.name.lower().endswith(".gz") else content)
    return path


# --- NRRD and MetaImage ----------------------------------------------------------------------------------------------
NRRD_TYPES = {"i2": "short", "u1": "uchar", "f4": "float", "f8": "double", "u8": "uint64"}
META_TYPES = {
    "i2": "MET_SHORT", "u1": "MET_UCHAR", "f4": "MET_FLOAT", "f8": "MET_DOUBLE", "u8": "MET_ULONG_LONG", "u2": "MET_USHORT",
    "u4": "MET_UINT", "i4": "MET_INT", "i8": "MET_LONG_LONG",
}  # fmt: skip
META_GRID = {
    "TransformMatrix": "1 0 0 0 1 0 0 0 1", "Offset": "-20 13 40", "CenterOfRotation": "0 0 0", "ElementSpacing": "1.5 2 3",
}  # fmt: skip


def vectors(matrix) -> str:
    """Return the columns of a matrix as NRRD writes them."""
    return " ".join("(" + ",".join(f"{v:.12g}" for v in column) + ")" for column in np.asarray(matrix).T)


def nrrd_fields(affine_lps=None, **more) -> dict[str, str]:
    """Return the fields of a NRRD header that place an image; more fields (with _ for spaces) replace or follow these."""
    affine = lps_affine() if affine_lps is None else affine_lps
    fields = {"space": "left-posterior-superior", "space directions": vectors(affine[:3, :3]), "kinds": "domain domain domain"}
    return {**fields, "space origin": vectors(affine[:3, 3:]), **{k.replace("_", " "): v for k, v in more.items()}}


def write_nrrd(path: Path, fields: dict[str, str], array=None, *, data_file=None, encoding="gzip", line_end=b"\n") -> Path:
    """Write a NRRD file with the fields as they are given, and return its path.

    Args:
        data_file: Name of the file for the voxels beside a .nhdr; None for one file.
    """
    array = block_image() if array is None else array
    sizes = " ".join(map(str, array.shape))
    lines = ["NRRD0005", f"type: {NRRD_TYPES[array.dtype.str[1:]]}", f"dimension: {array.ndim}", f"sizes: {sizes}"]
    lines += [f"{k}: {v}" for k, v in fields.items() if v is not None] + ["endian: little", f"encoding: {encoding}"]
    body = gzip.compress(array.tobytes("F")) if encoding == "gzip" else array.tobytes("F")
    if data_file:
        lines.append(f"data file: {data_file}")
        path.with_name(data_file).write_bytes(body)
    path.write_bytes(line_end.join(line.encode() for line in lines) + 2 * line_end + (b"" if data_file else body))
    return path


def write_metaimage(path: Path, fields: dict[str, str] | None = None, array=None, *, data_file="LOCAL") -> Path:
    """Write a MetaImage file with the fields as they are given, and return its path; other than LOCAL, `data_file` gets the voxels."""
    array = block_image() if array is None else array
    lines = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False", "CompressedData": "False"}
    lines |= {**(META_GRID if fields is None else fields), "DimSize": " ".join(map(str, array.shape[-3:]))}
    lines |= {"ElementType": META_TYPES[array.dtype.str[1:]], "ElementDataFile": data_file}
    head = "".join(f"{k} = {v}\n" for k, v in lines.items()).encode()
    is_local = data_file.upper() == "LOCAL"
    path.write_bytes(head + (array.tobytes("F") if is_local else b""))
    if not is_local:
        path.with_name(data_file).write_bytes(array.tobytes("F"))
    return path


# --- DICOM -----------------------------------------------------------------------------------------------------------
UID = "1.2.826.0.1.3680043.10.1337."


def dicom_slice(plane: np.ndarray, number: int, *, sop_class=CTImageStorage, modality="CT") -> Dataset:
    """Return a DICOM image without a place, of a plane (rows, columns); its UIDs follow from its number."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = sop_class, f"{UID}9.{number}"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = UID + "1", UID + "2", UID + "3"
    ds.PatientName, ds.PatientID, ds.StudyID, ds.Modality = "Block^Bright", "7", "1", modality
    ds.PatientBirthDate, ds.PatientSex, ds.AccessionNumber, ds.ReferringPhysicianName = "", "", "", ""
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = "20260101"
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "120000"
    ds.SeriesNumber, ds.InstanceNumber, ds.SeriesDescription = 4, number, "block"
    ds.ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    set_pixels(ds, plane)
    return ds


def set_pixels(ds: Dataset, pixels: np.ndarray) -> None:
    """Set the pixels, (rows, columns) or (frames, rows, columns), and what describes them."""
    ds.Rows, ds.Columns = pixels.shape[-2:]
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 8 * pixels.dtype.itemsize
    ds.HighBit, ds.PixelRepresentation = ds.BitsStored - 1, int(pixels.dtype.kind == "i")
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"


def series(affine_lps=None, array=None, *, intercept=-1024, **options) -> list[Dataset]:
    """Return a series with one image for each slice k of an affine (mm LPS); the stored values are 0 or more."""
    affine = lps_affine() if affine_lps is None else affine_lps
    array = block_image() if array is None else array
    x, y = (affine[:3, n] / np.linalg.norm(affine[:3, n]) for n in (0, 1))
    images = []
    for k in range(array.shape[2]):
        ds = dicom_slice((array[:, :, k].T.astype(int) - intercept).astype(np.uint16), k + 1, **options)
        ds.ImageOrientationPatient = [f"{v:.9f}" for v in (*x, *y)]
        ds.ImagePositionPatient = [f"{v:.6f}" for v in affine[:3, 3] + k * affine[:3, 2]]
        ds.PixelSpacing = [f"{np.linalg.norm(affine[:3, n]):.9g}" for n in (1, 0)]
        ds.SliceThickness, ds.RescaleSlope, ds.RescaleIntercept = f"{np.linalg.norm(affine[:3, 2]):.9g}", "1", str(intercept)
        images.append(ds)
    return images


def copies(images: list[Dataset], number: int) -> list[Dataset]:
    """Return copies of images with UIDs and instance numbers of their own; `number` counts such copies."""
    result = deepcopy(images)
    for ds in result:
        ds.InstanceNumber = int(ds.InstanceNumber) + 100 * number
        ds.SOPInstanceUID = f"{UID}9.{ds.InstanceNumber}"
    return result


def multiframe(images: list[Dataset], *, sop_class=EnhancedCTImageStorage, spacing_between=None) -> Dataset:
    """Return an enhanced multi-frame object with these single images as its frames, in the order of the list."""
    first = images[0]
    ds = deepcopy(first)
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "RescaleSlope", "RescaleIntercept"):
        delattr(ds, name)
    pixels = np.stack([np.frombuffer(i.PixelData, np.uint16).reshape(i.Rows, i.Columns) for i in images])
    set_pixels(ds, pixels)
    ds.SOPClassUID, ds.NumberOfFrames = sop_class, len(images)
    shared = Dataset()
    shared.PixelMeasuresSequence = [_item(first, "PixelSpacing", "SliceThickness")]
    if spacing_between is not None:
        shared.PixelMeasuresSequence[0].SpacingBetweenSlices = spacing_between
    shared.PlaneOrientationSequence = [_item(first, "ImageOrientationPatient")]
    shared.PixelValueTransformationSequence = [_item(first, "RescaleSlope", "RescaleIntercept")]
    ds.SharedFunctionalGroupsSequence = [shared]
    groups = []
    for n, image in enumerate(images, 1):
        group, content = Dataset(), Dataset()
        content.StackID, content.InStackPositionNumber, content.DimensionIndexValues = "1", n, [1, n]
        group.FrameContentSequence, group.PlanePositionSequence = [content], [_item(image, "ImagePositionPatient")]
        groups.append(group)
    ds.PerFrameFunctionalGroupsSequence = Sequence(groups)
    return ds


def _item(source: Dataset, *keywords: str) -> Dataset:
    item = Dataset()
    for keyword in keywords:
        setattr(item, keyword, getattr(source, keyword))
    return item


def save_dicom(images, folder: Path, *, syntax=ExplicitVRLittleEndian, preamble=True, name="{:03d}.dcm") -> Path:
    """Write images to files in a folder, numbered in the order of the list, and return the folder.

    Args:
        preamble: Whether to write the preamble and the file meta information.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for n, ds in enumerate(images):
        meta = FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID, meta.TransferSyntaxUID = ds.SOPClassUID, ds.SOPInstanceUID, syntax
        meta.ImplementationClassUID = UID + "4"
        path = folder / name.format(n)
        little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
        if preamble:
            file = FileDataset(str(path), ds, file_meta=meta, preamble=bytes(128), is_little_endian=little, is_implicit_VR=implicit)
            file.save_as(path, write_like_original=False)
        else:
            with open(path, "wb") as opened:
                target = DicomFileLike(opened)
                target.is_little_endian, target.is_implicit_VR = little, implicit
                write_dataset(target, ds)
    return folder


def dicom_file(ds: Dataset, path: Path, **options) -> Path:
    """Write one DICOM object to a file and return its path."""
    save_dicom([ds], path.parent, name=path.name, **options)
    return path


def read_back(path: Path) -> Dataset:
    return pydicom.dcmread(path, force=True)


def frame_points(segmentation: Dataset) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return for each frame of a DICOM SEG its position (3,) and the positions (N, 3) of its filled pixels, in mm LPS.

    Only what the frames say of themselves counts.
    """
    frames = segmentation.pixel_array
    shared, found = segmentation.SharedFunctionalGroupsSequence[0], []
    for plane, own in zip(frames[None] if frames.ndim == 2 else frames, segmentation.PerFrameFunctionalGroupsSequence, strict=True):
        names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        place, turn, measures = ((own.get(name) or shared.get(name))[0] for name in names)
        position, cosines = np.array(place.ImagePositionPatient, float), np.array(turn.ImageOrientationPatient, float)
        row_mm, column_mm = map(float, measures.PixelSpacing)
        rows, columns = np.nonzero(plane)
        found.append((position, position + columns[:, None] * column_mm * cosines[:3] + rows[:, None] * row_mm * cosines[3:]))
    return found
