"""Simulated and recorded requests, and the training of the volume network."""

import json
from dataclasses import fields

import numpy as np
import pytest
import torch

from lib.imaging.frames import Frames
from lib.imaging.metrics import dice
from lib.imaging.volume import Volume
from lib.model.volume_network import CHANNELS, VOLUME_NETWORK
from lib.propagation.volume_correction import Cells
from lib.training import recorded_requests, session_training, volume_samples
from lib.training.session_training import SessionSettings
from lib.training.simulated_requests import SimulatedRequest, simulate_request, wrong_mask
from lib.training.volume_samples import collect_samples, recorded_samples, simulated_samples, unpack
from lib.training.volume_training import VolumeTraining, varied

SPACING_MM = np.array([2.0, 1.0, 1.0])
SLICES, ROWS, COLUMNS = np.ogrid[:14, :40, :44]
BALL = (2.0 * (SLICES - 7)) ** 2 + (ROWS - 20) ** 2 + (COLUMNS - 24) ** 2 < 100
IMAGE = (100 * BALL + np.random.default_rng(0).normal(0, 8, BALL.shape)).astype(np.float32)
SEEDS = range(15)


@pytest.fixture(scope="module")
def frames():
    return Frames.of(Volume(IMAGE.transpose(2, 1, 0), np.diag([1.0, 1.0, 2.0, 1.0])), axis=2, window="-50,150")


def test_masks_are_wrong_in_many_ways_but_not_elsewhere():
    masks = [wrong_mask(BALL, IMAGE, SPACING_MM, np.random.default_rng(seed)) for seed in SEEDS]
    dices = [dice(m, BALL) for m in masks]
    assert all(m.any() for m in masks) and min(dices) < 0.8 < max(dices) and np.mean(dices) > 0.4
    extents = [tuple(np.flatnonzero(m.any((1, 2)))[[0, -1]]) for m in masks]
    assert len(set(extents)) > 5


@pytest.mark.parametrize("seed", SEEDS)
def test_a_request_obeys_its_prompts(seed):
    request = simulate_request(BALL, IMAGE, SPACING_MM, np.random.default_rng(seed))
    assert request.clicks or request.painted or request.boxes
    for t, y, x, inside in request.clicks:
        assert BALL[t, y, x] == inside
    last = request.clicks[-1:]
    assert all(request.mask[t, y, x] == inside for t, y, x, inside in last)
    assert sorted(request.prompts) == sorted({c[0] for c in request.clicks} | set(request.painted) | set(request.boxes))
    assert sum((p.labels < 2).sum() for p in request.prompts.values()) == sum(c[0] not in request.painted for c in request.clicks)
    for t, (left, top, right, bottom) in request.boxes.items():
        assert {*request.prompts[t].labels[:2]} == {2, 3} and BALL[t, top : bottom + 1, left : right + 1].sum() == BALL[t].sum()


def test_samples_lie_on_one_grid(frames):
    samples = list(simulated_samples(frames, BALL, np.random.default_rng(1)))
    assert len(samples) == 3
    for s in samples:
        assert s.cells.network_input().shape == (CHANNELS, *s.reference.shape) and s.reference.max() == 1
        assert all(s.reference[tuple(c[:3])] > 0.2 for c in s.cells.clicks if c[3])


def test_requests_whose_mask_is_empty_are_left_out(frames, monkeypatch):
    monkeypatch.setattr(volume_samples, "simulate_request", lambda reference, *_: SimulatedRequest(np.zeros_like(reference)))
    assert not list(simulated_samples(frames, BALL, np.random.default_rng(0)))


def test_requests_begin_in_several_ways():
    requests = [simulate_request(BALL, IMAGE, SPACING_MM, np.random.default_rng(seed)) for seed in range(40)]
    assert 3 < sum(bool(r.boxes) for r in requests) < 12 and 3 < sum(bool(r.painted) for r in requests) < 12


