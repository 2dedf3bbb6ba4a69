"""The app's pages and *Next Sample* on MONAI Label's datastores, with a stand-in for the app, without engine and browser."""

import io
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import requests
from fastapi import FastAPI
from fastapi.testclient import TestClient
from monailabel.config import settings
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import LocalDatastore
from monailabel.endpoints import activelearning
from PIL import Image

from lib.engine.result import Result
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.quality.slice_estimates import SliceEstimates
from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.active_learning.lending import Lending
from lib.serving.active_learning.readable_volumes import ReadableVolumes
from lib.serving.active_learning.strategies import WorstSlice
from lib.serving.datastore.studies import StudiesDatastore
from lib.serving.inference.tasks import VolumeCache
from lib.serving.web import routes, volume_page
from tests.imaging.real_cases import SHAPE as SERIES_SHAPE
from tests.imaging.real_cases import save_dicom, series

SHAPE, AFFINE = (20, 16, 12), np.diag([-1.0, -1.0, 5.0, 1.0])
HOSTILE = "<img src=x onerror=alert(1)>'\"&"
DICOM = {"Modality": "CT", "PatientID": "P1", "StudyInstanceUID": "1.2", "RetrieveURL": "http://store/1.2", "StudyDate": "x"}


class Store(StudiesDatastore):
    """A datastore that does not notice changes of its folder by itself."""

    def __init__(self, folder):
        super().__init__(str(folder))


class DicomStore(DICOMWebDatastore):
    """A stand-in for a DICOM store all of whose series are in the cache: a folder."""

    def __init__(self, folder):
        LocalDatastore.__init__(self, str(folder), extensions=("*.nii.gz",))

    _to_id, list_images, get_image_uri = LocalDatastore._to_id, LocalDatastore.list_images, LocalDatastore.get_image_uri
    image_digest = staticmethod(lambda image: "0123456789")
    get_labeled_images, get_unlabeled_images = LocalDatastore.get_labeled_images, LocalDatastore.get_unlabeled_images


class App:
    """A stand-in for the MONAI Label app, with a datastore of class `kind`."""

    def __init__(self, folder, kind):
        self.store, self.records, self.conf, self.page_volumes = kind(folder), AnnotationRecords(folder.parent / "records"), {}, VolumeCache(2)
        self.lending, self.readable_volumes = Lending(folder.parent / "lending"), ReadableVolumes()
        self._strategies = {"worst_slice": WorstSlice(self.records, self.lending, self.readable_volumes)}
        self.opened_ahead = []  # Paths of volumes.
        self.open_ahead = self.opened_ahead.append

    def datastore(self):
        return self.store

    def info(self):
        return {}

    def next_sample(self, request):
        answer = self._strategies[request["strategy"]](request, self.store)
        return answer and {**answer, "path": self.store.get_image_uri(answer["id"])}


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


@pytest.fixture
def studies(tmp_path):
    for name in ("a", "b", "c"):
        save(tmp_path / "s" / f"{name}.nii.gz", np.random.default_rng(0).integers(0, 99, SHAPE, dtype=np.int16))
    return tmp_path / "s"


@pytest.fixture
def serve(studies, tmp_path, monkeypatch):
    """Return a function that starts an app: serve(class of the datastore) -> (app, client)."""
    monkeypatch.setattr(settings, "MONAI_LABEL_DATASTORE_CACHE_PATH", str(tmp_path / "cache"))

    def start(kind=Store):
        app, server = App(studies, kind), FastAPI()
        monkeypatch.setattr(routes, "app_instance", lambda: app)
        monkeypatch.setattr(activelearning, "app_instance", lambda: app)
        server.include_router(routes.router)
        return app, TestClient(server)

    return start


def note_round(app, image, iou=0.5, label="spleen", annotated=(5,), client=""):
    """Record a round after which all slices but the annotated ones are expected to have this IoU; the mask is a bar on slices 1 to 10."""
    mask = np.zeros(SHAPE, bool)
    mask[2:10, 2:9, 1:11] = True
    expected, ones = np.full(12, iou), np.ones(12)
    expected[list(annotated)] = 1
    frames = Frames.of(Volume(np.zeros(SHAPE, np.float32), AFFINE), axis=2)
    result = Result(mask, 2, tuple(annotated), SliceEstimates(ones, ones, ones * np.nan, np.zeros((12, 1)), expected))
    return app.records.add_round(image, {"label": label, "client_id": client}, frames, result, "embedded")


