"""Strategies and scoring methods on one of MONAI Label's datastores, without a server; the engine's results are made by hand."""

import json
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.metrics import DiceMetric
from monailabel.datastore.local import LocalDatastore

from lib.common.errors import UserError
from lib.engine.result import Result
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.quality.slice_estimates import SliceEstimates
from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.active_learning.lending import Lending
from lib.serving.active_learning.readable_volumes import ReadableVolumes
from lib.serving.active_learning.scoring import SliceDice, SliceQuality
from lib.serving.active_learning.strategies import AnyVolume, FirstVolume, WorstSlice, WorstVolume
from lib.serving.datastore.labels import label_names

SHAPE = (20, 16, 12)
AFFINE = np.diag([-1.0, -1.0, 5.0, 1.0])
FRAMES = Frames.of(Volume(np.zeros(SHAPE, np.float32), AFFINE), axis=2)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


def make_labels(*bars):
    """Return a uint8 label map (I, J, K) with a bar for each (value, first slice, last slice, width in voxels)."""
    labels = np.zeros(SHAPE, np.uint8)
    for n, (value, low, high, width) in enumerate(bars):
        labels[2 : 2 + width, 2 + 5 * n : 6 + 5 * n, low : high + 1] = value
    return labels


@pytest.fixture
def studies(tmp_path):
    for name in "abc":
        save(tmp_path / "studies" / f"{name}.nii.gz", np.random.default_rng(0).integers(0, 99, SHAPE, dtype=np.int16))
    return tmp_path / "studies"


@pytest.fixture
def store(studies):
    return LocalDatastore(str(studies), extensions=("*.nii.gz",))


@pytest.fixture
def records(tmp_path):
    return AnnotationRecords(tmp_path / "records")


def note_round(records, image, iou, label="spleen", annotated=(5,), client="anna"):
    """Record a round after which all slices but the annotated ones are expected to have this IoU, and return the record."""
    mask = make_labels((1, 1, 10, 8)) > 0
    expected = np.full(12, iou)
    expected[list(annotated)] = 1
    ones = np.ones(12)
    result = Result(mask, 2, tuple(annotated), SliceEstimates(ones, ones, ones * np.nan, np.zeros((12, 1)), expected))
    return records.add_round(image, {"label": label, "client_id": client}, FRAMES, result, "embedded")


def submit(store, image, labels, tag="final", info=None):
    path = f"{store._datastore_path}/../{image}_{tag}.nii.gz"
    nib.save(nib.Nifti1Image(labels, AFFINE), path)
    store.save_label(image, path, tag, info or {})


def make(kind, records):
    """Return a strategy of this kind; strategies of the same records share their loans, as servers on one folder do."""
    return kind(records, Lending(records.folder / "lending"), ReadableVolumes())


def ask(strategy, store, client="anna", **fields):
    return strategy({"strategy": "worst_slice", "client_id": client, **fields}, store)


def test_goes_on_with_the_volume_of_this_client(store, records):
    record = note_round(records, "b", 0.6)
    note_round(records, "c", 0.2, client="ben")
    answer = ask(make(WorstSlice, records), store)
    assert (answer["id"], answer["slice"], answer["rounds"]) == ("b", record["proposal"]["slice"], 1)
    assert ask(make(WorstSlice, records), store, client="ben")["id"] == "c"
    assert {"axis", "slices", "expected_dice", "volume_dice", "reason", "prompt", "point", "label"} <= answer.keys()
    json.dumps(answer)


def test_goes_on_with_the_volume_that_a_viewer_shows(store, records):
    """OHIF sends no client id, so two annotators would otherwise be sent to each other's volumes."""
    note_round(records, "b", 0.6, client="")
    note_round(records, "c", 0.2, client="")
    assert ask(make(WorstSlice, records), store, client="")["id"] == "c", "the last one"
    assert ask(make(WorstSlice, records), store, client="", image="b")["id"] == "b"


def test_then_another_structure_of_it_then_a_new_volume_then_those_of_others(store, records):
    note_round(records, "b", 0.5, label="liver")
    note_round(records, "b", 0.99)
    note_round(records, "c", 0.2, client="ben")
    strategy = make(WorstSlice, records)
    assert (ask(strategy, store)["id"], ask(strategy, store)["label"]) == ("b", "liver")
    note_round(records, "b", 0.99, label="liver")
    untouched = ask(strategy, store)
    assert (untouched["id"], untouched["slice"], untouched["rounds"]) == ("a", 6, 0)
    note_round(records, "a", 0.98)
    of_ben = ask(strategy, store)
    assert of_ben["id"] == "c" and "Another annotator has begun" in of_ben["reason"]
    note_round(records, "c", 0.99, client="ben")
    finished = ask(strategy, store)
    assert finished["id"] == "a" and "target" in finished["reason"]


@pytest.mark.parametrize("kind", [WorstSlice, WorstVolume, FirstVolume, AnyVolume])
def test_no_volume_is_given_to_two_clients_while_others_are_free(store, records, kind):
    strategy = make(kind, records)
    assert {ask(strategy, store, client)["id"] for client in ("anna", "ben", "cleo")} == set("abc")
    assert "lent to another annotator" in ask(strategy, store, "dora")["reason"]


