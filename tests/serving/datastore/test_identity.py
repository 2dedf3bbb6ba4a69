"""Tests of the sentences about identity in the rules of the workflow: an image is known by its content, its id is only a name."""

import hashlib
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from lib.imaging import study_images
from lib.imaging.study_images import content_digest
from lib.serving.datastore.studies import StudiesDatastore
from tests.imaging.real_cases import SHAPE, block_image, write_nifti
from tests.serving.active_learning.test_annotation_records import make_result, note
from tests.serving.datastore.test_studies_datastore import AFFINE, put_image, put_label


@pytest.fixture
def other(tmp_path):
    """Return the file of another image of the same shape and place."""
    return write_nifti(tmp_path / "other.nii.gz", block_image() + 7)


def write_label(path, value=1):
    labels = np.zeros(SHAPE, np.uint8)
    labels[2:5, 2:5, 2:5] = value
    nib.save(nib.Nifti1Image(labels, AFFINE), path)
    return path


def test_uploading_other_content_under_a_known_id_is_refused(serve, studies, other):
    _, client = serve()
    before = (studies / "a.nii.gz").read_bytes()
    answer = put_image(client, "a.nii.gz", other.read_bytes())
    assert answer.status_code == 409 and "send this one under another name, or delete" in answer.json()["detail"]
    assert put_image(client, "x.nii.gz", before, image="a").json() == {"image": "a"}, "the same content is the same image"
    assert (studies / "a.nii.gz").read_bytes() == before and not (studies / "x.nii.gz").exists()


def test_names_that_differ_behind_their_first_dot_are_two_images(serve, studies, other):
    store, client = serve()
    for name, file in (("scan.2024.01", studies / "a.nii.gz"), ("scan.2024.02", other)):
        assert put_image(client, f"{name}.nii.gz", file.read_bytes()).json() == {"image": name}
    assert store.list_images() == ["a", "scan.2024.01", "scan.2024.02"]
    assert store.image_digest("a") == store.image_digest("scan.2024.01") != store.image_digest("scan.2024.02")


@pytest.mark.parametrize("how", ["exchanged", "exchanged while no server runs", "deleted and uploaded anew"])
def test_nothing_of_the_first_image_shows_on_the_second(serve, studies, other, tmp_path, how):
    store, client = serve()
    first = (studies / "a.nii.gz").read_bytes()
    for tag in ("final", "original"):
        assert put_label(client, "a", write_label(tmp_path / "label.nii.gz"), {"client_id": "ann"}, tag=tag).status_code == 200
    store.update_image_info("a", {"slice_quality": {"structures": {}}})
    records = client.app_of_test.records
    note(records, make_result(), image="a")
    old_digest = store.image_digest("a")
    if how == "exchanged":
        shutil.copy(other, studies / "a.nii.gz")  # The server has not noticed it yet.
    elif how == "deleted and uploaded anew":
        (studies / "a.nii.gz").unlink()
        store.refresh()
        assert put_image(client, "a.nii.gz", other.read_bytes()).json() == {"image": "a"}
    else:
        shutil.copy(other, studies / "a.nii.gz")
        store, client = serve()
        records = client.app_of_test.records
    assert store.get_label_uri("a", "final") == "" and store.get_labels_by_image_id("a") == {}
    assert store.datalist() == [] and store.get_unlabeled_images() == ["a"]
    assert "slice_quality" not in store.get_image_info("a")
    assert records.for_image("a") == {} == records.by_image() and records.mask("a", "spleen") is None
    listed = client.get("/sam2/labels/a").json()
    assert listed["labels"] == [] and listed["digest"] != old_digest
    assert {(i["tag"], i["client"], i["digest"], i["restorable"]) for i in listed["history"]} == {
        ("final", "ann", old_digest, False), ("original", "ann", old_digest, False),
    }  # fmt: skip
    answer = client.post("/sam2/labels/a/restore", params={"name": listed["history"][0]["name"]})
    assert answer.status_code == 409 and "bring that image back" in answer.json()["detail"]
    (studies / "a.nii.gz").write_bytes(first)
    store.refresh()
    assert set(store.get_labels_by_image_id("a")) == {"final", "original"}, "labels come back with their image"
    assert set(records.for_image("a")) == {"spleen"} and client.get("/sam2/labels/a").json()["history"] == []
    assert set(StudiesDatastore(str(studies)).get_labels_by_image_id("a")) == {"final", "original"}


def test_a_file_that_is_only_touched_keeps_its_labels(serve, studies, tmp_path):
    store, client = serve()
    put_label(client, "a", write_label(tmp_path / "label.nii.gz"))
    os.utime(studies / "a.nii.gz", (1, 1))
    store.refresh()
    assert store.get_labeled_images() == ["a"] and client.get("/sam2/labels/a").json()["history"] == []


def test_labels_put_into_the_folder_by_hand_belong_to_the_image_that_is_there_then(serve, studies, other):
    (studies / "labels" / "final").mkdir(parents=True)
    write_label(studies / "labels" / "final" / "a.nii.gz")
    store, _ = serve()
    assert store.get_labeled_images() == ["a"]
    shutil.copy(other, studies / "a.nii.gz")
    store.refresh()
    assert store.get_labeled_images() == [] and [i["reason"] for i in store.history.items("a", "")] == ["the image's file was exchanged"]


def test_the_check_of_a_checksum_takes_the_forms_that_clients_send(serve, studies):
    _, client = serve()
    for algorithm in ("SHA256", "SHA512", "MD5"):
        digest = hashlib.new(algorithm, (studies / "a.nii.gz").read_bytes()).hexdigest()
        for text in (f"{algorithm}:{digest}", digest if algorithm == "SHA256" else f"{algorithm}:{digest.upper()}"):
            assert client.head("/datastore/image", params={"image": "a", "check_sum": text}).status_code == 200
        assert client.head("/datastore/image", params={"image": "a", "check_sum": f"{algorithm}:{'0' * len(digest)}"}).status_code == 404
    assert client.head("/datastore/image", params={"image": "a", "check_sum": "CRC:1"}).status_code == 422
    assert client.head("/datastore/image", params={"image": "b"}).status_code == 404


def test_a_digest_tells_large_files_apart_that_differ_at_the_end_or_in_size(tmp_path, monkeypatch):
    monkeypatch.setattr(study_images, "MAX_READ_BYTES", 2**16)
    content = np.random.default_rng(0).integers(0, 256, 2**18, np.uint8).tobytes()
    files = {"same": content, "end": content[:-1] + b"x", "longer": content + b"x", "start": b"xy" + content[2:], "small": content[:100]}
    for name, text in files.items():
        (tmp_path / name).write_bytes(text)
    (tmp_path / "original").write_bytes(content)
    digests = {name: content_digest([tmp_path / name]) for name in files}
    assert content_digest([tmp_path / "original"]) == digests.pop("same") and len(set(digests.values())) == len(digests)
    assert content_digest([tmp_path / "original"], "1") != content_digest([tmp_path / "original"], "2")