def contour_pixels(answer) -> int:
    """Return how many pixels of a PNG answer are on a contour."""
    return int((np.array(Image.open(io.BytesIO(answer.content))) == volume_page.ORANGE).all(-1).sum())


def test_the_page_sorts_volumes_by_need(serve, studies):
    app, client = serve()
    save(studies / "d.nii.gz", np.zeros(SHAPE, np.int16))
    app.store.refresh()
    worst = note_round(app, "b", 0.3)
    note_round(app, "c", 0.6)
    note_round(app, "d", 0.97)
    assert [(s.image, s.status) for s in volume_page.summarize_volumes(app.store, app.records)] == [
        ("b", "in work"), ("c", "in work"), ("a", "untouched"), ("d", "done")
    ]  # fmt: skip
    answer = client.get("/sam2/")
    assert answer.status_code == 200 and "default-src 'none'" in answer.headers["content-security-policy"]
    t = worst["proposal"]["slice"]
    assert f"Next: slice {t}." in answer.text and answer.text.count("open in OHIF") == 4
    assert answer.text.count("<polyline") == 3 and answer.text.count("/sam2/thumbnail?") == 9
    assert f"Slicer Red {5 * t}.0 mm" in answer.text
    assert "http://" not in answer.text and "https://" not in answer.text and "<script" not in answer.text


def test_scores_are_displayed_and_replace_missing_rounds(serve):
    app, client = serve()
    dice = [1.0] * 4 + [0.2] + [0.9] * 7
    score = {"dice": dice, "worst_slice": 4, "mean": 0.87, "volume_dice": 0.81}
    structures = {"liver": score}
    app.store.update_image_info("a", {"slice_quality": {"structures": structures, "axis": 2}, "slice_dice": {"structures": structures}})
    (first, *_) = volume_page.summarize_volumes(app.store, app.records)
    assert (first.image, first.status, first.structures[0].worst_slices()[0]) == ("a", "in work", 4)
    text = client.get("/sam2/").text
    assert 'class="ref"' in text and "measured 0.81" in text and "<td>slice_dice</td>" in text


def test_names_are_escaped_everywhere(serve, studies):
    save(studies / "x&<b>.nii.gz", np.zeros(SHAPE, np.int16))
    app, client = serve(DicomStore)
    for image in ("a", "x&<b>"):
        note_round(app, image, label=HOSTILE)
        app.store.update_image_info(image, {**DICOM, "PatientID": HOSTILE, "StudyInstanceUID": "</script><script>"})
    assert "<img src=x" not in (text := client.get("/sam2/").text) and "<b>.nii" not in text and "<script" not in text
    for image in ("a", "x&<b>"):
        text = client.get("/sam2/ohif", params={"image": image}).text
        assert "<img src=x" not in text and "</script><script>" not in text and text.count("<script") == 2
    assert contour_pixels(client.get("/sam2/thumbnail", params={"image": "x&<b>", "structure": HOSTILE, "slice": 3})) > 0


@pytest.mark.parametrize("query, status, words", [
    ({"slice": 1}, 422, "which image"),
    ({"image": "nobody", "slice": 1}, 404, "no such image"),
    ({"image": "../s/a", "slice": 1}, 404, "no such image"),
    ({"image": "a", "structure": "spleen"}, 422, "whole number"),
    ({"image": "a", "structure": "spleen", "slice": "x"}, 422, "whole number"),
    ({"image": "a", "structure": "spleen", "slice": "-1"}, 422, "whole number"),
    ({"image": "a", "structure": "spleen", "slice": "12"}, 422, "0 to 11"),
    ({"image": "a", "structure": "../../x", "slice": "1"}, 404, "structure"),
    ({"image": "b", "structure": "spleen", "slice": "1"}, 404, "structure"),
    ({"image": "c", "structure": "spleen", "slice": "1"}, 400, "damaged"),
])  # fmt: skip
def test_wrong_thumbnail_requests_are_answered_with_a_sentence(serve, studies, query, status, words):
    app, client = serve()
    note_round(app, "a")
    note_round(app, "c")
    (studies / "c.nii.gz").write_bytes((studies / "c.nii.gz").read_bytes()[:200])
    answer = client.get("/sam2/thumbnail", params=query)
    assert answer.status_code == status and words in answer.json()["detail"]


