"""Tests of the clip generator, prompts, losses and the training loop: deterministic, resumable, also in several processes."""

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
from lib.training import loop, training_prompts
from lib.training.clip_generator import ClipGenerator
from lib.training.loop import Phase, Settings, Training
from lib.training.losses import frame_loss, mask_iou, mask_losses
from lib.training.random_source import RandomSource
from lib.training.supervoxels import RealImages
from lib.training.targets import choose_targets
from lib.training.training_log import read_rows

ROOT = Path(__file__).resolve().parents[2]

TINY = (
    Phase("boxes_on_noise", 2, 64, 2, 1, 1e-3, 1e-3, 1.0),
    Phase("single_slices", 2, 64, 2, 1, 1e-3, 1e-3, 0.5),
    Phase("copies", 2, 64, 2, 2, 1e-3, 1e-3, 0.5),
    Phase("clips", 3, 96, 2, 3, 1e-3, 1e-4, 0.2),
)


def test_the_same_seed_gives_the_same_clips():
    first, second, other = (ClipGenerator(s).generate_batch(2, 3, 64) for s in (5, 5, 6))
    assert torch.equal(first.frames, second.frames) and torch.equal(first.masks, second.masks)
    assert not torch.equal(first.frames, other.frames)


def test_clips_are_in_range_and_start_with_the_target():
    clip = ClipGenerator(1).generate_batch(24, 5, 96)
    assert clip.frames.shape == clip.masks.shape == (24, 5, 96, 96)
    assert clip.frames.min() >= 0 and clip.frames.max() <= 255
    assert clip.masks[:, 0].flatten(1).any(1).all()
    has_ended = ~clip.masks[:, -1].flatten(1).any(1)
    assert 0.1 < has_ended.float().mean() < 0.9, "some targets must end within the clip, and some must not"


def test_erosion_depth_counts_erosions():
    square = torch.zeros(1, 9, 9, dtype=torch.bool)
    square[0, 2:7, 2:7] = True
    depth = training_prompts.erosion_depth(square)[0]
    assert depth[0, 0] == 0 and depth[2, 2] == 1 and depth[3, 3] == 2 and depth[4, 4] == 3


def test_a_corrective_click_goes_to_the_larger_error():
    reference, predicted = torch.zeros(1, 20, 20, dtype=torch.bool), torch.zeros(1, 20, 20, dtype=torch.bool)
    reference[0, 2:12, 2:12] = True  # Missed.
    predicted[0, 16:19, 16:19] = True  # Wrongly included, and smaller.
    rng = torch.Generator().manual_seed(0)
    click = training_prompts.add_corrective_click(None, predicted, reference, rng)
    x, y = click["point_coords"][0, 0].int().tolist()
    assert click["point_labels"].tolist() == [[1]] and reference[0, y, x]
    click = training_prompts.add_corrective_click(click, reference | predicted, reference, rng)
    x, y = click["point_coords"][0, 1].int().tolist()
    assert click["point_labels"].tolist() == [[1, 0]] and predicted[0, y, x]


def test_a_box_without_jitter_is_tight():
    mask = torch.zeros(1, 20, 30, dtype=torch.bool)
    mask[0, 4:9, 10:17] = True
    prompt = training_prompts.sample_box(mask, torch.Generator().manual_seed(0), jitter=0.0)
    assert prompt["point_coords"][0].tolist() == [[10, 4], [17, 9]] and prompt["point_labels"][0].tolist() == [2, 3]


def test_losses_are_lower_for_the_right_mask():
    reference = torch.zeros(1, 8, 8, dtype=torch.bool)
    reference[0, 2:6, 2:6] = True
    right = torch.where(reference, 8.0, -8.0)[:, None]
    for balance in (0.0, 1.0):
        assert mask_losses(right, reference, balance).item() < 0.05 < mask_losses(-right, reference, balance).item()
    assert mask_iou(right, reference).item() == 1 and mask_iou(-right, reference).item() == 0


def test_absent_objects_train_only_the_object_score():
    masks = torch.randn(1, 4, 8, 8, requires_grad=True)
    score = torch.zeros(1, 1, requires_grad=True)
    prediction = Prediction(masks, torch.rand(1, 4), score, torch.zeros(1, dtype=torch.long), torch.zeros(1, 4))
    loss, _ = frame_loss(prediction, torch.zeros(1, 32, 32, dtype=torch.bool), 0.5)
    loss.backward()
    assert masks.grad.abs().sum() == 0 and score.grad.item() > 0


