"""Clips of labelled volumes, as the engine itself would show them to the network."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import Dataset

from lib.common.errors import UserError
from lib.imaging.datasets import Case
from lib.imaging.frames import Frames, fitted_size
from lib.imaging.readers import read_mask, read_volume
from lib.training.clip_generator import Clip
from lib.training.curriculum import Drawn, Phase
from lib.training.random_source import Draw

MIN_PIXELS = 12  # of the network's square; a smaller first slice teaches nothing


@lru_cache(maxsize=16)
def _read(image: Path, label: Path, window: str) -> tuple[Frames, np.ndarray]:
    """Slices of a case and its label map (T, Y, X)."""
    volume = read_volume(image)
    frames = Frames.of(volume, window=window, axis="auto")
    return frames, frames.from_volume(read_mask(label, volume))


class VolumeSteps(Dataset):
    """Clips of labelled volumes for the steps of a phase: a structure, a start where it is, a direction, a stride.

    At least half of the clips cross an end of the structure, where the volume allows it. Brightness, contrast and left and
    right vary; every step has a seed of its own, so a resumed run draws the same.

    Args:
        window: see `lib.imaging.frames`.
    """

    def __init__(self, seed: int, phase: Phase, cases: tuple[Case, ...], window: str = "auto"):
        self.seed, self.phase, self.cases, self.window = seed, phase, cases, window

    def __len__(self) -> int:
        return self.phase.steps

    def __getitem__(self, step: int) -> Drawn:
        seed = (self.seed + step) % (1 << 62)
        draw = Draw(seed)
        clips, slices = self.phase.clips_at(step)
        drawn = [self._clip(draw, slices) for _ in range(clips)]
        clip = Clip(torch.stack([f for f, _ in drawn]), torch.cat([m for _, m in drawn]))
        return self.phase.kind_at(step), seed, clip

    def _clip(self, draw: Draw, slices: int) -> tuple[torch.Tensor, torch.Tensor]:
        for _ in range(50):  # until a structure is large enough on its first slice
            case = self.cases[draw.integer(0, len(self.cases) - 1)]
            frames, labels = _read(case.image, case.label, self.window)
            values = [v for v in case.labels if (labels == v).any()]
            if not values:
                continue
            chosen = [values[draw.integer(0, len(values) - 1)] for _ in range(self.phase.objects)]
            index = _choose_slices(draw, (labels == chosen[0]).any((1, 2)), slices)
            image, targets = to_square(frames, np.stack([(labels == v)[index] for v in chosen]), index, self.phase.size)
            shown = targets[:, 0].flatten(1).sum(1) >= MIN_PIXELS
            if shown[0]:
                targets[~shown] = targets[0].clone()  # structures that are not on the first slice
                return _vary(draw, image, targets, fitted_size(frames.size, frames.pixel_mm, self.phase.size))
        raise UserError(
            "No structure in the labels is large enough to learn from: each is empty or under "
            f"{MIN_PIXELS} of {self.phase.size} x {self.phase.size} pixels."
        )


def _choose_slices(draw: Draw, present: np.ndarray, slices: int) -> np.ndarray:
    """Indices of `slices` slices, the first with the structure; half of the time its end comes within them."""
    filled = np.flatnonzero(present)
    step = 1 if draw.chance(0.7) else draw.integer(2, 3)
    if draw.chance(0.5):
        step = -step
    if draw.chance(0.5):  # start less than a clip before the end
        end = filled[-1] if step > 0 else filled[0]
        start = end - step * draw.integer(0, max(1, slices - 2))
        start = filled[np.abs(filled - start).argmin()]
    else:
        start = filled[draw.integer(0, len(filled) - 1)]
    return np.clip(start + step * np.arange(slices), 0, len(present) - 1)


def to_square(frames: Frames, masks: np.ndarray, index, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices `index` as the network sees them: float32 (T, side, side) in [0, 255], bool (N, T, side, side).

    Args:
        masks: bool (N, T, Y, X).
    """
    size = fitted_size(frames.size, frames.pixel_mm, side)
    image = torch.from_numpy(frames.windowed(index)).float()[:, None]
    image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)[:, 0].clamp(0, 255)
    targets = torch.from_numpy(np.ascontiguousarray(masks)).float()
    targets = F.interpolate(targets, size, mode="bilinear", antialias=True, align_corners=False) >= 0.5
    padding = (0, side - size[1], 0, side - size[0])
    return F.pad(image, padding), F.pad(targets, padding)


def _vary(draw: Draw, frames: torch.Tensor, masks: torch.Tensor, size: tuple[int, int]):
    """Other contrast, brightness and noise within the slice of `size` (height, width); sometimes mirrored."""
    height, width = size
    x, masks = frames.clone(), masks.clone()
    inner = (x[..., :height, :width] / 255) ** (2 ** draw.uniform(-0.3, 0.3))
    inner = (inner * draw.uniform(0.85, 1.15) + draw.uniform(-0.05, 0.05)).clamp(0, 1) * 255
    inner = (inner + draw.normals(*inner.shape) * draw.uniform(0, 5)).clamp(0, 255)
    if draw.chance(0.3):
        inner = inner.flip(-1)
        masks[..., :height, :width] = masks[..., :height, :width].flip(-1)
    x[..., :height, :width] = inner
    return x, masks
