"""Crops, simulated clicks and the training of the correction network."""

import json

import numpy as np
import pytest
import torch

from lib.common.errors import UserError
from lib.imaging.metrics import dice
from lib.model.correction_network import CHANNELS, CORRECTION_NETWORK
from lib.model.u_net import SIDE
from lib.training import session_training
from lib.training.correction_crops import CROP_SIDE, _rings, collect_crops, cut_crop
from lib.training.correction_training import CorrectionTraining
from lib.training.session_training import SessionSettings, mask_loss
from lib.training.simulated_corrections import CorrectionSession, loose_box, next_click
from tests.training.drawn_discs import disc


@pytest.mark.parametrize(("radius", "y", "x"), [(5, 20, 90), (40, 60, 60), (100, 150, 150)])
def test_a_crop_holds_the_structure_in_its_middle(radius, y, x):
    mask = disc(300, y, x, radius)
    image, cut = cut_crop(np.where(mask, 900.0, -100.0).astype(np.float32), mask, np.random.default_rng(0))
    assert image.shape == cut.shape == (CROP_SIDE, CROP_SIDE) and image.dtype == np.uint8
    assert dice(image > 127, cut) > 0.95
    assert abs(np.argwhere(cut).mean(0) - (CROP_SIDE - 1) / 2).max() < 2


def test_a_structure_of_a_few_pixels_has_no_crop():
    assert cut_crop(np.zeros((50, 50), np.float32), disc(50, 25, 25, 1), np.random.default_rng(0)) is None


@pytest.mark.parametrize(
    ("mask", "reference", "click"),
    [
        (disc(SIDE, 40, 30, 10) & False, disc(SIDE, 40, 30, 10), (True, 40, 30)),
        (disc(SIDE, 40, 30, 10) | disc(SIDE, 70, 70, 6), disc(SIDE, 40, 30, 10), (False, 70, 70)),
        (disc(SIDE, 40, 30, 10), disc(SIDE, 40, 30, 10), None),
    ],
)
def test_the_next_click_lies_where_the_worst_error_is_deepest(mask, reference, click):
    assert next_click(mask, reference) == click


@pytest.mark.parametrize("seed", range(8))
def test_a_box_is_at_most_a_pixel_off(seed):
    box = loose_box(disc(SIDE, 40, 30, 10), np.random.default_rng(seed))
    assert abs(box - [[29.5, 19.5], [50.5, 40.5]]).max() <= 1


def test_some_sessions_begin_with_a_box():
    mask = disc(CROP_SIDE, 72, 72, 24)
    sessions = [CorrectionSession.begin((mask * 200).astype(np.uint8), mask, np.random.default_rng(seed)) for seed in range(40)]
    boxed = [s for s in sessions if s.box is not None]
    assert 4 < len(boxed) < 20 and not any(s.clicks for s in boxed)
    assert {bool(s.displayed.any()) for s in boxed} == {True, False}
    assert all(s.network_input()[-1].any() == (s.box is not None) for s in sessions)


def test_a_session_ends_when_the_mask_is_right_or_the_clicks_are_used_up():
    mask = disc(CROP_SIDE, 72, 72, 24)
    session = CorrectionSession.check((mask * 200).astype(np.uint8), mask, 3)
    right = torch.from_numpy(np.where(session.reference, 5.0, -5.0))
    assert not session.answer(right, None)
    session = CorrectionSession.check((mask * 200).astype(np.uint8), mask, 3)
    assert [session.answer(-right.abs(), None) for _ in range(3)] == [True, True, False]
    assert len(session.clicks) == 3


def test_crops_of_labels_regions_and_generated_volumes(labelled_volumes):
    crops = collect_crops([labelled_volumes], [labelled_volumes], 1)
    assert crops.keys() - {"rings"} == {"ball", "regions", "generated"}
    for images, masks in (c.values() for c in crops.values()):
        assert len(images) == len(masks) > 0 and images.shape[1:] == (CROP_SIDE, CROP_SIDE) and masks.shape[2] * 8 == CROP_SIDE


def test_rings_and_arcs_of_a_slice_are_found():
    ring = disc(120, 40, 40, 20) & ~disc(120, 40, 40, 14)
    arc = disc(120, 80, 80, 24) & ~disc(120, 80, 80, 18) & ~disc(120, 80, 104, 20)
    image = np.where(ring | arc, 0.9, np.where(disc(120, 95, 25, 14), 0.9, 0.1)) + np.random.default_rng(0).normal(0, 0.02, ring.shape)
    found = list(_rings(image, np.random.default_rng(0)))
    for shape in (ring, arc):
        assert max(dice(mask, shape) for mask in found) > 0.75
    assert max(dice(mask, disc(120, 95, 25, 14)) for mask in found) < 0.2


def test_a_folder_without_a_list_of_volumes_is_refused(tmp_path):
    with pytest.raises(UserError, match="no readable dataset.json"):
        collect_crops([tmp_path], [], 0)
    (tmp_path / "dataset.json").write_text('{"training": [{"image": "a.nii.gz"}]}')
    with pytest.raises(UserError, match="no readable dataset.json"):
        collect_crops([tmp_path], [], 0)
    with pytest.raises(UserError, match="nothing to cut"):
        collect_crops([], [], 0)


@pytest.fixture
def crops_file(tmp_path):
    """The folder of a run whose crops are discs already."""
    masks = [disc(CROP_SIDE, 72, 72, r) for r in (18, 22, 26, 30)]
    crops = {"disc/images": np.stack([(m * 180).astype(np.uint8) for m in masks]), "disc/masks": np.packbits(np.stack(masks), axis=-1)}
    for name in ("crops", "held_back_crops"):
        np.savez(tmp_path / f"{name}.npz", **crops)
    return tmp_path


def test_a_run_writes_its_weights_and_goes_on_where_it_was(crops_file, monkeypatch):
    monkeypatch.setattr(CorrectionTraining, "batch", 6)
    settings = SessionSettings(crops_file, minutes=0.03, save_seconds=0)
    training = CorrectionTraining(settings)
    path = training.run()
    rows = [json.loads(line) for line in (crops_file / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == training.step > 0 and 0 <= rows[-1]["check disc 5"] <= 1
    inputs = torch.zeros(1, CHANNELS, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.allclose(CORRECTION_NETWORK.load(path)(inputs), training.averaged.eval()(inputs), atol=0.05)
    assert CorrectionTraining(settings).step == training.step


def test_training_lowers_the_loss(crops_file, monkeypatch):
    monkeypatch.setattr(session_training, "_WARM_UP", 1)
    training = CorrectionTraining(SessionSettings(crops_file))
    sessions, others = ([training.new_session() for _ in range(6)] for _ in range(2))

    def loss_of_others():
        references = torch.from_numpy(np.stack([s.reference for s in others]).astype(np.float32))
        with torch.inference_mode():
            return float(mask_loss(training.network(torch.stack([s.network_input() for s in others])), references))

    before = loss_of_others()
    for _ in range(20):
        training.train_step(sessions)
    assert loss_of_others() < 0.93 * before
