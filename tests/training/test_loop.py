"""The generator and the training loop: deterministic, resumable, on several processes, and the loss can fall."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy import ndimage

from lib.common.errors import UserError
from lib.model import checkpoints, worker_pool
from lib.model.differentiable import Prediction
from lib.training import training_prompts
from lib.training.clip_generator import ClipGenerator
from lib.training.loop import Phase, Settings, Training
from lib.training.losses import frame_loss, iou, mask_losses
from lib.training.random_source import Draw
from lib.training.supervoxels import RealImages
from lib.training.targets import choose_targets
from lib.training.training_log import read_rows

HERE = Path(__file__).resolve().parent

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
    d = training_prompts.depth(square)[0]
    assert d[0, 0] == 0 and d[2, 2] == 1 and d[3, 3] == 2 and d[4, 4] == 3


def test_corrective_click_goes_to_the_larger_error():
    reference, predicted = torch.zeros(1, 20, 20, dtype=torch.bool), torch.zeros(1, 20, 20, dtype=torch.bool)
    reference[0, 2:12, 2:12] = True  # missed
    predicted[0, 16:19, 16:19] = True  # in excess, smaller
    rng = torch.Generator().manual_seed(0)
    click = training_prompts.corrective_click(None, predicted, reference, rng)
    x, y = click["point_coords"][0, 0].int().tolist()
    assert click["point_labels"].tolist() == [[1]] and reference[0, y, x]
    click = training_prompts.corrective_click(click, reference | predicted, reference, rng)
    x, y = click["point_coords"][0, 1].int().tolist()
    assert click["point_labels"].tolist() == [[1, 0]] and predicted[0, y, x]


def test_box_is_tight():
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 4:9, 10:17] = True
    out = training_prompts.box(mask, torch.Generator().manual_seed(0), jitter=0.0)
    assert out["point_coords"][0].tolist() == [[10, 4], [17, 9]] and out["point_labels"][0].tolist() == [2, 3]


def test_losses_prefer_the_truth():
    reference = torch.zeros(1, 8, 8, dtype=torch.bool)
    reference[0, 2:6, 2:6] = True
    right = torch.where(reference, 8.0, -8.0)[:, None]
    for balance in (0.0, 1.0):
        assert mask_losses(right, reference, balance).item() < 0.05 < mask_losses(-right, reference, balance).item()
    assert iou(right, reference).item() == 1 and iou(-right, reference).item() == 0


def test_absent_objects_train_the_object_score_only():
    masks = torch.randn(1, 4, 8, 8, requires_grad=True)
    score = torch.zeros(1, 1, requires_grad=True)
    out = Prediction(masks, torch.rand(1, 4), score, torch.zeros(1, dtype=torch.long), torch.zeros(1, 4))
    loss, _ = frame_loss(out, torch.zeros(1, 32, 32, dtype=torch.bool), 0.5)
    loss.backward()
    assert masks.grad.abs().sum() == 0 and score.grad.item() > 0


def test_targets_of_one_clip_differ():
    labels = torch.zeros(2, 30, 30, dtype=torch.long)
    labels[0, 2:8, 2:8], labels[:, 2:8, 20:26], labels[:, 20:26, 2:8] = 1, 2, 3
    for seed in range(5):
        masks = choose_targets(Draw(seed), labels, 3, {}, painted=0)
        assert sorted(int(labels[0][m].unique()) for m in masks[:, 0]) == [1, 2, 3] and (masks[:, 0].sum((1, 2)) == 36).all()
    assert len(choose_targets(Draw(0), labels.clamp_max(1), 2, {}, painted=0)) == 2, "one structure serves twice"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Two small images of smooth noise."""
    folder = tmp_path_factory.mktemp("images")
    for n in range(2):
        array = ndimage.gaussian_filter(np.random.default_rng(n).normal(size=(48, 44, 20)), 3)
        nib.save(nib.Nifti1Image((1000 * array).astype(np.float32), np.diag([1, 1, 2.5, 1])), folder / f"{n}.nii.gz")
    return RealImages.read(folder)


