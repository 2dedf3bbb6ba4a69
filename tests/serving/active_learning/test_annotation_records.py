"""The records of volumes being annotated: what is written, what survives a restart, and what corrections teach."""

import json

import numpy as np
import pytest

from lib.engine.result import Result
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.quality.slice_estimates import SliceEstimates
from lib.serving.active_learning.annotation_records import MAX_STRUCTURES, AnnotationRecords, structure_of

T = 12
FRAMES = Frames.of(Volume(np.zeros((8, 10, T), np.float32), np.diag([1.0, 1.0, 5.0, 1.0])), axis=2)


def make_result(annotated=(2,), filled=range(9), iou=0.8, shift=0):
    """Return an engine's result: a box on the slices `filled`, moved along y by `shift` pixels, with this expected IoU."""
    mask = np.zeros((T, 10, 8), bool)
    mask[list(filled), 2 + shift : 6 + shift, 2:6] = True
    ones = np.ones(T)
    expected = np.full(T, iou)
    expected[list(annotated)] = 1
    return Result(FRAMES.to_volume(mask), 2, tuple(annotated), SliceEstimates(ones, ones, ones * np.nan, np.zeros((T, 1)), expected))


def note(records, result, label="spleen", image="ct_1", **fields):
    return records.add_round(image, {"label": label, "client_id": "anna", **fields}, FRAMES, result, "embedded")


@pytest.fixture
def records(tmp_path):
    return AnnotationRecords(tmp_path / "records")


def test_a_record_holds_the_expected_quality_and_the_next_step(records):
    record = note(records, make_result())
    assert (record["annotated"], record["slices"], record["axis"], record["client"]) == ([2], T, 2, "anna")
    assert record["areas"] == [16] * 9 + [0] * 3 and record["expected_dice"][2] == 1
    assert record["expected_dice"][5] == pytest.approx(1.6 / 1.8, abs=1e-3) and 0.5 < record["volume_dice"] < 1
    assert record["proposal"]["slice"] not in (0, 1, 2, 3, 4) and record["proposal"]["point"][2] == record["proposal"]["slice"]


def test_another_process_reads_the_same_records(records):
    record = note(records, make_result(), image="a/../b")
    again = AnnotationRecords(records.folder)
    assert again.for_image("a/../b") == {"spleen": record} and again.by_image() == {"a/../b": {"spleen": record}}
    assert again.mask("a/../b", "spleen").tolist() == FRAMES.from_volume(make_result().mask).tolist()
    assert all(f.parent == records.folder for f in records.folder.glob("*.json")), "no path comes from a name"


def test_structures_have_records_of_their_own(records):
    for label in ("spleen", "liver"):
        note(records, make_result(), label=label)
    note(records, make_result(), label=None, foreground=[[3, 3, 2], [1, 1, 1]])
    assert set(records.for_image("ct_1")) == {"spleen", "liver", "@3,3,2"}
    assert structure_of({"foreground": "[[1, 2, 3]]"}) == "@1,2,3" and structure_of({"label": "/tmp/upload.nii.gz"}) == ""
    assert structure_of({"label": "/tmp/upload.nii.gz", "selected_label_name": "spleen"}) == "spleen"


def test_records_of_several_annotators_on_one_structure_do_not_overwrite_each_other(records):
    of_anna = note(records, make_result())
    of_ben = note(records, make_result(annotated=(7,)), client_id="ben")
    assert records.for_image("ct_1") == {"spleen": of_anna, "spleen by ben": of_ben}
    assert records.key_of("ct_1", {"label": "spleen", "client_id": "ben"}) == "spleen by ben"
    assert note(records, make_result(annotated=(7, 9)), client_id="ben")["annotated"] == [7, 9]
    assert records.for_image("ct_1")["spleen"] == of_anna


def test_an_empty_answer_is_kept(records):
    note(records, make_result(filled=()))
    assert not records.mask("ct_1", "spleen").any() and records.for_image("ct_1")["spleen"]["volume_dice"] == 0


def test_corrections_measure_the_estimates_and_shift_the_others(records):
    first = note(records, make_result())
    second = note(records, make_result(annotated=(2, 7), shift=2))  # on slice 7 half of the mask was right
    assert second["learned"] == [[first["expected_dice"][7], 0.5]]
    assert second["expected_dice"][5] < first["expected_dice"][5], "less is expected of the others"
    assert note(records, make_result(annotated=(2,)))["learned"] == second["learned"], "an undo teaches nothing"
    assert note(records, make_result(annotated=(9,)))["learned"] == [], "a fresh start"


def test_nothing_is_learned_from_the_same_request(records):
    note(records, make_result())
    assert note(records, make_result())["learned"] == []


def test_nothing_is_kept_of_images_outside_the_datastore(records):
    record = records.add_round("/tmp/upload.nii.gz", {}, FRAMES, make_result(), "embedded", keep=False)
    assert record["proposal"] and records.by_image() == {}


def test_forget_deletes_records_and_masks(records):
    note(records, make_result())
    records.forget("ct_1")
    assert records.for_image("ct_1") == {} and records.mask("ct_1", "spleen") is None


def test_a_structure_without_prompts_is_forgotten_and_the_others_stay(records):
    note(records, make_result())
    of_liver = note(records, make_result(), label="liver")
    records.forget_structure("ct_1", {"label": "spleen", "client_id": "anna"})
    records.forget_structure("ct_1", {"label": "kidney", "client_id": "anna"})
    assert records.for_image("ct_1") == {"liver": of_liver} and records.mask("ct_1", "spleen") is None


def test_the_oldest_structures_are_deleted(records):
    for n in range(MAX_STRUCTURES + 3):
        note(records, make_result(), label=f"s{n}")
    assert len(records.for_image("ct_1")) == MAX_STRUCTURES and records.mask("ct_1", "s0") is None
    assert len(list((records.folder / "ct_1").iterdir())) == MAX_STRUCTURES


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({})])
def test_damaged_files_count_as_empty(records, content):
    note(records, make_result())
    (records.folder / "ct_1.json").write_text(content)
    assert records.for_image("ct_1") == {}
    assert note(records, make_result())["annotated"] == [2], "and are replaced"


def test_a_damaged_mask_is_no_mask(records):
    note(records, make_result())
    next((records.folder / "ct_1").iterdir()).write_bytes(b"PK\x03\x04 torn")
    assert records.mask("ct_1", "spleen") is None


def test_a_full_disk_does_not_stop_the_answer(records, monkeypatch, caplog):
    def raise_disk_full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.serving.active_learning.annotation_records.write_bytes", raise_disk_full)
    assert note(records, make_result())["proposal"] and "No space left" in caplog.text


def test_records_belong_to_the_content_of_an_image(tmp_path):
    digests = {"ct_1": "a" * 32}
    records = AnnotationRecords(tmp_path / "records", lambda image: digests[image])
    note(records, make_result())
    digests["ct_1"] = "b" * 32
    assert records.for_image("ct_1") == {} == records.by_image() and records.mask("ct_1", "spleen") is None
    digests["ct_1"] = "a" * 32
    assert set(records.for_image("ct_1")) == {"spleen"} and set(records.by_image()) == {"ct_1"}
    assert records.for_image("nobody worked on") == {}, "no digest is asked for, because it takes reading the image"