@pytest.mark.parametrize("kind", [WorstSlice, WorstVolume, FirstVolume, AnyVolume])
def test_a_newcomer_is_never_sent_into_the_volume_of_another(store, records, kind):
    for image in "ab":
        note_round(records, image, 0.2, client="ben")
    assert {ask(make(kind, records), store, "newcomer")["id"] for _ in range(5)} == {"c"}


def test_a_chosen_volume_comes_first_even_if_another_has_begun_it(store, records):
    note_round(records, "b", 0.6)
    note_round(records, "c", 0.2, client="ben")
    strategy = make(WorstSlice, records)
    strategy._lending.choose("c", "newcomer")
    assert ask(strategy, store, "newcomer")["id"] == "c"


def test_of_a_structure_that_both_have_begun_each_goes_on_with_the_own_one(store, records):
    note_round(records, "b", 0.3, client="ben")
    note_round(records, "b", 0.6)
    strategy = make(WorstSlice, records)
    assert ask(strategy, store, "ben")["volume_dice"] < ask(strategy, store)["volume_dice"]


@pytest.mark.parametrize("kind", [WorstSlice, WorstVolume, FirstVolume, AnyVolume])
def test_skipped_and_bad_volumes_are_not_proposed(store, records, kind):
    strategy = make(kind, records)
    strategy._lending.reject("a", "ben", "motion")
    strategy._lending.skip("b", "anna", "not my organ")
    note_round(records, "a", 0.3)
    assert ask(strategy, store)["id"] == "c" and {ask(strategy, store, "cleo")["id"] for _ in range(5)} == {"b"}
    strategy._lending.skip("c", "anna")
    with pytest.raises(UserError, match="you have skipped 2, and 1 more is marked as bad"):
        ask(strategy, store)
    strategy._lending.take_back("a", "anna")
    assert ask(strategy, store)["id"] == "a"


def test_a_volume_that_has_had_its_rounds_is_left(store, records):
    note_round(records, "b", 0.3, annotated=(2, 5, 8))
    assert ask(make(WorstSlice, records), store, max_rounds=4)["id"] == "b"
    assert ask(make(WorstSlice, records), store, max_rounds="3")["id"] == "a"


def test_worst_volume_compares_all_that_a_client_has_begun(store, records):
    note_round(records, "c", 0.2)
    note_round(records, "b", 0.6)
    assert ask(make(WorstVolume, records), store)["id"] == "c" and ask(make(WorstSlice, records), store)["id"] == "b"


def test_labelled_volumes_are_done(store, records):
    note_round(records, "b", 0.1)
    submit(store, "b", make_labels((1, 1, 10, 8)))
    assert ask(make(WorstSlice, records), store)["id"] != "b"
    for image in "ac":
        submit(store, image, make_labels((1, 1, 10, 8)))
    assert ask(make(WorstSlice, records), store) is None


def test_a_label_of_batch_inference_gives_the_first_proposal(store, records):
    labels = make_labels((1, 1, 3, 6), (2, 2, 9, 3))
    labels[:12, 7:11, 8] = 2
    submit(store, "a", labels, "original")
    answer = ask(make(WorstSlice, records), store)
    assert (answer["id"], answer["slice"]) == ("a", 8) and labels[tuple(answer["point"])] == 2


@pytest.mark.parametrize("kind", [WorstSlice, WorstVolume, FirstVolume, AnyVolume])
def test_what_cannot_be_read_is_passed_over_and_reported(store, records, studies, kind, caplog):
    for name in "ab":
        (studies / f"{name}.nii.gz").write_bytes(b"no image")
    note_round(records, "b", 0.2)
    strategy = make(kind, records)
    answers = [ask(strategy, store) for _ in range(8)]
    assert {a["id"] for a in answers} == {"c"}
    passed_over = {v["id"] for a in answers for v in a.get("passed_over", ())}
    assert passed_over == set(strategy._volumes.problems()) != set() and f"passes over {min(passed_over)}" in caplog.text
    assert all("cannot be read" in a["reason"] for a in answers if "passed_over" in a)


def test_when_no_volume_can_be_read_the_reasons_are_given(store, records, studies):
    for name in "abc":
        (studies / f"{name}.nii.gz").write_bytes(b"no image")
    strategy = make(WorstSlice, records)
    with pytest.raises(UserError, match=r"No volume is left that can be read: . \(.\.nii\.gz could not be read.*, . .*, . "):
        ask(strategy, store)
    save(studies / "b.nii.gz", np.zeros(SHAPE, np.int16))
    assert ask(strategy, store)["id"] == "b" and set(strategy._volumes.problems()) == {"a", "c"}


