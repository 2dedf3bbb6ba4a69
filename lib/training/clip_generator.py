"""Generated 3D clips with the masks of a few target structures each: training data without patients.

A clip is a short stack of slices. Structures live in 3D: smooth noise partitions, warped ellipsoids with cores
(part and whole), tubes across and within the slices, thin sheets, a body outline with air around it. Intensities are
drawn per structure, some on purpose equal or nearly equal to a neighbour's; the ends of structures lie inside the clip
often, so that a model must learn to stop. Ideas: SynthSeg (arXiv 2107.09559), AnyStar (arXiv 2307.07044),
ScribblePrompt (arXiv 2312.07381). Everything is drawn from one `torch.Generator`: same seed, same clips.
"""

from dataclasses import dataclass

import numpy as np
import torch

from lib.training.generated_appearance import acquire, blur, paint
from lib.training.random_source import Draw
from lib.training.supervoxels import RealImages
from lib.training.targets import MIN_PIXELS, choose_targets


@dataclass(frozen=True)
class Clip:
    """A batch of clips.

    Attributes:
        frames: float32 (B, T, H, W) in [0, 255].
        masks: bool (B * objects, T, H, W), the targets, those of one clip one after the other; on the first slice never
            empty, on the others they may be.
    """

    frames: torch.Tensor
    masks: torch.Tensor

    @property
    def objects(self) -> int:
        """Targets of each clip."""
        return len(self.masks) // len(self.frames)


