"""The rules of the workflow with a real server on a real Orthanc: which series are images, changes by other clients, and earlier labels."""

import json

import numpy as np
import pytest
import requests
from pydicom.uid import SecondaryCaptureImageStorage

from lib.imaging.readers import read_grid
from lib.imaging.writers import write_mask
from lib.serving.launch import stop
from tests.imaging.dicom.series import SHAPE, header, save, write_single_frames
from tests.serving import orthanc
from tests.serving.faults import KillableServer, wait_until
from tests.serving.processes import free_port

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not orthanc.IS_INSTALLED, reason="needs Orthanc and its DICOMweb plugin"),
]
CT = "1.2.3.10"
IMAGES, OTHERS = ("MR", "PT", "NM", "US", "XA"), ("RTSTRUCT", "RTDOSE", "SR", "KO", "PR")
CACHE_S = 1  # For so long the server believes a list of the store.


def single_object(folder, modality: str) -> bytes:
    """Return a DICOM file that is the only object of a series of some kind, which is called 1.2.3.KIND in numbers."""
    ds = header(SOPClassUID=SecondaryCaptureImageStorage, Modality=modality, SeriesInstanceUID=series_uid(modality), PatientID="7")
    ds.PixelData = bytes(2 * SHAPE[0] * SHAPE[1])
    save(ds, folder / f"{modality}.dcm")
    return (folder / f"{modality}.dcm").read_bytes()


def series_uid(modality: str) -> str:
    return f"1.2.4.{int.from_bytes(modality.encode())}"


class Site:
    """A server and its Orthanc, with the requests of a client."""

    def __init__(self, folder, processes: list):
        write_single_frames(folder / "dicom" / "ct", SeriesInstanceUID=CT, PatientID="7")
        for modality in (*IMAGES, *OTHERS):
            single_object(folder / "dicom" / modality, modality)
        store = orthanc.start_orthanc(processes, folder / "dicom", free_port())
        conf = [(k, str(folder / k)) for k in ("rounds", "versions")]
        environment = {"MONAI_LABEL_DICOMWEB_CACHE_PATH": folder / "cache", "MONAI_LABEL_DICOMWEB_CACHE_EXPIRY": CACHE_S}
        server = KillableServer(store["dicomweb"], conf, **environment)
        processes.append(server.process)
        self.address, self.orthanc, self.folder = server.address, store["dicomweb"].removesuffix("/dicom-web"), folder

    def images(self) -> set[str]:
        return set(self.ask("/datastore/?output=all")["objects"])

    def ask(self, path: str) -> dict:
        return requests.get(f"{self.address}{path}", timeout=60).json()

    def submit(self, name: str) -> None:
        """Save a label with one structure as the final label of the CT."""
        image = self.folder / "image.nrrd"
        image.write_bytes(requests.get(f"{self.address}/datastore/image", params={"image": CT}, timeout=60).content)
        labels = np.zeros(SHAPE, np.uint8)
        labels[1:5, 2:4, 1:3] = 1
        file = write_mask(labels, read_grid(image), self.folder / "label.nrrd")
        fields = {"params": json.dumps({"label_info": [{"name": name, "idx": 1}], "client_id": "ann"})}
        files = {"label": (file.name, file.read_bytes())}
        answer = requests.put(f"{self.address}/datastore/label", params={"image": CT}, data=fields, files=files, timeout=60)
        assert answer.ok, answer.text

    def structures(self) -> list[str]:
        """Return the names in the final label of the CT."""
        return next((label["structures"] for label in self.ask(f"/sam2/labels/{CT}")["labels"] if label["tag"] == "final"), [])

    def delete_series(self, uid: str) -> None:
        """Delete a series as another client of the store does."""
        query = {"Level": "Series", "Query": {"SeriesInstanceUID": uid}}
        for series in requests.post(f"{self.orthanc}/tools/find", json=query, timeout=30).json():
            requests.delete(f"{self.orthanc}/series/{series}", timeout=30).raise_for_status()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    processes: list = []
    try:
        yield Site(tmp_path_factory.mktemp("site"), processes)
    finally:
        stop(processes)


def test_series_of_all_image_modalities_are_images_and_others_are_not(site):
    assert site.images() == {CT, *map(series_uid, IMAGES)}


def test_series_that_other_clients_add_and_delete_are_noticed(site, tmp_path):
    site.images()
    content = single_object(tmp_path, "CR")
    requests.post(f"{site.orthanc}/instances", data=content, timeout=30).raise_for_status()
    wait_until(lambda: series_uid("CR") in site.images(), 20)
    site.delete_series(series_uid("CR"))
    wait_until(lambda: series_uid("CR") not in site.images(), 20)


def test_a_label_that_this_server_has_just_stored_counts_at_once(site):
    ask = {"client_id": "ann", "image": CT}
    assert requests.post(f"{site.address}/activelearning/worst_slice", json=ask, timeout=60).json()["id"] == CT
    site.submit("liver")
    assert site.structures() == ["liver"]
    after = requests.post(f"{site.address}/activelearning/worst_slice", json=ask, timeout=60)
    assert CT not in after.text.partition('"passed_over"')[0], "it is labelled, and no other series is a volume"


def test_older_segmentations_of_the_store_are_on_the_page_and_come_back(site):
    site.submit("spleen")
    site.submit("kidney")
    page = requests.get(f"{site.address}/sam2/", timeout=60).text
    assert "earlier label" in page and "spleen" in page
    item = next(i for i in site.ask(f"/sam2/labels/{CT}")["history"] if i["structures"] == ["spleen"])
    assert item["client"] == "ann" and item["reason"] == "replaced"
    answer = requests.post(f"{site.address}/sam2/labels/{CT}/restore", params={"name": item["name"]}, timeout=60)
    assert answer.ok and site.structures() == ["spleen"], answer.text


def test_labels_and_images_of_the_store_are_deleted_there_only(site):
    site.submit("liver")
    for path, query in (("label", {"id": CT, "tag": "final"}), ("image", {"id": CT})):
        answer = requests.delete(f"{site.address}/datastore/{path}", params=query, timeout=60)
        assert answer.status_code == 422 and "there." in answer.json()["detail"], answer.text
    assert site.structures() == ["liver"]
    newest = requests.delete(f"{site.address}/datastore/label", params={"id": CT, "tag": "final"}, timeout=60).json()["detail"].split()[-2]
    site.delete_series(newest)
    wait_until(lambda: site.structures() != ["liver"], 20)
