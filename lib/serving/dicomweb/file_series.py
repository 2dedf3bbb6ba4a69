"""A series of DICOM files that is served as it is stored."""

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from pydicom.dataset import Dataset
from pydicom.filewriter import correct_ambiguous_vr

from lib.common.errors import VolumeError
from lib.imaging.dicom.frames import DICOM_ERRORS, numbers, read_dataset
from lib.imaging.dicom.pixels import stored_values
from lib.imaging.study_images import StudyImage
from lib.serving.dicomweb.series import SERIES_KEYWORDS, STUDY_KEYWORDS, Series, selected, to_json
from lib.serving.dicomweb.uids import is_uid

_REMEMBERED_SERIES = 8
_LONGEST_INLINE_BYTES = 4096
_BULK_REPRESENTATIONS = ("OB", "OD", "OF", "OL", "OV", "OW", "UN")
_GEOMETRY = (("ImagePositionPatient", 3), ("ImageOrientationPatient", 6), ("PixelSpacing", 2))


class _RecentMetadata:
    """The metadata of the series that were asked for last, because a viewer asks for it several times."""

    def __init__(self):
        self._by_version: OrderedDict[str, list[dict]] = OrderedDict()
        self._lock = Lock()

    def get(self, version: str, make) -> list[dict]:
        with self._lock:
            if version in self._by_version:
                self._by_version.move_to_end(version)
                return self._by_version[version]
        result = make()
        with self._lock:
            self._by_version[version] = result
            while len(self._by_version) > _REMEMBERED_SERIES:
                self._by_version.popitem(last=False)
        return result


_recent_metadata = _RecentMetadata()


@dataclass(eq=False)
class FileSeries(Series):
    """A series of single-frame DICOM files.

    Attributes:
        header: Attributes of study and series in the DICOM JSON model.
    """

    header: dict = field(default_factory=dict)

    @classmethod
    def of(cls, image_id: str, image: StudyImage) -> "FileSeries | None":
        """Return the series of an image, or None if viewers cannot show its files as they are.

        Such files have several frames, colours, more than 16 bits, no position, or identifiers that are missing, invalid or not unique.
        """
        stack = image.stack
        uids = tuple(frame.sop_instance_uid for frame in stack.frames)
        if len(set(uids)) < len(uids) or len({f.path for f in stack.frames}) < len(uids) or not all(map(is_uid, uids)):
            return None
        try:
            header = read_dataset(stack.frames[0].path, stop_before_pixels=True)
            if header is None or not _is_displayable(header):
                return None
            attributes = selected(to_json(header), (*STUDY_KEYWORDS, *SERIES_KEYWORDS))
            return cls(image_id, image, str(header.StudyInstanceUID), str(header.SeriesInstanceUID), uids, attributes)
        except (VolumeError, *DICOM_ERRORS):
            return None

    def summary(self, *, exact: bool) -> dict:
        return self.header

    def metadata(self) -> list[dict]:
        return _recent_metadata.get(self.image.version, lambda: [self._attributes(k) for k in range(len(self.sop_uids))])

    def _attributes(self, index: int) -> dict:
        """Return the attributes of an object as they are stored, but for those that describe its pixels, which are sent uncompressed."""
        dataset = self._read(index, stop_before_pixels=True)
        for element in list(dataset):
            if element.VR in _BULK_REPRESENTATIONS and len(element.value or b"") > _LONGEST_INLINE_BYTES:
                del dataset[element.tag]
        return to_json(dataset)

    def pixels(self, index: int) -> bytes:
        dataset = self._read(index)
        try:
            values = stored_values(dataset)
        except DICOM_ERRORS as e:
            raise VolumeError(f"The pixels of {self.image_id} are damaged or compressed in an unknown way.") from e
        kind = "i" if dataset.PixelRepresentation else "u"
        return np.ascontiguousarray(values[0], f"<{kind}{int(dataset.BitsAllocated) // 8}").tobytes()

    def dataset(self, index: int) -> Dataset:
        dataset = self._read(index)
        correct_ambiguous_vr(dataset, True)
        dataset.PixelData = self.pixels(index)
        element = dataset["PixelData"]
        element.VR, element.is_undefined_length = "OW", False
        if len(element.value) % 2:
            element.value += b"\0"
        return dataset

    def original_file(self, index: int) -> tuple[bytes, str]:
        path = self.image.stack.frames[index].path
        try:
            content = path.read_bytes()
        except OSError as e:
            raise VolumeError(f"A file of {self.image_id} is missing.") from e
        if content[128:132] != b"DICM":  # It lacks the preamble, without which this is no DICOM file.
            return super().original_file(index)
        return content, str(self._read(index, stop_before_pixels=True).file_meta.TransferSyntaxUID)

    def _read(self, index: int, *, stop_before_pixels: bool = False) -> Dataset:
        """Read an object anew and check that the file still holds it."""
        frame = self.image.stack.frames[index]
        try:
            dataset = read_dataset(frame.path, stop_before_pixels=stop_before_pixels)
        except DICOM_ERRORS as e:
            raise VolumeError(f"A file of {self.image_id} is damaged or missing.") from e
        if dataset is None or dataset.get("SOPInstanceUID") != frame.sop_instance_uid:
            raise VolumeError(f"The files of {self.image_id} have changed: reload the page.")
        return dataset


def _is_displayable(header: Dataset) -> bool:
    """Return whether viewers can show single-frame objects with this header; the errors are those of `DICOM_ERRORS`."""
    if not (is_uid(str(header.get("StudyInstanceUID", ""))) and is_uid(str(header.get("SeriesInstanceUID", "")))):
        return False
    if any(numbers(header, keyword, count, "the image") is None for keyword, count in _GEOMETRY):
        return False
    has_table = "ModalityLUTSequence" in header and "RescaleSlope" not in header
    return (
        int(header.get("NumberOfFrames") or 1) == 1 and int(header.get("SamplesPerPixel", 1)) == 1
        and str(header.get("PhotometricInterpretation")) in ("MONOCHROME1", "MONOCHROME2")
        and int(header.get("BitsAllocated", 0)) in (8, 16) and not has_table and "RedPaletteColorLookupTableData" not in header
    )  # fmt: skip
