"""Write label maps as DICOM SEG on the frames of a stack, and read DICOM SEG of any writer onto the slices of a stack."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.color import CIELabColor
from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sr.codedict import codes
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid
from pydicom.valuerep import DA, TM
from skimage.color import rgb2lab

from lib.common.atomic_files import write_bytes
from lib.common.errors import VolumeError
from lib.imaging.dicom.frames import DICOM_ERRORS, dicom_files, functional_group, numbers, read_dataset, read_headers
from lib.imaging.dicom.stacks import Stack
from lib.imaging.dicom.structure_codes import codes_of, long_string
from lib.imaging.geometry import LPS_FROM_RAS, spacing

ALGORITHM, MANUFACTURER, SOFTWARE_VERSION = "SAM 2", "SAM 2 for MONAI Label", "0.1"
SERIES_NUMBER = 300  # Above the numbers of the acquired series of a study.
# Copied from the source if they can be read; those in _EMPTY_ALLOWED are written even if they are unknown.
_EMPTY_ALLOWED = ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "StudyDate", "StudyTime", "AccessionNumber",
                  "ReferringPhysicianName", "PositionReferenceIndicator")  # fmt: skip
_COPIED = (*_EMPTY_ALLOWED, "IssuerOfPatientID", "PatientAge", "StudyDescription", "PatientIdentityRemoved", "DeidentificationMethod")
_DATES_AND_TIMES = {"PatientBirthDate": DA, "StudyDate": DA, "StudyTime": TM}
MAX_TABLE_SIZE = 2**20
MAX_DRIFT_VOXELS = 0.5  # By which a frame may leave the rows, columns or slices of the image from one end to the other.
_SEG_CLASSES = "1.2.840.10008.5.1.4.1.1.66."  # Segmentation Storage (66.4) and Label Map Segmentation Storage (66.7)


def write_segmentation(
    labels: np.ndarray, stack: Stack, names: Mapping[int, str], path: str | Path, *,
    colors: Mapping[int, tuple[int, int, int]] | None = None, description: str = "Segmentation", version: str = SOFTWARE_VERSION,
) -> Path:  # fmt: skip
    """Write a label map as a binary DICOM SEG with one segment for each value that it holds; return the path.

    Only frames with voxels of a segment are stored. Each refers to the frame of the stack that it lies on, and has its position. The
    segments are numbered from 1 in the order of the values.

    Args:
        labels: Integers (I, J, K) from 0 (background).
        names: Names of the values; a value without one becomes "segment 3".
        colors: Colours (red, green, blue) from 0 to 255 of the values, as far as viewers should use certain ones.
        description: Description of the new series.
        version: Version of the algorithm: the name of the checkpoint.

    Raises:
        VolumeError: The label map is empty, has another shape than the stack, or the stack's files cannot be read.
        OSError: The disk is full or not writable.
    """
    if labels.shape != tuple(stack.shape):
        raise VolumeError(f"The label has shape {labels.shape}, but the image has {tuple(stack.shape)}.")
    values = label_values(labels)
    if not values:
        raise VolumeError("The label is empty, which DICOM SEG cannot express: delete the segmentation in the DICOM store instead.")
    if values[0] < 0:
        raise VolumeError(f"The label holds the value {values[0]}: use whole numbers from 0.")
    numbered = np.zeros(labels.shape, np.min_scalar_type(len(values)))
    for number, value in enumerate(values, 1):
        numbered[labels == value] = number
    segments = [
        _segment(number, names.get(value) or f"segment {value}", (colors or {}).get(value), version)
        for number, value in enumerate(values, 1)
    ]
    source, sources, has_frames = _single_frame_sources(stack)
    segmentation = Segmentation(
        source_images=sources, pixel_array=numbered.transpose(2, 1, 0), segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=segments, series_instance_uid=generate_uid(), series_number=SERIES_NUMBER,
        sop_instance_uid=generate_uid(), instance_number=1, manufacturer=MANUFACTURER, manufacturer_model_name=ALGORITHM,
        software_versions=SOFTWARE_VERSION, device_serial_number="0", content_label="SEGMENTATION", content_description=None,
        transfer_syntax_uid=ExplicitVRLittleEndian, series_description=long_string(description),
    )  # fmt: skip
    segmentation.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
    segmentation.PatientName = patient_and_study(source).PatientName
    _refer_to_frames(segmentation, stack, str(source.get("SOPClassUID", CTImageStorage)), has_frames)
    content = io.BytesIO()
    segmentation.save_as(content, write_like_original=False)
    write_bytes(Path(path), content.getvalue())
    return Path(path)


def read_segmentation(path: str | Path, stack: Stack) -> tuple[np.ndarray, dict[int, str]]:
    """Return the label map, int32 (I, J, K), on the slices of a stack, and the names of its values, from a DICOM SEG of any writer.

    Frames are placed by their positions and orientations, to the nearest voxel. The values are the numbers of the segments; a number
    that several files of a folder use is replaced by a free one. Fractional segments count from a half upwards. Files are read with
    pydicom, because `highdicom.seg.segread` refuses those with gaps in the numbers of the segments.

    Args:
        path: DICOM SEG file, or a folder with several for the same stack.

    Raises:
        VolumeError: There is no DICOM SEG, it lies elsewhere than the image or on other slices, its segments overlap, or it is damaged.
    """
    path = Path(path)
    labels, names = np.zeros(stack.shape, np.int32), {}
    try:
        for file in dicom_files(path):
            dataset = read_dataset(file)
            if dataset is not None and str(dataset.get("SOPClassUID", "")).startswith(_SEG_CLASSES):
                _add_segments(dataset, path.name, stack, labels, names)
    except VolumeError:
        raise
    except DICOM_ERRORS as e:
        raise VolumeError(f"The segmentation {path.name} could not be read: it is damaged, incomplete or of an unknown kind.") from e
    if not names:
        raise VolumeError(f"{path.name} is not a DICOM SEG: it holds no segments.")
    return labels, names


def label_values(labels: np.ndarray) -> list[int]:
    """Return the values other than 0 in a label map of integers, in ascending order."""
    highest = int(labels.max(initial=0))
    if highest > MAX_TABLE_SIZE or labels.min(initial=0) < 0:
        return [int(v) for v in np.unique(labels) if v]
    is_present = np.zeros(highest + 1, bool)
    is_present[labels] = True  # Many times as fast as np.unique, which sorts all voxels.
    return [int(v) for v in np.flatnonzero(is_present) if v]


def _segment(number: int, name: str, color: tuple[int, int, int] | None, version: str) -> SegmentDescription:
    """Return the description of a segment."""
    category, kind, side = codes_of(name)
    segment = SegmentDescription(
        segment_number=number, segment_label=long_string(name), segmented_property_category=category, segmented_property_type=kind,
        algorithm_type=SegmentAlgorithmTypeValues.SEMIAUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=ALGORITHM, family=codes.cid7162.ArtificialIntelligence, version=long_string(version)
        ),
    )  # fmt: skip
    if side is not None:
        segment.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [CodedConcept.from_code(side)]
    if color is not None:
        rgb = np.clip(np.asarray(color[:3], float), 0, 255) / 255
        segment.RecommendedDisplayCIELabValue = list(CIELabColor(*np.clip(rgb2lab(rgb), (0, -128, -128), (100, 127, 127))).value)
    return segment


def _single_frame_sources(stack: Stack) -> tuple[Dataset, list[Dataset], bool]:
    """Return the header of a stack's first object, and one dataset for each slice with all that highdicom needs of it.

    highdicom accepts the frames of a multi-frame object only all together and in their order, and only with complete headers. So it gets
    datasets like those of single-frame CT images; `_refer_to_frames` then puts in the true references.

    Returns:
        The header, the datasets in the order of k, and whether the objects hold several frames each.
    """
    first = stack.frames[0].path
    headers = {}
    for file in dict.fromkeys(frame.path for frame in stack.frames):
        headers |= {(file, h.source.number): h for h in read_headers(file)}
    source = read_dataset(first, stop_before_pixels=True)
    if source is None or any((f.path, f.number) not in headers for f in stack.frames):
        raise VolumeError(f"The image file {first.name} cannot be read any more: it has changed or is missing.")
    lps = LPS_FROM_RAS @ stack.affine
    column_mm, row_mm, _ = spacing(stack.affine)
    directions = lps[:3, :2] / (column_mm, row_mm)
    slice_mm = float(abs(np.cross(*directions.T) @ lps[:3, 2]))
    template = patient_and_study(source)
    template.PatientName = ""  # highdicom would log names that it thinks invalid.
    template.SeriesInstanceUID, template.SOPClassUID, template.Modality = stack.series_uid, CTImageStorage, "OT"
    template.Columns, template.Rows = int(stack.shape[0]), int(stack.shape[1])
    template.PixelSpacing, template.ImageOrientationPatient = [row_mm, column_mm], directions.T.ravel().tolist()
    template.SliceThickness = template.SpacingBetweenSlices = slice_mm
    datasets = []
    for k, frame in enumerate(stack.frames):
        dataset = Dataset()
        dataset.update(template)
        position = headers[frame.path, frame.number].position_mm
        dataset.ImagePositionPatient = (lps[:3, 3] + k * lps[:3, 2] if position is None else position).tolist()
        dataset.SOPInstanceUID = _placeholder(k)
        datasets.append(dataset)
    return source, datasets, len(headers) > len({path for path, _ in headers})


def _placeholder(k: int) -> str:
    """Return the UID by which slice k is known to highdicom, before `_refer_to_frames` replaces it by the true one."""
    return f"2.25.{k + 1}"


def patient_and_study(source: Dataset) -> Dataset:
    """Return what a DICOM SEG must share with its source: patient, study, frame of reference, lossy compression.

    Values that are missing or that DICOM does not allow become empty.
    """
    def value_of(keyword: str) -> str:
        try:
            value = source.get(keyword)
            value = " ".join(map(str, value)) if isinstance(value, MultiValue) else str(value or "").strip()
            if value and keyword in _DATES_AND_TIMES:
                _DATES_AND_TIMES[keyword](value)
            return value
        except DICOM_ERRORS:
            return ""

    result = Dataset()
    for keyword in _COPIED:
        if (value := value_of(keyword)) or keyword in _EMPTY_ALLOWED:
            setattr(result, keyword, value)
    if result.PatientSex not in ("M", "F", "O"):
        result.PatientSex = ""
    result.StudyInstanceUID = value_of("StudyInstanceUID") or generate_uid()
    series = value_of("SeriesInstanceUID") or result.StudyInstanceUID
    result.FrameOfReferenceUID = value_of("FrameOfReferenceUID") or generate_uid(entropy_srcs=[series])
    lossy = ("LossyImageCompressionRatio", "LossyImageCompressionMethod")
    if value_of("LossyImageCompression") == "01" and all(value_of(k) for k in lossy):
        result.LossyImageCompression = "01"
        for keyword in lossy:
            setattr(result, keyword, source.get(keyword))
    return result


def _refer_to_frames(segmentation: Segmentation, stack: Stack, source_class: str, has_frames: bool) -> None:
    """Make a segmentation refer to the objects and frame numbers of a stack instead of the placeholders."""
    def reference(uid: str, item: Dataset | None = None) -> Dataset:
        item = Dataset() if item is None else item
        item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = source_class, uid
        return item

    frames = {_placeholder(k): frame for k, frame in enumerate(stack.frames)}
    for item in segmentation.PerFrameFunctionalGroupsSequence:
        source = item.DerivationImageSequence[0].SourceImageSequence[0]
        frame = frames[source.ReferencedSOPInstanceUID]
        reference(frame.sop_instance_uid, source)
        if has_frames:
            source.ReferencedFrameNumber = frame.number
    uids = list(dict.fromkeys(frame.sop_instance_uid for frame in stack.frames))
    segmentation.SourceImageSequence = [reference(uid) for uid in uids]
    segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence = [reference(uid) for uid in uids]


def _add_segments(dataset: Dataset, name: str, stack: Stack, labels: np.ndarray, names: dict[int, str]) -> None:
    """Enter the segments of one DICOM SEG object into a label map (I, J, K) and the names of its values."""
    values, filled_slices = {}, set()
    for segment in (s for s in dataset.SegmentSequence if int(s.SegmentNumber)):  # Label maps may describe their background, too.
        number = int(segment.SegmentNumber)
        values[number] = number if number not in names else max(names) + 1
        names[values[number]] = str(segment.get("SegmentLabel") or f"segment {number}")
    is_label_map = dataset.get("SegmentationType") == "LABELMAP"
    threshold = 0.5 * float(dataset.get("MaximumFractionalValue", 1)) if dataset.get("SegmentationType") == "FRACTIONAL" else 1
    pixels = dataset.pixel_array.reshape(-1, int(dataset.Rows), int(dataset.Columns))
    for index, plane in enumerate(pixels):
        if is_label_map:
            masks = {int(number): plane == number for number in np.unique(plane[plane > 0])}
        else:
            number = functional_group(dataset, index, "SegmentIdentificationSequence").ReferencedSegmentNumber
            masks = {int(number): plane >= threshold}
        if not any(mask.any() for mask in masks.values()):  # Otherwise no mask is empty.
            continue
        to_voxel = _pixel_to_voxel(dataset, index, stack, name)
        for number, mask in masks.items():
            voxels = np.argwhere(mask)[:, ::-1] @ to_voxel[:, :2].T + to_voxel[:, 2]
            if voxels.min() < 0 or (voxels >= stack.shape).any():
                raise VolumeError(f"The segmentation {name} reaches beyond the image: it belongs to another image.")
            other, own = int(labels[tuple(voxels.T)].max()), values[number]
            if other not in (0, own):
                raise VolumeError(f"The segments {names[other]!r} and {names[own]!r} of the segmentation {name} overlap: separate them.")
            if (number, voxels[0, 2]) in filled_slices:
                raise VolumeError(f"Several slices of the segmentation {name} lie on one slice of the image: resample it to the image.")
            filled_slices.add((number, voxels[0, 2]))
            labels[tuple(voxels.T)] = own


def _pixel_to_voxel(dataset: Dataset, index: int, stack: Stack, name: str) -> np.ndarray:
    """Return the matrix (3, 3) of whole numbers that maps the pixel (column, row, 1) of a frame to a voxel (i, j, k) of a stack.

    Raises:
        VolumeError: The frame is not parallel to the slices, is turned within their plane by other than right angles, has pixels of
            another size, or has no position.
    """
    def field(group: str, keyword: str, count: int) -> np.ndarray:
        value = numbers(functional_group(dataset, index, group), keyword, count, f"frame {index + 1} of {name}")
        if value is None:
            raise VolumeError(f"Frame {index + 1} of the segmentation {name} has no {keyword}, so its place is unknown.")
        return value

    position = field("PlanePositionSequence", "ImagePositionPatient", 3)
    x, y = field("PlaneOrientationSequence", "ImageOrientationPatient", 6).reshape(2, 3)
    row_mm, column_mm = field("PixelMeasuresSequence", "PixelSpacing", 2)
    last = np.array([int(dataset.Columns) - 1, int(dataset.Rows) - 1])
    to_voxel = np.linalg.inv(LPS_FROM_RAS @ stack.affine)
    steps = to_voxel[:3, :3] @ np.stack([x * column_mm, y * row_mm], 1)  # (3, 2), in voxels for each column and row
    whole_steps = np.rint(steps).astype(int)
    in_plane = np.abs(whole_steps[:2])
    is_turned = (in_plane.sum(0) != 1).any() or (in_plane.sum(1) != 1).any() or whole_steps[2].any()
    if is_turned or (np.abs(steps - whole_steps) @ last).max() > MAX_DRIFT_VOXELS:
        raise VolumeError(f"The segmentation {name} has other pixels or another orientation than the image: resample it to the image.")
    centre = to_voxel[:3, :3] @ position + to_voxel[:3, 3] + steps @ (last / 2)  # There, the drift to both sides is the same.
    return np.column_stack([whole_steps, np.floor(centre - whole_steps @ (last / 2) + 0.5).astype(int)])
