"""Records of volumes in work: what is written, what survives, what is learned from corrections."""

import json

import numpy as np
import pytest

from lib.engine.result import Result
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.serving.active_learning.annotation_records import MOST_STRUCTURES, AnnotationRecords, structure_of

T = 12
FRAMES = Frames.of(Volume(np.zeros((8, 10, T), np.float32), np.diag([1.0, 1.0, 5.0, 1.0])), axis=2)


def answer(annotated=(2,), filled=range(9), iou=0.8, shift=0):
    mask = np.zeros((T, 10, 8), bool)
    mask[list(filled), 2 + shift : 6 + shift, 2:6] = True
    ones = np.ones(T)
    expected = np.full(T, iou)
    expected[list(annotated)] = 1
    return Result(FRAMES.to_volume(mask), 2, tuple(annotated), ones, ones, ones * np.nan, np.zeros((T, 1)), expected)


def note(rounds, result, label="spleen", image="ct_1", **more):
    return rounds.note(image, {"label": label, "client_id": "anna", **more}, FRAMES, result, "embedded")


@pytest.fixture
def rounds(tmp_path):
    return AnnotationRecords(tmp_path / "rounds")


def test_a_record_says_how_good_and_where_next(rounds):
    record = note(rounds, answer())
    assert (record["annotated"], record["slices"], record["axis"], record["client"]) == ([2], T, 2, "anna")
    assert record["areas"] == [16] * 9 + [0] * 3 and record["expected_dice"][2] == 1
    assert record["expected_dice"][5] == pytest.approx(1.6 / 1.8, abs=1e-3) and 0.5 < record["volume_dice"] < 1
    assert record["proposal"]["slice"] not in (0, 1, 2, 3, 4) and record["proposal"]["point"][2] == record["proposal"]["slice"]


def test_another_process_sees_the_same(rounds):
    record = note(rounds, answer(), image="a/../b")
    again = AnnotationRecords(rounds.folder)
    assert again.of("a/../b") == {"spleen": record} and again.all() == {"a/../b": {"spleen": record}}
    assert again.mask("a/../b", "spleen").tolist() == FRAMES.from_volume(answer().mask).tolist()
    assert all(f.parent == rounds.folder for f in rounds.folder.glob("*.json")), "no path comes from a name"


def test_structures_are_told_apart(rounds):
    for label in ("spleen", "liver"):
        note(rounds, answer(), label=label)
    note(rounds, answer(), label=None, foreground=[[3, 3, 2], [1, 1, 1]])
    assert set(rounds.of("ct_1")) == {"spleen", "liver", "@3,3,2"}
    assert structure_of({"foreground": "[[1, 2, 3]]"}) == "@1,2,3" and structure_of({"label": "/tmp/upload.nii.gz"}) == ""
    assert structure_of({"label": "/tmp/upload.nii.gz", "selected_label_name": "spleen"}) == "spleen"


def test_an_empty_answer_is_kept(rounds):
    note(rounds, answer(filled=()))
    assert not rounds.mask("ct_1", "spleen").any() and rounds.of("ct_1")["spleen"]["volume_dice"] == 0


def test_corrections_say_how_good_the_estimates_were(rounds):
    first = note(rounds, answer())
    second = note(rounds, answer(annotated=(2, 7), shift=2))  # on slice 7 half of the mask was right
    assert second["learned"] == [[first["expected_dice"][7], 0.5]]
    assert second["expected_dice"][5] < first["expected_dice"][5], "less is expected of the others"
    assert note(rounds, answer(annotated=(2,)))["learned"] == second["learned"], "an undo teaches nothing"
    assert note(rounds, answer(annotated=(9,)))["learned"] == [], "a fresh start"


def test_nothing_is_learned_from_the_same_request(rounds):
    note(rounds, answer())
    assert note(rounds, answer())["learned"] == []


def test_nothing_is_kept_of_images_outside_the_datastore(rounds):
    record = rounds.note("/tmp/upload.nii.gz", {}, FRAMES, answer(), "embedded", keep=False)
    assert record["proposal"] and rounds.all() == {}


def test_forgetting(rounds):
    note(rounds, answer())
    rounds.forget("ct_1")
    assert rounds.of("ct_1") == {} and rounds.mask("ct_1", "spleen") is None


def test_old_structures_make_room(rounds):
    for n in range(MOST_STRUCTURES + 3):
        note(rounds, answer(), label=f"s{n}")
    assert len(rounds.of("ct_1")) == MOST_STRUCTURES and rounds.mask("ct_1", "s0") is None
    assert len(list((rounds.folder / "ct_1").iterdir())) == MOST_STRUCTURES


@pytest.mark.parametrize("content", ["", "{", "[]", json.dumps({})])
def test_damaged_files_count_as_nothing_known(rounds, content):
    note(rounds, answer())
    (rounds.folder / "ct_1.json").write_text(content)
    assert rounds.of("ct_1") == {}
    assert note(rounds, answer())["annotated"] == [2], "and are replaced"


def test_a_damaged_mask_is_no_mask(rounds):
    note(rounds, answer())
    next((rounds.folder / "ct_1").iterdir()).write_bytes(b"PK\x03\x04 torn")
    assert rounds.mask("ct_1", "spleen") is None


def test_a_full_disk_does_not_stop_the_answer(rounds, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lib.serving.active_learning.annotation_records.write_bytes", full)
    assert note(rounds, answer())["proposal"] and "No space left" in caplog.text
