"""The generator and the training loop: deterministic, resumable, and the loss can fall."""

import json
from dataclasses import replace

import pytest
import torch

from lib.model import checkpoints
from lib.train import prompts
from lib.train.loop import Phase, Settings, Training
from lib.train.losses import frame_loss, iou, mask_losses
from lib.train.synthetic import ClipGenerator

TINY = (
    Phase("boxes_on_noise", 2, 64, 2, 1, 1e-3, 1e-3, 1.0),
    Phase("single_slices", 2, 64, 2, 1, 1e-3, 1e-3, 0.5),
    Phase("copies", 2, 64, 2, 2, 1e-3, 1e-3, 0.5),
    Phase("clips", 3, 96, 2, 3, 1e-3, 1e-4, 0.2),
)


def test_same_seed_same_clips():
    one, two, other = (ClipGenerator(s).batch(2, 3, 64) for s in (5, 5, 6))
    assert torch.equal(one.frames, two.frames) and torch.equal(one.masks, two.masks)
    assert not torch.equal(one.frames, other.frames)


def test_clips_are_in_range_and_start_with_the_target():
    clip = ClipGenerator(1).batch(24, 5, 96)
    assert clip.frames.shape == clip.masks.shape == (24, 5, 96, 96)
    assert clip.frames.min() >= 0 and clip.frames.max() <= 255
    assert clip.masks[:, 0].flatten(1).any(1).all()
    ended = ~clip.masks[:, -1].flatten(1).any(1)
    assert 0.1 < ended.float().mean() < 0.9, "some targets must end within the clip, and some must not"


def test_depth_counts_erosions():
    square = torch.zeros(1, 9, 9, dtype=torch.bool)
    square[0, 2:7, 2:7] = True
    d = prompts.depth(square)[0]
    assert d[0, 0] == 0 and d[2, 2] == 1 and d[3, 3] == 2 and d[4, 4] == 3


def test_corrective_click_goes_to_the_larger_error():
    truth, predicted = torch.zeros(1, 20, 20, dtype=torch.bool), torch.zeros(1, 20, 20, dtype=torch.bool)
    truth[0, 2:12, 2:12] = True  # missed
    predicted[0, 16:19, 16:19] = True  # in excess, smaller
    rng = torch.Generator().manual_seed(0)
    click = prompts.corrective_click(None, predicted, truth, rng)
    x, y = click["point_coords"][0, 0].int().tolist()
    assert click["point_labels"].tolist() == [[1]] and truth[0, y, x]
    click = prompts.corrective_click(click, truth | predicted, truth, rng)
    x, y = click["point_coords"][0, 1].int().tolist()
    assert click["point_labels"].tolist() == [[1, 0]] and predicted[0, y, x]


def test_box_is_tight():
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 4:9, 10:17] = True
    out = prompts.box(mask, torch.Generator().manual_seed(0), jitter=0.0)
    assert out["point_coords"][0].tolist() == [[10, 4], [17, 9]] and out["point_labels"][0].tolist() == [2, 3]


def test_losses_prefer_the_truth():
    truth = torch.zeros(1, 8, 8, dtype=torch.bool)
    truth[0, 2:6, 2:6] = True
    right = torch.where(truth, 8.0, -8.0)[:, None]
    for balance in (0.0, 1.0):
        assert mask_losses(right, truth, balance).item() < 0.05 < mask_losses(-right, truth, balance).item()
    assert iou(right, truth).item() == 1 and iou(-right, truth).item() == 0


def test_absent_objects_train_the_object_score_only():
    from lib.model.trainable import Prediction

    masks = torch.randn(1, 4, 8, 8, requires_grad=True)
    score = torch.zeros(1, 1, requires_grad=True)
    out = Prediction(masks, torch.rand(1, 4), score, torch.zeros(1, dtype=torch.long), torch.zeros(1, 4))
    loss, _ = frame_loss(out, torch.zeros(1, 32, 32, dtype=torch.bool), 0.5)
    loss.backward()
    assert masks.grad.abs().sum() == 0 and score.grad.item() > 0


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    Training(Settings(str(out), bf16=False, save_every=1), TINY).run()
    return out


def test_an_interrupted_run_ends_with_the_same_weights(uninterrupted, tmp_path, monkeypatch):
    settings = Settings(str(tmp_path), bf16=False, save_every=1)
    original, steps = Training._train_step, []

    def dies(self, *args):
        steps.append(1)
        if len(steps) == 6:
            raise KeyboardInterrupt
        return original(self, *args)

    monkeypatch.setattr(Training, "_train_step", dies)
    with pytest.raises(KeyboardInterrupt):
        Training(settings, TINY).run()
    monkeypatch.setattr(Training, "_train_step", original)
    path = Training(settings, TINY).run()
    expected = checkpoints.read_weights(uninterrupted / "model.safetensors")
    for name, tensor in checkpoints.read_weights(path).items():
        assert torch.equal(tensor, expected[name]), name


def test_the_exported_model_loads_and_says_how_it_was_made(uninterrupted):
    found = checkpoints.find(uninterrupted / "model.safetensors")
    assert found.image_size == 256 and not checkpoints.load(found).training
    info = json.loads((uninterrupted / "training.json").read_text())
    assert info["finished_phases"] == len(TINY) and info["settings"]["seed"] == 1


def test_training_lowers_the_loss(tmp_path):
    """Thirty steps on one batch of boxes, past the warm-up of the rate: the network learns them."""
    phase = replace(TINY[0], steps=100, batch=4)
    training = Training(Settings(str(tmp_path), bf16=False), (phase,))
    drawn = next(training._data(phase))
    training.step = 50
    losses = [float(training._train_step(phase, drawn).loss.detach()) for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5
