"""The training loop of SAM 2 networks: for a given time or number of steps, on a CPU or on GPUs. An interrupted run can be resumed.

The learning rate rises at first and then falls to zero along a cosine. It follows the clock where a run has a time limit, whatever a step
takes. With `torchrun --nproc-per-node=N main.py train ...` several processes train one network.
"""

import json
import logging
import math
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from lib.model import checkpoints
from lib.model.build import build
from lib.model.device import bf16_is_fast
from lib.training.batch_random import BatchRandom
from lib.training.clip_source import ClipBatch
from lib.training.distributed import Workers
from lib.training.tracking_step import StepPlan, TrackingStep
from lib.training.trainable_parts import merged_state_dict, select_trainable_parts
from lib.training.training_log import TrainingLog

logger = logging.getLogger(__name__)


class Clips(Protocol):
    """What makes the clips of a training."""

    def make_batch(self, slices: int, side: int) -> ClipBatch:
        """Return clips of `slices` slices of `side` x `side` pixels; they depend on torch's global random generator alone."""


@dataclass(frozen=True)
class Settings:
    """Settings of a training run, which ends after `minutes` or after `steps`.

    Attributes:
        out: Folder of the run.
        start: Checkpoint to start from, see `lib.model.checkpoints.find`.
        minutes, steps: Duration of the whole run including what was done before an interruption, or number of steps; one of them is 0.
        parts: Part of the network that is trained, see `trainable_parts.select_trainable_parts`.
        slices: Number of slices in a clip.
        rate, final_rate, warm_up: Highest and last learning rate, and share of the run until the highest one is reached.
        clip_norm: Largest norm of the gradient.
        balance: Weighting of the mask loss, see `step_losses.mask_losses`.
        ema: Decay of the exported moving average of the weights.
        start_share: Share of the start in the exported weights, which are interpolated between the start and the moving average (Wortsman
            et al. 2022, arXiv 2109.01903). It keeps what few kinds of volumes would make the network forget.
        bf16: Whether to compute in mixed precision (bfloat16); None does so where it is faster.
        half: Whether exported weights have 16 bits.
        compiled: Whether the image encoder is compiled, which takes a minute and makes steps on a GPU a sixth faster.
        log_every, check_every: Steps between rows of the log, and between validations; 0 validates at the end only.
        save_seconds: Time between saved states.
    """

    out: str
    start: str = "embedded"
    minutes: float = 0.0
    steps: int = 0
    device: str = "cpu"
    seed: int = 1
    parts: str = "all"
    slices: int = 8
    rate: float = 4e-4
    final_rate: float = 0.0
    warm_up: float = 0.03
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    balance: float = 0.2
    ema: float = 0.998
    start_share: float = 0.0
    bf16: bool | None = None
    half: bool = True
    compiled: bool = False
    log_every: int = 20
    check_every: int = 0
    save_seconds: float = 60.0


