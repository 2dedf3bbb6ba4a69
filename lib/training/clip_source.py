"""Batches of training clips, generated ones and ones cut from real volumes, made on the device that trains."""

from dataclasses import dataclass

import torch

from lib.training import clip_appearance
from lib.training.batch_random import BatchRandom
from lib.training.generated_shapes import paint_label_maps
from lib.training.generated_targets import choose_targets
from lib.training.packed_volumes import PackedVolumes


@dataclass(frozen=True)
class ClipBatch:
    """A batch of clips.

    Attributes:
        frames: Slices, float32 (B, T, H, W) in [0, 255].
        masks: Targets, bool (R, T, H, W).
        rows: Index (R,) of the clip that each target belongs to.
        end_weights: Weight (R,) of the loss of the object score; less where the ends of a target may not be visible in the image.
    """

    frames: torch.Tensor
    masks: torch.Tensor
    rows: torch.Tensor
    end_weights: torch.Tensor


@dataclass(frozen=True)
class BatchPlan:
    """How many clips of each kind make a batch: generated ones with `objects` targets each, labelled ones and regions with one."""

    generated: int
    labelled: int = 0
    regions: int = 0
    objects: int = 3


class ClipSource:
    """Makes batches of clips, which depend on the seed of a step alone.

    Args:
        volumes: Real volumes, or None for generated clips only.
    """

    def __init__(self, plan: BatchPlan, volumes: PackedVolumes | None, device: torch.device):
        self.plan, self.volumes, self.random = plan, volumes, BatchRandom(device)

    @torch.no_grad()
    def make_batch(self, slices: int, side: int) -> ClipBatch:
        """Return a batch of clips of `slices` slices of `side` x `side` pixels, from the state of the device's random generator."""
        plan, random, device = self.plan, self.random, self.random.device
        images, masks, strengths, owners, ends = [], [], [], [], []
        counts = {"labels": plan.labelled, "regions": plan.regions} if self.volumes else {}
        for kind, count in counts.items():
            if count:
                image, mask = self.volumes.sample(random, kind, count, slices, side)
                images.append(clip_appearance.vary_real_images(random, clip_appearance.window_real_images(random, image), mask))
                masks.append(mask >= 0.5)
                strengths.append(0.5 * random.uniform(count))
                first = sum(len(i) for i in images[:-1])
                owners += range(first, first + count)
                ends.append(torch.full((count,), 1.0 if kind == "labels" else 0.4))
        first_generated = sum(len(i) for i in images)
        if plan.generated:
            labels = paint_label_maps(random, plan.generated, slices, side)
            images.append(clip_appearance.paint_intensities(random, labels))
            masks.append(choose_targets(random, labels, plan.objects).flatten(0, 1))
            strengths.append(torch.ones(plan.generated, device=device))
            owners += [first_generated + n // plan.objects for n in range(plan.generated * plan.objects)]
            ends.append(torch.ones(plan.generated * plan.objects))
        strength = torch.cat(strengths).view(-1, 1, 1, 1)
        frames = clip_appearance.simulate_acquisition(random, torch.cat(images), strength)
        rows = torch.tensor(owners).to(device, non_blocking=True)
        return ClipBatch(frames, torch.cat(masks), rows, torch.cat(ends).to(device, non_blocking=True))
