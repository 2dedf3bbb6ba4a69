"""What the service needs of a series, wherever its objects come from."""

import io
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from lib.imaging.study_images import StudyImage

# Attributes (DICOM keywords) of a study and of a series; the others belong to an instance.
STUDY_KEYWORDS = (
    "SpecificCharacterSet", "StudyDate", "StudyTime", "AccessionNumber", "ReferringPhysicianName", "TimezoneOffsetFromUTC", "StudyDescription",
    "PatientName", "PatientID", "IssuerOfPatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyInstanceUID", "StudyID",
)  # fmt: skip
SERIES_KEYWORDS = (
    "Modality", "SeriesDate", "SeriesTime", "SeriesDescription", "SeriesInstanceUID", "SeriesNumber", "BodyPartExamined", "ProtocolName",
    "PerformedProcedureStepStartDate", "PerformedProcedureStepStartTime", "Laterality",
)  # fmt: skip


_CHARACTER_SET = f"{pydicom.datadict.tag_for_keyword('SpecificCharacterSet'):08X}"


@dataclass(eq=False)
class Series(ABC):
    """A series of single-frame objects, one for each slice of an image.

    Methods that read files raise VolumeError if the image cannot be read.

    Attributes:
        image_id: Id of the image in the datastore.
        image: Its files.
        study_uid, series_uid: StudyInstanceUID and SeriesInstanceUID.
        sop_uids: The SOPInstanceUID of each object, in the order of the image's slices.
    """

    image_id: str
    image: StudyImage
    study_uid: str
    series_uid: str
    sop_uids: tuple[str, ...]

    @cached_property
    def index_by_uid(self) -> dict[str, int]:
        """The index of each object in `sop_uids` by its SOPInstanceUID."""
        return {uid: index for index, uid in enumerate(self.sop_uids)}

    def identity(self) -> dict[str, str]:
        """Return what OHIF's form of *Next Sample* displays of the image: keywords and values as texts."""
        attributes, result = self.summary(exact=False), {}
        for keyword in ("PatientID", "Modality", "StudyDate", "StudyTime"):
            values = attributes.get(f"{pydicom.datadict.tag_for_keyword(keyword):08X}", {}).get("Value") or [""]
            result[keyword] = str(values[0])
        return {**result, "StudyInstanceUID": self.study_uid, "SeriesInstanceUID": self.series_uid}

    @abstractmethod
    def summary(self, *, exact: bool) -> dict:
        """Return the attributes of the study and of the series in the DICOM JSON model.

        Args:
            exact: Whether the voxels may be read for it; otherwise what only they say is a guess.
        """

    @abstractmethod
    def metadata(self) -> list[dict]:
        """Return the attributes of all objects in the DICOM JSON model, without their pixels."""

    @abstractmethod
    def pixels(self, index: int) -> bytes:
        """Return the pixels of an object as uncompressed little-endian integers, row by row."""

    @abstractmethod
    def dataset(self, index: int) -> Dataset:
        """Return an object with its uncompressed pixels and file meta information."""

    def file(self, index: int) -> bytes:
        """Return an object as a DICOM file in the transfer syntax Explicit VR Little Endian."""
        return to_file(self.dataset(index))

    def original_file(self, index: int) -> tuple[bytes, str]:
        """Return an object as a DICOM file and its transfer syntax, preferably as it is stored."""
        return self.file(index), ExplicitVRLittleEndian


def to_file(dataset: Dataset) -> bytes:
    """Return a dataset with uncompressed pixels as a DICOM file in the transfer syntax Explicit VR Little Endian."""
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.is_little_endian, dataset.is_implicit_VR = True, False
    buffer = io.BytesIO()
    pydicom.dcmwrite(buffer, dataset, write_like_original=False)
    return buffer.getvalue()


def to_json(dataset: Dataset) -> dict:
    """Return a dataset in the DICOM JSON model. Values that are invalid in DICOM and cannot be converted are left out."""
    attributes = dataset.to_json_dict(suppress_invalid_tags=True)
    if _CHARACTER_SET in attributes:
        attributes[_CHARACTER_SET] = {"vr": "CS", "Value": ["ISO_IR 192"]}  # JSON is sent in UTF-8, whatever the file has.
    return _with_finite_numbers(attributes)


def _with_finite_numbers(attributes: dict) -> dict:
    """Replace numbers that JSON does not have by their names, as PS3.18 section F.2.3 demands, also within sequences; return the attributes."""
    for element in attributes.values():
        if element["vr"] == "SQ":
            for item in element.get("Value", []):
                _with_finite_numbers(item)
        elif element["vr"] in ("FD", "FL", "DS") and "Value" in element:
            names = {"inf": "Infinity", "-inf": "-Infinity", "nan": "NaN"}
            element["Value"] = [names.get(str(v), v) for v in element["Value"]]
    return attributes


def selected(attributes: dict, keywords) -> dict:
    """Return those attributes of the DICOM JSON model that have one of these keywords."""
    tags = {f"{pydicom.datadict.tag_for_keyword(k):08X}" for k in keywords}
    return {tag: element for tag, element in attributes.items() if tag in tags}
