"""Clips from labelled volumes, prepared exactly as the engine prepares slices for the network."""

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
from lib.training.curriculum import Phase, StepData
from lib.training.random_source import RandomSource
from lib.training.targets import MIN_PIXELS

_MAX_ATTEMPTS = 50


@lru_cache(maxsize=16)
def _read_case(image: Path, label: Path, window: str) -> tuple[Frames, np.ndarray]:
    """Return the slices of a case and its label map (T, Y, X)."""
    volume = read_volume(image)
    frames = Frames.of(volume, window=window, axis="auto")
    return frames, frames.from_volume(read_mask(label, volume))


class VolumeSteps(Dataset):
    """Random clips of labelled volumes for each step of a phase.

    A clip starts on a slice where its first structure is present and goes in either direction with a stride of 1 to 3 slices. At least
    half of the clips cross an end of the structure where the volume allows it. Contrast varies, and some clips are mirrored. Every step
    has its own seed, so a resumed run gets the same clips. For `window` see `lib.imaging.frames`. Too small structures raise UserError.
    """

    def __init__(self, seed: int, phase: Phase, cases: tuple[Case, ...], window: str = "auto"):
        self.seed, self.phase, self.cases, self.window = seed, phase, cases, window

    def __len__(self) -> int:
        return self.phase.steps

    def __getitem__(self, step: int) -> StepData:
        seed = (self.seed + step) % (1 << 62)
        random, (clips, slices) = RandomSource(seed), self.phase.clips_at(step)
        frames, masks = zip(*(self._sample_clip(random, slices) for _ in range(clips)), strict=True)
        return self.phase.kind_at(step), seed, Clip(torch.stack(frames), torch.cat(masks))

    def _sample_clip(self, random: RandomSource, slices: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return frames (T, side, side) and masks (objects, T, side, side) of a clip whose first slice shows all targets."""
        for _ in range(_MAX_ATTEMPTS):
            case = self.cases[random.integer(0, len(self.cases) - 1)]
            frames, labels = _read_case(case.image, case.label, self.window)
            values = [v for v in case.labels if (labels == v).any()]
            if not values:
                continue
            chosen = [values[random.integer(0, len(values) - 1)] for _ in range(self.phase.objects)]
            indices = _choose_slices(random, (labels == chosen[0]).any((1, 2)), slices)
            image, targets = to_square(frames, np.stack([(labels == v)[indices] for v in chosen]), indices, self.phase.size)
            large_enough = targets[:, 0].flatten(1).sum(1) >= MIN_PIXELS
            if large_enough[0]:
                targets[~large_enough] = targets[0].clone()  # Replaces structures that are not on the first slice.
                return _augment(random, image, targets, fitted_size(frames.size, frames.pixel_mm, self.phase.size))
        raise UserError(
            "No structure in the labels is large enough to learn from: each is empty or under "
            f"{MIN_PIXELS} of {self.phase.size} x {self.phase.size} pixels."
        )


def _choose_slices(random: RandomSource, present: np.ndarray, slices: int) -> np.ndarray:
    """Return indices (slices,) that begin where a structure is `present`, bool (T,); beyond an end of the volume they are repeated."""
    filled = np.flatnonzero(present)
    step = 1 if random.chance(0.7) else random.integer(2, 3)
    step = -step if random.chance(0.5) else step
    if random.chance(0.5):  # Start so close to the structure's end that the clip crosses it.
        end = filled[-1] if step > 0 else filled[0]
        start = end - step * random.integer(0, max(1, slices - 2))
        start = filled[np.abs(filled - start).argmin()]
    else:
        start = filled[random.integer(0, len(filled) - 1)]
    return np.clip(start + step * np.arange(slices), 0, len(present) - 1)


def to_square(frames: Frames, masks: np.ndarray, indices, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Resize T slices with the given indices and their masks, bool (N, T, Y, X), to the square images of the network.

    The longer physical side fills the square, the rest is empty. Return the slices, float32 (T, side, side) in [0, 255], and the masks,
    bool (N, T, side, side).
    """
    size = fitted_size(frames.size, frames.pixel_mm, side)
    image = torch.from_numpy(frames.windowed(indices)).float()[:, None]
    image = F.interpolate(image, size, mode="bilinear", antialias=True, align_corners=False)[:, 0].clamp(0, 255)
    targets = torch.from_numpy(np.ascontiguousarray(masks)).float()
    targets = F.interpolate(targets, size, mode="bilinear", antialias=True, align_corners=False) >= 0.5
    padding = (0, side - size[1], 0, side - size[0])
    return F.pad(image, padding), F.pad(targets, padding)


def _augment(random, frames: torch.Tensor, masks: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Vary contrast, brightness and noise, and sometimes mirror; `size` (height, width) is the part of the square that is filled."""
    (height, width), frames, masks = size, frames.clone(), masks.clone()
    image = (frames[..., :height, :width] / 255) ** (2 ** random.uniform(-0.3, 0.3))
    image = (image * random.uniform(0.85, 1.15) + random.uniform(-0.05, 0.05)).clamp(0, 1) * 255
    image = (image + random.normals(*image.shape) * random.uniform(0, 5)).clamp(0, 255)
    if random.chance(0.3):
        image = image.flip(-1)
        masks[..., :height, :width] = masks[..., :height, :width].flip(-1)
    frames[..., :height, :width] = image
    return frames, masks
