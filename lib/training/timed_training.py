"""Train a SAM 2 network for a given time on clips that the training device makes itself: a GPU for minutes, or two CPU cores for hours.

The learning rate follows the clock: it rises at first and then falls to zero along a cosine, whatever a step takes. An interrupted run
is resumed from `state.pt` in its folder.
"""

import json
import logging
import math
import os
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from lib.model.build import build
from lib.model.checkpoints import read_weights, save_weights
from lib.model.device import bf16_is_fast
from lib.training.batch_random import BatchRandom
from lib.training.clip_source import BatchPlan, ClipSource
from lib.training.network_setup import adapt_random_weights
from lib.training.packed_volumes import PackedVolumes
from lib.training.tracking_step import StepPlan, TrackingStep

logger = logging.getLogger(__name__)

# Batches: what fills a GPU of 80 GB, and what two CPU cores do in some seconds.
GPU_BATCH, CPU_BATCH = BatchPlan(16, 24, 10, objects=3), BatchPlan(2, 2, 1, objects=2)


@dataclass(frozen=True)
class TimedSettings:
    """Settings of a training run.

    Attributes:
        out: Folder of the run.
        minutes: Duration of the whole run, including what was done before an interruption.
        data: Packed folder of real volumes (`lib.training.volume_pack`), or None for generated clips only.
        start: Checkpoint to start from; None starts from random weights.
        batch: Clips of a step; None chooses by the device.
        size, slices: Side of the slices in pixels, and their number in a clip.
        rate, warm_up: Highest learning rate, and share of the time until it is reached.
        ema: Decay of the exported moving average of the weights.
        compiled: Parts of the network to compile: "encoder", "decoder", "losses".
        save_seconds, log_steps: Time between saved weights, and steps between rows of the log.
        keep_state: Whether the whole state is saved, too, such that an interrupted run can be resumed.
    """

    out: str
    minutes: float
    data: str | None = None
    start: str | None = None
    config: str = "sam2_hiera_nano_256.yaml"
    device: str = "cpu"
    batch: BatchPlan | None = None
    size: int = 256
    slices: int = 8
    seed: int = 1
    rate: float = 5e-4
    warm_up: float = 0.03
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    balance: float = 0.2
    ema: float = 0.998
    bf16: bool | None = None
    half: bool = True
    compiled: tuple[str, ...] = ()
    save_seconds: float = 60.0
    log_steps: int = 20
    keep_state: bool = True


