"""What the headers of DICOM files say about each of their frames: where it lies, how large its pixels are, and what it belongs to."""

import filecmp
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from lib.common.errors import VolumeError
from lib.imaging.formats.size_limit import check_size
from lib.imaging.volume import SourceFrame

DICOM_ENDINGS = (".dcm", ".ima")
# What pydicom raises on damaged files and on values that it cannot convert. It has no common class for them.
DICOM_ERRORS = (
    AttributeError, LookupError, TypeError, ValueError, OSError, EOFError, ArithmeticError, RuntimeError, pydicom.errors.InvalidDicomError,
    pydicom.errors.BytesLengthException,
)  # fmt: skip
# Objects with pixels that are no images to annotate: segmentations, dose, parametric maps, surfaces, presentation states.
_NO_IMAGES = ("1.2.840.10008.5.1.4.1.1.66.", "1.2.840.10008.5.1.4.1.1.481.", "1.2.840.10008.5.1.4.1.1.30", "1.2.840.10008.5.1.4.1.1.11.")
_MM_PER_CM = 10.0
_REGION_UNIT_CM = 3  # PhysicalUnitsXDirection (0018,6024)
_MAX_DEPTH = 6  # Levels of subfolders, as in PATIENT/STUDY/SERIES.
# Attributes by which the volumes of one series differ, in the order in which they are tried.
_MARKS = (
    "StackID", "AcquisitionNumber", "TemporalPositionIdentifier", "TemporalPositionIndex", "EchoNumbers", "EchoTime", "EffectiveEchoTime",
    "DiffusionBValue", "NominalPercentageOfCardiacPhase", "TriggerTime", "NominalCardiacTriggerDelayTime", "FrameType", "ImageType",
    "TimeSlotVector", "PhaseVector", "EnergyWindowVector", "DetectorVector", "AcquisitionTime", "ContentTime", "SOPInstanceUID",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class FrameHeader:
    """The header of one frame.

    Attributes:
        source: File, object and number of the frame.
        name: Name of the frame for messages.
        series: SeriesNumber, SeriesInstanceUID and SeriesDescription.
        size: Number of (columns, rows).
        position_mm: Position (3,) of the centre of the first pixel in mm LPS, or None if the file does not say it.
        origin_mm: Position (3,) that the object states as a whole, where the positions of its frames are unknown; otherwise None.
        directions: Unit vectors (2, 3) in LPS along which columns and rows are counted, or None.
        pixel_mm: Distances (2,) of neighbouring pixels along i and j, or None.
        thickness_mm: Distance of slices, or their thickness, as a number of the header; only for single slices. None if missing.
        order: Number by which frames are sorted whose positions do not say it.
        marks: Values by which the volumes of one series may differ, {attribute: value}.
        problem: Sentence that says which value of the header cannot be used; the attributes above are then incomplete.
    """

    source: SourceFrame
    name: str
    series: tuple[float, str, str]
    size: tuple[int, int] = (0, 0)
    position_mm: np.ndarray | None = None
    origin_mm: np.ndarray | None = None
    directions: np.ndarray | None = None
    pixel_mm: np.ndarray | None = None
    thickness_mm: float | None = None
    order: tuple = ()
    marks: dict[str, str] = field(default_factory=dict)
    problem: str = ""


def read_headers(path: Path | Sequence[Path]) -> list[FrameHeader]:
    """Return the headers of all image frames in a DICOM file, in several, or in the DICOM files of a folder and its subfolders.

    Files that are not DICOM, DICOMDIR, and DICOM objects that are no images are left out. Headers with unusable values have a `problem`.

    Raises:
        VolumeError: A file should hold an image but does not, as after an interrupted copy.
        DICOM_ERRORS: A file is damaged.
    """
    frames, files = [], {}
    for file in dicom_files(path):
        dataset = read_dataset(file, stop_before_pixels=True)
        if _is_incomplete(file, dataset):
            raise VolumeError(f"{file.name} could not be read: it is damaged, incomplete or not a medical image. Repair or remove it.")
        if dataset is None or not is_image(dataset):
            continue
        known = files.setdefault(str(dataset.get("SOPInstanceUID", file)), file)
        if known != file and filecmp.cmp(known, file, shallow=False):  # a second copy of the same file
            continue
        series, problem = _series(dataset), ""
        try:
            frames += _frames(file, dataset, series)
        except VolumeError as e:
            problem = str(e)
        except DICOM_ERRORS:
            problem = f"The header of {file.name} is damaged."
        if problem:
            frames.append(FrameHeader(SourceFrame(file, ""), file.name, series, problem=problem))
    return frames


def dicom_files(path: Path | Sequence[Path]) -> Iterator[Path]:
    """Yield one or several DICOM files, or the files of a folder and its subfolders that are DICOM or are named like it, in the order of
    their names; hidden ones are left out."""
    if not isinstance(path, Path):
        yield from path
        return
    if path.is_file():
        yield path
        return
    root = path
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = sorted(n for n in subfolders if not n.startswith("."))
        if len(Path(folder).relative_to(root).parts) >= _MAX_DEPTH:
            subfolders.clear()
        for name in sorted(names):
            may_be_dicom = not name.startswith(".") and name.upper() != "DICOMDIR"
            if may_be_dicom and (name.lower().endswith(DICOM_ENDINGS) or is_dicom(Path(folder, name))):
                yield Path(folder, name)


def is_dicom(file: Path) -> bool:
    """Return whether a file begins like DICOM, with or without the preamble of 128 bytes."""
    try:
        with open(file, "rb") as opened:
            head = opened.read(132)
    except OSError:
        return False
    return head[128:132] == b"DICM" or head[:2] in (b"\x08\x00", b"\x02\x00") and head[3:4] == b"\x00"


def read_dataset(file: Path, *, stop_before_pixels: bool = False) -> Dataset | None:
    """Return the content of a DICOM file, or None if the file is not DICOM; files without preamble are read."""
    if not is_dicom(file):
        return None
    dataset = pydicom.dcmread(file, force=True, stop_before_pixels=stop_before_pixels)
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, explicit = pydicom.uid.ImplicitVRLittleEndian, pydicom.uid.ExplicitVRLittleEndian
        dataset.file_meta.TransferSyntaxUID = implicit if dataset.is_implicit_VR else explicit
    return dataset


def is_image(dataset: Dataset) -> bool:
    """Return whether a DICOM object holds images to annotate."""
    return "Rows" in dataset and "Columns" in dataset and not str(dataset.get("SOPClassUID", "")).startswith(_NO_IMAGES)


def _is_incomplete(file: Path, dataset: Dataset | None) -> bool:
    """Return whether a file should hold an image, but does not. To leave it out could take the last slice of a series unnoticed."""
    if dataset is None:
        return file.name.lower().endswith(DICOM_ENDINGS)
    sop_class = dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID", "")
    return "Rows" not in dataset and pydicom.uid.UID(str(sop_class)).name.endswith("Image Storage")


def functional_group(dataset: Dataset, index: int, name: str) -> Dataset:
    """Return the item of a functional group of frame `index` (from 0), its own or the shared one; empty if there is none."""
    own, shared = dataset.get("PerFrameFunctionalGroupsSequence"), dataset.get("SharedFunctionalGroupsSequence")
    groups = [*([own[index]] if own else []), *(shared or [])[:1]]
    return next((group[name][0] for group in groups if group.get(name)), Dataset())


def numbers(dataset: Dataset, keyword: str, count: int, name: str) -> np.ndarray | None:
    """Return `count` numbers of an attribute as floats, or None if it is missing or empty; VolumeError if they cannot be read."""
    try:
        value = dataset.get(keyword)
        if value is None or (isinstance(value, str) and not value.strip()) or np.size(value) == 0:
            return None
        result = np.array(value, float).ravel()
    except DICOM_ERRORS as e:
        raise VolumeError(f"{keyword} of {name} is not a number: repair the file.") from e
    if len(result) != count or not np.isfinite(result).all():
        raise VolumeError(f"{keyword} of {name} is not {'a number' if count == 1 else f'{count} numbers'}: repair the file.")
    return result


def _series(dataset: Dataset) -> tuple[float, str, str]:
    """Return number, UID and description of the series of an object; the number is infinite where it is missing or damaged."""
    try:
        number = float(dataset.get("SeriesNumber"))
    except DICOM_ERRORS:
        number = np.inf
    return number, str(dataset.get("SeriesInstanceUID", "")), str(dataset.get("SeriesDescription", ""))


def _frames(file: Path, dataset: Dataset, series: tuple[float, str, str]) -> list[FrameHeader]:
    """Return the headers of the frames of one object, or raise VolumeError for a value that cannot be used."""
    count = int(dataset.get("NumberOfFrames") or 1)
    own = dataset.get("PerFrameFunctionalGroupsSequence")
    if count < 1 or (own is not None and len(own) != count):
        raise VolumeError(f"{file.name} claims {count} frames but describes {len(own or [])}: it is incomplete.")
    if "MOSAIC" in str(dataset.get("ImageType", "")):
        raise VolumeError(f"{file.name} is a Siemens mosaic, which shows all slices in one picture: convert the series to NIfTI (dcm2niix).")
    columns, rows = int(dataset.Columns), int(dataset.Rows)
    check_size((columns, rows, count), file.name)
    uid, number = str(dataset.get("SOPInstanceUID", file.name)), numbers(dataset, "InstanceNumber", 1, file.name)
    instance = float(number[0]) if number is not None else np.inf
    frames = []
    for index in range(count):
        name = file.name if count == 1 else f"frame {index + 1} of {file.name}"
        position, directions = _place(dataset, index, count, name)
        origin = numbers(dataset, "ImagePositionPatient", 3, name) if position is None else None
        measures = functional_group(dataset, index, "PixelMeasuresSequence")
        thickness = next((v for d in (measures, dataset) for k in ("SpacingBetweenSlices", "SliceThickness")
                          if (v := numbers(d, k, 1, name)) is not None and v[0] > 0), None)  # fmt: skip
        frames.append(FrameHeader(
            SourceFrame(file, uid, index + 1), name, series, (columns, rows), position, origin, directions,
            _pixel_mm(dataset, measures, name), None if thickness is None else float(thickness[0]), (instance, file.name, index),
            _marks(dataset, index, count),
        ))  # fmt: skip
    return frames


def _place(dataset: Dataset, index: int, count: int, name: str) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Return position (3,) and directions (2, 3) of a frame, each None if the object does not state it."""
    plane = functional_group(dataset, index, "PlanePositionSequence")
    orientation = functional_group(dataset, index, "PlaneOrientationSequence")
    position = numbers(plane, "ImagePositionPatient", 3, name)
    cosines = numbers(orientation, "ImageOrientationPatient", 6, name)
    if position is None:  # Ultrasound volumes have a frame of reference of their own.
        position = numbers(functional_group(dataset, index, "PlanePositionVolumeSequence"), "ImagePositionVolume", 3, name)
        orientation = functional_group(dataset, index, "PlaneOrientationVolumeSequence")
        cosines = numbers(orientation, "ImageOrientationVolume", 6, name) if cosines is None else cosines
    detectors = dataset.get("DetectorInformationSequence")  # nuclear medicine
    detector = detectors[0] if detectors else Dataset()
    for source in (dataset, detector):
        cosines = numbers(source, "ImageOrientationPatient", 6, name) if cosines is None else cosines
    directions = None if cosines is None else _unit_vectors(cosines, name)
    if position is None:
        position = numbers(dataset, "ImagePositionPatient", 3, name)
        first = numbers(detector, "ImagePositionPatient", 3, name) if position is None else position
        if position is None or count > 1:
            position = _stacked_position(dataset, index, count, first, directions, name)
    return position, directions


def _stacked_position(dataset: Dataset, index: int, count: int, first, directions, name: str) -> np.ndarray | None:
    """Return the position (3,) of a frame in objects that state only the first one and the distances from there, or None.

    These are reconstructed slices of nuclear medicine (the sign of SpacingBetweenSlices says on which side of the first slice the others
    lie; DICOM PS3.3 C.8.4.15) and objects with GridFrameOffsetVector.
    """
    if first is None or directions is None:
        return None
    normal = np.cross(*directions)
    offsets = numbers(dataset, "GridFrameOffsetVector", count, name)
    if offsets is not None:
        return first + normal * (offsets[index] - offsets[0])
    distance, slices = numbers(dataset, "SpacingBetweenSlices", 1, name), dataset.get("SliceVector")
    if slices is None and dataset.get("NumberOfSlices") == count:
        slices = range(1, count + 1)
    if distance is not None and slices is not None and np.size(slices) == count:
        return first + normal * distance[0] * (int(np.ravel(slices)[index]) - 1)
    return None


def _unit_vectors(cosines: np.ndarray, name: str) -> np.ndarray:
    """Return the directions (2, 3) of columns and rows, or raise VolumeError if they are not perpendicular unit vectors."""
    directions = cosines.reshape(2, 3)
    if np.abs(directions @ directions.T - np.eye(2)).max() > 1e-2:
        raise VolumeError(f"ImageOrientationPatient of {name} is not two perpendicular directions: repair the file.")
    x = directions[0] / np.linalg.norm(directions[0])
    y = directions[1] - x * (x @ directions[1])
    return np.stack([x, y / np.linalg.norm(y)])


def _pixel_mm(dataset: Dataset, measures: Dataset, name: str) -> np.ndarray | None:
    """Return the distances (2,) of pixels along i and j, or None; those of single X-rays and ultrasound images have other names."""
    for source, keyword in ((measures, "PixelSpacing"), (dataset, "PixelSpacing"), (dataset, "ImagerPixelSpacing"),
                            (dataset, "NominalScannedPixelSpacing")):  # fmt: skip
        spacing = numbers(source, keyword, 2, name)
        if spacing is not None:
            if spacing.min() <= 0:
                raise VolumeError(f"{keyword} of {name} is not above 0: repair the file.")
            return spacing[::-1]
    regions = dataset.get("SequenceOfUltrasoundRegions")
    if regions and regions[0].get("PhysicalUnitsXDirection") == _REGION_UNIT_CM:
        steps = [numbers(regions[0], f"PhysicalDelta{axis}", 1, name) for axis in "XY"]
        if all(s is not None and s[0] != 0 for s in steps):
            return np.abs(np.concatenate(steps)) * _MM_PER_CM
    return None


def _marks(dataset: Dataset, index: int, count: int) -> dict[str, str]:
    """Return the values of the attributes in `_MARKS` that a frame has."""
    groups = [functional_group(dataset, index, f"{name}Sequence") for name in
              ("FrameContent", "MREcho", "MRDiffusion", "CardiacSynchronization", "MRImageFrameType", "CTImageFrameType")]  # fmt: skip
    marks = {}
    for keyword in _MARKS:
        for source in (*groups, dataset):
            try:
                value = source.get(keyword)
            except DICOM_ERRORS:
                continue
            if value is None or np.size(value) == 0:
                continue
            if keyword.endswith("Vector"):
                value = np.ravel(value)[index] if np.size(value) == count else ""
            marks[keyword] = str(value)
            break
    return marks
