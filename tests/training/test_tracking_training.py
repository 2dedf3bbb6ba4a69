"""Clips, simulated passes and the training of the tracking network."""

import json

import numpy as np
import pytest
import torch

from lib.imaging.metrics import dice
from lib.model.tracking_network import CHANNELS, TRACKING_NETWORK
from lib.model.u_net import SIDE
from lib.training import session_training
from lib.training.session_training import SessionSettings
from lib.training.simulated_tracking import TrackingSession, passes_from_largest
from lib.training.tracking_clips import CLIP_SIDE, collect_clips, cut_clip
from lib.training.tracking_training import TrackingTraining, _tracked_dices
from tests.training.drawn_discs import disc


def moving_disc(count=10):
    """Return a clip, uint8 and bool (T, Y, X), of a disc that moves, grows and shrinks, and ends before the clip does."""
    masks = np.stack([disc(CLIP_SIDE, 60 + 2 * t, 72, 22 - abs(t - 4)) & (t < count - 2) for t in range(count)])
    noise = np.random.default_rng(0).integers(0, 30, masks.shape)
    return (masks * 150 + noise).astype(np.uint8), masks


@pytest.mark.parametrize("axis", range(3))
def test_a_clip_holds_the_structure_in_its_middle(axis):
    i, j, k = np.ogrid[:60, :60, :60]
    mask = ((i - 20) ** 2 + (j - 30) ** 2 + (k - 35) ** 2) < 100
    images, cut = cut_clip(np.where(mask, 900.0, -100.0).astype(np.float32), mask, axis, np.array([1.0, 1.0, 1.0]), np.random.default_rng(0))
    assert images.shape == cut.shape and images.shape[1:] == (CLIP_SIDE, CLIP_SIDE) and images.dtype == np.uint8
    assert dice(images > 127, cut) > 0.9
    assert abs(np.argwhere(cut)[:, 1:].mean(0) - (CLIP_SIDE - 1) / 2).max() < 3
    assert not cut[0].any() or not cut[-1].any()


def test_a_structure_in_few_slices_has_no_clip():
    mask = np.zeros((40, 40, 40), bool)
    mask[10:20, 10:20, 5:8] = True
    assert cut_clip(np.zeros(mask.shape, np.float32), mask, 2, np.ones(3), np.random.default_rng(0)) is None


def test_clips_of_labels_regions_and_generated_volumes(labelled_volumes):
    clips = collect_clips([labelled_volumes], [labelled_volumes], 1)
    assert clips.keys() - {"regions"} == {"ball", "generated"}
    for c in clips.values():
        assert c["first"][0] == 0 and c["first"][-1] == len(c["images"]) == len(c["masks"]) and (np.diff(c["first"]) >= 3).all()


@pytest.mark.parametrize("seed", range(12))
def test_a_session_shows_the_network_what_it_has_to_find(seed):
    """Whoever answers with the truth is shown it again as the mask before the next slice."""
    images, masks = moving_disc()
    random = np.random.default_rng(seed)
    session = next(s for _ in range(20) if (s := TrackingSession.begin(images, masks, random)))  # None where it began at the edge.
    for _ in range(len(images)):
        inputs, target = session.network_input(), session.target()
        assert inputs.shape == (CHANNELS, SIDE, SIDE) and target.shape == (SIDE, SIDE)
        if target.sum() > 100:  # The disc moves by 2 pixels and changes its radius by 1, and annotated masks may be a little wrong.
            assert dice(inputs[2].numpy() > 0, target.numpy() > 0) > 0.6
        if not session.answer(target * 8 - 4, None):
            return
    raise AssertionError("The session does not end.")


def test_a_pass_that_has_lost_the_structure_ends():
    images, masks = moving_disc()
    session = next(s for seed in range(20) if (s := TrackingSession.begin(images, masks, np.random.default_rng(seed))))
    random = np.random.default_rng(1)
    steps = 0
    while True:
        session.network_input()
        steps += 1
        if not session.answer(torch.full((SIDE, SIDE), -5.0), random):
            break
    assert steps <= 4


def test_the_network_that_ships_tracks_a_clip_in_both_directions():
    images, masks = moving_disc()
    assert len(list(passes_from_largest(images, masks))) == 2
    with torch.inference_mode():
        dices = _tracked_dices(TRACKING_NETWORK.load_shipped(), images, masks)
    assert len(dices) == masks.any((1, 2)).sum() - 1 and np.mean(dices) > 0.8


@pytest.fixture
def clips_file(tmp_path):
    """The folder of a run whose clips are discs already."""
    images, masks = moving_disc()
    for name in ("clips", "held_back_clips"):
        arrays = {"images": np.tile(images, (2, 1, 1)), "masks": np.packbits(np.tile(masks, (2, 1, 1)), axis=-1), "first": np.array([0, 10, 20])}
        np.savez(tmp_path / f"{name}.npz", **{f"disc/{key}": array for key, array in arrays.items()})
    return tmp_path


def test_a_run_writes_its_weights_and_goes_on_where_it_was(clips_file, monkeypatch):
    monkeypatch.setattr(TrackingTraining, "batch", 6)
    settings = SessionSettings(clips_file, minutes=0.03, save_seconds=0)
    training = TrackingTraining(settings)
    path = training.run()
    rows = [json.loads(line) for line in (clips_file / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == training.step > 0 and 0 <= rows[-1]["check disc"] <= 1
    inputs = torch.zeros(1, CHANNELS, SIDE, SIDE)
    with torch.inference_mode():
        assert torch.allclose(TRACKING_NETWORK.load(path)(inputs), training.averaged.eval()(inputs), atol=0.05)
    assert TrackingTraining(settings).step == training.step


def test_training_lowers_the_loss(clips_file, monkeypatch):
    monkeypatch.setattr(session_training, "_WARM_UP", 1)
    training = TrackingTraining(SessionSettings(clips_file))
    sessions = [training.new_session() for _ in range(6)]
    losses = [training.train_step(sessions) for _ in range(16)]
    assert np.mean(losses[-4:]) < 0.93 * np.mean(losses[:4])
