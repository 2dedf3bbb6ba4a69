"""Questions to a DICOM store: which series with images it has, and which segmentations of them."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from dicomweb_client import DICOMwebClient
from monailabel.config import settings
from monailabel.interfaces.exception import ImageNotFoundException
from pydicom.dataset import Dataset

from lib.imaging.dicom.frames import DICOM_ERRORS

# Modalities (0008,0060) of series that hold no images to annotate.
NO_IMAGES = frozenset(["SEG", "SR", "PR", "KO", "DOC", "RTSTRUCT", "RTPLAN", "RTRECORD", "RTDOSE", "REG", "FID", "RWV", "AU", "ECG", "HD", "PLAN"])
STUDY_UID, SERIES_UID, MODALITY = "0020000D", "0020000E", "00080060"
INFO_FIELDS = {"StudyDate": "00080020", "StudyTime": "00080030", "Modality": MODALITY, "RetrieveURL": "00081190", "PatientID": "00100020",
               "StudyInstanceUID": STUDY_UID}  # fmt: skip
UNKNOWN = "UNK"  # MONAI Label's word for a field that the DICOM store does not tell.

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StoredSegmentation:
    """A DICOM SEG in the store.

    Attributes:
        series_uid: SeriesInstanceUID of the segmentation.
        image_series_uid: SeriesInstanceUID of the images that it refers to.
        frames: The frames that it refers to, as pairs (SOPInstanceUID, number of the frame from 1).
        time: Date and time of its content, as text that sorts.
    """

    series_uid: str
    image_series_uid: str
    frames: frozenset[tuple[str, int]]
    time: str


class DicomSearch:
    """Asks a DICOM store what it has, and remembers its answers for MONAI_LABEL_DICOMWEB_CACHE_EXPIRY seconds.

    Its methods raise requests.RequestException if the store fails.

    Args:
        client: Client of the store.
        search_filter: DICOM attributes that the listed series must have, as in {"Modality": "CT"}.
    """

    def __init__(self, client: DICOMwebClient, search_filter: dict):
        self._client, self._search_filter = client, search_filter
        self._answers: dict[str, tuple[float, list]] = {}
        self._segmentations: dict[str, StoredSegmentation | None] = {}

    def image_series(self) -> list[str]:
        """Return the SeriesInstanceUIDs of all series that hold images."""
        def ask() -> list[str]:
            found = self._client.search_for_series(search_filters=self._search_filter)
            return [_value(s, SERIES_UID) for s in found if _value(s, MODALITY) not in NO_IMAGES]

        return self._remembered("images", ask)

    def segmentations(self) -> list[StoredSegmentation]:
        """Return all segmentations that name the series of their images, the oldest first."""
        return self._remembered("segmentations", self._find_segmentations)

    def forget_segmentations(self) -> None:
        """Ask the store again when the segmentations are next needed."""
        self._answers.pop("segmentations", None)

    def series_info(self, series_uid: str) -> dict[str, str]:
        """Return MONAI Label's info of a series: its UID and INFO_FIELDS; raise ImageNotFoundException if the store does not have it."""
        found = self._client.search_for_series(search_filters={"SeriesInstanceUID": series_uid})
        series = next((s for s in found if _value(s, SERIES_UID) == series_uid), None)
        if series is None:
            raise ImageNotFoundException(f"There is no series {series_uid} in the DICOM store.")
        return {"SeriesInstanceUID": series_uid, **{name: _value(series, tag) or UNKNOWN for name, tag in INFO_FIELDS.items()}}

    def _remembered(self, question: str, ask: Callable[[], list]) -> list:
        asked, answer = self._answers.get(question, (0.0, None))
        if answer is None or time.monotonic() - asked > settings.MONAI_LABEL_DICOMWEB_CACHE_EXPIRY:
            answer = ask()
            self._answers[question] = time.monotonic(), answer
        return answer

    def _find_segmentations(self) -> list[StoredSegmentation]:
        found = {}
        for series in self._client.search_for_series(search_filters={"Modality": "SEG"}):
            uid = _value(series, SERIES_UID)
            if uid in self._segmentations:  # Stored objects do not change.
                found[uid] = self._segmentations[uid]
            else:
                found[uid] = _describe(self._client.retrieve_series_metadata(_value(series, STUDY_UID), uid), uid)
        self._segmentations = found
        return sorted((s for s in found.values() if s), key=lambda s: s.time)


def _describe(metadata: list[dict], series_uid: str) -> StoredSegmentation | None:
    """Return what the DICOM JSON of a segmentation says about it, or None if it does not name its images."""
    try:
        dataset = Dataset.from_json(metadata[0])
        image_series = dataset.ReferencedSeriesSequence[0]
        frames = {
            (str(source.ReferencedSOPInstanceUID), int(source.get("ReferencedFrameNumber") or 1))
            for groups in dataset.get("PerFrameFunctionalGroupsSequence") or []
            for derivation in groups.get("DerivationImageSequence") or []
            for source in derivation.get("SourceImageSequence") or []
        }
        if not frames:
            frames = {(str(i.ReferencedSOPInstanceUID), 1) for i in image_series.get("ReferencedInstanceSequence") or []}
        content_time = f"{dataset.get('ContentDate') or ''} {dataset.get('ContentTime') or ''}"
        return StoredSegmentation(series_uid, str(image_series.SeriesInstanceUID), frozenset(frames), content_time)
    except DICOM_ERRORS as e:
        logger.warning("The segmentation %s is ignored, because it does not name its images: %s", series_uid, e)
        return None


def _value(json: dict, tag: str) -> str:
    """Return the first value of an attribute in DICOM JSON, or "" if it has none."""
    return str((json.get(tag, {}).get("Value") or [""])[0])
