"""The mix-in that gives the app the datastores of this package."""

import os

from monailabel.config import settings
from monailabel.interfaces import app as monailabel_app

from lib.serving.datastore.dicom import STORE_TIMEOUT_S, CachedDicomDatastore
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