class ClipGenerator:
    """Draws batches of clips.

    Args:
        seed: of the random numbers.
        device: where tensors are made.
        images: real images without labels for a share of the clips, or None.
        real_share: that share.
    """

    def __init__(
        self, seed: int, device: str | torch.device = "cpu", images: RealImages | None = None, real_share: float = 0.2
    ):
        self.draw = Draw(seed, device)
        self.images, self.real_share = images, real_share if images else 0.0

    def batch(self, clips: int, slices: int, size: int, objects: int = 1) -> Clip:
        """`clips` clips of `slices` slices of `size` x `size` pixels with `objects` targets each."""
        drawn = [self._clip(slices, size, objects) for _ in range(clips)]
        return Clip(torch.stack([f for f, _ in drawn]), torch.cat([m for _, m in drawn]))

    def volume(self, slices: int, size: int) -> tuple[np.ndarray, np.ndarray, list[int], float]:
        """A thin-sliced volume: image float32 and labels (T, H, W), the labels that are structures, the slice distance as a
        share of the field of view."""
        thickness = 2 ** self.draw.uniform(-7.2, -5.5)
        depth = slices * thickness
        labels, _, tissue = self._label_map(slices, size, thickness, depth)
        image = acquire(self.draw, paint(self.draw, labels, tissue, depth), depth)
        return image.cpu().numpy(), labels.cpu().numpy(), list(range(tissue + 1, int(labels.max()) + 1)), thickness

    def _clip(self, slices: int, size: int, objects: int) -> tuple[torch.Tensor, torch.Tensor]:
        draw = self.draw
        thickness = 2 ** draw.uniform(-7.5, -4.0)  # slice distance as a share of the field of view
        depth = max(slices * thickness, 0.02)
        if draw.chance(self.real_share):
            image, labels = self.images.clip(draw, slices, size)
            wholes, painted = {}, 0
            image = acquire(draw, image if draw.chance(0.7) else paint(draw, labels, 0, depth), depth, real=True)
            rough = size / self.images.side
        else:
            labels, wholes, painted = self._label_map(slices, size, thickness, depth)
            image = acquire(draw, paint(draw, labels, painted, depth), depth)
            rough = 0.0
        masks = choose_targets(draw, labels, objects, wholes, painted)
        if rough > 1:  # regions were found on fewer pixels: round their staircases
            rounded = torch.stack([blur(m.float(), rough) > 0.5 for m in masks])
            thin = rounded[:, 0].flatten(1).sum(1) < MIN_PIXELS
            masks = torch.where(thin[:, None, None, None], masks, rounded)
        turns = draw.integer(0, 3)
        return torch.rot90(image, turns, (1, 2)).contiguous(), torch.rot90(masks, turns, (2, 3)).contiguous()

    def _label_map(self, slices, size, thickness, depth):
        """Label map int64 (T, H, W), 0 = air; for each label the labels of its whole; the last label of the tissue."""
        draw, shape = self.draw, (slices, size, size)
        z = (torch.arange(slices, device=draw.device) - (slices - 1) / 2) * thickness
        axis = torch.linspace(-0.5, 0.5, size, device=draw.device)
        grid = torch.stack(torch.meshgrid(z, axis, axis, indexing="ij"))
        warp = draw.field(3, shape, draw.integer(3, 6), depth * 5) * draw.uniform(0.0, 0.06)
        warp[0] *= 0.5
        return self._labels(grid + warp, shape, depth)

    def _labels(self, grid, shape, depth):
        """See `_label_map`."""
        draw = self.draw
        regions = draw.integer(2, 10)
        cells = draw.uniform(2, 9)
        fields = draw.field(regions, shape, cells, depth * cells)
        fields = fields + 0.3 * draw.field(regions, shape, cells * 3, depth * cells * 3) * draw.uniform()
        labels = fields.argmax(0) + 1
        wholes: dict[int, set[int]] = {}
        count = regions
        for _ in range(draw.integer(4, 16)):
            count, wholes = self._add_structure(labels, wholes, count, grid, shape, depth)
        if draw.chance(0.6):  # a body outline with air around it, perhaps a layer of fat and a shell of bone
            radii = [draw.uniform(0.33, 0.55), draw.uniform(0.33, 0.55)]
            r = ((grid[1] / radii[0]) ** 2 + (grid[2] / radii[1]) ** 2).sqrt()
            for limit in ([1 - draw.uniform(0.04, 0.2)] if draw.chance(0.6) else []):
                count += 1
                labels[r > limit] = count
            labels[r > 1] = 0
        return labels, wholes, regions

    def _add_structure(self, labels, wholes, count, grid, shape, depth):
        """Paints one more structure over `labels`."""
        draw = self.draw
        kind = draw.uniform()
        count += 1
        if kind < 0.55:  # warped ellipsoid, with a core in a third of the cases
            r = self._ellipsoid(grid, depth)
            bumps = draw.field(1, shape, draw.integer(4, 12), depth * 8)[0] * draw.uniform(0.0, 0.35)
            inside = r + bumps < 1
            labels[inside] = count
            if draw.chance(0.35):
                whole = count
                count += 1
                labels[inside & (r + bumps < draw.uniform(0.4, 0.8) + 0.3 * bumps)] = count
                wholes[whole] = {whole, count}
        elif kind < 0.75:  # vessel crossing the slices: a disc that wanders
            y, x = draw.uniform(-0.35, 0.35), draw.uniform(-0.35, 0.35)
            slope = draw.normals(2) * draw.uniform(0.0, 1.2)
            bend = draw.normals(2) * draw.uniform(0.0, 6.0)
            radius = 2 ** draw.uniform(-6.0, -3.2)
            dy = grid[1] - y - slope[0] * grid[0] - bend[0] * grid[0] ** 2
            dx = grid[2] - x - slope[1] * grid[0] - bend[1] * grid[0] ** 2
            labels[(dy**2 + dx**2) < radius**2 * (1 + 4 * draw.uniform(-1, 1) * grid[0]).clamp(0.2, 3)] = count
        elif kind < 0.9:  # in-plane tube or sheet: the neighbourhood of a level set
            cells = draw.uniform(2, 5)
            field = draw.field(1, shape, cells, depth * cells)[0]
            near = self._ellipsoid(grid, depth) < 1.5
            labels[(field.abs() < draw.uniform(0.06, 0.25)) & near] = count
        else:  # cluster of small blobs of one intensity: only one of them is ever the target
            cells = draw.uniform(8, 18)
            field = draw.field(1, shape, cells, depth * cells)[0]
            labels[(field > 1.1) & (self._ellipsoid(grid, depth) < 1.6)] = count
        return count, wholes

    def _ellipsoid(self, grid, depth):
        """Normalised radius of a randomly placed and turned ellipsoid."""
        draw = self.draw
        scale = 2 ** draw.uniform(-5.0, -1.6)
        radii = [scale * 2 ** draw.uniform(-0.7, 0.7) for _ in range(3)]
        if draw.chance(0.5):  # both ends near or in the clip
            radii[0] = depth * draw.uniform(0.15, 0.7)
        span = 0.5 * depth + (radii[0] if draw.chance(0.5) else 0.0)
        centre = [draw.uniform(-span, span), draw.uniform(-0.38, 0.38), draw.uniform(-0.38, 0.38)]
        d = [grid[a] - centre[a] for a in range(3)]
        angle, tilt = draw.uniform(0, np.pi), draw.uniform(-0.8, 0.8)
        y = np.cos(angle) * d[1] + np.sin(angle) * d[2] + tilt * d[0]
        x = -np.sin(angle) * d[1] + np.cos(angle) * d[2]
        return ((d[0] / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2).sqrt()
