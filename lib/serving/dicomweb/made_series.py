"""A series of DICOM objects made on demand from a volume that is no DICOM, or DICOM of a kind that OHIF cannot show.

The objects are the slices along the third voxel axis, without resampling (see `lib.serving.dicomweb.viewer_grid`). They say what the image
file says and nothing else. Their class is Secondary Capture, because the classes for CT and MR demand facts of the acquisition.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import SecondaryCaptureImageStorage
from pydicom.valuerep import format_number_as_ds

from lib.common.errors import VolumeError
from lib.imaging.dicom.frames import read_dataset
from lib.imaging.dicom.segmentations import patient_and_study
from lib.imaging.frames import looks_like_ct, window_bounds
from lib.imaging.geometry import LPS_FROM_RAS, spacing
from lib.imaging.study_images import StudyImage
from lib.imaging.volume import Volume
from lib.serving.dicomweb.series import Series, to_json
from lib.serving.dicomweb.stored_values import StoredValues
from lib.serving.dicomweb.uids import derived_uid, is_uid

_LONGEST_TEXT = 64  # Characters of a value of the type LO.
_CT_AIR_HU = -500
_SMALL_RANGE = 100  # Windows narrower than this are visibly changed by a difference of 1.


@dataclass(frozen=True)
class _Appearance:
    """What only the voxels of an image say: how they are stored, the window (center, width), and whether they are Hounsfield units."""

    stored: StoredValues
    window: tuple[float, float]
    is_ct: bool


@dataclass(eq=False)
class MadeSeries(Series):
    """The DICOM objects made of a volume.

    Attributes:
        read: Returns the volume, which stays in memory while it is in use.
        frame_of_reference_uid: FrameOfReferenceUID.
        header: Attributes of patient, study and series.
    """

    read: Callable[[], Volume]
    frame_of_reference_uid: str
    header: Dataset

    @classmethod
    def of(cls, image_id: str, image: StudyImage, slice_count: int, content: str, read: Callable[[], Volume]) -> "MadeSeries":
        """Return the series of an image.

        Args:
            slice_count: Number of slices.
            content: Digest of the image's content.
            read: Returns its volume.
        """
        make_uid = partial(derived_uid, image_id, content)
        header, study_uid, reference_uid = Dataset(), make_uid("study"), make_uid("frame of reference")
        source = read_dataset(image.stack.frames[0].path, stop_before_pixels=True) if image.stack else None
        if source is not None:
            header = patient_and_study(source)
            study_uid = header.StudyInstanceUID if is_uid(str(source.get("StudyInstanceUID", ""))) else study_uid
            reference_uid = header.FrameOfReferenceUID if is_uid(str(source.get("FrameOfReferenceUID", ""))) else reference_uid
            header.Modality = str(source.get("Modality") or "OT")
            header.SeriesDescription = _long_string(image.stack.description)
        else:
            header.PatientName = header.PatientID = header.StudyDescription = header.SeriesDescription = _long_string(image_id)
            header.PatientBirthDate = header.PatientSex = header.AccessionNumber = header.ReferringPhysicianName = ""
            header.StudyID = header.StudyDate = header.StudyTime = ""
        header.SpecificCharacterSet = "ISO_IR 192"  # UTF-8
        header.StudyInstanceUID, header.SeriesInstanceUID = study_uid, make_uid("series")
        header.FrameOfReferenceUID, header.SeriesNumber = reference_uid, 1
        sop_uids = tuple(make_uid("slice", k) for k in range(slice_count))
        return cls(image_id, image, study_uid, header.SeriesInstanceUID, sop_uids, read, reference_uid, header)

    def summary(self, *, exact: bool) -> dict:
        """Return the attributes of study and series; an image that is no DICOM and whose voxels were not read counts as MR."""
        header = Dataset()
        header.update(self.header)
        if "Modality" not in header:
            header.Modality = "MR"
            if exact or "_appearance" in self.__dict__:
                with suppress(VolumeError):
                    header.Modality = self._modality
        return to_json(header)

    def metadata(self) -> list[dict]:
        volume = self.read()
        common = to_json(self._common(volume))
        return [common | to_json(self._of_slice(volume, k)) for k in range(len(self.sop_uids))]

    def pixels(self, index: int) -> bytes:
        return self._appearance.stored.encode(self.read().array[:, :, index].T)

    def dataset(self, index: int) -> Dataset:
        volume = self.read()
        dataset = self._common(volume)
        dataset.update(self._of_slice(volume, index))
        dataset.PixelData = self.pixels(index)
        dataset["PixelData"].VR = "OW"
        return dataset

    @cached_property
    def _appearance(self) -> _Appearance:
        """What the voxels say. It is kept without the voxels, which would fill the memory."""
        volume = self.read()
        stored, (low, high) = StoredValues.of(volume.array), window_bounds(volume)
        is_ct = stored.is_exact and float(volume.array.min()) < _CT_AIR_HU and looks_like_ct(volume.array)
        margin = 1 if high - low < _SMALL_RANGE else 0  # The function LINEAR of DICOM makes windows narrower by 1 (PS3.3 C.11.2.1.2).
        return _Appearance(stored, ((low + high + margin) / 2, high - low + margin), is_ct)

    @property
    def _modality(self) -> str:
        """CT for Hounsfield units, else MR: a file that is no DICOM does not say it, and OHIF offers its tools for these two only."""
        return "CT" if self._appearance.is_ct else "MR"

    def _common(self, volume: Volume) -> Dataset:
        """Return the attributes that all slices share."""
        appearance, dataset = self._appearance, Dataset()
        dataset.update(self.header)
        if "Modality" not in dataset:
            dataset.Modality = self._modality
        lps, (column_mm, row_mm, _) = LPS_FROM_RAS @ volume.affine, spacing(volume.affine)
        x = lps[:3, 0] / column_mm
        y = lps[:3, 1] - x * (x @ lps[:3, 1])
        y /= np.linalg.norm(y)
        slice_mm = abs(float(np.cross(x, y) @ lps[:3, 2]))
        dataset.SOPClassUID, dataset.ConversionType, dataset.ImageType = SecondaryCaptureImageStorage, "WSD", ["DERIVED", "SECONDARY"]
        dataset.PositionReferenceIndicator = dataset.Laterality = dataset.PatientOrientation = ""
        dataset.ImageOrientationPatient = _decimals([*x, *y])
        dataset.PixelSpacing = _decimals([row_mm, column_mm])
        dataset.SliceThickness = dataset.SpacingBetweenSlices = _decimals([slice_mm])
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.Columns, dataset.Rows = volume.shape[:2]
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
        dataset.PixelRepresentation = int(appearance.stored.dtype == "<i2")
        dataset.RescaleSlope, dataset.RescaleIntercept = appearance.stored.slope, appearance.stored.intercept
        dataset.RescaleType = "HU" if dataset.Modality == "CT" else "US"
        dataset.WindowCenter, dataset.WindowWidth = (_decimals([v]) for v in appearance.window)
        return dataset

    def _of_slice(self, volume: Volume, k: int) -> Dataset:
        """Return the attributes of slice k alone."""
        dataset = Dataset()
        dataset.SOPInstanceUID, dataset.InstanceNumber = self.sop_uids[k], k + 1
        dataset.ImagePositionPatient = _decimals((LPS_FROM_RAS @ volume.affine @ [0, 0, k, 1])[:3])
        return dataset


def _decimals(values) -> list[str]:
    """Return numbers as texts of at most 16 characters, as DICOM has them."""
    return [format_number_as_ds(float(v)) for v in values]


def _long_string(text: str) -> str:
    """Return a text as a DICOM value of the type LO or PN can hold it."""
    cleaned = "".join(" " if c in "\\^=" or not c.isprintable() else c for c in text)
    return cleaned.strip()[:_LONGEST_TEXT]
