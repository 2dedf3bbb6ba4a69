"""A studies folder behind MONAI Label's HTTP routes, in the test's process and without an engine."""

from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.endpoints import datastore as datastore_endpoints
from monailabel.endpoints import session as session_endpoints

from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.datastore.sessions import UploadSessions
from lib.serving.datastore.studies import StudiesDatastore
from lib.serving.inference.tasks import VolumeCache
from lib.serving.web import api, label_routes, routes
from tests.imaging.real_cases import write_nifti


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