@pytest.mark.parametrize(
    ("beginning", "clicks", "sureness"),
    [("click", [1, 2, 3], 0.2), ("box", [0, 1, 2], 1.5), ("painted slices", [0, 1, 2], 1.5), ("clicked slices", [], 0.2)],
)
def test_the_engine_is_asked_for_samples(frames, monkeypatch, beginning, clicks, sureness):
    monkeypatch.setattr(recorded_requests, "_CORRECTIONS", {beginning: 2})
    monkeypatch.setattr(recorded_requests, "_SHARES", [1])
    samples = list(recorded_samples(frames, BALL, np.random.default_rng(0)))
    assert samples and all(s.cells.sureness.max() >= sureness - 1e-6 for s in samples)
    assert not clicks or [len(s.cells.clicks) for s in samples] == clicks[: len(samples)]
    assert max(dice(s.cells.mask > 0.5, s.reference > 0.5) for s in samples) > 0.5


def test_packed_samples_come_back(labelled_volumes, monkeypatch):
    monkeypatch.setattr(volume_samples, "_RECORDED_SHARE", 0)
    monkeypatch.setattr(volume_samples, "_REGIONS_OF_IMAGE", 1)
    packed = collect_samples([labelled_volumes], [labelled_volumes], 1)
    assert packed.keys() - {"regions"} == {"ball", "generated"}
    samples = unpack(packed["ball"])
    assert len(samples) == 3
    for s in samples:
        assert s.cells.network_input().dtype == torch.float32 and 0 <= s.reference.min() < s.reference.max() <= 1


@pytest.mark.parametrize("seed", SEEDS)
def test_varied_samples_stay_consistent(frames, seed):
    sample = next(simulated_samples(frames, BALL, np.random.default_rng(seed)))
    other = varied(sample, np.random.default_rng(seed))
    assert other.reference.sum() == pytest.approx(sample.reference.sum())
    for before, after in zip(sample.cells.clicks, other.cells.clicks, strict=True):
        assert sample.reference[tuple(before[:3])] == other.reference[tuple(after[:3])] and before[3] == after[3]
    planes = [(c.sureness > 0) & (c.mask > 0.5).any((1, 2)) for c in (sample.cells, other.cells)]
    assert planes[0].sum() == planes[1].sum()
    assert {f.name for f in fields(Cells)} == set(vars(other.cells))


@pytest.fixture
def folder(tmp_path, frames):
    """The folder of a run whose samples are made already."""
    samples = list(simulated_samples(frames, BALL, np.random.default_rng(3)))
    packed = {f"ball/{key}": a for n, s in enumerate(samples) for key, a in volume_samples._pack(s, n).items()}
    for name in ("samples", "held_back_samples"):
        np.savez(tmp_path / f"{name}.npz", **packed)
    return tmp_path


def test_a_run_writes_its_weights_and_goes_on_where_it_was(folder, monkeypatch):
    monkeypatch.setattr(VolumeTraining, "batch", 2)
    settings = SessionSettings(folder, minutes=0.02, save_seconds=0)
    training = VolumeTraining(settings)
    path = training.run()
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert rows[-1]["step"] == training.step > 0 and 0 <= rows[-1]["check ball after"] <= 1
    inputs = torch.rand(1, CHANNELS, 9, 20, 13)
    with torch.inference_mode():
        assert torch.allclose(VOLUME_NETWORK.load(path)(inputs), training.averaged.eval()(inputs), atol=0.05)
    assert VolumeTraining(settings).step == training.step


def test_training_lowers_the_loss(folder, monkeypatch):
    monkeypatch.setattr(session_training, "_WARM_UP", 1)
    training = VolumeTraining(SessionSettings(folder))
    sessions = [training.new_session() for _ in range(2)]
    losses = [training.train_step(list(sessions)) for _ in range(10)]
    assert np.mean(losses[-3:]) < 0.95 * np.mean(losses[:3])
