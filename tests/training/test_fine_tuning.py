"""Tests of fine-tuning on three tiny volumes: its results, its resumption after an interruption, and which weights stay frozen."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from lib.common.errors import CheckpointError, OptionError, UserError
from lib.imaging.datasets import Case, case_from_files
from lib.model import checkpoints
from lib.model.features import encoder_digest
from lib.model.versions import Versions
from lib.training.fine_tuning import FineTuning, fine_tune, split_cases

BASE = f"{checkpoints.EMBEDDED}@sam2_hiera_nano_256.yaml@64"  # The embedded network on slices of 64 pixels.
OPTIONS = FineTuning(epochs=2, steps=2, most=1, clicks=1)
SLICES = 6


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Three volumes of 24 x 24 x 6 voxels with a bright cube on four slices."""
    folder = tmp_path_factory.mktemp("volumes")
    cases = []
    for n in range(3):
        labels = np.zeros((24, 24, SLICES), np.uint8)
        labels[6 + n : 15 + n, 7:16, 1:5] = 1
        image = np.random.default_rng(n).normal(100, 8, labels.shape) + 60 * labels
        for path, array in ((folder / f"{n}.nii", image.astype(np.float32)), (folder / f"{n}_label.nii", labels)):
            nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, 3.0, 1.0])), path)
        cases.append(case_from_files(folder / f"{n}.nii", folder / f"{n}_label.nii"))
    return cases


@pytest.fixture(scope="module")
def finished(cases, tmp_path_factory):
    """An uninterrupted fine-tuning: its stats, the reported stats, the versions and the folder of runs."""
    folder, reports = tmp_path_factory.mktemp("finished"), []
    versions = Versions(folder / "versions", BASE)
    stats = fine_tune(cases, versions, folder / "runs", OPTIONS, reports.append)
    return stats, reports, versions, folder / "runs"


def make_cases(*names) -> list[Case]:
    """Return cases with the given names, whose files do not exist."""
    return [Case(n, Path(f"{n}.nii"), Path(f"{n}_label.nii"), {1: "a"}) for n in names]


def sides_of_split(cases, share=0.25, seed=1) -> dict[str, str]:
    """Return for the name of each case whether it is used for training or validation."""
    training, validation = split_cases(cases, share, seed)
    assert len(training) + len(validation) == len(cases)
    return {**{c.name: "training" for c in training}, **{c.name: "validation" for c in validation}}


def test_split_is_by_volume_and_by_name():
    cases = make_cases(*(f"case_{n}" for n in range(20)))
    sides = sides_of_split(cases)
    assert sides.keys() == {c.name for c in cases} and list(sides.values()).count("validation") == 5
    assert sides_of_split(cases[::-1]) == sides, "the order of the files does not matter"
    assert sides_of_split(cases, seed=2) != sides


def test_most_volumes_stay_on_their_side_when_one_is_added():
    cases = make_cases(*(f"case_{n}" for n in range(20)))
    for count in range(2, 20):
        before, after = sides_of_split(cases[:count]), sides_of_split(cases[: count + 1])
        assert sum(before[n] != after[n] for n in before) <= 1


@pytest.mark.parametrize(("count", "share", "validation_count"), [(2, 0.01, 1), (2, 0.99, 1), (3, 0.25, 1), (10, 0.5, 5), (10, 0.99, 9)])
def test_both_sides_get_volumes(count, share, validation_count):
    assert list(sides_of_split(make_cases(*map(str, range(count))), share).values()).count("validation") == validation_count


@pytest.mark.parametrize("count", [0, 1])
def test_one_volume_is_too_few(tmp_path, count):
    with pytest.raises(UserError, match="two labelled volumes"):
        split_cases(make_cases("a")[:count], 0.25, 1)
    with pytest.raises(UserError, match="two labelled volumes"):
        fine_tune(make_cases("a")[:count], Versions(tmp_path, "embedded"), tmp_path / "runs")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [
    {"parts": "everything"}, {"epochs": 0}, {"steps": 0}, {"rate": 0.0}, {"rate": 1.0}, {"rate": float("nan")},
    {"minutes": -1.0}, {"val_share": 0.0}, {"val_share": 1.0},
], ids=str)  # fmt: skip
def test_bad_options_are_refused(options):
    with pytest.raises(OptionError):
        FineTuning(**options)


def test_an_unknown_base_is_refused(cases, tmp_path):
    with pytest.raises(CheckpointError):
        fine_tune(cases, Versions(tmp_path, "enormous"), tmp_path / "runs", OPTIONS)


def test_the_results_are_a_version_and_stats(finished):
    stats, reports, versions, runs = finished
    assert 0 <= stats["base_metric"] <= stats["best_metric"] <= 1
    assert len(stats["history"]) == 2 and stats["total_time"] > 0
    assert len(stats["learn"]) == 2 and len(stats["check"]) == 1
    assert stats["accepted"] == (stats["best_metric"] > stats["base_metric"])
    path = Path(stats["version"])
    assert path.is_file() and path.name == "v0001.safetensors" and path.with_suffix(".json").is_file()
    assert path.parent == (versions.folder if stats["accepted"] else versions.folder / "aside")
    assert versions.served() == (path if stats["accepted"] else None) and "v0001" in stats["message"]
    assert not runs.exists() or not list(runs.iterdir()), "folders of runs are removed"


