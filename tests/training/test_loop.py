"""Tests of the training loop: it lowers the loss, can be interrupted anywhere, and works in several processes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.image import imread

from lib.model import checkpoints
from lib.training.clip_source import BatchPlan, ClipBatch, ClipSource
from lib.training.loop import Settings, Training, _learning_rate
from lib.training.training_log import read_rows

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5
START = f"{checkpoints.EMBEDDED}@sam2_hiera_nano_256.yaml@64"  # Slices of 64 pixels.


def make_training(out, **settings) -> Training:
    """Return a short training on small generated clips."""
    defaults = {"start": START, "slices": 3, "bf16": False, "log_every": 2, "save_seconds": 0.0}
    settings = {**defaults, **({} if "minutes" in settings else {"steps": STEPS}), **settings}
    return Training(Settings(str(out), **settings), ClipSource("cpu", plan=BatchPlan(2, objects=2)))


def rows_without_time(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_rows(folder / "log.jsonl")]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The folder of a run that was never interrupted."""
    out = tmp_path_factory.mktemp("whole")
    make_training(out).run()
    return out


def run_script(code: str, folder: Path, *launcher: str) -> int:
    """Run Python code in another process with the folder of a training run as its argument; return the exit status."""
    script, log = folder / "script.py", folder / "output.txt"
    script.write_text(f"import sys\nsys.path[:0] = {[str(ROOT)]}\n{code}")
    command = [sys.executable, *launcher, str(script), str(folder / "run")]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    with open(log, "w") as f:
        return subprocess.run(command, stdout=f, stderr=f, timeout=300, env=environment).returncode


