"""The curriculum of a training: which clips each step uses, how many and how large. A step's number determines its random choices."""

from dataclasses import dataclass

import torch
from torch.utils.data import Dataset

from lib.training.clip_generator import Clip, ClipGenerator
from lib.training.supervoxels import RealImages

StepData = tuple[str, int, Clip]  # The kind of the step (see `Phase.kind_at`), the seed of its prompts, and its clips.


@dataclass(frozen=True)
class Phase:
    """One phase of the curriculum.

    Attributes:
        kind: A method of `ClipTrainer`. In a phase of "clips" every second step trains single slices.
        steps, size: Number of steps, and side of the slices in pixels.
        batch, slices, objects: Number of clips in a step, and of slices and targets in a clip.
        rate, final_rate: Learning rate at the start and at the end of the phase; it follows a cosine in between.
        balance: Weighting of the mask loss, see `losses.mask_losses`.
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

    def kind_at(self, step: int) -> str:
        """Return the kind of training in step number `step`."""
        return "single_slices" if self.kind == "clips" and step % 2 else self.kind

    def clips_at(self, step: int) -> tuple[int, int]:
        """Return the number of clips and the number of slices in each of them for step number `step`."""
        if self.kind_at(step) != self.kind:
            return max(1, self.batch * self.slices // 2), 1
        return self.batch, self.slices if self.kind == "clips" else 1


CURRICULUM = (
    Phase("boxes_on_noise", 350, 128, 24, 1, 3e-4, 3e-4, 1.0),
    Phase("single_slices", 1500, 128, 24, 1, 4e-4, 3e-4, 0.7),
    Phase("copies", 250, 128, 12, 2, 3e-4, 3e-4, 0.5),
    Phase("clips", 2500, 128, 4, 8, 3e-4, 2e-4, 0.3, objects=3),
    Phase("clips", 3900, 256, 2, 6, 2.5e-4, 1e-5, 0.2, objects=3),
)


class GeneratedSteps(Dataset):
    """Generated clips for each step of a phase. Every step has its own seed, so a resumed run gets the same clips."""

    def __init__(self, seed: int, phase: Phase, images: RealImages | None = None):
        self.seed, self.phase, self.images = seed, phase, images

    def __len__(self) -> int:
        return self.phase.steps

    def __getitem__(self, step: int) -> StepData:
        seed, kind = (self.seed + step) % (1 << 62), self.phase.kind_at(step)
        clip = ClipGenerator(seed, images=self.images).generate_batch(*self.phase.clips_at(step), self.phase.size, self.phase.objects)
        if kind == "boxes_on_noise":
            clip = generate_boxes_on_noise(clip, torch.Generator().manual_seed(seed))
        return kind, seed, clip


def generate_boxes_on_noise(clip: Clip, rng: torch.Generator) -> Clip:
    """Return noise images with rectangles of random position and size as targets, in the shape of `clip`."""
    b, _, h, w = clip.masks.shape
    frames = torch.rand(clip.frames.shape, generator=rng, device=clip.frames.device) * 255
    corner = torch.rand(b, 2, generator=rng, device=frames.device) * 0.7
    side = 0.08 + torch.rand(b, 2, generator=rng, device=frames.device) * 0.4
    y, x = (torch.arange(n, device=frames.device) / n for n in (h, w))
    rows = (y >= corner[:, :1]) & (y < corner[:, :1] + side[:, :1])
    columns = (x >= corner[:, 1:]) & (x < corner[:, 1:] + side[:, 1:])
    return Clip(frames, (rows[:, :, None] & columns[:, None, :])[:, None])