def test_progress_is_reported(finished):
    stats, reports, *_ = finished
    assert [r["epoch"] for r in reports][:4] == [0, 1, 2, 2] and all(r["max_epochs"] == 2 for r in reports)
    assert all("base_metric" in r for r in reports) and reports[-1] == stats


def test_decoder_training_keeps_the_encoder(finished):
    base, version = checkpoints.find(BASE), checkpoints.find(finished[0]["version"])
    assert (version.config, version.image_size) == (base.config, base.image_size)
    before, after = checkpoints.read_weights(base.path), checkpoints.read_weights(version.path)
    unchanged = {n for n, t in before.items() if torch.equal(t, after[n])}
    assert before.keys() == after.keys() and unchanged >= {n for n in before if n.startswith("image_encoder.")}
    assert any(n.startswith("sam_mask_decoder.transformer.") for n in before.keys() - unchanged), "something was learned"
    assert encoder_digest(checkpoints.load(base)) == encoder_digest(checkpoints.load(version))


def test_lora_changes_the_encoder_and_leaves_a_plain_checkpoint(cases, tmp_path):
    options = replace(OPTIONS, parts="lora", epochs=1, steps=1, rate=0.5)
    stats = fine_tune(cases, Versions(tmp_path / "versions", BASE), tmp_path / "runs", options)
    base, version = checkpoints.find(BASE), checkpoints.find(stats["version"])
    assert checkpoints.read_weights(base.path).keys() == checkpoints.read_weights(version.path).keys()
    assert encoder_digest(checkpoints.load(base)) != encoder_digest(checkpoints.load(version))


class Interrupted(Exception):
    """Stands for the end of the process."""


def test_an_interrupted_fine_tuning_ends_with_the_same_version(cases, finished, tmp_path):
    """The interruptions are in the validation of the first epoch, whose steps are then repeated, and of the second epoch."""
    versions = Versions(tmp_path / "versions", BASE)

    def interrupt_at(epoch, stats):
        if stats["epoch"] == epoch:
            raise Interrupted

    for epoch in (1, 2):
        with pytest.raises(Interrupted):
            fine_tune(cases, versions, tmp_path / "runs", OPTIONS, partial(interrupt_at, epoch))
        (run,) = (tmp_path / "runs").iterdir()
        assert (run / "stats.json").is_file() and not versions.folder.exists()
    stats = fine_tune(cases, versions, tmp_path / "runs", OPTIONS)
    expected = finished[0]
    for key in ("base_metric", "best_metric", "best_epoch", "history", "accepted", "learn", "check"):
        assert stats[key] == expected[key], key
    weights = checkpoints.read_weights(Path(expected["version"]))
    for name, tensor in checkpoints.read_weights(Path(stats["version"])).items():
        assert torch.equal(tensor, weights[name]), name


def test_an_interrupted_run_is_not_resumed_with_other_options(cases, tmp_path):
    versions, runs = Versions(tmp_path / "versions", BASE), tmp_path / "runs"

    def interrupt(stats):
        raise Interrupted

    for options in (OPTIONS, replace(OPTIONS, seed=2), OPTIONS):
        with pytest.raises(Interrupted):
            fine_tune(cases, versions, runs, options, interrupt)
    assert len(list(runs.iterdir())) == 2


@pytest.mark.parametrize(("dice_after_fit", "score_drop"), [(0.4, "1.25"), (0.2, None)])
def test_the_object_end_is_calibrated_again_on_the_training_volumes(cases, tmp_path, monkeypatch, dice_after_fit, score_drop):
    """The new limits are kept only if they are no worse on the validation volumes."""
    calls = []

    def fit(path, volumes, options, limits):
        calls.append((volumes, limits))
        checkpoints.set_metadata(path, presence_drop="1.25")

    dice = iter([0.1, 0.3, 0.25, dice_after_fit])  # Of the base, after two epochs, and with the new limits.
    monkeypatch.setattr("lib.training.fine_tuning.object_end_calibration.fit", fit)
    monkeypatch.setattr("lib.training.fine_tuning.VolumeCheck.__call__", lambda *_: {"dice": next(dice), "slice_dice": 0.0})
    versions = Versions(tmp_path / "versions", BASE)
    stats = fine_tune(cases, versions, tmp_path / "runs", replace(OPTIONS, most=2))
    assert stats["accepted"] and stats["best_metric"] == max(0.3, dice_after_fit)
    after = checkpoints.metadata(checkpoints.find(versions.served()))
    before = checkpoints.metadata(checkpoints.find(BASE))
    assert after["presence_drop"] == (score_drop or before["presence_drop"]) and after["presence_gain"] == before["presence_gain"]
    (volumes, limits), = calls
    assert [structures for *_, structures in volumes] == [[1], [1]], "one structure of each of the two volumes learned from"
    assert {appearance_gain for _, appearance_gain in limits} == {float(before["presence_gain"])}