def test_targets_of_one_clip_differ():
    labels = torch.zeros(2, 30, 30, dtype=torch.long)
    labels[0, 2:8, 2:8], labels[:, 2:8, 20:26], labels[:, 20:26, 2:8] = 1, 2, 3
    for seed in range(5):
        masks = choose_targets(RandomSource(seed), labels, 3, {}, last_tissue_label=0)
        assert sorted(int(labels[0][m].unique()) for m in masks[:, 0]) == [1, 2, 3] and (masks[:, 0].sum((1, 2)) == 36).all()
    assert len(choose_targets(RandomSource(0), labels.clamp_max(1), 2, {}, last_tissue_label=0)) == 2, "the only structure is chosen twice"


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
        clip = ClipGenerator(seed, images=images, real_share=1.0).generate_batch(2, 3, 64, objects=2)
        assert clip.frames.shape == (2, 3, 64, 64) and clip.masks.shape == (4, 3, 64, 64)
        assert clip.frames.min() >= 0 and clip.frames.max() <= 255
        assert clip.masks[:, 0].flatten(1).any(1).all()


def test_the_same_seed_gives_the_same_clips_of_real_images(images):
    first, second, other = (ClipGenerator(s, images=images, real_share=1.0).generate_batch(1, 3, 64) for s in (5, 5, 6))
    assert torch.equal(first.frames, second.frames) and torch.equal(first.masks, second.masks)
    assert not torch.equal(first.frames, other.frames)


def test_regions_follow_the_edges_of_the_image(images):
    """The pixels of a region vary less than those of the whole image."""
    image, regions = images.sample_clip(RandomSource(3), 3, 96)
    assert image.shape == regions.shape == (3, 96, 96) and image.min() >= 0 and image.max() <= 1
    variances = [image[regions == n].var() * (regions == n).sum() for n in regions.unique()]
    assert len(variances) > 3 and sum(variances) / image.numel() < 0.5 * image.var()


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UserError, match="NIfTI"):
            RealImages.read(folder)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run that was never interrupted."""
    out = tmp_path_factory.mktemp("whole")
    Training(Settings(str(out), bf16=False, save_every=1), TINY).run()
    return out


def run_script(code: str, folder: Path, *launcher: str) -> int:
    """Run Python code in another process with the folder of a training run as its argument; return the exit status."""
    script, log = folder / "script.py", folder / "output.txt"
    script.write_text(f"import sys\nsys.path[:0] = {[str(ROOT)]}\n{code}")
    command = [sys.executable, *launcher, str(script), str(folder / "run")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "w") as f:
        return subprocess.run(command, stdout=f, stderr=f, timeout=300, env=environment).returncode


KILLED_RUN = """
import os, signal
from lib.training.loop import Settings, Training
from tests.training.test_loop import TINY

original, calls = Training.{method}, []

def kill_at_count(self, *args):
    calls.append(1)
    if len(calls) == {count}:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(self, *args)

Training.{method} = kill_at_count
Training(Settings(sys.argv[1], bf16=False, save_every=2), TINY).run()
"""


@pytest.mark.parametrize(("method", "count", "logged"), [("_train_step", 9, 3), ("save", 5, 3)])
def test_a_killed_run_ends_with_the_same_weights_and_log(uninterrupted, tmp_path, method, count, logged):
    """The run is killed in the middle of a phase, or when a row is logged but the state of its step is not saved yet."""
    assert run_script(KILLED_RUN.format(method=method, count=count), tmp_path) == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    out = tmp_path / "run"
    assert (out / "state.pt").exists() and not (out / "model.safetensors").exists()
    assert len(read_rows(out / "log.jsonl")) == logged
    path = Training(Settings(str(out), bf16=False, save_every=2), TINY).run()
    weights, expected = checkpoints.read_weights(path), checkpoints.read_weights(uninterrupted / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name

    def rows_without_time(folder):
        return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(folder / "log.jsonl")]

    assert len(rows_without_time(out)) == len(TINY) and rows_without_time(out) == rows_without_time(uninterrupted)


def test_a_finished_run_is_not_repeated(uninterrupted, monkeypatch):
    before, rows = checkpoints.read_weights(uninterrupted / "model.safetensors"), read_rows(uninterrupted / "log.jsonl")
    monkeypatch.setattr(Training, "_train_step", None)
    path = Training(Settings(str(uninterrupted), bf16=False, save_every=1), TINY).run()
    for name, tensor in checkpoints.read_weights(path).items():
        assert torch.equal(tensor, before[name]), name
    assert read_rows(uninterrupted / "log.jsonl") == rows


def test_the_exported_model_loads_and_has_a_description_of_its_training(uninterrupted):
    checkpoint = checkpoints.find(uninterrupted / "model.safetensors")
    assert checkpoint.image_size == TINY[-1].size and not checkpoints.load(checkpoint).training
    info = json.loads((uninterrupted / "training.json").read_text())
    assert info["finished_phases"] == len(TINY) and info["settings"]["seed"] == 1 and info["workers"] == 1


def test_a_run_writes_a_log_curves_and_events(uninterrupted):
    rows = read_rows(uninterrupted / "log.jsonl")
    assert [(r["phase"], r["step"], r["total"]) for r in rows] == [(0, 2, 2), (1, 2, 4), (2, 2, 6), (3, 3, 9)]
    assert all(r["loss"] > 0 for r in rows) and "track" in rows[-1]
    assert imread(uninterrupted / "curves.png").std() > 0
    assert [p.name for p in (uninterrupted / "events").glob("events.*")]
    assert not list(uninterrupted.glob("*.tmp"))


DISTRIBUTED_RUN = """
from pathlib import Path
import torch
from lib.training import loop
from tests.training.test_loop import TINY

