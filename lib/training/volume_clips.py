"""Clips from labelled volumes, prepared exactly as the engine prepares slices for the network."""

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from lib.common.errors import UserError
from lib.imaging.datasets import Case
from lib.imaging.frames import Frames, fitted_size
from lib.imaging.readers import read_mask, read_volume
from lib.training.clip_source import ClipBatch
from lib.training.generated_targets import MIN_PIXELS

_MAX_ATTEMPTS = 50
_OBJECTS = 2  # Targets in a clip.


@lru_cache(maxsize=16)
def _read_case(image: Path, label: Path, window: str) -> tuple[Frames, np.ndarray]:
    """Return the slices of a case and its label map (T, Y, X)."""
    volume = read_volume(image)
    frames = Frames.of(volume, window=window, axis="auto")
    return frames, frames.from_volume(read_mask(label, volume))


class VolumeClips:
    """Makes batches of random clips of labelled volumes.

    A clip starts on a slice where its first structure is present and goes in either direction with a stride of 1 to 3 slices. At least
    half of the clips cross an end of the structure where the volume allows it. Contrast varies, and some clips are mirrored.

    Args:
        window: Intensity window, see `lib.imaging.frames`.
        clips: Number of clips in a batch.
    """

    def __init__(self, cases: tuple[Case, ...], window: str = "auto", clips: int = 2):
        self._cases, self._window, self._clips = cases, window, clips

    def make_batch(self, slices: int, side: int) -> ClipBatch:
        """Return clips of `slices` slices of `side` x `side` pixels, which depend on torch's global random generator alone.

        Raises:
            UserError: All structures are too small.
        """
        rng = np.random.default_rng(int(torch.randint(1 << 62, ())))
        frames, masks = zip(*(self._sample_clip(rng, slices, side) for _ in range(self._clips)), strict=True)
        rows = torch.arange(self._clips).repeat_interleave(_OBJECTS)
        return ClipBatch(torch.stack(frames), torch.cat(masks), rows, torch.ones(len(rows)))

    def _sample_clip(self, rng: np.random.Generator, slices: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return frames (T, side, side) and masks (N, T, side, side) of a clip whose first slice shows all targets."""
        for _ in range(_MAX_ATTEMPTS):
            case = self._cases[rng.integers(len(self._cases))]
            frames, labels = _read_case(case.image, case.label, self._window)
            values = [v for v in case.labels if (labels == v).any()]
            if not values:
                continue
            chosen = rng.choice(values, _OBJECTS)
            indices = _choose_slices(rng, (labels == chosen[0]).any((1, 2)), slices)
            image, targets = to_square(frames, np.stack([(labels == v)[indices] for v in chosen]), indices, side)
            large_enough = targets[:, 0].flatten(1).sum(1) >= MIN_PIXELS
            if large_enough[0]:
                targets[~large_enough] = targets[0].clone()  # Replaces structures that are not on the first slice.
                return _augment(rng, image, targets, fitted_size(frames.size, frames.pixel_mm, side))
        raise UserError(
            "No structure in the labels is large enough to learn from: each is empty or under "
            f"{MIN_PIXELS} of {side} x {side} pixels."
        )


def _choose_slices(rng: np.random.Generator, present: np.ndarray, slices: int) -> np.ndarray:
    """Return indices (slices,) that begin where a structure is `present`, bool (T,); beyond an end of the volume they are repeated."""
    filled = np.flatnonzero(present)
    step = (1 if rng.random() < 0.7 else rng.integers(2, 4)) * rng.choice((-1, 1))
    if rng.random() < 0.5:  # Start so close to the structure's end that the clip crosses it.
        end = filled[-1] if step > 0 else filled[0]
        start = end - step * rng.integers(0, max(1, slices - 2) + 1)
        start = filled[np.abs(filled - start).argmin()]
    else:
        start = rng.choice(filled)
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


def _augment(rng: np.random.Generator, frames, masks, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Vary contrast, brightness and noise, and sometimes mirror; `size` (height, width) is the part of the square that is filled."""
    (height, width), frames, masks = size, frames.clone(), masks.clone()
    image = (frames[..., :height, :width] / 255) ** (2 ** rng.uniform(-0.3, 0.3))
    image = (image * rng.uniform(0.85, 1.15) + rng.uniform(-0.05, 0.05)).clamp(0, 1) * 255
    noise = torch.from_numpy(rng.standard_normal(image.shape, np.float32))
    image = (image + noise * rng.uniform(0, 5)).clamp(0, 255)
    if rng.random() < 0.3:
        image = image.flip(-1)
        masks[..., :height, :width] = masks[..., :height, :width].flip(-1)
    frames[..., :height, :width] = image
    return frames, masks
