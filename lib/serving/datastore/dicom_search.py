"""Questions to a DICOM store: which series with images it has, which segmentations of them, the files of a series; and what it is sent."""

import io
import logging
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from dicomweb_client.uri import URI
from monailabel.config import settings
from monailabel.interfaces.exception import ImageNotFoundException

from lib.common.errors import VolumeError
from lib.imaging.dicom.frames import DICOM_ERRORS
from lib.serving.datastore.checks import checked_file_name
from lib.serving.datastore.stored_segmentations import StoredSegmentation, date_content_after, describe_segmentation
from lib.serving.web.request_checks import is_name

# Modalities (0008,0060) of series that hold no images to annotate.
NO_IMAGES = frozenset(
    ["SEG", "SR", "PR", "KO", "DOC", "RTSTRUCT", "RTPLAN", "RTRECORD", "RTDOSE", "REG", "FID", "RWV", "AU", "ECG", "HD", "PLAN"]
)
STUDY_UID, SERIES_UID, MODALITY = "0020000D", "0020000E", "00080060"
INFO_FIELDS = {"StudyDate": "00080020", "StudyTime": "00080030", "Modality": MODALITY, "RetrieveURL": "00081190", "PatientID": "00100020",
               "StudyInstanceUID": STUDY_UID}  # fmt: skip
# The first asks for files as they are in the store, which may not be able to convert them.
ACCEPTED = ('multipart/related; type="application/dicom"; transfer-syntax=*', 'multipart/related; type="application/dicom"')
NOT_ACCEPTED = (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_ACCEPTABLE, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
MAX_AGE_S = 60  # Older answers are asked for again, even if MONAI_LABEL_DICOMWEB_CACHE_EXPIRY is longer.
UNKNOWN = "UNK"  # MONAI Label's word for a field that the DICOM store does not tell.
PARTIAL_SUFFIX = ".part"  # Ending of the folder of a series while it is being downloaded.
PARTIAL_MAX_AGE_S = 86400  # Older partial downloads were left behind by a killed server.

logger = logging.getLogger(__name__)


class DicomSearch:
    """Asks a DICOM store what it has, and sends it segmentations.

    It remembers answers for MONAI_LABEL_DICOMWEB_CACHE_EXPIRY seconds, but for a minute at most. Its methods raise requests.RequestException if the store fails.

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

    def fetch_series(self, series_uid: str, cache: Path) -> Path:
        """Return the folder of a series in the folder `cache`; download it before if it is missing.

        The series appears there only when it is complete, because half a series could be taken for the whole of it.

        Raises:
            VolumeError: Its objects are damaged.
        """
        destination = cache / checked_file_name(series_uid)
        if destination.is_dir() and any(destination.iterdir()):
            return destination
        incomplete = cache / f".{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
        try:
            self._download(series_uid, incomplete)
            with suppress(OSError):  # Another server may have been faster.
                os.replace(incomplete, destination)
        except OSError:  # Also the exceptions of requests are of this kind.
            raise
        except DICOM_ERRORS as e:
            raise VolumeError(f"The series {series_uid} could not be fetched: its objects in the DICOM store are damaged.") from e
        finally:
            shutil.rmtree(incomplete, ignore_errors=True)
        return destination

    def _download(self, series_uid: str, folder: Path) -> None:
        """Write the objects of a series to a new folder, byte by byte as the store sends them: pydicom would refuse some of them."""
        study_uid = self.series_info(series_uid)["StudyInstanceUID"]
        folder.mkdir()
        for number, content in enumerate(self._objects(study_uid, series_uid), 1):
            header = pydicom.dcmread(io.BytesIO(content), force=True, specific_tags=["SOPInstanceUID"], stop_before_pixels=True)
            name = f"{header.get('SOPInstanceUID', number)}.dcm"
            (folder / (name if is_name(name) else f"{number}.dcm")).write_bytes(content)

    def send(self, file: Path, after: str = "") -> str:
        """Send a segmentation to the store and return its SeriesInstanceUID; RequestException if the answer does not name it as kept.

        Args:
            after: Time of another segmentation; that of this one becomes later.
        """
        dataset = pydicom.dcmread(file)
        date_content_after(dataset, after)
        answer = self._client.store_instances([dataset])
        kept = {str(item.get("ReferencedSOPInstanceUID")) for item in answer.get("ReferencedSOPSequence") or []}
        if dataset.SOPInstanceUID not in kept:
            raise requests.RequestException("The DICOM store's answer does not name the segmentation as kept.")
        return str(dataset.SeriesInstanceUID)

    def _objects(self, study_uid: str, series_uid: str) -> Iterator[bytes]:
        """Return the DICOM objects of a series one by one."""
        base = "/".join(filter(None, [self._client.base_url, self._client.wado_url_prefix]))
        url = str(URI(base, study_uid, series_uid))
        for accepted in ACCEPTED:
            response = self._client._session.get(url, headers={"Accept": accepted})
            if response.status_code not in NOT_ACCEPTED:
                break
        response.raise_for_status()
        if response.headers.get("content-type", "").startswith("application/dicom"):  # Some stores send a single object so.
            return iter([response.content])
        return self._client._decode_multipart_message(response, stream=False)

    def _remembered(self, question: str, ask: Callable[[], list]) -> list:
        asked, answer = self._answers.get(question, (0.0, None))
        if answer is None or time.monotonic() - asked > min(settings.MONAI_LABEL_DICOMWEB_CACHE_EXPIRY, MAX_AGE_S):
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
                found[uid] = describe_segmentation(self._client.retrieve_series_metadata(_value(series, STUDY_UID), uid), uid)
        self._segmentations = found
        return sorted((s for s in found.values() if s), key=lambda s: s.time)


def remove_partial_downloads(cache: Path) -> None:
    """Remove what killed servers have left of downloads to the folder `cache`."""
    for folder in cache.glob(f".*{PARTIAL_SUFFIX}"):
        if time.time() - folder.stat().st_mtime > PARTIAL_MAX_AGE_S:
            shutil.rmtree(folder, ignore_errors=True)


def _value(json: dict, tag: str) -> str:
    """Return the first value of an attribute in DICOM JSON, or "" if it has none."""
    return str((json.get(tag, {}).get("Value") or [""])[0])