frames, written = [], []
train_step, save_weights = loop.Training._train_step, loop.save_weights

def record_frames(self, phase, data):
    frames.append(data[2].frames)
    return train_step(self, phase, data)

def record_name(weights, path, *args, **kwargs):
    written.append(path.name)
    save_weights(weights, path, *args, **kwargs)

loop.Training._train_step, loop.save_weights = record_frames, record_name
training = loop.Training(loop.Settings(sys.argv[1], bf16=False, save_every=1), TINY[2:])
training.run()
content = {"frames": frames, "written": written, "average": training.average, "weights": training.model.state_dict()}
torch.save(content, Path(sys.argv[1]) / f"rank{training.workers.rank}.pt")
"""


def test_two_processes_train_one_network_on_different_clips(tmp_path):
    status = run_script(DISTRIBUTED_RUN, tmp_path, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    assert status == 0, (tmp_path / "output.txt").read_text()
    out = tmp_path / "run"
    first, second = (torch.load(out / f"rank{n}.pt") for n in range(2))
    for kind in ("weights", "average"):
        for name, tensor in first[kind].items():
            assert torch.equal(tensor, second[kind][name]), name
    assert len(first["frames"]) == len(second["frames"]) == 5
    assert not any(torch.equal(a, b) for a, b in zip(first["frames"], second["frames"], strict=True))
    assert first["written"] == ["model.safetensors"] and second["written"] == []
    assert [(r["phase"], r["step"]) for r in read_rows(out / "log.jsonl")] == [(0, 2), (1, 3)]
    assert json.loads((out / "training.json").read_text())["workers"] == 2
    weights = checkpoints.read_weights(out / "model.safetensors")
    assert all(torch.equal(t, first["average"][n].half()) for n, t in weights.items())


def test_training_lowers_the_loss(tmp_path):
    """The network learns one batch of boxes in thirty steps, which begin after the warm-up of the learning rate."""
    phase = replace(TINY[0], steps=100, batch=4)
    training = Training(Settings(str(tmp_path), bf16=False), (phase,))
    data = next(training._load_data(phase))
    training.step = 50
    losses = [training._train_step(phase, data)["loss"][0] for _ in range(30)]
    assert losses[-1] < losses[0] - 0.5


def test_the_number_of_cores_does_not_change_the_weights(tmp_path, monkeypatch):
    """With two cores the halves of a step are computed side by side, with one core one after the other."""
    before, weights = torch.get_num_threads(), []
    for n, cores in enumerate((1, 2, 2)):
        monkeypatch.setattr(worker_pool, "CPU_CORES", cores)
        monkeypatch.setattr(loop, "CPU_CORES", cores)
        monkeypatch.setattr(worker_pool, "_pools", {})
        torch.set_num_threads(1)
        training = Training(Settings(str(tmp_path / str(n)), config="sam2_hiera_nano_256.yaml"), TINY[-1:])
        training.run()
        weights.append(training.model.state_dict())
    torch.set_num_threads(before)
    for other in weights[1:]:
        assert all(torch.equal(other[name], tensor) for name, tensor in weights[0].items())


def test_an_odd_number_of_clips_with_several_objects_is_split_between_clips(tmp_path):
    phase = replace(TINY[1], kind="single_slices", steps=1, batch=3, objects=2)
    training = Training(Settings(str(tmp_path), bf16=False), (phase,))
    assert training.run().is_file() and training.total == 1
