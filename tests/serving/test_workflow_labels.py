"""The rules about identity and labels with a real server and the client code of 3D Slicer's plugin."""

import hashlib
import shutil
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import requests

from lib.serving.launch import stop
from tests.serving.faults import SHAPE, KillableServer, write_ball_volumes
from tests.serving.test_server import slicer_client

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Yield a server on three volumes, whose configured labels have a row "background"."""
    folder = tmp_path_factory.mktemp("studies")
    write_ball_volumes(folder)
    conf = [("labels", "background,spleen,liver"), ("versions", str(tmp_path_factory.mktemp("versions")))]
    server = KillableServer(folder, conf, MONAI_LABEL_DATASTORE_CACHE_PATH=tmp_path_factory.mktemp("cache"))
    try:
        yield server
    finally:
        stop([server.process])


@pytest.fixture
def slicer(server, tmp_path):
    """Return a function that opens a client with a name."""
    return lambda name: slicer_client()(server.address, tmpdir=str(tmp_path), client_id=name)


def write_label(path: Path, image: Path, *values: int) -> str:
    """Write a label map on the grid of an image, with a block of each value, as 3D Slicer exports segments; return its path."""
    labels = np.zeros(SHAPE, np.uint8)
    for value in values:
        labels[10 * value : 10 * value + 5, 20:25, 3:5] = value
    nib.save(nib.Nifti1Image(labels, nib.load(image).affine), path)
    return str(path)


def submitted(client, image: str, label: str, *segments: str) -> dict:
    """Submit a label as the plugin does, with its segments in the order of its list, of which "background" is not sent."""
    label_info = [{"name": name, "idx": n} for n, name in enumerate(segments, 1) if name != "background"]
    return client.save_label(image, label, params={"label_info": label_info})


def test_uploads_with_dotted_names_are_two_images_and_other_content_is_refused(server, slicer):
    client = slicer("ann")
    for name, source in (("scan.2024.01", "ball_0"), ("scan.2024.02", "ball_1")):
        assert client.upload_image(str(server.studies / f"{source}.nii.gz"), name) == {"image": name}
    assert client.upload_image(str(server.studies / "ball_0.nii.gz"), "scan.2024.01") == {"image": "scan.2024.01"}
    with pytest.raises(Exception, match="(?s)Status: 409.*name of another image.*or delete the other"):
        client.upload_image(str(server.studies / "ball_1.nii.gz"), "scan.2024.01")
    for name in ("scan.2024.01", "scan.2024.02"):
        requests.delete(f"{server.address}/datastore/image", params={"id": name}, timeout=60).raise_for_status()


def test_next_sample_carries_a_checksum_and_a_name_that_differs_with_the_content(server, slicer):
    sample = slicer("ann").next_sample("first", {})
    path = server.studies / f"{sample['id']}.nii.gz"
    algorithm, digest = sample["checksum"].split(":")  # The form that Slicer's SampleData wants.
    assert algorithm == "SHA256" and digest == hashlib.sha256(path.read_bytes()).hexdigest()
    query = {"image": sample["id"], "check_sum": sample["checksum"]}
    assert requests.head(f"{server.address}/datastore/image", params=query, timeout=60).status_code == 200
    content = path.read_bytes()
    try:
        path.write_bytes((server.studies / "ball_2.nii.gz").read_bytes())
        other = slicer("ann").next_sample("first", {"image": sample["id"]})
        assert requests.head(f"{server.address}/datastore/image", params=query, timeout=60).status_code == 404
        assert other["id"] == sample["id"] and other["name"] != sample["name"] and other["checksum"] != sample["checksum"]
    finally:
        path.write_bytes(content)


def test_two_annotators_keep_theirs_and_a_background_row_does_not_shift_names(server, slicer, tmp_path):
    assert slicer("ann").info()["labels"] == ["spleen", "liver"]
    image = server.studies / "ball_0.nii.gz"
    first = submitted(slicer("ann"), "ball_0", write_label(tmp_path / "a.nii.gz", image, 1, 2), "background", "spleen", "liver")
    assert first["structures"]["new"] == ["spleen", "liver"]
    second = submitted(slicer("ben"), "ball_0", write_label(tmp_path / "b.nii.gz", image, 1), "spleen", "liver")
    assert second["structures"] == {"new": [], "changed": [], "unchanged": ["spleen"], "missing": ["liver"], "kept": []}
    listed = requests.get(f"{server.address}/sam2/labels/ball_0", timeout=60).json()
    assert [(i["client"], i["structures"]) for i in listed["history"]] == [("ann", ["spleen", "liver"])]
    assert [(i["client"], i["structures"]) for i in listed["labels"]] == [("ben", ["spleen"])]
    name = listed["history"][0]["name"]
    server.kill()
    server.start()
    answer = requests.post(f"{server.address}/sam2/labels/ball_0/restore", params={"name": name}, timeout=60)
    assert answer.ok, answer.text
    query = {"label": "ball_0", "tag": "final", "extension": ".seg.nrrd"}
    (tmp_path / "label.seg.nrrd").write_bytes(requests.get(f"{server.address}/datastore/label", params=query, timeout=60).content)
    labels, header = nrrd.read(str(tmp_path / "label.seg.nrrd"))
    assert {header[f"Segment{n}_Name"]: header[f"Segment{n}_LabelValue"] for n in range(2)} == {"spleen": "1", "liver": "2"}
    assert sorted(np.unique(labels)) == [0, 1, 2]
    info = slicer("ann").datastore()["objects"]["ball_0"]["labels"]["final"]["info"]
    assert list(info["params"]["label_names"]) == ["spleen", "liver"], "with these names Slicer opens a label map"


def test_nothing_of_the_first_image_shows_after_its_file_was_exchanged(server, slicer):
    answer = server.infer("ball_1", label="liver")
    assert answer.ok, answer.text
    state = f"{server.address}/sam2/state"
    assert set(requests.get(state, params={"image": "ball_1"}, timeout=60).json()["structures"]) == {"liver"}
    path = server.studies / "ball_1.nii.gz"
    shutil.copy(path, server.studies.parent / "kept.nii.gz")
    shutil.copy(server.studies / "ball_2.nii.gz", path)
    assert requests.get(state, params={"image": "ball_1"}, timeout=60).json()["structures"] == {}
    query = {"image": "ball_1", "structure": "liver", "slice": 4}
    assert requests.get(f"{server.address}/sam2/thumbnail", params=query, timeout=60).status_code == 404
    shutil.copy(server.studies.parent / "kept.nii.gz", path)
    assert set(requests.get(state, params={"image": "ball_1"}, timeout=60).json()["structures"]) == {"liver"}
