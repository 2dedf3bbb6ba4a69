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

    def to(self, device: torch.device) -> "ClipBatch":
        """Return the batch on a device."""
        return ClipBatch(*(t.to(device, non_blocking=True) for t in (self.frames, self.masks, self.rows, self.end_weights)))


@dataclass(frozen=True)
class BatchPlan:
    """How many clips of each kind make a batch: generated ones with `objects` targets each, labelled ones and regions with one."""

    generated: int
    labelled: int = 0
    regions: int = 0
    objects: int = 3


# What two CPU cores do in some seconds, and what a GPU of 80 GB does in half a second. Labelled volumes are a small share, because
# labels are usually of few structures: with half of the clips from two kinds of them, masks of other structures became worse.
CPU_BATCH, GPU_BATCH = BatchPlan(3, 1, 1, objects=2), BatchPlan(40, 12, 20)


class ClipSource:
    """Makes batches of generated clips and of clips of real volumes.

    Args:
        volumes: Real volumes, or None for generated clips only.
        plan: None chooses the batch by the device.
    """

    def __init__(self, device: str | torch.device, volumes: PackedVolumes | None = None, plan: BatchPlan | None = None):
        self._random, self._volumes = BatchRandom(device), volumes
        self.plan = plan or (CPU_BATCH if self._random.device.type == "cpu" else GPU_BATCH)

    @torch.no_grad()
    def make_batch(self, slices: int, side: int) -> ClipBatch:
        """Return a batch of clips of `slices` slices of `side` x `side` pixels, from the state of the device's random generator."""
        plan, random = self.plan, self._random
        images, masks, strengths, owners, end_weights = [], [], [], [], []
        structures = self._volumes.structures if self._volumes else {}
        for kind, count, end_weight in (("labels", plan.labelled, 1.0), ("regions", plan.regions, 0.4)):
            if count and kind in structures:
                image, mask = self._volumes.sample(random, kind, count, slices, side)
                owners += range(len(owners), len(owners) + count)
                images.append(clip_appearance.vary_real_images(random, clip_appearance.window_real_images(random, image), mask))
                masks.append(mask >= 0.5)
                strengths.append(0.5 * random.uniform(count))
                end_weights += [end_weight] * count
        if plan.generated:
            labels = paint_label_maps(random, plan.generated, slices, side)
            first, targets = len(owners), plan.generated * plan.objects
            owners += [first + n // plan.objects for n in range(targets)]
            images.append(clip_appearance.paint_intensities(random, labels))
            masks.append(choose_targets(random, labels, plan.objects).flatten(0, 1))
            strengths.append(torch.ones(plan.generated, device=random.device))
            end_weights += [1.0] * targets
        frames = clip_appearance.simulate_acquisition(random, torch.cat(images), torch.cat(strengths).view(-1, 1, 1, 1))
        return ClipBatch(frames, torch.cat(masks), torch.tensor(owners), torch.tensor(end_weights)).to(random.device)
