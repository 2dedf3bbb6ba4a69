"""The training loop of SAM 2 networks. A run can be resumed, and the same seed gives the same weights.

It uses a CPU, a GPU, or several of them with `torchrun --nproc-per-node=N main.py train ...`.
"""

import json
import logging
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lib.model.build import build
from lib.model.checkpoints import read_weights, save_weights
from lib.model.device import bf16_is_fast
from lib.model.worker_pool import CPU_CORES, run_all
from lib.training.clip_generator import Clip
from lib.training.clip_training import TrainingStep
from lib.training.curriculum import CURRICULUM, GeneratedSteps, Phase, StepData
from lib.training.distributed import Workers
from lib.training.network_setup import adapt_random_weights, make_optimizer
from lib.training.supervoxels import RealImages
from lib.training.trainable_parts import merged_state_dict, select_trainable_parts
from lib.training.training_log import TrainingLog

logger = logging.getLogger(__name__)

LOG_EVERY = 50  # Steps.


@dataclass(frozen=True)
class Settings:
    """Settings of a training run.

    Attributes:
        out: Folder of the run.
        start: Checkpoint (safetensors or .pt) to start from; None starts from random weights.
        images: Folder of real images without labels from which some of the generated clips are made.
        config: Configuration file of the network.
        scale: Factor by which the number of steps of every phase is multiplied.
        parts: Part of the network that is trained, see `trainable_parts.select_trainable_parts`.
        bf16: Whether to compute in mixed precision (bfloat16); None does so where it is faster.
        half: Whether exported weights have 16 bits.
        clip_norm: Largest norm of the gradient.
        ema, ema_start: Decay of the exported moving average of the weights; in phase 1 at most (n + 10) / (n + 10 + ema_start) in step n.
        save_every, check_every: Steps between saved states, and between validations; 0 validates only at the end of each phase.
    """

    out: str
    start: str | None = None
    images: str | None = None
    config: str = "sam2_hiera_nano_256.yaml"
    seed: int = 1
    scale: float = 1.0
    device: str = "cpu"
    parts: str = "all"
    bf16: bool | None = None
    half: bool = True
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    ema: float = 0.998
    ema_start: int = 20
    save_every: int = 200
    check_every: int = 0