def test_real_images_are_scaled_and_isotropic(images):
    assert len(images.volumes) == 2
    for volume in images.volumes:
        assert volume.shape == (19, 18, 20) and volume.min() == 0 and volume.max() == 1


def test_clips_of_real_images_start_with_their_targets(images):
    for seed in range(3):
        clip = ClipGenerator(seed, images=images, real_share=1.0).batch(2, 3, 64, objects=2)
        assert clip.frames.shape == (2, 3, 64, 64) and clip.masks.shape == (4, 3, 64, 64)
        assert clip.frames.min() >= 0 and clip.frames.max() <= 255
        assert clip.masks[:, 0].flatten(1).any(1).all()


def test_same_seed_same_clips_of_real_images(images):
    one, two, other = (ClipGenerator(s, images=images, real_share=1.0).batch(1, 3, 64) for s in (5, 5, 6))
    assert torch.equal(one.frames, two.frames) and torch.equal(one.masks, two.masks)
    assert not torch.equal(one.frames, other.frames)


def test_regions_follow_the_edges_of_the_image(images):
    """Pixels of one region are more alike than those of the whole slice."""
    image, regions = images.clip(Draw(3), 3, 96)
    assert image.shape == regions.shape == (3, 96, 96) and image.min() >= 0 and image.max() <= 1
    inside = [image[regions == n].var() * (regions == n).sum() for n in regions.unique()]
    assert len(inside) > 3 and sum(inside) / image.numel() < 0.5 * image.var()


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="NIfTI"):
            RealImages.read(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    Training(Settings(str(out), bf16=False, save_every=1), TINY).run()
    return out


def start(code: str, folder: Path, *launcher: str) -> int:
    """Runs Python code with the run's folder as argument in a process of its own; returns the exit status."""
    script, log = folder / "script.py", folder / "output.txt"
    script.write_text(f"import sys\nsys.path[:0] = {[str(HERE.parents[1])]}\n{code}")
    command = [sys.executable, *launcher, str(script), str(folder / "run")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "w") as f:
        return subprocess.run(command, stdout=f, stderr=f, timeout=300, env=environment).returncode


KILLED = """
import os, signal
from lib.training.loop import Settings, Training
from tests.training.test_loop import TINY

original, calls = Training.{method}, []

def dies(self, *args):
    calls.append(1)
    if len(calls) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args)

Training.{method} = dies
Training(Settings(sys.argv[1], bf16=False, save_every=2), TINY).run()
"""


@pytest.mark.parametrize(("method", "count", "logged"), [("_train_step", 9, 3), ("save", 5, 3)])
def test_a_killed_run_ends_with_the_same_weights_and_log(uninterrupted, tmp_path, method, count, logged):
    """Killed in the middle of a phase, and when a row is logged whose steps are not saved yet."""
    assert start(KILLED.format(method=method, count=count), tmp_path) == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    out = tmp_path / "run"
    assert (out / "state.pt").exists() and not (out / "model.safetensors").exists()
    assert len(read_rows(out / "log.jsonl")) == logged
    path = Training(Settings(str(out), bf16=False, save_every=2), TINY).run()
    weights, expected = checkpoints.read_weights(path), checkpoints.read_weights(uninterrupted / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name

    def rows(folder):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(folder / "log.jsonl")]

    assert len(rows(out)) == len(TINY) and rows(out) == rows(uninterrupted)


def test_a_finished_run_is_not_done_again(uninterrupted, monkeypatch):
    before, rows = checkpoints.read_weights(uninterrupted / "model.safetensors"), read_rows(uninterrupted / "log.jsonl")
    monkeypatch.setattr(Training, "_train_step", None)
    path = Training(Settings(str(uninterrupted), bf16=False, save_every=1), TINY).run()
    for name, tensor in checkpoints.read_weights(path).items():
        assert torch.equal(tensor, before[name]), name
    assert read_rows(uninterrupted / "log.jsonl") == rows


def test_the_exported_model_loads_and_says_how_it_was_made(uninterrupted):
    found = checkpoints.find(uninterrupted / "model.safetensors")
    assert found.image_size == TINY[-1].size and not checkpoints.load(found).training
    info = json.loads((uninterrupted / "training.json").read_text())
    assert info["finished_phases"] == len(TINY) and info["settings"]["seed"] == 1 and info["workers"] == 1


def test_a_run_leaves_log_curves_and_events(uninterrupted):
    rows = read_rows(uninterrupted / "log.jsonl")
    assert [(r["phase"], r["step"], r["total"]) for r in rows] == [(0, 2, 2), (1, 2, 4), (2, 2, 6), (3, 3, 9)]
    assert all(r["loss"] > 0 for r in rows) and "track" in rows[-1]
    assert imread(uninterrupted / "curves.png").std() > 0
    assert [p.name for p in (uninterrupted / "events").glob("events.*")]
    assert not list(uninterrupted.glob("*.tmp"))


WORKER = """
from pathlib import Path
import torch
from lib.training import loop
from tests.training.test_loop import TINY

drawn, written = [], []
train_step, save_weights = loop.Training._train_step, loop.save_weights

def step(self, phase, data):
    drawn.append(data[2].frames)
    return train_step(self, phase, data)

def save(weights, path, *args, **kwargs):
    written.append(path.name)
    save_weights(weights, path, *args, **kwargs)

loop.Training._train_step, loop.save_weights = step, save
training = loop.Training(loop.Settings(sys.argv[1], bf16=False, save_every=1), TINY[2:])
training.run()
content = {"drawn": drawn, "written": written, "average": training.average, "weights": training.model.state_dict()}
torch.save(content, Path(sys.argv[1]) / f"rank{training.workers.rank}.pt")
"""


def test_two_processes_train_one_network_on_different_clips(tmp_path):
    status = start(WORKER, tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert status == 0, (tmp_path / "output.txt").read_text()
    out = tmp_path / "run"
    first, second = (torch.load(out / f"rank{n}.pt") for n in range(2))
    for kind in ("weights", "average"):
        for name, tensor in first[kind].items():
            assert torch.equal(tensor, second[kind][name]), name
    assert len(first["drawn"]) == len(second["drawn"]) == 5
    assert not any(torch.equal(a, b) for a, b in zip(first["drawn"], second["drawn"], strict=True))
    assert first["written"] == ["model.safetensors"] and second["written"] == []
    assert [(r["phase"], r["step"]) for r in read_rows(out / "log.jsonl")] == [(0, 2), (1, 3)]
    assert json.loads((out / "training.json").read_text())["workers"] == 2
    weights = checkpoints.read_weights(out / "model.safetensors")
    assert all(torch.equal(t, first["average"][n].half()) for n, t in weights.items())


def test_training_lowers_the_loss(tmp_path):
    """Thirty steps on one batch of boxes, past the warm-up of the rate: the network learns them."""
    phase = replace(TINY[0], steps=100, batch=4)
    training = Training(Settings(str(tmp_path), bf16=False), (phase,))
    drawn = next(training._data(phase))
    training.step = 50
    losses = [training._train_step(phase, drawn)["loss"][0] for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5


def test_halves_of_a_step_side_by_side_train_the_same_whatever_the_cores(tmp_path, monkeypatch):
    """The only difference between one and two cores is where the halves are computed."""
    before, weights = torch.get_num_threads(), []
    for n, cores in enumerate((1, 2, 2)):
        monkeypatch.setattr(worker_pool, "CORES", cores)
        torch.set_num_threads(1)
        training = Training(Settings(str(tmp_path / str(n)), config="sam2_hiera_nano_256.yaml"), TINY[-1:])
        training.run()
        weights.append(training.model.state_dict())
    torch.set_num_threads(before)
    for other in weights[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in weights[0].items())
