"""Training and fine-tuning of SAM 2 networks: one loop for generated clips and labelled volumes, resumable, same seed same
weights, on a CPU, a GPU or several (`torchrun --nproc-per-node=N main.py train ...`)."""

import json
import logging
import os
import platform
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
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
from lib.model.worker_pool import share
from lib.training.clip_generator import Clip
from lib.training.clip_training import ClipTrainer
from lib.training.curriculum import CURRICULUM, GeneratedSteps, Phase
from lib.training.distributed import Workers
from lib.training.supervoxels import RealImages
from lib.training.trainable_parts import choose_parts, merged
from lib.training.training_log import Record

logger = logging.getLogger(__name__)

LOG_EVERY = 50


@dataclass(frozen=True)
class Settings:
    """Settings of a training run.

    Attributes:
        out: folder of the run. start: safetensors or .pt weights to begin with instead of random ones.
        images: folder of real images without labels for a share of the generated clips.
        config: configuration of the network. scale: multiplies the steps of every phase.
        parts: what learns, see `parts.choose_parts`.
        bf16: mixed precision (None: where it is faster). ema: of the weights that are exported, at most 1 - ema_start / step. half: export 16 bits.
        check_every: steps between checks; 0 means at the end of each phase.
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


def prepare(model) -> None:
    """Starting values without which training from nothing stalls.

    Tokens find image positions at once when the query and key projections of their cross-attention start equal; an
    object counts as present until the model knows better.
    """
    decoder = model.sam_mask_decoder
    layers = [layer.cross_attn_token_to_image for layer in decoder.transformer.layers]
    with torch.no_grad():
        for attention in [*layers, decoder.transformer.final_attn_token_to_image]:
            attention.q_proj.weight.mul_(2.7)
            attention.k_proj.weight.copy_(attention.q_proj.weight)
        decoder.pred_obj_score_head.layers[-1].bias.fill_(2.0)


class Step(nn.Module):
    """One training step's forward pass as a module, which is what `DistributedDataParallel` can wrap."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, kind: str, clip: Clip, seed: int, balance: float) -> tuple[torch.Tensor, dict[str, list[float]]]:
        """Loss, and figures to log."""
        rng = torch.Generator(clip.frames.device).manual_seed(seed)
        steps = getattr(ClipTrainer(self.model, rng, balance), kind)(clip)
        return steps.loss, {"loss": [float(steps.loss.detach())], **steps.figures}