class Training:
    """A training run, which is resumed from `out/state.pt` if it exists.

    Args:
        data: Function of a seed and a phase that returns the dataset of the phase's steps; by default generated clips.
        check: Validation, called with this object when one is due; returns metrics to log. `export` gives it a checkpoint.
        stop: Called with this object after each step; True ends the run early, as if the curriculum were finished.

    Attributes:
        phases: Phases with their steps multiplied by `settings.scale`.
        model: The network for the image size of the current phase.
        average: Moving average of the weights, {name: tensor}.
        phase, step: Index of the current phase, and number of completed steps in it.
        seconds: Duration of all training steps so far.
        metrics: Values of the steps since the last logged row, by name.
    """

    def __init__(
        self, settings: Settings, curriculum: tuple[Phase, ...] = CURRICULUM, *,
        data: Callable[[int, Phase], Dataset] | None = None,
        check: Callable[["Training"], dict[str, float]] | None = None,
        stop: Callable[["Training"], bool] = lambda training: False,
    ):  # fmt: skip
        self.settings, self._check, self._stop = settings, check, stop
        self.phases = [replace(p, steps=max(1, round(p.steps * settings.scale))) for p in curriculum]
        self.workers = Workers.join(settings.device)
        self.out = Path(settings.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.phase, self.step, self.seconds, self.metrics = 0, 0, 0.0, {}
        self._make_dataset = data or partial(GeneratedSteps, images=RealImages.read(settings.images) if settings.images else None)
        state_path = self.out / "state.pt"
        state = torch.load(state_path, map_location="cpu", weights_only=True) if state_path.exists() else {}
        torch.manual_seed(settings.seed)
        self._build(self.phases[min(state.get("phase", 0), len(self.phases) - 1)].size, state.get("model"))
        average = state.get("average") or merged_state_dict(self.model)
        self.average = {k: v.to(self.workers.device, copy=True) for k, v in average.items()}
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.phase, self.step, self.seconds = state["phase"], state["step"], state["seconds"]
            self.metrics = state["figures"]
            logger.info("Resuming in phase %d at step %d.", self.phase + 1, self.step)
        self._training_log = TrainingLog(self.out, (self.phase, self.step)) if self.workers.is_first else None

    @property
    def total(self) -> int:
        """The number of completed steps in all phases."""
        return sum(p.steps for p in self.phases[: self.phase]) + self.step

    def run(self) -> Path:
        """Train to the end of the curriculum and return the path of the exported checkpoint."""
        while self.phase < len(self.phases):
            stopped = self._run_phase(self.phases[self.phase])
            self.phase, self.step = len(self.phases) if stopped else self.phase + 1, 0
            if self.phase < len(self.phases) and self.phases[self.phase].size != self.model.image_size:
                self._build(self.phases[self.phase].size, self.model.state_dict())
            else:
                self.optimizer = make_optimizer(self.model, self.settings.weight_decay)
            self.save()
        return self.export()

    def export(self, name: str = "model.safetensors", **metadata: str) -> Path:
        """Write the averaged weights as a safetensors file with `metadata`, and training.json beside it; return the file's path."""
        path = self.out / name
        if not self.workers.is_first:
            return path
        size = str(self.phases[-1].size)
        save_weights(self.average, path, self.settings.config, half=self.settings.half, image_size=size, **metadata)
        info = {
            "settings": asdict(self.settings), "phases": [asdict(p) for p in self.phases], "finished_phases": self.phase,
            "seconds": round(self.seconds), "workers": self.workers.count, "torch": torch.__version__,
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {self.workers.device}",
        }  # fmt: skip
        path.with_name("training.json").write_text(json.dumps(info, indent=2))
        return path

    def save(self) -> None:
        """Replace `out/state.pt`, from which a run is resumed, by the present state; an interruption leaves the old one intact."""
        if not self.workers.is_first:
            return
        state = {
            "model": self.model.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict(),
            "phase": self.phase, "step": self.step, "seconds": self.seconds, "figures": self.metrics,
        }  # fmt: skip
        temporary = self.out / "state.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.out / "state.pt")
        self._training_log.plot()

    def _build(self, size: int, weights: dict | None) -> None:
        """Build the network for slices of `size` pixels and its optimizer; without `weights` it starts as the settings say."""
        self.model = build(self.settings.config, image_size=size, training=True)
        if weights is None and self.settings.start:
            self.model.load_state_dict({k: v.float() for k, v in read_weights(Path(self.settings.start)).items()})
        elif weights is None:
            adapt_random_weights(self.model)
        select_trainable_parts(self.model, self.settings.parts)
        if weights is not None:
            self.model.load_state_dict(weights)
        self.model.to(self.workers.device)
        self._forward = TrainingStep(self.model)
        if self.workers.count > 1:
            self._forward = DistributedDataParallel(self._forward, find_unused_parameters=True)
        self.optimizer = make_optimizer(self.model, self.settings.weight_decay)

    def _run_phase(self, phase: Phase) -> bool:
        """Run the remaining steps of a phase; return whether it was stopped early."""
        data, stopped = self._load_data(phase), False
        title = f"{self.phase + 1}/{len(self.phases)} {phase.kind}"
        bar = tqdm(total=phase.steps, initial=self.step, desc=title, mininterval=5, disable=not self.workers.is_first)
        while self.step < phase.steps and not stopped:
            start = time.monotonic()
            for name, values in self._train_step(phase, next(data)).items():
                self.metrics.setdefault(name, []).extend(values)
            self.seconds += time.monotonic() - start
            self.step += 1
            bar.update()
            stopped = self.workers.broadcast_from_first(self._stop(self))
            is_last = stopped or self.step == phase.steps
            if self.step % LOG_EVERY == 0 or is_last:
                self._log({k: sum(v) / len(v) for k, v in self.metrics.items()})
                self.metrics = {}
            check_is_due = is_last or (self.settings.check_every and self.step % self.settings.check_every == 0)
            if self._check and self.workers.is_first and check_is_due:
                self._log({f"check_{k}": float(v) for k, v in self._check(self).items()})
            if self.step % self.settings.save_every == 0 or is_last:
                self.save()
        bar.close()
        return stopped

    def _load_data(self, phase: Phase) -> Iterator[StepData]:
        """Return the data of the remaining steps, which another process prepares while the model trains."""
        seed = self.settings.seed * 1_000_003 + self.phase * 100_003 + self.workers.rank * 50_000_017
        steps = range(self.step, phase.steps)
        return iter(DataLoader(self._make_dataset(seed, phase), batch_size=None, sampler=steps, num_workers=1, prefetch_factor=4))

    def _train_step(self, phase: Phase, data: StepData) -> dict[str, list[float]]:
        """Update the weights and their average by one step; return the metrics to log."""
        (kind, seed, clip), device = data, self.workers.device
        clip = Clip(clip.frames.to(device), clip.masks.to(device))
        cosine = float(torch.cos(torch.tensor(self.step / phase.steps * torch.pi)))
        rate = phase.final_rate + (phase.rate - phase.final_rate) * 0.5 * (1 + cosine)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.step + 1) / 50)
        bf16 = bf16_is_fast(device) if self.settings.bf16 is None else self.settings.bf16
        # On a CPU the fused attention's backward pass is several times slower than plain matrix products.
        attention = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        self.optimizer.zero_grad(set_to_none=True)
        with attention:
            if device.type == "cpu" and self.workers.count == 1:
                metrics = self._backward_in_halves(kind, seed, clip, phase.balance, bf16)
            else:
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss, metrics = self._forward(kind, clip, seed, phase.balance)
                loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        self._update_average()
        return metrics

    def _backward_in_halves(self, kind: str, seed: int, clip: Clip, balance: float, bf16: bool) -> dict[str, list[float]]:
        """Compute the gradients of a step, each half of its clips on its own core; return the metrics.

        There are two halves on any machine, so that the result does not depend on the number of cores.
        """
        trainable = [p for p in self.model.parameters() if p.requires_grad]
        frames = clip.frames.tensor_split(min(2, len(clip.frames)))
        halves = [Clip(*tensors) for tensors in zip(frames, clip.masks.split([len(f) * clip.objects for f in frames]), strict=True)]

        def compute_half(n: int):
            # The cache of converted weights belongs to all threads, but the first thread that is done empties it.
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
                loss, metrics = self._forward(kind, halves[n], seed + n, balance)
            return torch.autograd.grad(loss * (len(halves[n].frames) / len(clip.frames)), trainable, allow_unused=True), metrics

        results = run_all(compute_half, range(len(halves)), clip.frames.device, threads_each=max(1, CPU_CORES // 2))
        for parameter, *gradients in zip(trainable, *(gradients for gradients, _ in results), strict=True):
            gradients = [g for g in gradients if g is not None]
            parameter.grad = sum(gradients[1:], gradients[0]) if gradients else None
        names = dict.fromkeys(name for _, metrics in results for name in metrics)
        return {name: sum((metrics.get(name, []) for _, metrics in results), []) for name in names}

    @torch.no_grad()
    def _update_average(self) -> None:
        decay = min(self.settings.ema, (self.step + 10) / (self.step + 10 + self.settings.ema_start) if self.phase == 0 else 1.0)
        for name, value in merged_state_dict(self.model).items():
            self.average[name].lerp_(value.to(self.average[name]), 1 - decay)

    def _log(self, metrics: dict[str, float]) -> None:
        if self._training_log:
            row = {"phase": self.phase, "step": self.step, "total": self.total, "seconds": round(self.seconds)}
            self._training_log.append(row | {k: round(v, 4) for k, v in metrics.items()})
