"""Opening of the datastores of this package, by the app or by itself."""

import os
from pathlib import Path

import requests
from monailabel.config import settings
from monailabel.interfaces import app as monailabel_app

from lib.common.errors import OptionError
from lib.serving.datastore.dicom import CachedDicomDatastore
from lib.serving.datastore.dicom_images import STORE_TIMEOUT_S
from lib.serving.datastore.folder import FolderDatastore
from lib.serving.datastore.studies import StudiesDatastore

SEARCH_FILTER = "MONAI_LABEL_DICOMWEB_SEARCH_FILTER"


class DatastoreMixin:
    """Makes a `MONAILabelApp` use the datastores of this package; to be listed before it in the bases of the app."""

    def init_datastore(self):
        """Return a `StudiesDatastore` or a `CachedDicomDatastore`, depending on the app's studies."""
        monailabel_app.LocalDatastore, monailabel_app.DICOMWebDatastore = StudiesDatastore, CachedDicomDatastore
        CachedDicomDatastore.timeout_s = float(self.conf.get("store_seconds", STORE_TIMEOUT_S))
        if SEARCH_FILTER not in settings.model_fields_set:  # MONAI Label's default is CT alone.
            setattr(settings, SEARCH_FILTER, {})
            os.environ[SEARCH_FILTER] = "{}"  # for the processes that score and train
        return super().init_datastore()

    def _download_dcmqi_tools(self):
        """Do nothing, because DICOM SEG is written without them."""


class _StoreApp(DatastoreMixin, monailabel_app.MONAILabelApp):
    """An app that has nothing but the datastore for a DICOM store."""

    def __init__(self, studies: str):
        self.studies, self.conf = studies, {}


def open_datastore(studies: str) -> FolderDatastore:
    """Open a studies folder, or the DICOM store at a DICOMweb address, as a server does with the same environment variables.

    Raises:
        OptionError: There is no such folder, or the DICOM store does not answer.
    """
    if not studies.startswith(("http://", "https://")):
        if not Path(studies).is_dir():
            raise OptionError(f"There is no folder {studies}.")
        return StudiesDatastore(studies, extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT)
    try:
        store = _StoreApp(studies).init_datastore()
        store.list_images()
    except requests.RequestException as e:
        raise OptionError(f"The DICOM store {studies} does not answer: {type(e).__name__}.") from e
    return store
