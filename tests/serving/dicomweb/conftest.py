"""A real HTTP server with the routes of the service on a studies folder, in a thread of this process and without an engine."""

import threading
from types import SimpleNamespace

import pytest
import requests
import uvicorn
from dicomweb_client.api import DICOMwebClient
from fastapi import FastAPI
from monailabel.config import settings
from monailabel.endpoints import datastore as datastore_endpoints

from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.datastore.studies import StudiesDatastore
from lib.serving.dicomweb import routes as dicomweb_routes
from lib.serving.inference.tasks import VolumeCache
from lib.serving.web import api, label_routes, ohif_files, routes
from tests.serving.processes import free_port


@pytest.fixture
def studies(tmp_path):
    """An empty studies folder."""
    (tmp_path / "studies").mkdir()
    return tmp_path / "studies"


@pytest.fixture
def serve(studies, tmp_path, monkeypatch):
    """Return a function that starts a server on the studies folder.

    It returns the address of the service, the datastore, and dicomweb_client's client, which was written by others and checks answers.
    """
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_CACHE_PATH", str(tmp_path / "cache"))
    running = []

    def start(**options) -> SimpleNamespace:
        store = StudiesDatastore(str(studies))
        app = SimpleNamespace(
            datastore=lambda: store, studies=str(studies), conf={}, records=AnnotationRecords(tmp_path / "records"), sessions=lambda: None, on_save_label=lambda *_: None,
            _infers={"sam2": SimpleNamespace(read=VolumeCache().get)},
        )  # fmt: skip
        for module in (api, routes, label_routes, dicomweb_routes, ohif_files, datastore_endpoints):
            monkeypatch.setattr(module, "app_instance", lambda: app)
        application, port = FastAPI(), free_port()
        api.install(application)
        server = uvicorn.Server(uvicorn.Config(application, port=port, log_level="warning", lifespan="off", **options))
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        base = f"http://127.0.0.1:{port}"
        while not server.started:
            thread.join(0.02)
        address = f"{base}/dicomweb"
        return SimpleNamespace(base=base, address=address, store=store, client=DICOMwebClient(address), get=_getter(address))

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join(10)


def _getter(address: str):
    """Return a function that answers to a path of the service and the fields of a query."""
    def get(path: str, headers=None, **parameters) -> requests.Response:
        return requests.get(address + path, params=parameters, headers=headers, timeout=30)

    return get
