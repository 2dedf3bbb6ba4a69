"""The history of labels on the page of volumes, with a stand-in for the app."""

import nibabel as nib
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from lib.serving.web import label_routes, routes
from tests.serving.web.test_volume_choices import app  # noqa: F401
from tests.serving.web.test_volume_page import AFFINE, SHAPE, studies  # noqa: F401

SAME_SITE = {"accept": "text/html", "sec-fetch-site": "same-origin"}


@pytest.fixture
def browser(app, monkeypatch):  # noqa: F811
    monkeypatch.setattr(label_routes, "app_instance", lambda: app)
    server = FastAPI()
    for module in (label_routes, routes):
        server.include_router(module.router)
    return TestClient(server)


def save_labels(app, tmp_path, *names):  # noqa: F811
    for value, name in enumerate(names, 1):
        nib.save(nib.Nifti1Image(np.full(SHAPE, value, np.uint8), AFFINE), tmp_path / "label.nii.gz")
        info = {"label_info": [{"name": name, "idx": value}], "client_id": "ann", "checkpoint": "embedded"}
        app.store.save_label("a", str(tmp_path / "label.nii.gz"), "final", info)


def structures(app) -> list[str]:  # noqa: F811
    return [row["name"] for row in app.store.get_label_info("a", "final")["label_info"]]


def test_the_page_lists_earlier_labels_and_brings_them_back(browser, app, tmp_path):  # noqa: F811
    assert "earlier label" not in browser.get("/sam2/").text
    save_labels(app, tmp_path, "<b>spleen", "liver")
    text = browser.get("/sam2/").text
    assert "1 earlier label<" in text and "&lt;b&gt;spleen" in text and "<td>ann</td><td>embedded</td>" in text
    address = text.partition('action="labels/')[2].partition('"')[0]
    answer = browser.post(f"/sam2/labels/{address}", headers=SAME_SITE, follow_redirects=False)
    assert answer.status_code == 303 and answer.headers["location"] == "/sam2/" and structures(app) == ["<b>spleen"]
    assert "2 earlier labels" in browser.get("/sam2/").text


def test_forms_of_other_sites_bring_nothing_back(browser, app, tmp_path):  # noqa: F811
    save_labels(app, tmp_path, "spleen", "liver")
    name = browser.get("/sam2/labels/a").json()["history"][0]["name"]
    answer = browser.post("/sam2/labels/a/restore", params={"name": name}, headers={"sec-fetch-site": "cross-site"})
    assert answer.status_code == 403 and structures(app) == ["liver"]
