"""The app's datastores, which keep what they were given: a folder (see `lib.serving.datastore.folder`), or a DICOM store with a cache."""

import logging
import os
import shutil
import time
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np
import requests
from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces import app as base
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from urllib3.util import Retry

from lib.common.errors import UserError
from lib.serving.datastore.folder import SafeDatastore, check_readable, file_name

STORE_SECONDS = 60  # how long the DICOM store may send nothing
FINAL, UNSENT = DefaultLabelTag.FINAL.value, "unsent"
PART, PART_SECONDS = ".part", 86400  # of a series that is being fetched; older ones were left by a killed server

logger = logging.getLogger(__name__)


class KeepsLabels:
    """Mix-in for a `MONAILabelApp`, before it in the bases: its datastore is one of those below."""

    def init_datastore(self):
        base.LocalDatastore, base.DICOMWebDatastore = SafeDatastore, SafeDicomDatastore
        SafeDicomDatastore.seconds = float(self.conf.get("store_seconds", STORE_SECONDS))
        return super().init_datastore()


class _Acknowledged(SafeDatastore):
    """Keeps as final only what the DICOM store said that it has; MONAI Label takes any answer of status 200 for that."""

    def save_label(self, image_id, label_filename, label_tag, label_info):
        if label_tag == FINAL and not label_info.get("SeriesInstanceUID"):
            raise requests.RequestException("The DICOM store's answer names no series that it keeps.")
        return super().save_label(image_id, label_filename, label_tag, label_info)


class SafeDicomDatastore(DICOMWebDatastore, _Acknowledged):
    """A DICOM store with its cache. A label that the store did not take stays in the cache under the tag `UNSENT`."""

    seconds = STORE_SECONDS

    def __init__(self, client, *args, **kwargs):
        for scheme in ("http://", "https://"):
            client._session.mount(scheme, _Impatient(self.seconds))
        client.set_http_retry_params(retry=False)  # it would try for half a minute; the adapters do once more
        super().__init__(client, *args, **kwargs)
        for part in Path(self._datastore.image_path()).glob(f".*{PART}"):
            if time.time() - part.stat().st_mtime > PART_SECONDS:
                shutil.rmtree(part, ignore_errors=True)

    def get_image_uri(self, image_id):
        self._fetch(file_name(image_id), Path(self._datastore.image_path()))
        return super().get_image_uri(image_id)

    def get_label_uri(self, label_id, label_tag, image_id=""):
        if file_name(label_tag) == FINAL:
            self._fetch(file_name(label_id), Path(self._datastore.label_path(FINAL)))
        return super().get_label_uri(label_id, label_tag, image_id)

    def _fetch(self, series: str, folder: Path) -> None:
        """Has a series in the cache whole: half of one would be taken for all of it, for ever.

        Raises:
            ImageNotFoundException: the store has no such series. RequestException: it does not answer.
        """
        place = folder / series
        if place.is_dir() and any(place.iterdir()):
            return
        part = folder / f".{uuid.uuid4().hex}{PART}"
        try:
            dicom_web_download_series(None, series, str(part), self._client, self._fetch_by_frame)
            with suppress(OSError):  # another thread was first
                os.replace(part, place)
        except LookupError as e:
            raise ImageNotFoundException(f"There is no series {series} in the DICOM store.") from e
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def save_label(self, image_id, label_filename, label_tag, label_info, label_id=""):
        """As in MONAI Label.

        Raises:
            HTTPException: 502, the DICOM store did not take a final label.
        """
        info = dict(label_info or {})
        if file_name(label_tag) != FINAL:
            return super().save_label(image_id, label_filename, label_tag, info)
        converted, kept = None, False
        try:
            if str(label_filename).endswith(".bin"):
                label_filename = converted = binary_to_image(self.get_image_uri(image_id), label_filename)
            volume = check_readable(label_filename)
            if volume is not None and not volume.array.any():
                raise UserError("The label is empty, which DICOM SEG cannot express: delete the label in the DICOM store instead.")
            if volume is not None and info.get("label_info"):
                info["label_info"] = _rows(info["label_info"], volume.array)
            self.get_image_uri(image_id)
            SafeDatastore.save_label(self, image_id, label_filename, UNSENT, info)
            kept = True
            saved = super().save_label(image_id, label_filename, label_tag, info)
        except requests.RequestException as e:
            logger.warning("Label of %s not sent: %s", image_id, e)
            how = f"The server keeps it under the tag {UNSENT}; submit it again later." if kept else "Submit it again later."
            raise HTTPException(502, f"The DICOM store did not take the label. {how}") from e
        finally:
            if converted:
                Path(converted).unlink(missing_ok=True)
        self.remove_label(image_id, UNSENT)
        return saved


def _rows(label_info: list[dict], labels: np.ndarray) -> list[dict]:
    """The rows of the values that are there, in their order: MONAI Label takes the n-th row for the n-th value, whatever its idx."""
    rows = {int(row.get("idx", n)): row for n, row in enumerate(label_info, 1)}
    return [rows.get(int(v), {"name": f"segment {int(v)}", "idx": int(v)}) for v in np.unique(labels) if v]


class _Impatient(requests.adapters.HTTPAdapter):
    """Waits for an answer, and for its parts, so many seconds."""

    def __init__(self, seconds: float):
        super().__init__(max_retries=Retry(1, backoff_factor=0.3))  # not of what is sent there
        self._seconds = seconds

    def send(self, request, stream=False, timeout=None, **kwargs):
        return super().send(request, stream=stream, timeout=timeout or self._seconds, **kwargs)