def test_thumbnails_of_rounds_of_saved_labels_and_without_a_mask(serve, tmp_path):
    app, client = serve()
    note_round(app, "a")
    query = {"image": "a", "structure": "spleen", "slice": 3}
    answer = client.get("/sam2/thumbnail", params=query)
    assert answer.headers["content-type"] == "image/png" and answer.headers["cache-control"] == "no-store" and contour_pixels(answer) > 0
    assert contour_pixels(client.get("/sam2/thumbnail", params={**query, "slice": 0})) == 0  # no mask on that slice
    for file in (app.records.folder / "a").iterdir():
        file.unlink()
    answer = client.get("/sam2/thumbnail", params=query)
    assert answer.status_code == 200 and contour_pixels(answer) == 0
    label = np.zeros(SHAPE, np.uint8)
    label[4:9, 4:9, 3] = 2
    save(tmp_path / "label.nii.gz", label)
    app.store.save_label("b", str(tmp_path / "label.nii.gz"), "original", {"label_info": [{"name": "liver", "idx": 2}]})
    assert contour_pixels(client.get("/sam2/thumbnail", params={**query, "image": "b", "structure": "liver"})) > 0
    assert contour_pixels(client.get("/sam2/thumbnail", params={**query, "image": "b", "structure": "label_2"})) > 0


def test_next_sample_of_files_names_the_slice_for_slicer(serve):
    app, client = serve()
    record = note_round(app, "b")
    before = app.store.json()
    answer = client.post("/activelearning/worst_slice", json={"client_id": ""}).json()
    t = record["proposal"]["slice"]
    assert (answer["id"], answer["slice"], answer["viewer"]["slicer"]["view"]) == ("b", t, "Red")
    digest = app.store.image_digest("b")[:8]
    assert answer["name"] == f"b {digest} slice {t} Dice {record['proposal']['expected_dice']:.2f}.nii.gz"
    assert answer["RetrieveURL"] == f"/sam2/ohif?image=b&slice={t}"
    state = client.get("/sam2/state?image=b").json()
    assert (answer["StudyInstanceUID"], answer["SeriesInstanceUID"]) == (state["StudyInstanceUID"], state["SeriesInstanceUID"])
    assert client.get("/sam2/state", params={"image": state["SeriesInstanceUID"]}).json() == state
    assert answer["viewer"]["slicer"]["offset_mm"] == 5.0 * t
    after = app.store.json()
    for listing in (before, after):
        for field in ("strategy", "digest", "stamp"):  # MONAI Label's, and what the datastore notes of the image's content.
            listing["objects"]["b"]["image"]["info"].pop(field, None)
    assert after["objects"] == before["objects"]
    unknown = client.post("/activelearning/best")
    assert unknown.status_code == 404 and "worst_slice" in unknown.json()["detail"]


def test_next_sample_of_a_dicom_folder_is_a_file_that_slicer_opens(serve, studies):
    for file in studies.iterdir():
        file.unlink()
    save_dicom(series(), studies / "ct")
    app, client = serve()
    answer = client.post("/activelearning/worst_slice", json={"client_id": ""}).json()
    digest = app.store.image_digest("ct")[:8]
    assert answer["id"] == "ct" and answer["name"] == f"ct {digest} slice {answer['slice']}.nrrd" and answer["viewer"]["slicer"]["view"] == "Red"
    assert nrrd.read_header(answer["path"])["sizes"].tolist() == list(SERIES_SHAPE)


