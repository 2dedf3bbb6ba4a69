"""Tests of the sentences about labels in the rules of the workflow: a final label never disappears, and labels have names, not numbers."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import nrrd
import numpy as np
import pytest
import SimpleITK as sitk

import main
from lib.common.errors import OptionError
from lib.imaging.datasets import find_cases
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.writers import write_mask
from lib.serving.active_learning.scoring import SliceDice
from lib.serving.datastore.labels import label_names, parse_labels
from lib.serving.datastore.studies import StudiesDatastore
from lib.serving.training import usable_cases
from lib.serving.web.client_identity import COOKIE
from tests.imaging.real_cases import SHAPE, save_dicom, series
from tests.serving.datastore.test_studies_datastore import AFFINE, put_label

NAMES = {1: "肝臟", 2: 'say "ah"', 3: "a\\b"}


def write_label(path: Path, *values: int) -> Path:
    """Write a label map with a block of each value, and return its path."""
    labels = np.zeros(SHAPE, np.uint8)
    for value in values:
        labels[2:5, 2:5, 2 * value % 8] = value
    nib.save(nib.Nifti1Image(labels, AFFINE), path)
    return path


def rows(names: dict[int, str]) -> dict:
    return {"label_info": [{"name": name, "idx": value} for value, name in names.items()]}


def saved(store, image="a") -> dict[str, int]:
    """Return the numbers of voxels of the structures in the final label, by name."""
    labels = read_mask(store.get_label_uri(image, "final"), read_volume(store.get_image_uri(image)))
    names = label_names(store, image, "final")
    return {names.get(int(v), f"label_{v}"): int((labels == v).sum()) for v in np.unique(labels) if v}


def history(client, image="a") -> list[dict]:
    return client.get(f"/sam2/labels/{image}").json()["history"]


def test_a_final_label_that_is_replaced_or_removed_goes_into_the_history(serve, studies, tmp_path):
    store, client = serve()
    for name, who, value in (("one.nii.gz", "ann", 1), ("two.nii.gz", "ben", 2), ("three.nii", "ann", 3)):
        fields = {**rows({value: f"organ {value}"}), "client_id": who, "checkpoint": "embedded"}
        assert put_label(client, "a", write_label(tmp_path / name, value), fields).status_code == 200
    assert client.delete("/datastore/label", params={"id": "a", "tag": "final"}).status_code == 200
    items = history(client)
    assert sorted((i["client"], i["structures"][0], i["reason"]) for i in items) == [
        ("ann", "organ 1", "replaced"), ("ann", "organ 3", "removed"), ("ben", "organ 2", "replaced"),
    ]  # fmt: skip
    assert all(i["checkpoint"] == "embedded" and i["time"] <= i["retired"] and i["digest"] == store.image_digest("a") for i in items)
    assert store.get_labels_by_image_id("a") == {} and StudiesDatastore(str(studies)).list_images() == ["a"]
    first = next(i["name"] for i in items if i["structures"] == ["organ 1"])
    answer = client.post("/sam2/labels/a/restore", params={"name": first, "client_id": "cho"})
    assert answer.json() == {"image": "a", "tag": "final", "restored": first} and saved(store) == {"organ 1": 9}
    assert client.get("/sam2/labels/a").json()["labels"][0]["client"] == "ann"
    assert client.post("/sam2/labels/a/restore", params={"name": "../x"}).status_code == 422
    assert client.get("/sam2/labels/nobody").status_code == 404


def test_a_saved_label_that_does_not_fit_stops_nobody_from_submitting(serve, studies, tmp_path):
    (studies / "labels" / "final").mkdir(parents=True)
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), 2 * AFFINE), studies / "labels" / "final" / "a.nii.gz")
    store, client = serve()
    answer = put_label(client, "a", write_label(tmp_path / "label.nii.gz", 1), rows({1: "liver"}))
    assert answer.status_code == 200 and answer.json()["structures"]["new"] == ["liver"], answer.text
    assert saved(store) == {"liver": 9} and [i["reason"] for i in history(client)] == ["replaced"]


def test_two_annotators_who_submit_the_same_image_both_keep_theirs(serve, studies, tmp_path):
    stores = [serve() for _ in range(2)]  # Two servers on one folder.
    for n, (_, client) in enumerate(stores, 1):
        put_label(client, "a", write_label(tmp_path / "label.nii.gz", n), {**rows({n: f"organ {n}"}), "client_id": f"client {n}"})
    assert saved(stores[1][0]) == {"organ 2": 9} and [i["client"] for i in history(stores[1][1])] == ["client 1"]


def test_the_history_tells_browsers_and_addresses_apart_that_send_no_client_id(serve, studies, tmp_path):
    _, client = serve()
    put_label(client, "a", write_label(tmp_path / "label.nii.gz", 1))
    client.cookies.set(COOKIE, "browser-0123456789ab")
    for value in (2, 3):
        put_label(client, "a", write_label(tmp_path / "label.nii.gz", value))
    assert [i["client"] for i in history(client)] == ["browser-0123456789ab", "testclient"]


def test_machine_labels_and_previews_leave_no_history(serve, studies, tmp_path):
    store, client = serve()
    for _ in range(2):
        put_label(client, "a", write_label(tmp_path / "label.nii.gz", 1), tag="original")
    assert history(client) == []
    answer = put_label(client, "a", write_label(tmp_path / "label.nii.gz", 1), {"preview": True}).json()
    assert answer["stored"] is False and answer["structures"]["new"] == ["label_1"] and set(store.get_labels_by_image_id("a")) == {"original"}
    assert put_label(client, "a", tmp_path / "label.nii.gz", tag="history").status_code == 422


def test_the_command_labels_lists_and_restores(serve, studies, tmp_path, capsys):
    store, client = serve()
    for value in (1, 2):
        put_label(client, "a", write_label(tmp_path / "label.nii.gz", value), {**rows({value: f"organ {value}"}), "client_id": "ann"})
    assert main.main(["labels", "--studies", str(studies)]) == 0
    name = history(client)[0]["name"]
    lines = capsys.readouterr().out.splitlines()
    assert any("a" in line and "final" in line and "organ 2" in line for line in lines)
    assert any(name in line and "ann" in line and "organ 1" in line and "replaced" in line for line in lines)
    assert main.main(["labels", "--studies", str(studies), "--image", "a", "--restore", name]) == 0
    store.refresh()
    assert saved(store) == {"organ 1": 9}
    with pytest.raises(SystemExit):
        main.main(["labels", "--studies", str(studies), "--image", "a", "--restore", "nothing"])
    assert "holds no label called nothing" in capsys.readouterr().err


@pytest.mark.parametrize("listed, values, expected", [
    ([("background", 1), ("spleen", 2), ("liver", 3)], (1, 2), ["spleen", "liver"]),  # 3D Slicer numbers the segments that it sends.
    ([("background", 0), ("spleen", 1), ("liver", 2)], (2,), ["liver"]),
    ([("Background", None), ("spleen", None), ("liver", None)], (1, 2), ["spleen", "liver"]),
    ([("liver", 2), ("spleen", 1)], (1, 2), ["spleen", "liver"]),
    ([("liver", 7)], (1,), ["liver"]),
    ([("liver", 1), ("liver", 2), ("", 3)], (1, 2), ["liver", "liver (2)"]),
])  # fmt: skip
def test_names_belong_to_the_values_whatever_the_client_numbers(serve, studies, tmp_path, listed, values, expected):
    store, client = serve()
    label_info = [{"name": name} | ({} if idx is None else {"idx": idx}) for name, idx in listed]
    put_label(client, "a", write_label(tmp_path / "label.nii.gz", *values), {"label_info": label_info})
    assert label_names(store, "a", "final") == dict(zip(values, expected, strict=True))
    info = client.get("/datastore/?output=all").json()["objects"]["a"]["labels"]["final"]["info"]
    assert list(info["params"]["label_names"]) == expected, "3D Slicer names segments in this order"


def test_values_without_names_get_none(serve, studies, tmp_path):
    store, client = serve()
    put_label(client, "a", write_label(tmp_path / "label.nii.gz", 1, 3), rows({3: "liver"}) | {"x": 1})
    assert label_names(store, "a", "final") == {3: "liver"}
    info = client.get("/datastore/?output=all").json()["objects"]["a"]["labels"]["final"]["info"]
    assert info["params"]["label_names"] == {"label_1": 1, "liver": 3}


def test_many_values_without_names_are_not_listed(serve, studies, tmp_path):
    store, client = serve()
    nib.save(nib.Nifti1Image(np.arange(np.prod(SHAPE)).reshape(SHAPE).astype(np.uint8), AFFINE), tmp_path / "noise.nii.gz")
    assert put_label(client, "a", tmp_path / "noise.nii.gz").status_code == 200
    assert store.get_label_info("a", "final")["label_info"] == [] and len(json.dumps(store.get_label_info("a", "final"))) < 1000


def test_scoring_and_training_compare_by_name(serve, studies, tmp_path):
    store, client = serve()
    put_label(client, "a", write_label(tmp_path / "label.nii.gz", 1, 2), rows({1: "liver", 2: "spleen"}))
    swapped = nib.load(write_label(tmp_path / "other.nii.gz", 1, 2)).get_fdata()
    nib.save(nib.Nifti1Image(np.where(swapped > 0, 3 - swapped, 0).astype(np.uint8), AFFINE), tmp_path / "other.nii.gz")
    put_label(client, "a", tmp_path / "other.nii.gz", rows({2: "liver", 1: "spleen"}), tag="original")
    scores = SliceDice(client.app_of_test.records)({}, store)["a"]["structures"]
    assert {name: s["volume_dice"] for name, s in scores.items()} == {"liver": 1.0, "spleen": 1.0}
    assert [case.labels for case in usable_cases(store)] == [{1: "liver", 2: "spleen"}] == [c.labels for c in find_cases(studies)]


def test_names_in_any_alphabet_go_into_seg_nrrd_and_come_back(serve, studies, tmp_path):
    store, client = serve()
    put_label(client, "a", write_label(tmp_path / "label.nii.gz", *NAMES), rows(NAMES))
    answer = client.get("/datastore/label", params={"label": "a", "tag": "final", "extension": ".seg.nrrd"})
    assert "a.seg.nrrd" in answer.headers["content-disposition"]
    (tmp_path / "a.seg.nrrd").write_bytes(answer.content)
    assert [f"Segment{n}_LabelValue" in nrrd.read_header(str(tmp_path / "a.seg.nrrd")) for n in range(4)] == [True] * 3 + [False]
    assert np.unique(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.seg.nrrd")))).tolist() == [0, 1, 2, 3]
    client.delete("/datastore/label", params={"id": "a", "tag": "final"})
    wrong_list = [{"name": "x", "idx": 1}, {"name": "y", "idx": 2}, {"name": "z", "idx": 3}]
    assert put_label(client, "a", tmp_path / "a.seg.nrrd", {"label_info": wrong_list}).status_code == 200
    assert label_names(store, "a", "final") == NAMES, "the file's own names count"
    assert client.get("/datastore/label", params={"label": "a", "tag": "final", "extension": ".exe"}).status_code == 422
    assert client.get("/datastore/label", params={"label": "a", "tag": "final"}).status_code == 200


@pytest.mark.parametrize("text", ["a\\b", "x" * 65, "a\nb"])
def test_names_that_dicom_cannot_hold_are_refused_when_the_server_is_configured(text):
    with pytest.raises(OptionError, match="must have up to 64 characters"):
        parse_labels(f"liver,{text}")
    assert parse_labels('肝臟,,background, say "ah"') == ["肝臟", 'say "ah"']


def test_the_answer_says_which_structures_are_new_changed_and_missing(serve, studies, tmp_path):
    store, client = serve()
    put_label(client, "a", write_label(tmp_path / "label.nii.gz", 1, 2), rows({1: "liver", 2: "spleen"}))
    fields, file = rows({2: "liver", 3: "aorta"}), write_label(tmp_path / "second.nii.gz", 2, 3)
    expected = {"new": ["aorta"], "changed": ["liver"], "unchanged": [], "missing": ["spleen"], "kept": []}
    assert put_label(client, "a", file, {**fields, "preview": True}).json()["structures"] == expected
    assert set(saved(store)) == {"liver", "spleen"} and history(client) == []
    answer = put_label(client, "a", file, fields).json()
    assert answer["structures"] == expected and answer["stored"] and answer["label"] == "a"
    assert set(saved(store)) == {"liver", "aorta"} and [i["structures"] for i in history(client)] == [["liver", "spleen"]]


def test_scripts_can_keep_the_structures_that_a_label_lacks(serve, studies, tmp_path):
    store, client = serve()
    put_label(client, "a", write_label(tmp_path / "label.nii.gz", 1, 2), rows({1: "liver", 2: "spleen"}))
    answer = put_label(client, "a", write_label(tmp_path / "second.nii.gz", 1), {**rows({1: "aorta"}), "keep": True}).json()
    assert answer["structures"]["kept"] == ["liver", "spleen"] and answer["structures"]["missing"] == []
    assert saved(store) == {"aorta": 9, "spleen": 9}, "the liver lies where the aorta is now"
    assert json.loads((studies / "datastore_v2.json").read_text())["objects"]["a"]["labels"]["final"]["info"].get("keep") is None


def test_the_history_of_a_dicom_folder_keeps_names_and_place(serve, studies, tmp_path):
    save_dicom(series(), studies / "ct")
    store, client = serve()
    grid = store.image_grid("ct")
    for value in (1, 2):
        labels = np.zeros(grid.shape, np.uint8)
        labels[3, 3, 3] = value
        file = write_mask(labels, grid, tmp_path / "label.nrrd")
        assert put_label(client, "ct", file, rows({value: f"organ {value}"})).status_code == 200
    name = history(client, "ct")[0]["name"]
    assert client.post("/sam2/labels/ct/restore", params={"name": name}).status_code == 200 and saved(store, "ct") == {"organ 1": 1}
    shutil.rmtree(studies / "ct")
    store.refresh()
    items = history(client, "ct")
    assert len(items) == 3 and not any(i["restorable"] for i in items), "the history outlives the image"
