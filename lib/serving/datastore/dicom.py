"""The datastore for a DICOM store with a local cache, and the mix-in that gives the app its datastores."""

import logging
import os
import shutil
import time
import uuid
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import requests
from fastapi import HTTPException
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces import app as monailabel_app
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException
from urllib3.util import Retry

from lib.common.errors import UserError
from lib.serving.datastore.checks import checked_file_name, read_upload
from lib.serving.datastore.folder import FolderDatastore

STORE_TIMEOUT_S = 60  # Default of how long the DICOM store may stay silent.
FINAL, UNSENT = DefaultLabelTag.FINAL.value, "unsent"
PARTIAL_SUFFIX = ".part"  # Ending of the folder of a series while it is being downloaded.
PARTIAL_MAX_AGE_S = 86400  # Older partial downloads were left behind by a killed server.

logger = logging.getLogger(__name__)


class DatastoreMixin:
    """Makes a `MONAILabelApp` use the datastores of this package; to be listed before it in the bases of the app."""

    def init_datastore(self):
        """Return a `FolderDatastore` or a `CachedDicomDatastore`, depending on the app's studies."""
        monailabel_app.LocalDatastore, monailabel_app.DICOMWebDatastore = FolderDatastore, CachedDicomDatastore
        CachedDicomDatastore.timeout_s = float(self.conf.get("store_seconds", STORE_TIMEOUT_S))
        return super().init_datastore()


class _ConfirmedLabelDatastore(FolderDatastore):
    """A folder that keeps a final label only if the DICOM store has confirmed it; MONAI Label trusts any answer of status 200."""

    def save_label(self, image_id, label_filename, label_tag, label_info):
        """Save a label, or raise RequestException for a final one without the UID of its series in the DICOM store."""
        if label_tag == FINAL and not label_info.get("SeriesInstanceUID"):
            raise requests.RequestException("The DICOM store's answer names no series that it keeps.")
        return super().save_label(image_id, label_filename, label_tag, label_info)


class CachedDicomDatastore(DICOMWebDatastore, _ConfirmedLabelDatastore):
    """A DICOM store with a local cache. A label that the store did not accept stays in the cache under the tag `UNSENT`."""

    timeout_s: float = STORE_TIMEOUT_S

    def __init__(self, client, *args, **kwargs):
        session = client._session
        session.request = partial(session.request, timeout=self.timeout_s)  # Without it, a silent store would block a thread forever.
        client.set_http_retry_params(retry=False)  # The client would retry for half a minute.
        for scheme in ("http://", "https://"):  # Instead, a connection is tried twice. No request that may change the store is repeated.
            session.mount(scheme, requests.adapters.HTTPAdapter(max_retries=Retry(1, backoff_factor=0.3)))
        super().__init__(client, *args, **kwargs)
        for folder in Path(self._datastore.image_path()).glob(f".*{PARTIAL_SUFFIX}"):
            if time.time() - folder.stat().st_mtime > PARTIAL_MAX_AGE_S:
                shutil.rmtree(folder, ignore_errors=True)

    def get_image_uri(self, image_id):
        """Return the path of an image in the cache; download it before if it is missing."""
        self._download(checked_file_name(image_id), Path(self._datastore.image_path()))
        return super().get_image_uri(image_id)

    def get_label_uri(self, label_id, label_tag, image_id=""):
        """Return the path of a label in the cache; download a final one before if it is missing."""
        if checked_file_name(label_tag) == FINAL:
            self._download(checked_file_name(label_id), Path(self._datastore.label_path(FINAL)))
        return super().get_label_uri(label_id, label_tag, image_id)

    def _download(self, series: str, cache: Path) -> None:
        """Download a series into the folder `cache` unless it is there; raise ImageNotFoundException if the store does not have it.

        The series appears in the folder only when it is complete, because MONAI Label would take half a series for the whole of it.
        """
        destination = cache / series
        if destination.is_dir() and any(destination.iterdir()):
            return
        incomplete = cache / f".{uuid.uuid4().hex}{PARTIAL_SUFFIX}"
        try:
            dicom_web_download_series(None, series, str(incomplete), self._client, self._fetch_by_frame)
            with suppress(OSError):  # Another thread may have been faster.
                os.replace(incomplete, destination)
        except LookupError as e:
            raise ImageNotFoundException(f"There is no series {series} in the DICOM store.") from e
        finally:
            shutil.rmtree(incomplete, ignore_errors=True)

    def save_label(self, image_id, label_filename, label_tag, label_info, label_id=""):
        """Save a label and send a final one to the DICOM store as DICOM SEG.

        Raises:
            HTTPException: 502, the DICOM store did not accept a final label.
            UserError: A final label is empty, or the file is damaged.
        """
        info = dict(label_info or {})
        if checked_file_name(label_tag) != FINAL:
            return super().save_label(image_id, label_filename, label_tag, info)
        converted, advice = None, "Submit it again later."
        try:
            if str(label_filename).endswith(".bin"):
                label_filename = converted = binary_to_image(self.get_image_uri(image_id), label_filename)
            volume = read_upload(label_filename)
            if volume is not None and not volume.array.any():
                raise UserError("The label is empty, which DICOM SEG cannot express: delete the label in the DICOM store instead.")
            if volume is not None and info.get("label_info"):
                info["label_info"] = _rows_by_value(info["label_info"], volume.array)
            self.get_image_uri(image_id)
            FolderDatastore.save_label(self, image_id, label_filename, UNSENT, info)
            advice = f"The server keeps it under the tag {UNSENT}; submit it again later."
            saved_id = super().save_label(image_id, label_filename, label_tag, info)
        except requests.RequestException as e:
            logger.warning("Label of %s not sent: %s", image_id, e)
            raise HTTPException(502, f"The DICOM store did not take the label. {advice}") from e
        finally:
            if converted:
                Path(converted).unlink(missing_ok=True)
        self.remove_label(image_id, UNSENT)
        return saved_id


def _rows_by_value(label_info: list[dict], labels: np.ndarray) -> list[dict]:
    """Return one row for each value in ascending order, because MONAI Label assigns the n-th row to the n-th value, whatever its "idx"."""
    rows = {int(row.get("idx", n)): row for n, row in enumerate(label_info, 1)}
    return [rows.get(int(v), {"name": f"segment {int(v)}", "idx": int(v)}) for v in np.unique(labels) if v]
