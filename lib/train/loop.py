"""Training of a small SAM 2 from scratch on generated clips: a curriculum of phases, resumable, same seed same weights."""

import json
import logging
import os
import platform
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from lib.model.build import build
from lib.model.checkpoints import read_weights, save_weights
from lib.train.clips import ClipTrainer
from lib.train.supervoxels import RealImages
from lib.train.synthetic import Clip, ClipGenerator

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Phase:
    """One stage of the curriculum.

    Attributes:
        kind: boxes_on_noise, single_slices, copies, or clips (of which every second step is single slices).
        size: side of the slices in pixels.
        batch: clips in a step. slices: slices of a clip.
        rate: learning rate at the start of the phase; final_rate: at its end (cosine).
        balance: weighting of the mask loss, see `losses.mask_losses`.
        objects: targets of a clip.
    """

    kind: str
    steps: int
    size: int
    batch: int
    slices: int
    rate: float
    final_rate: float
    balance: float
    objects: int = 1


CURRICULUM = (
    Phase("boxes_on_noise", 350, 128, 24, 1, 3e-4, 3e-4, 1.0),
    Phase("single_slices", 1500, 128, 24, 1, 4e-4, 3e-4, 0.7),
    Phase("copies", 250, 128, 12, 2, 3e-4, 3e-4, 0.5),
    Phase("clips", 1000, 128, 6, 5, 3e-4, 2e-4, 0.3),
    Phase("clips", 1300, 256, 3, 4, 2.5e-4, 1e-5, 0.2),
)


@dataclass(frozen=True)
class Settings:
    """Settings of a training run; `scale` multiplies the steps of every phase.

    `start` is a safetensors checkpoint to begin with instead of random weights, `images` a folder of real images without
    labels for a share of the clips.
    """

    out: str
    start: str | None = None
    images: str | None = None
    config: str = "sam2_hiera_nano_256.yaml"
    seed: int = 1
    scale: float = 1.0
    device: str = "cpu"
    bf16: bool = True
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    ema: float = 0.998
    save_every: int = 200