def test_slice_dice_and_its_worst_slice_equal_those_of_monai(store, records):
    reference, predicted = make_labels((1, 2, 9, 8), (2, 3, 8, 6)), make_labels((1, 2, 9, 8), (2, 3, 8, 6))
    predicted[2:7, 2:6, 4] = 0  # of label 1
    predicted[2:5, 7:11, 6] = 0
    submit(store, "a", reference, info={"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]})
    submit(store, "a", predicted, "original")
    result = SliceDice(records)({"method": "slice_dice"}, store)["a"]
    metric = DiceMetric(include_background=True, reduction="none", ignore_empty=False)
    worst = {}
    for value, name in ((1, "liver"), (2, "spleen")):
        y, p = (torch.from_numpy(FRAMES.from_volume(v == value).copy()[:, None].astype(np.float32)) for v in (reference, predicted))
        dice = metric(p, y)[:, 0]
        worst[name] = int(dice.argmin())
        assert result["structures"][name]["dice"] == pytest.approx(dice.tolist(), abs=1e-3)
    assert {n: s["worst_slice"] for n, s in result["structures"].items()} == worst == {"liver": 4, "spleen": 6}
    assert (result["worst_structure"], result["worst_slice"]) == ("liver", 4)


def test_scores_survive_a_restart_and_are_not_computed_twice(store, records, studies, monkeypatch):
    submit(store, "a", make_labels((1, 2, 9, 8)))
    submit(store, "a", make_labels((1, 2, 8, 8)), "original")
    method = SliceDice(records)
    first = method({}, store)
    again = LocalDatastore(str(studies), extensions=("*.nii.gz",))
    assert again.get_image_info("a")["slice_dice"] == first["a"] and set(first) == {"a"}
    monkeypatch.setattr(SliceDice, "_score", lambda *_: pytest.fail("scored again"))
    assert method({}, again) == first


def test_a_changed_label_is_scored_again(store, records):
    submit(store, "a", make_labels((1, 2, 9, 8)))
    submit(store, "a", make_labels((1, 2, 8, 8)), "original")
    assert SliceDice(records)({}, store)["a"]["worst_slice"] == 9
    submit(store, "a", make_labels((1, 3, 9, 8)), "original")
    assert SliceDice(records)({}, store)["a"]["worst_slice"] == 2


def test_slice_dice_of_the_masks_of_the_session(store, records):
    submit(store, "a", make_labels((3, 1, 9, 8)), info={"label_info": [{"name": "spleen", "idx": 3}]})
    note_round(records, "a", 0.9)  # its mask goes from slice 1 to 10
    result = SliceDice(records)({"y_pred": "session"}, store)["a"]
    assert (result["worst_structure"], result["worst_slice"], result["checkpoint"]) == ("spleen", 10, ["embedded"])


def test_a_label_of_another_shape_and_a_damaged_image_do_not_stop_the_scoring(store, records, studies, caplog):
    for image in "abc":
        submit(store, image, make_labels((1, 2, 9, 8)))
    submit(store, "c", make_labels((1, 2, 8, 8)), "original")
    (studies / "c.nii.gz").write_bytes(b"no image")
    submit(store, "a", np.ones((4, 4, 4), np.uint8), "original")
    submit(store, "b", make_labels((1, 2, 8, 8)), "original")
    assert set(SliceDice(records)({}, store)) == {"b"} and "Not scored: a" in caplog.text and "Not scored: c" in caplog.text


def test_slice_quality_repeats_the_estimate_of_the_last_round(store, records):
    record = note_round(records, "a", 0.6)
    result = SliceQuality(records, None, None)({}, store)["a"]
    assert result["structures"]["spleen"]["dice"] == record["expected_dice"] and result["checkpoint"] == ["embedded"]
    assert result["structures"]["spleen"]["volume_dice"] == record["volume_dice"] and result["worst_slice"] != 5


def test_slice_quality_tests_a_label_by_itself(store, records):
    """The engine is a stand-in, which returns the bar without the slices 8 and 9."""
    submit(store, "a", make_labels((1, 2, 9, 8)), "original", {"params": {"label_info": [{"name": "liver", "idx": 1}]}})
    painted = []

    def segment(volume, prompts, options):
        painted.append(prompts)
        return SimpleNamespace(mask=make_labels((1, 2, 7, 8)) > 0)

    engine = SimpleNamespace(segment=segment, prompts=lambda volume, options, masks: masks)
    catalog = SimpleNamespace(resolve=lambda name: ("embedded", "embedded"))
    result = SliceQuality(records, catalog, lambda: engine)({}, store)["a"]
    assert sorted(painted[0]) == [3, 6, 8] and result["structures"]["liver"]["worst_slice"] in (8, 9)
    assert result["structures"]["liver"]["dice"][2:8] == [1.0] * 6 and result["checkpoint"] == "embedded"


@pytest.mark.parametrize("info, expected", [
    ({}, {}),
    ({"label_info": [{"name": "liver", "idx": 4}]}, {4: "liver"}),
    ({"params": {"label_info": [{"name": "liver"}, {"name": "spleen"}]}}, {1: "liver", 2: "spleen"}),
    ({"label_info": [{"name": "liver", "id": "x"}, "?"]}, {}),
])  # fmt: skip
def test_names_of_a_label(store, info, expected):
    submit(store, "a", make_labels((1, 1, 1, 1)), info=info)
    assert label_names(store, "a", "final") == expected