class Training:
    """State of a run: weights, their moving average, optimizer, step counters. Everything in `out/state.pt`.

    Args:
        data: (seed, phase) -> dataset of the phase's steps; default: generated clips.
        check: called with this object when a check is due, returns figures to log; `export` gives it a file.
        stop: asked after each step; True ends the run early, as if the curriculum were over.
    """

    def __init__(
        self, settings: Settings, curriculum: tuple[Phase, ...] = CURRICULUM, *,
        data: Callable[[int, Phase], Dataset] | None = None,
        check: Callable[["Training"], dict[str, float]] | None = None,
        stop: Callable[["Training"], bool] = lambda training: False,
    ):  # fmt: skip
        self.settings, self._check, self._stop = settings, check, stop
        self.phases = [replace(p, steps=max(1, round(p.steps * settings.scale))) for p in curriculum]
        self.workers = Workers.of(settings.device)
        self.out = Path(settings.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.phase = self.step = 0
        self.seconds = 0.0
        self.figures: dict[str, list[float]] = {}
        if data is None:
            images = RealImages.read(settings.images) if settings.images else None
            data = lambda seed, phase: GeneratedSteps(seed, phase, images)  # noqa: E731
        self._data_of = data
        state = self._read_state()
        torch.manual_seed(settings.seed)
        self._build(self.phases[min(state.get("phase", 0), len(self.phases) - 1)].size, state.get("model"))
        average = state.get("average") or merged(self.model)
        self.average = {k: v.to(self.workers.device, copy=True) for k, v in average.items()}
        if state:
            self.optimizer.load_state_dict(state["optimizer"])
            self.phase, self.step, self.seconds = state["phase"], state["step"], state["seconds"]
            self.figures = state["figures"]
            logger.info("Resuming in phase %d at step %d.", self.phase + 1, self.step)
        self._record = Record(self.out, (self.phase, self.step)) if self.workers.first else None

    @property
    def total(self) -> int:
        """Steps done in all phases."""
        return sum(p.steps for p in self.phases[: self.phase]) + self.step

    def run(self) -> Path:
        """Trains to the end of the curriculum; returns the exported checkpoint."""
        while self.phase < len(self.phases):
            stopped = self._run_phase(self.phases[self.phase])
            self.phase, self.step = len(self.phases) if stopped else self.phase + 1, 0
            if self.phase < len(self.phases) and self.phases[self.phase].size != self.model.image_size:
                self._build(self.phases[self.phase].size, self.model.state_dict())
            else:
                self._new_optimizer()
            self.save()
        return self.export()

    def export(self, name: str = "model.safetensors", **metadata: str) -> Path:
        """Writes the averaged weights as safetensors, and how they came about."""
        path = self.out / name
        if not self.workers.first:
            return path
        size = str(self.phases[-1].size)
        save_weights(self.average, path, self.settings.config, half=self.settings.half, image_size=size, **metadata)
        info = {
            "settings": asdict(self.settings),
            "phases": [asdict(p) for p in self.phases],
            "finished_phases": self.phase,
            "seconds": round(self.seconds),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {self.workers.device}",
            "workers": self.workers.count,
            "torch": torch.__version__,
        }
        path.with_name("training.json").write_text(json.dumps(info, indent=2))
        return path

    def save(self) -> None:
        """Everything that is needed to go on, complete or not at all."""
        if not self.workers.first:
            return
        state = {
            "model": self.model.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict(),
            "phase": self.phase, "step": self.step, "seconds": self.seconds, "figures": self.figures,
        }  # fmt: skip
        temporary = self.out / "state.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.out / "state.pt")
        self._record.draw()

    # ----------------------------------------------------------------------------------------------------------------
    def _read_state(self) -> dict:
        path = self.out / "state.pt"
        return torch.load(path, map_location="cpu", weights_only=True) if path.exists() else {}

    def _build(self, size: int, weights: dict | None) -> None:
        """The network for slices of `size` pixels and its optimizer."""
        self.model = build(self.settings.config, image_size=size, training=True)
        if weights is None and self.settings.start:
            self.model.load_state_dict({k: v.float() for k, v in read_weights(Path(self.settings.start)).items()})
        elif weights is None:
            prepare(self.model)
        choose_parts(self.model, self.settings.parts)
        if weights is not None:
            self.model.load_state_dict(weights)
        self.model.to(self.workers.device)
        self._steps = Step(self.model)
        if self.workers.count > 1:
            self._steps = DistributedDataParallel(self._steps, find_unused_parameters=True)
        self._new_optimizer()

    def _new_optimizer(self) -> None:
        learning = [p for p in self.model.parameters() if p.requires_grad]
        matrices, others = [p for p in learning if p.ndim > 1], [p for p in learning if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": self.settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98))

    def _run_phase(self, phase: Phase) -> bool:
        """Whether it was stopped before its end."""
        data, stopped = self._data(phase), False
        title = f"{self.phase + 1}/{len(self.phases)} {phase.kind}"
        bar = tqdm(total=phase.steps, initial=self.step, desc=title, mininterval=5, disable=not self.workers.first)
        while self.step < phase.steps:
            start = time.monotonic()
            for name, values in self._train_step(phase, next(data)).items():
                self.figures.setdefault(name, []).extend(values)
            self.seconds += time.monotonic() - start
            self.step += 1
            bar.update()
            stopped = self.workers.agree(self._stop(self))
            last = stopped or self.step == phase.steps
            if self.step % LOG_EVERY == 0 or last:
                self._log({k: sum(v) / len(v) for k, v in self.figures.items()})
                self.figures = {}
            if self._check and self.workers.first and (last or (self.settings.check_every and self.step % self.settings.check_every == 0)):
                self._log({f"check_{k}": float(v) for k, v in self._check(self).items()})
            if self.step % self.settings.save_every == 0 or last:
                self.save()
            if last:
                break
        bar.close()
        return stopped

    def _data(self, phase: Phase):
        """Clips of the steps still to do, made by a process of their own while the model trains."""
        seed = self.settings.seed * 1_000_003 + self.phase * 100_003 + self.workers.rank * 50_000_017
        todo = range(self.step, phase.steps)
        return iter(DataLoader(self._data_of(seed, phase), batch_size=None, sampler=todo, num_workers=1, prefetch_factor=4))

    def _train_step(self, phase: Phase, drawn: tuple[str, int, Clip]) -> dict[str, list[float]]:
        kind, seed, clip = drawn
        device = self.workers.device
        clip = Clip(clip.frames.to(device), clip.masks.to(device))
        rate = phase.final_rate + (phase.rate - phase.final_rate) * 0.5 * (1 + _cos(self.step / phase.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.step + 1) / 50)
        bf16 = bf16_is_fast(device) if self.settings.bf16 is None else self.settings.bf16
        # On a CPU the fused attention's backward pass is several times slower than plain matrix products.
        kernel = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        self.optimizer.zero_grad(set_to_none=True)
        with kernel:
            if device.type == "cpu" and self.workers.count == 1:
                figures = self._backward_side_by_side(kind, seed, clip, phase.balance, bf16)
            else:
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss, figures = self._steps(kind, clip, seed, phase.balance)
                loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        self._average()
        return figures

    def _backward_side_by_side(self, kind: str, seed: int, clip: Clip, balance: float, bf16: bool) -> dict[str, list[float]]:
        """Gradients of the step, each half of the clips on its own core; two halves on any machine, so that a seed says all."""
        learning = [p for p in self.model.parameters() if p.requires_grad]
        halves = list(zip(clip.frames.tensor_split(2), clip.masks.tensor_split(2), strict=True)) if len(clip.frames) > 1 else [(clip.frames, clip.masks)]

        def half(n: int):
            # Casts of weights are cached for all threads together, and forgotten when the first of them is done.
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16, cache_enabled=False):
                loss, figures = self._steps(kind, Clip(*halves[n]), seed + n, balance)
            return torch.autograd.grad(loss * (len(halves[n][0]) / len(clip.frames)), learning, allow_unused=True), figures

        done = share(half, range(len(halves)), clip.frames.device)
        for parameter, *parts in zip(learning, *(gradients for gradients, _ in done), strict=True):
            parts = [g for g in parts if g is not None]
            parameter.grad = sum(parts[1:], parts[0]) if parts else None
        return {name: sum((figures.get(name, []) for _, figures in done), []) for name in dict.fromkeys(n for _, f in done for n in f)}

    @torch.no_grad()
    def _average(self) -> None:
        done = self.step + 10 if self.phase == 0 else 1 << 30
        keep = min(self.settings.ema, done / (done + self.settings.ema_start))
        for name, value in merged(self.model).items():
            self.average[name].lerp_(value.to(self.average[name]), 1 - keep)

    def _log(self, figures: dict[str, float]) -> None:
        if self._record:
            figures = {k: round(v, 4) for k, v in figures.items()}
            row = {"phase": self.phase, "step": self.step, "total": self.total, "seconds": round(self.seconds)}
            self._record.add(row | figures)


def _cos(share: float) -> float:
    return float(torch.cos(torch.tensor(share * torch.pi)))