def prepare(model) -> None:
    """Starting values without which training from nothing stalls (see the docstring of each line's reason).

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


class Training:
    """State of a run: weights, their moving average, optimizer, step counters. Everything in `out/state.pt`."""

    def __init__(self, settings: Settings, curriculum: tuple[Phase, ...] = CURRICULUM):
        self.settings = settings
        self.phases = [replace(p, steps=max(1, round(p.steps * settings.scale))) for p in curriculum]
        self.out = Path(settings.out)
        self.out.mkdir(parents=True, exist_ok=True)
        self.phase = self.step = 0
        self.seconds = 0.0
        torch.manual_seed(settings.seed)
        self.model = build(settings.config, image_size=self.phases[0].size, training=True)
        if settings.start:
            self.model.load_state_dict(read_weights(Path(settings.start)))
        else:
            prepare(self.model)
        self.images = RealImages.read(settings.images) if settings.images else None
        self._to_device()
        self.average = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        if (self.out / "state.pt").exists():
            self._resume()

    def run(self) -> Path:
        """Trains to the end of the curriculum; returns the exported checkpoint."""
        while self.phase < len(self.phases):
            self._run_phase(self.phases[self.phase])
            self.phase, self.step = self.phase + 1, 0
            self._new_optimizer()
            self._save()
        return self.export()

    def export(self) -> Path:
        """Writes the averaged weights as half-precision safetensors."""
        path = self.out / "model.safetensors"
        save_weights(self.average, path, self.settings.config)
        info = {
            "settings": asdict(self.settings),
            "phases": [asdict(p) for p in self.phases],
            "finished_phases": self.phase,
            "seconds": round(self.seconds),
            "machine": f"{os.cpu_count()} cores, {platform.machine()}, {self.settings.device}",
            "torch": torch.__version__,
        }
        (self.out / "training.json").write_text(json.dumps(info, indent=2))
        logger.info("Wrote %s after %.0f s of training.", path, self.seconds)
        return path

    # ----------------------------------------------------------------------------------------------------------------
    def _to_device(self) -> None:
        self.model.to(self.settings.device)
        self._new_optimizer()

    def _new_optimizer(self) -> None:
        matrices = [p for p in self.model.parameters() if p.ndim > 1]
        others = [p for p in self.model.parameters() if p.ndim <= 1]
        groups = [{"params": matrices, "weight_decay": self.settings.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98))

    def _run_phase(self, phase: Phase) -> None:
        if self.model.image_size != phase.size:
            weights = self.model.state_dict()
            self.model = build(self.settings.config, image_size=phase.size, training=True)
            self.model.load_state_dict(weights)
            self._to_device()
            if self.step:
                self.optimizer.load_state_dict(self._optimizer_state)
        data = self._data(phase)
        bar = tqdm(total=phase.steps, initial=self.step, desc=f"{self.phase + 1}/{len(self.phases)} {phase.kind}", mininterval=5)
        figures: dict[str, list] = {}
        while self.step < phase.steps:
            start = time.monotonic()
            steps = self._train_step(phase, next(data))
            self.seconds += time.monotonic() - start
            self.step += 1
            figures.setdefault("loss", []).append(float(steps.loss.detach()))
            for name, values in steps.figures.items():
                figures.setdefault(name, []).extend(values)
            bar.update()
            if self.step % 50 == 0:
                means = {k: round(sum(v) / len(v), 4) for k, v in figures.items()}
                bar.set_postfix(means)
                self._log({"phase": self.phase, "step": self.step, "seconds": round(self.seconds), **means})
                figures = {}
            if self.step % self.settings.save_every == 0:
                self._save()
        bar.close()

    def _data(self, phase: Phase):
        """Clips of the steps still to do, made by a process of their own while the model trains."""
        steps = _Steps(self.settings.seed * 1_000_003 + self.phase * 100_003, phase, self.images)
        loader = DataLoader(steps, batch_size=None, sampler=range(self.step, phase.steps), num_workers=1, prefetch_factor=4)
        return iter(loader)

    def _train_step(self, phase: Phase, drawn: tuple[str, int, Clip]):
        kind, seed, clip = drawn
        device = torch.device(self.settings.device)
        clip = Clip(clip.frames.to(device), clip.masks.to(device))
        trainer = ClipTrainer(self.model, torch.Generator(device).manual_seed(seed), phase.balance)
        rate = phase.final_rate + (phase.rate - phase.final_rate) * 0.5 * (1 + _cos(self.step / phase.steps))
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, (self.step + 1) / 50)
        half = torch.autocast(device.type, torch.bfloat16, enabled=self.settings.bf16)
        # On a CPU the fused attention's backward pass is several times slower than plain matrix products.
        kernel = sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()
        self.optimizer.zero_grad(set_to_none=True)
        with kernel:
            with half:
                steps = getattr(trainer, kind)(clip)
            steps.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
        self._average()
        return steps

    @torch.no_grad()
    def _average(self) -> None:
        done = self.step + 10 if self.phase == 0 else 1 << 30
        keep = min(self.settings.ema, done / (done + 20))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value.to(self.average[name]), 1 - keep)

    def _log(self, row: dict) -> None:
        logger.info("%s", row)
        with open(self.out / "log.jsonl", "a") as f:
            f.write(json.dumps(row) + "\n")

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "phase": self.phase,
            "step": self.step,
            "seconds": self.seconds,
        }
        temporary = self.out / "state.tmp"
        torch.save(state, temporary)
        os.replace(temporary, self.out / "state.pt")

    def _resume(self) -> None:
        state = torch.load(self.out / "state.pt", map_location=self.settings.device, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.average = state["average"]
        self.phase, self.step, self.seconds = state["phase"], state["step"], state["seconds"]
        self._optimizer_state = state["optimizer"]
        self.optimizer.load_state_dict(self._optimizer_state)
        logger.info("Resuming in phase %d at step %d.", self.phase + 1, self.step)


class _Steps(Dataset):
    """The data of step i of a phase: (kind, seed, clip). Every step has its own seed, so a resumed run draws the same."""

    def __init__(self, seed: int, phase: Phase, images: RealImages | None):
        self.seed, self.phase, self.images = seed, phase, images

    def __len__(self) -> int:
        return self.phase.steps

    def __getitem__(self, step: int) -> tuple[str, int, Clip]:
        phase = self.phase
        seed = (self.seed + step) % (1 << 62)
        kind = "single_slices" if phase.kind == "clips" and step % 2 else phase.kind
        batch = phase.batch if kind == phase.kind else max(1, phase.batch * phase.slices // 2)
        generator = ClipGenerator(seed, images=self.images)
        clip = generator.batch(batch, phase.slices if kind == "clips" else 1, phase.size, phase.objects)
        if kind == "boxes_on_noise":
            clip = _boxes_on_noise(clip, torch.Generator().manual_seed(seed))
        return kind, seed, clip


def _cos(share: float) -> float:
    return float(torch.cos(torch.tensor(share * torch.pi)))


def _boxes_on_noise(clip: Clip, rng: torch.Generator) -> Clip:
    """Noise images and rectangles of random place and size."""
    b, _, h, w = clip.masks.shape
    frames = torch.rand(clip.frames.shape, generator=rng, device=clip.frames.device) * 255
    corner = torch.rand(b, 2, generator=rng, device=frames.device) * 0.7
    side = 0.08 + torch.rand(b, 2, generator=rng, device=frames.device) * 0.4
    y = torch.arange(h, device=frames.device) / h
    x = torch.arange(w, device=frames.device) / w
    rows = (y >= corner[:, :1]) & (y < corner[:, :1] + side[:, :1])
    columns = (x >= corner[:, 1:]) & (x < corner[:, 1:] + side[:, 1:])
    return Clip(frames, (rows[:, :, None] & columns[:, None, :])[:, None])
