"""The rules about identity, labels and *Next Sample* with a real server and the client code of 3D Slicer's plugin."""

import hashlib
import shutil
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import requests

from lib.serving.launch import stop
from tests.serving.faults import SHAPE, KillableServer, wait_until, write_ball_volumes
from tests.serving.test_server import slicer_client

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Yield a server on three volumes, whose configured labels have a row "background"."""
    folder = tmp_path_factory.mktemp("studies")
    for mask in write_ball_volumes(folder):
        mask.unlink()
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


def test_uploads_with_dotted_names_are_two_images_and_other_content_is_refused(server, slicer, tmp_path):
    """Slicer names nodes after series, so equal names of two patients are normal."""
    client, images = slicer("ann"), {"scan.2024.01": "ball_0", "scan.2024.02": "ball_1", "2: CT Abdomen 1.5 mm": "ball_2"}
    for name, source in images.items():
        assert client.upload_image(str(server.studies / f"{source}.nii.gz"), name) == {"image": name}
    assert client.upload_image(str(server.studies / "ball_0.nii.gz"), "scan.2024.01") == {"image": "scan.2024.01"}, "again the same"
    for name in ("scan.2024.01", "2: CT Abdomen 1.5 mm"):
        with pytest.raises(Exception, match="(?s)Status: 409.*name of another image.*or delete the other"):
            client.upload_image(str(server.studies / "ball_1.nii.gz"), name)
    labels = {name: write_label(tmp_path / "label.nii.gz", server.studies / f"{images[name]}.nii.gz", 1) for name in images}
    for name, label in labels.items():
        assert submitted(client, name, label, "spleen")["image"] == name
    stored = client.datastore()["objects"]
    assert all(set(stored[name]["labels"]) == {"final"} for name in images) and not stored["ball_0"]["labels"]
    for name in images:
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


def test_nothing_of_the_first_image_shows_after_it_was_deleted_and_another_was_uploaded(server, slicer, tmp_path):
    first = (server.studies / "ball_2.nii.gz").read_bytes()
    assert server.infer("ball_2", label="liver").ok
    submitted(slicer("ann"), "ball_2", write_label(tmp_path / "a.nii.gz", server.studies / "ball_2.nii.gz", 1), "spleen")
    skip = {"image": "ball_2", "action": "skip", "client_id": "ann"}
    requests.post(f"{server.address}/sam2/choices", data=skip, timeout=60).raise_for_status()
    requests.delete(f"{server.address}/datastore/image", params={"id": "ball_2"}, timeout=60).raise_for_status()
    assert "ball_2" not in requests.get(f"{server.address}/sam2/", timeout=60).text
    assert slicer("ann").upload_image(str(server.studies / "ball_0.nii.gz"), "ball_2") == {"image": "ball_2"}
    try:
        for is_restarted in (False, True):
            if is_restarted:
                server.kill()
                server.start()
            state = requests.get(f"{server.address}/sam2/state", params={"image": "ball_2"}, timeout=60).json()
            listed = requests.get(f"{server.address}/sam2/labels/ball_2", timeout=60).json()
            choices = requests.get(f"{server.address}/sam2/choices", timeout=60).json()
            assert state["structures"] == {} == state["scores"] and listed["labels"] == [] and "ball_2" not in choices["skipped"]
            assert not any(item["restorable"] for item in listed["history"])
        assert slicer("ann").next_sample("worst_volume", {"image": "ball_2"})["label"] == ""
    finally:
        (server.studies / "ball_2.nii.gz").write_bytes(first)


@pytest.fixture
def unreadable(server):
    """Yield the ids of three images that cannot be opened, each for another reason; they come before the others by name."""
    whole = (server.studies / "ball_0.nii.gz").read_bytes()
    several = nib.Nifti1Image(np.zeros((8, 8, 4, 3), np.int16), np.eye(4)).to_bytes()
    contents = {"a_garbage.nii.gz": b"nonsense" * 50, "a_half.nii.gz": whole[: len(whole) // 2], "a_time.nii": several}
    for name, content in contents.items():
        (server.studies / name).write_bytes(content)
    images = {name.partition(".")[0] for name in contents}
    wait_until(lambda: images <= requests.get(f"{server.address}/datastore/?output=all", timeout=60).json()["objects"].keys())
    yield images
    for name in contents:
        (server.studies / name).unlink()


@pytest.mark.parametrize("strategy", ["random", "worst_slice", "worst_volume", "any_volume", "first"])
def test_next_sample_passes_over_what_cannot_be_read_and_reports_it(server, slicer, unreadable, strategy):
    samples = [slicer(f"{strategy} {n}").next_sample(strategy, {}) for n in range(4)]  # More annotators than there are volumes.
    assert {sample["id"] for sample in samples} <= {"ball_0", "ball_1", "ball_2"}
    last = samples[-1]
    assert {volume["id"] for volume in last["passed_over"]} == unreadable and "cannot be read: a_" in last["reason"]
    assert "cannot be read" in requests.get(f"{server.address}/sam2/", timeout=60).text


def test_an_image_that_cannot_be_opened_answers_400_with_the_reason(server, unreadable):
    words = {"a_garbage": "damaged", "a_half": "damaged", "a_time": "3 channels or time points"}
    for image in unreadable:
        thumbnail = requests.get(f"{server.address}/sam2/thumbnail", params={"image": image, "structure": "x", "slice": 0}, timeout=60)
        for answer in (server.infer(image), thumbnail):
            assert answer.status_code == 400 and words[image] in answer.json()["detail"], answer.text
    assert server.infer("ball_0").ok, "it does not stop others"
