"""Tests of earlier labels of images in a DICOM store: those of the cache, and older segmentations of any writer in the store."""

import pytest

import main
from lib.common.errors import UserError
from lib.imaging.dicom.segmentations import write_segmentation
from lib.imaging.dicom.stacks import find_stacks
from lib.serving.datastore import mixin
from lib.serving.datastore.labels import label_names
from lib.serving.datastore.submissions import submit_label
from tests.serving.datastore.dicom_cases import LABEL_INFO, downloaded, make_labels, upload


def add_segmentation(store, tmp_path, name: str, date: str, value=3) -> str:
    """Add a segmentation that another program has made of the series, and return its SeriesInstanceUID."""
    path = write_segmentation(make_labels(value), find_stacks(tmp_path / "tilted")[0], {value: name}, tmp_path / f"{name}.dcm", version="v7")
    uid = store.add(path)
    store.objects[-1].ContentDate, store.objects[-1].ContentTime, store.objects[-1].ContentCreatorName = date, "101112", "Reader^One"
    return uid


def submit(datastore, series, tmp_path, name: str) -> None:
    info = {"label_info": [{"name": name, "idx": 2}], "client": "ann", "checkpoint": "tiny"}
    datastore.save_label(series, upload(datastore, series, make_labels(), tmp_path), "final", info)


def test_older_segmentations_of_the_store_are_listed_and_restored(datastore, store, series, tmp_path):
    foreign = add_segmentation(store, tmp_path, "cyst", "20200102")
    submit(datastore, series, tmp_path, "liver")
    submit(datastore, series, tmp_path, "spleen")
    cached, older = datastore.list_labels(series)["history"]
    assert (cached["structures"], cached["client"], cached["checkpoint"], cached["reason"]) == (["liver"], "ann", "tiny", "replaced")
    assert older["name"] == foreign and older["structures"] == ["cyst"] and older["restorable"]
    assert (older["user"], older["checkpoint"]) == ("Reader^One", "v7") and older["time"] < cached["time"]
    assert datastore.restore_label(series, foreign, {"user": "ben"}) == "final"
    assert label_names(datastore, series, "final") == {1: "cyst"}
    assert (downloaded(datastore, series) > 0).sum() == (make_labels() > 0).sum() and len(store.segmentations()) == 4
    assert store.segmentations()[-1].SegmentSequence[0].SegmentLabel == "cyst", "a restored label is sent as a new segmentation"
    assert [i["structures"] for i in datastore.list_labels(series)["history"]] == [["spleen"], ["liver"], ["cyst"]]
    with pytest.raises(UserError, match="holds no label called 1.2.3"):
        datastore.restore_label(series, "1.2.3", {})


def test_earlier_labels_are_found_in_the_store_after_the_cache_was_deleted(open_datastore, series, tmp_path):
    first = open_datastore()
    for name in ("liver", "spleen"):
        submit(first, series, tmp_path, name)
    (tmp_path / "cache").rename(tmp_path / "deleted")
    second = open_datastore()
    listed = second.list_labels(series)
    assert [i["structures"] for i in listed["labels"]] == [["spleen"]]
    assert [(i["structures"], i["checkpoint"]) for i in listed["history"]] == [(["liver"], "tiny")]
    second.restore_label(series, listed["history"][0]["name"], {})
    assert list(label_names(second, series, "final").values()) == ["liver"]


def test_a_newest_segmentation_that_does_not_fit_hides_no_earlier_one(datastore, store, series, tmp_path):
    submit(datastore, series, tmp_path, "liver")
    add_segmentation(store, tmp_path, "cyst", "29990101")
    for groups in store.objects[-1].PerFrameFunctionalGroupsSequence:
        groups.PlanePositionSequence[0].ImagePositionPatient = [500.0, 0.0, 0.0]
    datastore._search.forget_segmentations()  # As after a minute.
    listed = datastore.list_labels(series)
    assert [label["structures"] for label in listed["labels"]] == [[]], "the cached label is not the present one any more"
    assert submit_label(datastore, series, upload(datastore, series, make_labels(), tmp_path), "final", {"preview": True})["missing"] == []
    (earlier,) = listed["history"]
    assert earlier["structures"] == ["liver"] and datastore.restore_label(series, earlier["name"], {}) == "final"
    assert list(label_names(datastore, series, "final").values()) == ["liver"], "although the other one is dated later"


def test_a_stale_cached_label_is_replaced_by_a_newer_segmentation(open_datastore, store, series, tmp_path):
    first, second = open_datastore(), open_datastore()
    first.save_label(series, upload(first, series, make_labels(), tmp_path), "final", LABEL_INFO)
    assert label_names(second, series, "final") == {2: "肝臟"}
    path = write_segmentation(make_labels(3), find_stacks(tmp_path / "tilted")[0], {3: "newer"}, tmp_path / "newer.dcm")
    store.add(path)
    store.objects[-1].ContentDate = "29991231"
    for datastore in (first, second):
        datastore._search.forget_segmentations()  # As after a minute.
        assert label_names(datastore, series, "final") == {1: "newer"} and (downloaded(datastore, series) == make_labels(1)).all()
        assert set(datastore.get_labels_by_image_id(series)) == {"final"}
    history = first.history.items(series, first.image_digest(series))
    assert [i["structures"] for i in history] == [["肝臟"]], "what this server's users submitted stays in the history"


def test_what_is_in_the_store_can_only_be_deleted_there(datastore, series, tmp_path):
    submit(datastore, series, tmp_path, "liver")
    with pytest.raises(UserError, match="delete the series .* there"):
        datastore.remove_label(series, "final")
    with pytest.raises(UserError, match="delete them there"):
        datastore.remove_image(series)
    assert label_names(datastore, series, "final") == {2: "liver"}


def test_the_command_labels_lists_and_restores_labels_of_a_dicom_store(datastore, store, series, tmp_path, monkeypatch, capsys):
    foreign = add_segmentation(store, tmp_path, "cyst", "20200102")
    submit(datastore, series, tmp_path, "liver")
    monkeypatch.setattr(mixin._StoreApp, "init_datastore", lambda self: datastore)
    assert main.main(["labels", "--studies", "http://store"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["image", "label"], [series, "final"], [series, foreign]]
    assert "2020-01-02 10:11" in lines[2] and lines[2].endswith("cyst (an earlier segmentation in the DICOM store)")
    assert main.main(["labels", "--studies", "http://store", "--image", series, "--restore", foreign]) == 0
    assert list(label_names(datastore, series, "final").values()) == ["cyst"]


def test_a_dicom_store_that_does_not_answer_is_reported(capsys):
    with pytest.raises(SystemExit):
        main.main(["labels", "--studies", "http://127.0.0.1:1/dicom-web"])
    assert "The DICOM store http://127.0.0.1:1/dicom-web does not answer" in capsys.readouterr().err
