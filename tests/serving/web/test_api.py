"""MONAI Label's server with the app's routes, in this process: threads, checks, error messages, authentication."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import requests
from fastapi import FastAPI, HTTPException
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.endpoints import datastore, info
from monailabel.endpoints import infer as endpoint
from monailabel.interfaces.exception import ImageNotFoundException

from lib.common.errors import UserError, VolumeError
from lib.serving.inference import route
from lib.serving.inference.request_queue import CLIENT_GONE, RequestQueue
from lib.serving.observability import RequestMonitor
from lib.serving.web import api, request_checks, routes
from lib.serving.web.client_identity import COOKIE
from lib.serving.web.http_errors import clear_errors

ROOT = Path(__file__).resolve().parents[3]


class App:
    """A stand-in for the MONAI Label app, whose datastore has one image "a"."""

    studies, conf, sessions = "/studies", {"queue_per_client": "2"}, staticmethod(lambda: None)
    _infers = _trainers = {"sam2": None}
    lending = SimpleNamespace(lend=lambda image, client: True)

    def __init__(self):
        self.store = SimpleNamespace(list_images=lambda: ["a"], get_image_info=self._raise_not_found)

    def _raise_not_found(self, image):
        raise ImageNotFoundException(f"Image {image} not found")

    def datastore(self):
        return self.store

    def info(self):
        return {"thread": threading.current_thread().name}


@pytest.fixture
def app(monkeypatch):
    app = App()
    for module in (api, route, routes, datastore, info, endpoint):
        monkeypatch.setattr(module, "app_instance", lambda: app)
    return app


@pytest.fixture
def client(app):
    server = FastAPI()
    api.install(server)
    api.install(server)
    return TestClient(server, raise_server_exceptions=False)


def test_the_routes_of_the_app_come_first_and_only_once(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert paths["/sam2/"]["get"]["summary"] == "Page: volumes by need, with the quality of their slices"
    assert paths["/infer/{model}"]["post"]["summary"] == "A mask for clicks, boxes or painted slices"
    assert "/batch/infer/{model}" in paths
    assert [m.cls for m in client.app.user_middleware] == [RequestMonitor]


def test_the_routes_of_monai_label_run_in_threads(client):
    assert "worker thread" in client.get("/info/").json()["thread"].lower()


@pytest.mark.parametrize("method, path, status", [
    ("get", "/datastore/image/info?image=b", 404), ("get", "/datastore/image/info?image=../a", 404),
    ("delete", "/datastore/image?id=/etc/passwd", 404), ("get", "/datastore/label?label=a&tag=../x", 422),
    ("post", "/train/other", 404), ("post", "/batch/infer/other", 404), ("get", "/proxy/dicom/studies", 404),
    ("delete", "/session/%2e%2e", 404), ("post", "/infer/other?image=a", 404), ("post", "/infer/sam2", 422),
    ("post", "/infer/sam2?image=/etc/hostname", 404), ("post", "/infer/sam2?image=lib", 404), ("post", "/infer/sam2?session_id=x", 404),
    ("get", "/datastore/?output=none", 422),
])  # fmt: skip
def test_wrong_names_are_answered_with_a_sentence(client, method, path, status):
    answer = client.request(method, path)
    assert (answer.status_code, type(answer.json()["detail"])) == (status, str)


def test_batch_inference_is_answered_with_the_command_for_it(client):
    answer = client.post("/batch/infer/sam2", json={})
    assert answer.status_code == 400 and "main.py batch" in answer.json()["detail"]


@pytest.mark.parametrize("params", ["[]", "5", "{", '"a"', "[" * 100_000, '{"label": "/tmp/x"}', '{"label_tag": "../x"}'])
def test_wrong_params_are_answered_with_a_sentence(client, params):
    answer = client.post("/infer/sam2?image=a", data={"params": params})
    assert answer.status_code == 422 and isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "\0", "a\n", "x" * 300])
def test_names_stay_in_their_folder(name):
    assert not request_checks.is_name(name)


@pytest.mark.parametrize("name", ["1.2.840.113619.2", "ct 7", "Schädel_1", "a.b"])
def test_usual_names_are_names(name):
    assert request_checks.is_name(name)


@pytest.mark.parametrize("error, status", [
    (VolumeError("Bad."), 400), (UserError("Bad."), 422), (MemoryError(), 503), (OSError(12, "none left"), 503), (requests.ConnectionError(), 502),
    (OSError(28, "full"), 507), (OSError(30, "ro"), 500), (OSError(36, "long"), 422), (KeyError("x"), 422), (HTTPException(418), 418),
])  # fmt: skip
def test_errors_become_a_status_with_a_sentence(error, status):
    with pytest.raises(HTTPException) as raised, clear_errors(loose=True):
        raise error
    assert raised.value.status_code == status and "Errno" not in raised.value.detail


def test_errors_of_the_app_itself_do_not_count_as_wrong_input():
    with pytest.raises(KeyError), clear_errors():
        raise KeyError("x")


@pytest.mark.parametrize("fields, cookie, name", [
    ({"client_id": "anna"}, "browser-0123456789ab", "anna"), ({}, "browser-0123456789ab", "browser-0123456789ab"),
    ({}, "<script>", "testclient"), ({}, None, "testclient"), ({"client_id": "user-xyz"}, None, "user-xyz@testclient"),
])  # fmt: skip
def test_a_client_is_known_by_its_id_its_cookie_or_its_address(client, monkeypatch, fields, cookie, name):
    sent = []
    monkeypatch.setattr(endpoint, "run_inference", lambda *values: sent.append(json.loads(values[4])))
    cookies = {} if cookie is None else {COOKIE: cookie}
    assert client.post("/infer/sam2?image=a", data={"params": json.dumps(fields)}, cookies=cookies).status_code == 200
    assert sent[0]["client_id"] == name


def test_others_are_answered_while_a_model_runs_and_the_fourth_request_of_a_client_is_refused(client, monkeypatch):
    running, may_finish = threading.Event(), threading.Event()

    def run_inference(*_):
        running.set()
        assert may_finish.wait(20)
        return {"done": True}

    monkeypatch.setattr(endpoint, "run_inference", run_inference)
    answers = []

    def ask():
        answers.append(client.post("/infer/sam2?image=a").status_code)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    with client:
        for t in threads:
            t.start()
        assert running.wait(20)
        assert client.get("/info/").status_code == 200
        wait_until(lambda: RequestQueue.of(api.app_instance()).waiting == 2)
        refused = client.post("/infer/sam2?image=a")
        assert refused.status_code == 429 and refused.headers["retry-after"] and "waiting" in refused.json()["detail"]
        may_finish.set()
        for t in threads:
            t.join(20)
    assert answers == [200] * 3


def test_a_run_knows_that_its_client_has_gone(client, monkeypatch):
    events = []
    monkeypatch.setattr(endpoint, "run_inference", lambda *_: events.append(CLIENT_GONE.get()))
    assert client.post("/infer/sam2?image=a").status_code == 200
    assert events[0].is_set(), "set when the answer was sent; a run that is still going on would end"


def test_metrics_and_one_log_line_for_each_request(client, app, caplog):
    app._infers = {"sam2": SimpleNamespace(feature_bytes=7)}
    with caplog.at_level("INFO", "lib.serving.observability"):
        client.get("/info/", headers={"X": "y"})
    (line,) = [r.getMessage() for r in caplog.records]
    assert line.startswith("request client=testclient method=GET path=/info/ status=200 ms=")
    text = client.get("/metrics").text
    assert 'sam2_requests_total{method="GET",route="/info/",status="200"}' in text and "sam2_feature_bytes 7.0" in text


def test_the_whole_log_arrives_while_it_grows(client, monkeypatch, tmp_path):
    log = tmp_path / "logs" / "app.log"
    log.parent.mkdir()
    log.write_text("first\n")
    monkeypatch.setattr(settings, "MONAI_LABEL_APP_DIR", str(tmp_path))
    finish = api._finish

    def finish_and_grow(result):
        answer = finish(result)
        answer.set_stat_headers(log.stat())  # as if the file had been examined just before the next line was logged
        log.write_text("first\nsecond\n")
        return answer

    monkeypatch.setattr(api, "_finish", finish_and_grow)
    answer = client.get("/logs/?lines=0")
    assert answer.text == "first\nsecond\n" and int(answer.headers["content-length"]) == len(answer.content)


def wait_until(condition, seconds=20):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_with_authentication_every_route_asks_for_a_token():
    script = """
from fastapi.testclient import TestClient
from monailabel.app import app
from lib.serving.web import api
api.install(app)
client = TestClient(app)
gets = ("/sam2/", "/sam2/state?image=a", "/sam2/thumbnail?image=a&slice=1", "/sam2/ohif?image=a", "/metrics", "/info/", "/datastore/")
posts = ("/activelearning/worst_slice", "/infer/sam2?image=a", "/scoring/slice_dice", "/train/sam2")
print({client.get(p).status_code for p in gets} | {client.post(p).status_code for p in posts})
"""
    environment = {**os.environ, "MONAI_LABEL_AUTH_ENABLE": "true", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("{401}"), done.stdout + done.stderr