class Killed(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(("method", "count"), [("_train_step", 4), ("save", 3), ("_write_row", 2)])
def test_an_interrupted_run_ends_with_the_same_weights_and_log(uninterrupted, tmp_path, monkeypatch, method, count):
    """The run ends within a step, before its state is saved, or before a row is logged."""
    original, calls = getattr(Training, method), []

    def end_at_count(self, *args):
        calls.append(1)
        if len(calls) == count:
            raise Killed
        return original(self, *args)

    with monkeypatch.context() as m:
        m.setattr(Training, method, end_at_count)
        with pytest.raises(Killed):
            make_training(tmp_path).run()
    path = make_training(tmp_path).run()
    weights, expected = checkpoints.read_weights(path), checkpoints.read_weights(uninterrupted / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        assert torch.equal(tensor, expected[name]), name
    assert rows_without_time(tmp_path) == rows_without_time(uninterrupted)


KILLED_RUN = """
import os, signal
import torch
from tests.training.test_loop import Training, make_training

original, calls = torch.save, []

def kill_within_second_save(state, path):
    calls.append(1)
    if len(calls) == 2:
        path.write_bytes(b"half of a file")
        os.kill(os.getpid(), signal.SIGKILL)
    original(state, path)

torch.save = kill_within_second_save
make_training(sys.argv[1]).run()
"""


def test_a_process_that_is_killed_while_it_saves_leaves_the_state_before(tmp_path):
    assert run_script(KILLED_RUN, tmp_path) == -signal.SIGKILL, (tmp_path / "output.txt").read_text()
    assert make_training(tmp_path / "run").step == 1


def test_a_finished_run_is_not_repeated(uninterrupted, monkeypatch):
    before, rows = checkpoints.read_weights(uninterrupted / "model.safetensors"), read_rows(uninterrupted / "log.jsonl")
    monkeypatch.setattr(Training, "_train_step", None)
    path = make_training(uninterrupted).run()
    for name, tensor in checkpoints.read_weights(path).items():
        assert torch.equal(tensor, before[name]), name
    assert read_rows(uninterrupted / "log.jsonl") == rows


def test_a_finished_run_goes_on_when_it_gets_more_minutes(tmp_path):
    training = make_training(tmp_path, minutes=1e-6)
    training.run()
    assert training.step == 1
    longer = make_training(tmp_path, minutes=training.seconds / 60 + 1e-6)
    longer.run()
    assert longer.step == 2


def test_the_exported_model_is_a_checkpoint_with_the_calibration_of_its_start(uninterrupted):
    checkpoint = checkpoints.find(uninterrupted / "model.safetensors")
    assert checkpoint.image_size == 64 and not checkpoints.load(checkpoint).training
    assert checkpoints.metadata(checkpoint) == checkpoints.metadata(checkpoints.find("embedded"))
    info = json.loads((uninterrupted / "training.json").read_text())
    assert info["steps"] == STEPS and info["settings"]["seed"] == 1 and info["workers"] == 1


def test_exported_weights_can_lie_between_start_and_average(tmp_path):
    training = make_training(tmp_path, steps=1, start_share=0.75, half=False)
    weights, start = checkpoints.read_weights(training.run()), checkpoints.read_weights(checkpoints.EMBEDDED)
    for name, average in training.average.items():
        assert torch.allclose(weights[name], 0.75 * start[name].float() + 0.25 * average, atol=1e-6), name


def test_a_run_writes_a_log_curves_and_events(uninterrupted):
    rows = read_rows(uninterrupted / "log.jsonl")
    assert [r["step"] for r in rows] == [2, 4, 5]
    assert all(r["loss"] > 0 and 0 <= r["track"] <= 1 for r in rows)
    assert imread(uninterrupted / "curves.png").std() > 0
    assert [p.name for p in (uninterrupted / "events").glob("events.*")]
    assert not list(uninterrupted.glob("*.tmp"))


DISTRIBUTED_RUN = """
from pathlib import Path
import torch
from tests.training.test_loop import ClipSource, make_training

frames, make_batch = [], ClipSource.make_batch

def record_frames(self, *args):
    batch = make_batch(self, *args)
    frames.append(batch.frames)
    return batch

ClipSource.make_batch = record_frames
training = make_training(sys.argv[1])
training.run()
content = {"frames": frames, "average": training.average, "weights": training.model.state_dict()}
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
    assert len(first["frames"]) == len(second["frames"]) == STEPS
    assert not any(torch.equal(a, b) for a, b in zip(first["frames"], second["frames"], strict=True))
    assert [r["step"] for r in read_rows(out / "log.jsonl")] == [2, 4, 5]
    assert json.loads((out / "training.json").read_text())["workers"] == 2


class SameBatch:
    """Makes the same clips in each step: a disc, whose brightness is that of a random half of the background."""

    def __init__(self, value: float = 1.0):
        generator = torch.Generator().manual_seed(0)
        axis = torch.arange(64) - 32
        mask = (axis[:, None] ** 2 + axis[None] ** 2 < 200).expand(2, 3, 64, 64)
        background = torch.nn.functional.interpolate(torch.rand(2, 3, 8, 8, generator=generator), (64, 64)) > 0.5
        self.batch = ClipBatch((mask | background) * 200.0 * value, mask, torch.arange(2), torch.ones(2))

    def make_batch(self, slices, side):
        return self.batch


def test_training_lowers_the_loss(tmp_path):
    training = Training(Settings(str(tmp_path), start=START, steps=30, slices=3, bf16=False, warm_up=0.1, log_every=3), SameBatch())
    training.run()
    rows = read_rows(tmp_path / "log.jsonl")
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"] and rows[-1]["track"] > rows[0]["track"]


def test_a_gradient_that_is_not_finite_does_not_spoil_the_weights(tmp_path):
    training = Training(Settings(str(tmp_path), start=START, steps=1, slices=3, bf16=False), SameBatch(float("nan")))
    training.run()
    assert all(v.isfinite().all() for v in training.model.state_dict().values())


def test_the_learning_rate_rises_and_then_falls_to_the_final_one():
    settings = Settings("", steps=1, rate=1.0, final_rate=0.1, warm_up=0.2)
    rates = [_learning_rate(settings, progress) for progress in (0, 0.1, 0.2, 0.6, 1)]
    assert rates == pytest.approx([0.02, 0.5, 1, 0.55, 0.1])


def test_a_run_needs_one_end(tmp_path):
    for settings in ({"steps": 0}, {"steps": 3, "minutes": 1.0}):
        with pytest.raises(ValueError, match="either"):
            make_training(tmp_path, **settings)