def test_next_sample_of_dicom_links_to_the_page_that_opens_the_slice(serve):
    app, client = serve(DicomStore)
    app.store.update_image_info("b", DICOM)
    record = note_round(app, "b")
    t = record["proposal"]["slice"]
    answer = client.post("/activelearning/worst_slice").json()
    assert answer["RetrieveURL"] == f"/sam2/ohif?image=b&slice={t}"
    assert f"axial slice {12 - t} of 12 (voxel slice {t})" in answer["Modality"] and answer["PatientID"].startswith(f"P1 slice {t} Dice")
    assert app.store.get_image_info("b")["PatientID"] == "P1" and app.store.get_image_info("b")["RetrieveURL"] == DICOM["RetrieveURL"]
    text = client.get(answer["RetrieveURL"]).text
    assert '"StudyInstanceUID": "1.2"' in text and record["proposal"]["reason"] in text
    assert client.get("/sam2/ohif?image=b&slice=99").status_code == 422
    assert client.get("/sam2/ohif?image=c").status_code == 200  # nothing is known of it: it opens in the middle
    assert client.get("/sam2/ohif?image=nobody").status_code == 404
    assert {Path(p).name for p in app.opened_ahead} == {"b.nii.gz", "c.nii.gz"}, "encoding has begun before the first click"


def test_files_are_opened_in_ohif_by_their_own_identifiers(serve):
    app, client = serve()
    uids = {k: v for k, v in client.get("/sam2/state?image=a").json().items() if k.endswith("UID")}
    text = client.get("/sam2/ohif?image=a").text
    assert len(uids) == 2 and all(f'"{key}": "{uid}"' in text for key, uid in uids.items())


def test_ohif_does_not_open_what_it_cannot_show(serve, studies):
    (studies / "damaged.nii.gz").write_bytes(b"\x1f\x8b damaged")
    save(studies / "flat.nii.gz", np.zeros((20, 16, 1), np.int16))
    client = serve()[1]
    for image in ("damaged", "flat"):
        answer = client.get("/sam2/ohif", params={"image": image})
        assert answer.status_code == 400 and f"OHIF cannot show {image}" in answer.json()["detail"]


def test_a_store_that_does_not_answer_is_reported_with_a_sentence(serve, monkeypatch):
    app, client = serve()

    def refuse():
        raise requests.ConnectionError("secret address")

    monkeypatch.setattr(app.store, "list_images", refuse)
    for path in ("/sam2/", "/sam2/state?image=a"):
        answer = client.get(path)
        assert answer.status_code == 502 and "DICOM store" in answer.json()["detail"] and "secret" not in answer.text


def test_what_is_left_out_is_said_with_the_reason(serve, studies):
    (studies / "preview<1>.png").write_bytes(b"x")
    save_dicom(series()[:3] + series()[4:], studies / "gap")
    app, client = serve()
    rows = {row["path"]: row["reason"] for row in client.get("/sam2/left_out").json()["left_out"]}
    assert set(rows) == {"preview<1>.png", "gap"} and "missing" in rows["gap"]
    text = client.get("/sam2/").text
    assert "2 entries of the studies folder left out" in text and "preview&lt;1&gt;.png" in text and rows["gap"] in text
    answer = client.get("/sam2/state?image=gap")
    assert answer.status_code == 400 and "missing" in answer.json()["detail"]


def test_state_returns_the_records(serve):
    app, client = serve()
    record = note_round(app, "a")
    state = client.get("/sam2/state?image=a").json()
    assert (state["image"], state["structures"], state["scores"]) == ("a", {"spleen": record}, {})
    assert client.get("/sam2/state?image=b").json()["structures"] == {}


def test_a_hundred_volumes_come_in_pages(serve, studies):
    for n in range(100):
        (studies / f"v{n:03}.nii.gz").write_bytes((studies / "a.nii.gz").read_bytes())
    app, client = serve()
    for n in range(30):
        note_round(app, f"v{n:03}", 0.3 + n / 100)
    first, last = client.get("/sam2/").text, client.get("/sam2/?page=6").text
    assert first.count("<article") == 20 and "v000" in first and "v029" not in first and 'href="?page=6"' in first
    assert last.count("<article") == 3 and client.get("/sam2/?page=99").text == last
    assert client.get("/sam2/?page=x").status_code == 422
