"""A studies folder behind MONAI Label's HTTP routes, and the datastore for a DICOM store, in the test's process and without an engine."""

from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.endpoints import datastore as datastore_endpoints
from monailabel.endpoints import session as session_endpoints

from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.datastore.dicom import CachedDicomDatastore
from lib.serving.datastore.sessions import UploadSessions
from lib.serving.datastore.studies import StudiesDatastore
from lib.serving.inference.tasks import VolumeCache
from lib.serving.web import api, label_routes, routes
from tests.imaging.dicom.series import write_multi_frame, write_single_frames
from tests.imaging.real_cases import write_nifti
from tests.serving.datastore.dicom_cases import TILT_MM
from tests.serving.datastore.fake_store import FakeStore


@pytest.fixture
def studies(tmp_path):
    """Return a studies folder with the image "a"."""
    (tmp_path / "studies").mkdir()
    write_nifti(tmp_path / "studies" / "a.nii.gz")
    return tmp_path / "studies"


@pytest.fixture
def serve(studies, tmp_path, monkeypatch):
    """Return a function that opens the studies folder as a new server does, and returns its datastore and a client."""
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_CACHE_PATH", str(tmp_path / "cache"))

    def start(**options):
        store = StudiesDatastore(str(studies), **options)
        sessions = UploadSessions(str(tmp_path / "sessions"), 3600, VolumeCache().get, lambda path: None, lambda name: None)
        app = SimpleNamespace(datastore=lambda: store, sessions=lambda: sessions, studies=str(studies), on_save_label=lambda *_: None)
        app.records = AnnotationRecords(tmp_path / "records", store.image_digest)
        for module in (api, routes, label_routes, datastore_endpoints, session_endpoints):
            monkeypatch.setattr(module, "app_instance", lambda: app)
        server = FastAPI()
        api.install(server)
        client = TestClient(server)
        client.app_of_test = app
        return store, client

    return start


@pytest.fixture
def store():
    return FakeStore()


@pytest.fixture
def open_datastore(store, tmp_path):
    """Yield a function that opens the datastore, as a new server would do it."""
    opened = []

    def open_datastore() -> CachedDicomDatastore:
        opened.append(CachedDicomDatastore(store, {}, str(tmp_path / "cache")))
        return opened[-1]

    yield open_datastore
    for datastore in opened:
        datastore._observer.stop()
        datastore._observer.join()


@pytest.fixture
def series(store, tmp_path):
    """Return the SeriesInstanceUID of a tilted series in the store."""
    write_single_frames(tmp_path / "tilted", TILT_MM, PatientName="王^小東", SpecificCharacterSet="ISO_IR 192", PatientID="7")
    return store.add(tmp_path / "tilted")


@pytest.fixture
def datastore(open_datastore, series):
    return open_datastore()


@pytest.fixture
def echoes(store, tmp_path):
    """Return the SeriesInstanceUID of a series with two volumes."""
    write_multi_frame(tmp_path / "echoes", SeriesInstanceUID="1.2.3.5")
    return store.add(tmp_path / "echoes")


@pytest.fixture
def gap(store, tmp_path):
    """Return the SeriesInstanceUID of a series that lacks a slice; in lists it comes before the others."""
    write_single_frames(tmp_path / "gap", SeriesInstanceUID="1.2.3.0")
    (tmp_path / "gap" / "1.dcm").unlink()
    uid = store.add(tmp_path / "gap")
    store.objects.sort(key=lambda ds: ds.SeriesInstanceUID)
    return uid