class Training:
    """A training run, which is resumed from `out/state.pt` if it exists.

    Args:
        check: Validation, called with this object when one is due; returns metrics to log. `export` gives it a checkpoint.
        stop: Called with this object after each step; True ends the run early.

    Attributes:
        model: The network.
        average: Moving average of the weights, {name: tensor}.
        step, seconds: Number of completed steps, and duration of the run so far.
        workers: The processes that train together.
    """

    def __init__(
        self, settings: Settings, clips: Clips, *, check: Callable[["Training"], dict[str, float]] | None = None,
        stop: Callable[["Training"], bool] = lambda training: False,
    ):  # fmt: skip
        if bool(settings.minutes) == bool(settings.steps):
            raise ValueError("A run needs either a number of minutes or a number of steps.")
        self.settings, self.out, self._clips, self._check, self._stop = settings, Path(settings.out), clips, check, stop
        self.out.mkdir(parents=True, exist_ok=True)
        self.workers = Workers.join(settings.device)
        self._device = self.workers.device
        self._random = BatchRandom(self._device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        self.step, self.seconds, self._sums, self._is_finished = 0, 0.0, {}, False
        self._checkpoint = checkpoints.find(settings.start)
        state_path = self.out / "state.pt"
        self._build(torch.load(state_path, map_location=self._device, weights_only=True) if state_path.exists() else None)
        self._log = TrainingLog(self.out, self.step) if self.workers.is_first else None

    @property
    def progress(self) -> float:
        """How much of the run is done, in [0, 1]."""
        settings = self.settings
        return min(1.0, self.step / settings.steps if settings.steps else self.seconds / (60 * settings.minutes))

    def run(self) -> Path:
        """Train to the end of the run and return the path of the exported weights."""
        last_save, begin = self.seconds, time.monotonic() - self.seconds
        bar = tqdm(desc="training", unit="step", initial=self.step, mininterval=5, disable=not self.workers.is_first)
        while not self._is_finished:
            self._train_step()
            bar.update()
            self.seconds = time.monotonic() - begin
            settings = self.settings
            self._is_finished = self.workers.broadcast_from_first(self.progress >= 1 or self._stop(self))
            is_due = self._is_finished or bool(settings.check_every and self.step % settings.check_every == 0)
            if self.step % settings.log_every == 0 or is_due:
                self._write_row(self._means())
                self._sums = {}
            if self._check and is_due and self.workers.is_first:
                self._write_row({f"check_{name}": value for name, value in self._check(self).items()})
            if is_due or self.seconds - last_save >= settings.save_seconds:
                self.save()
                last_save = self.seconds
        bar.close()
        return self.export()

    def export(self, name: str = "model.safetensors", **metadata: str) -> Path:
        """Write the weights of the run with the metadata of the start and `metadata`, and training.json; return the path of the weights."""
        path, settings = self.out / name, self.settings
        if not self.workers.is_first:
            return path
        metadata = {**checkpoints.metadata(self._checkpoint), **metadata, "image_size": str(self._checkpoint.image_size)}
        weights = self.average
        if settings.start_share:
            start = checkpoints.read_weights(self._checkpoint.path)
            weights = {k: v.lerp(start[k].to(v), settings.start_share) for k, v in weights.items()}
        checkpoints.save_weights(weights, path, self._checkpoint.config, half=settings.half, **metadata)
        info = {
            "settings": asdict(settings), "steps": self.step, "seconds": round(self.seconds), "workers": self.workers.count,
            "torch": torch.__version__, "machine": _describe_machine(self._device),
        }  # fmt: skip
        path.with_name("training.json").write_text(json.dumps(info, indent=2))
        return path

    def save(self) -> None:
        """Replace `out/state.pt`, from which a run is resumed, and the exported weights; an interruption leaves the old ones intact."""
        if not self.workers.is_first:
            return
        state = {
            "model": self.model.state_dict(), "average": self.average, "optimizer": self._optimizer.state_dict(), "step": self.step,
            "seconds": self.seconds, "is_finished": self._is_finished,
            "sums": {name: (float(total), float(count)) for name, (total, count) in self._sums.items()},
        }  # fmt: skip
        torch.save(state, self.out / "state.tmp")
        os.replace(self.out / "state.tmp", self.out / "state.pt")
        self.export()
        self._log.plot()

    def _build(self, state: dict | None) -> None:
        """Build the network, its average and its optimizer as the start or a saved state says."""
        settings, checkpoint = self.settings, self._checkpoint
        torch.manual_seed(settings.seed)
        self.model = build(checkpoint.config, image_size=checkpoint.image_size, training=True)
        if state is None:
            checkpoints.verify(checkpoint)
            self.model.load_state_dict({k: v.float() for k, v in checkpoints.read_weights(checkpoint.path).items()})
        select_trainable_parts(self.model, settings.parts)
        if state is not None:
            self.model.load_state_dict(state["model"])
        self.model.to(self._device)
        self._trainable = [p for p in self.model.parameters() if p.requires_grad]
        self._optimizer = _make_optimizer(self._trainable, settings.weight_decay)
        self.average = {k: v.clone() for k, v in merged_state_dict(self.model).items()}
        if state is not None:
            self.average = state["average"]
            self._optimizer.load_state_dict(state["optimizer"])
            self.step, self.seconds, self._sums = state["step"], state["seconds"], state["sums"]
            # A run that was over goes on when it gets more minutes.
            self._is_finished = state["is_finished"] and (bool(settings.steps) or self.progress >= 1)
            logger.info("Resuming at step %d.", self.step)
        if settings.compiled:
            self.model.image_encoder.compile(dynamic=False)
        self._forward = TrackingStep(self.model)
        if self.workers.count > 1:
            self._forward = DistributedDataParallel(self._forward, find_unused_parameters=True)

    def _train_step(self) -> None:
        """Make a batch of clips and update the weights and their average by it."""
        settings, device = self.settings, self._device
        seed = settings.seed * 1_000_003 + self.step
        torch.manual_seed((seed + self.workers.rank * 500_000_003) % (1 << 32))  # A CPU's generator uses 32 bits of it.
        for group in self._optimizer.param_groups:
            group["lr"] = _learning_rate(settings, self.progress)
        clip = self._clips.make_batch(settings.slices, self._checkpoint.image_size).to(device)
        bf16 = bf16_is_fast(device) if settings.bf16 is None else settings.bf16
        # On a CPU the fused attention's backward pass is several times slower than plain matrix products.
        attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        self._optimizer.zero_grad(set_to_none=True)
        with attention:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                loss, metrics = self._forward(clip, StepPlan.draw(seed, settings.slices), self._random, settings.balance)
            loss.backward()
        norm = nn.utils.clip_grad_norm_(self._trainable, settings.clip_norm)
        for parameter in self._trainable:  # A gradient that is not finite counts as zero; asking the GPU whether it is would stop it.
            if parameter.grad is not None:
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        self._optimizer.step()
        self.step += 1
        self._update_average()
        for name, (total, count) in {"loss": (loss.detach(), 1.0), "norm": (norm.clamp_max(1e4), 1.0), **metrics}.items():
            known = self._sums.get(name, (0.0, 0.0))
            self._sums[name] = known[0] + total, known[1] + count

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.ema, (self.step + 1) / (self.step + 10))
        state = merged_state_dict(self.model)
        names = [k for k, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in names], [state[k] for k in names], 1 - decay)

    def _means(self) -> dict[str, float]:
        """Return the means of the metrics since the last row of the log."""
        return {name: float(total) / max(float(count), 1e-9) for name, (total, count) in self._sums.items()}

    def _write_row(self, metrics: dict[str, float]) -> None:
        if self._log:
            self._log.append({"step": self.step, "seconds": round(self.seconds), **{k: round(float(v), 4) for k, v in metrics.items()}})


def _learning_rate(settings: Settings, progress: float) -> float:
    """Return the learning rate at a point of the run in [0, 1]."""
    if progress < settings.warm_up:
        return settings.rate * max(progress / settings.warm_up, 0.02)
    cosine = math.cos(math.pi * (progress - settings.warm_up) / max(1 - settings.warm_up, 1e-9))
    return settings.final_rate + (settings.rate - settings.final_rate) * 0.5 * (1 + cosine)


def _make_optimizer(parameters: list[nn.Parameter], weight_decay: float) -> torch.optim.Optimizer:
    """Return a fused AdamW optimizer, with weight decay for matrices but not for biases and norms."""
    matrices, vectors = ([p for p in parameters if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), fused=True)


def _describe_machine(device: torch.device) -> str:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return f"{os.cpu_count()} cores, {platform.machine()}, {name}"