class TimedTraining:
    """A training run.

    Attributes:
        model, average: The network, and the moving average of its weights.
        step, seconds: Number of completed steps, and their duration.
    """

    def __init__(self, settings: TimedSettings):
        self.settings, self.out, self.device = settings, Path(settings.out), torch.device(settings.device)
        self.out.mkdir(parents=True, exist_ok=True)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True
        torch.manual_seed(settings.seed)
        self.model = build(settings.config, image_size=settings.size, training=True)
        if settings.start:
            self.model.load_state_dict({k: v.float() for k, v in read_weights(Path(settings.start)).items()})
        else:
            adapt_random_weights(self.model)
        self.model.to(self.device)
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.optimizer = _make_optimizer(self.model, settings.weight_decay)
        volumes = PackedVolumes(settings.data, self.device) if settings.data else None
        plan = settings.batch or (CPU_BATCH if self.device.type == "cpu" else GPU_BATCH)
        self.clips, self.random = ClipSource(plan, volumes, self.device), BatchRandom(self.device)
        self.step, self.seconds, self._metrics = 0, 0.0, {}
        self._resume()
        self._forward = TrackingStep(self.model)
        _compile(self.model, settings.compiled)

    def run(self, most_steps: int | None = None) -> Path:
        """Train until the time is over, or for `most_steps`, and return the path of the exported weights."""
        limit, last_save = 60 * self.settings.minutes, self.seconds
        begin = time.monotonic() - self.seconds
        while self.seconds < limit and (most_steps is None or self.step < most_steps):
            self.train_step()
            self.seconds = time.monotonic() - begin
            if self.step % self.settings.log_steps == 0:
                self._log()
                self.seconds = time.monotonic() - begin
            if self.seconds - last_save >= self.settings.save_seconds:
                self.export()
                last_save = self.seconds
        return self.export()

    def train_step(self) -> None:
        """Make a batch of clips and update the weights and their average by it."""
        settings, device = self.settings, self.device
        seed = (settings.seed * 1_000_003 + self.step) % (1 << 62)
        torch.manual_seed(seed)
        rate = settings.rate * self._schedule(self.seconds / max(60 * settings.minutes, 1e-9))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        clip = self.clips.make_batch(settings.slices, settings.size)
        bf16 = bf16_is_fast(device) if settings.bf16 is None else settings.bf16
        # On a CPU the fused attention's backward pass is several times slower than plain matrix products.
        attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        self.optimizer.zero_grad(set_to_none=True)
        with attention:
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                losses = self._forward(clip, StepPlan.draw(seed, settings.slices), self.random, settings.balance)
                loss = losses.mean_loss
            loss.backward()
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        for gradient in gradients:  # A step whose gradient is not finite changes next to nothing, without asking the device.
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        self.optimizer.step()
        self.step += 1
        self._update_average()
        self._count({"loss": (loss.detach(), 1.0), "norm": (norm.clamp_max(1e4), 1.0), **losses.metrics})

    def _schedule(self, progress: float) -> float:
        """Return the learning rate as a share of the highest one at a point in time in [0, 1]."""
        warm_up = self.settings.warm_up
        if progress < warm_up:
            return max(progress / warm_up, 0.02)
        part = min((progress - warm_up) / (1 - warm_up), 1.0)
        return 0.5 * (1 + math.cos(part * math.pi))

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.ema, (self.step + 1) / (self.step + 10))
        state = self.model.state_dict()
        names = [k for k, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.average[k] for k in names], [state[k] for k in names], 1 - decay)

    def _count(self, metrics: dict) -> None:
        for name, (total, count) in metrics.items():
            known = self._metrics.get(name, (0.0, 0.0))
            self._metrics[name] = known[0] + total, known[1] + count

    def _log(self) -> None:
        """Append a row with the means since the last row to log.jsonl."""
        means = {k: float(total) / max(float(count), 1e-9) for k, (total, count) in self._metrics.items()}
        self._metrics = {}
        row = {"step": self.step, "seconds": round(self.seconds, 1), **{k: round(v, 4) for k, v in means.items()}}
        logger.info("%s", row)
        with open(self.out / "log.jsonl", "a") as f:
            f.write(json.dumps(row) + "\n")

    def export(self) -> Path:
        """Write the averaged weights (model.safetensors), the last ones (last.safetensors) and, if wanted, the state; return the first path."""
        settings, path = self.settings, self.out / "model.safetensors"
        weights = {k: v.detach() for k, v in self.model.state_dict().items()}
        for name, state in ((path, self.average), (self.out / "last.safetensors", weights)):
            cpu = {k: v.to("cpu") for k, v in state.items()}
            save_weights(cpu, name, settings.config, half=settings.half, image_size=str(settings.size))
        info = {"settings": asdict(settings), "batch": asdict(self.clips.plan), "steps": self.step, "seconds": round(self.seconds)}
        info |= {"torch": torch.__version__, "machine": _machine(self.device)}
        (self.out / "training.json").write_text(json.dumps(info, indent=2))
        if settings.keep_state:
            state = {"model": weights, "average": self.average, "optimizer": self.optimizer.state_dict(), "step": self.step}
            torch.save(state | {"seconds": self.seconds}, self.out / "state.tmp")
            os.replace(self.out / "state.tmp", self.out / "state.pt")
        return path

    def _resume(self) -> None:
        path = self.out / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=self.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]
        logger.info("Resuming at step %d.", self.step)


def _make_optimizer(model: nn.Module, weight_decay: float) -> torch.optim.Optimizer:
    """Return a fused AdamW optimizer, with weight decay for matrices but not for biases and norms."""
    matrices, vectors = ([p for p in model.parameters() if (p.ndim > 1) == is_matrix] for is_matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), fused=True)


def _compile(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Compile parts of the network in place."""
    if "encoder" in parts:
        model.image_encoder.compile(dynamic=False)
    if "memory" in parts:
        model.memory_encoder.compile(dynamic=False)
    if "decoder" in parts:
        model.sam_mask_decoder.predict_masks = torch.compile(model.sam_mask_decoder.predict_masks)


def _machine(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
