"""Generated clips: short stacks of slices with masks of a few target structures each, training data that needs no patients.

Ideas come from SynthSeg (arXiv 2107.09559), AnyStar (arXiv 2307.07044) and ScribblePrompt (arXiv 2312.07381).
"""

from dataclasses import dataclass

import numpy as np
import torch

from lib.training.generated_appearance import blur_in_plane, paint_labels, simulate_acquisition
from lib.training.random_source import RandomSource
from lib.training.supervoxels import SUPERVOXEL_SIDE, RealImages
from lib.training.targets import MIN_PIXELS, choose_targets


@dataclass(frozen=True)
class Clip:
    """A batch of clips.

    Attributes:
        frames: Slices, float32 (B, T, H, W) in [0, 255].
        masks: Targets, bool (B * objects, T, H, W); those of one clip follow each other. Each target is present on the first slice;
            it may be absent from the others.
    """

    frames: torch.Tensor
    masks: torch.Tensor

    @property
    def objects(self) -> int:
        """The number of targets in each clip."""
        return len(self.masks) // len(self.frames)

    @property
    def rows(self) -> torch.Tensor:
        """The index (B * objects,) of the clip of each target."""
        return torch.arange(len(self.frames), device=self.frames.device).repeat_interleave(self.objects)


class ClipGenerator:
    """A generator of random clips. The same seed gives the same clips.

    The structures are three-dimensional: a partition by smooth noise, warped ellipsoids that may have a core, tubes across and within
    the slices, thin sheets, and a body outline with air around it. Each has a random intensity, some deliberately nearly the same as a
    neighbour's. Many structures end within the clip, so that a model learns to stop.

    Args:
        images: Real images without labels, from which a fraction `real_share` of the clips is made, or None.
    """

    def __init__(self, seed: int, device: str | torch.device = "cpu", images: RealImages | None = None, real_share: float = 0.2):
        self.random = RandomSource(seed, device)
        self.images, self.real_share = images, real_share if images else 0.0

    def generate_batch(self, clips: int, slices: int, size: int, objects: int = 1) -> Clip:
        """Return `clips` clips of `slices` slices of `size` x `size` pixels with `objects` targets each."""
        frames, masks = zip(*(self._generate_clip(slices, size, objects) for _ in range(clips)), strict=True)
        return Clip(torch.stack(frames), torch.cat(masks))

    def generate_volume(self, slices: int, size: int) -> tuple[np.ndarray, np.ndarray, list[int], float]:
        """Return a volume with thin slices as (image, labels, structures, thickness).

        The image is float32 (T, H, W) in [0, 255]. In the label map (T, H, W) the labels that are not `structures` are air or the tissue
        between structures. The thickness is the distance of the slices as a fraction of the field of view.
        """
        thickness = 2 ** self.random.uniform(-7.2, -5.5)
        depth = slices * thickness
        labels, _, last_tissue_label = self._generate_label_map(slices, size, thickness, depth)
        image = simulate_acquisition(self.random, paint_labels(self.random, labels, last_tissue_label, depth), depth)
        structures = list(range(last_tissue_label + 1, int(labels.max()) + 1))
        return image.cpu().numpy(), labels.cpu().numpy(), structures, thickness

    def _generate_clip(self, slices: int, size: int, objects: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return frames (T, H, W) and masks (objects, T, H, W) of one clip."""
        random = self.random
        thickness = 2 ** random.uniform(-7.5, -4.0)  # Distance of the slices as a fraction of the field of view.
        depth = max(slices * thickness, 0.02)
        is_real = random.chance(self.real_share)
        if is_real:
            image, labels = self.images.sample_clip(random, slices, size)
            composites, last_tissue_label = {}, 0
            image = image if random.chance(0.7) else paint_labels(random, labels, 0, depth)
        else:
            labels, composites, last_tissue_label = self._generate_label_map(slices, size, thickness, depth)
            image = paint_labels(random, labels, last_tissue_label, depth)
        image = simulate_acquisition(random, image, depth, real=is_real)
        masks = choose_targets(random, labels, objects, composites, last_tissue_label)
        if is_real and size > SUPERVOXEL_SIDE:  # The regions were computed on fewer pixels, so their borders have steps; round them.
            rounded = torch.stack([blur_in_plane(m.float(), size / SUPERVOXEL_SIDE) > 0.5 for m in masks])
            vanished = rounded[:, 0].flatten(1).sum(1) < MIN_PIXELS
            masks = torch.where(vanished[:, None, None, None], masks, rounded)
        quarter_turns = random.integer(0, 3)
        return torch.rot90(image, quarter_turns, (1, 2)).contiguous(), torch.rot90(masks, quarter_turns, (2, 3)).contiguous()

    def _generate_label_map(self, slices, size, thickness, depth) -> tuple[torch.Tensor, dict[int, set[int]], int]:
        """Return a label map, int64 (T, H, W) with 0 for air, {label of a shell: labels of shell and core}, and the last tissue label."""
        random, shape = self.random, (slices, size, size)
        z = (torch.arange(slices, device=random.device) - (slices - 1) / 2) * thickness
        axis = torch.linspace(-0.5, 0.5, size, device=random.device)
        grid = torch.stack(torch.meshgrid(z, axis, axis, indexing="ij"))
        warp = random.smooth_noise(3, shape, random.integer(3, 6), depth * 5) * random.uniform(0.0, 0.06)
        warp[0] *= 0.5
        grid = grid + warp
        regions, cells = random.integer(2, 10), random.uniform(2, 9)
        fields = random.smooth_noise(regions, shape, cells, depth * cells)
        fields = fields + 0.3 * random.smooth_noise(regions, shape, cells * 3, depth * cells * 3) * random.uniform()
        labels = fields.argmax(0) + 1
        composites, last_label = {}, regions
        for _ in range(random.integer(4, 16)):
            last_label = self._add_structure(labels, composites, last_label + 1, grid, depth)
        if random.chance(0.6):  # A body outline with air around it, often with an outer layer such as fat or bone.
            radius = ((grid[1] / random.uniform(0.33, 0.55)) ** 2 + (grid[2] / random.uniform(0.33, 0.55)) ** 2).sqrt()
            if random.chance(0.6):
                labels[radius > 1 - random.uniform(0.04, 0.2)] = last_label + 1
            labels[radius > 1] = 0
        return labels, composites, regions

    def _add_structure(self, labels, composites, label, grid, depth) -> int:
        """Write a random structure into `labels`, and into `composites` if it has a core; return the last label that was used."""
        random, shape = self.random, tuple(labels.shape)
        structure_type = random.uniform()
        if structure_type < 0.55:  # A warped ellipsoid, in a third of the cases with a core.
            radius = self._ellipsoid_radius(grid, depth)
            bumps = random.smooth_noise(1, shape, random.integer(4, 12), depth * 8)[0] * random.uniform(0.0, 0.35)
            inside = radius + bumps < 1
            labels[inside] = label
            if random.chance(0.35):
                core = inside & (radius + bumps < random.uniform(0.4, 0.8) + 0.3 * bumps)
                labels[core] = label + 1
                composites[label] = {label, label + 1}
                return label + 1
        elif structure_type < 0.75:  # A vessel that crosses the slices: a disc whose centre moves.
            y, x = random.uniform(-0.35, 0.35), random.uniform(-0.35, 0.35)
            slope = random.normals(2) * random.uniform(0.0, 1.2)
            bend = random.normals(2) * random.uniform(0.0, 6.0)
            radius = 2 ** random.uniform(-6.0, -3.2)
            dy = grid[1] - y - slope[0] * grid[0] - bend[0] * grid[0] ** 2
            dx = grid[2] - x - slope[1] * grid[0] - bend[1] * grid[0] ** 2
            labels[(dy**2 + dx**2) < radius**2 * (1 + 4 * random.uniform(-1, 1) * grid[0]).clamp(0.2, 3)] = label
        elif structure_type < 0.9:  # A tube or a sheet within the slices: the surroundings of a level set.
            cells = random.uniform(2, 5)
            field = random.smooth_noise(1, shape, cells, depth * cells)[0]
            labels[(self._ellipsoid_radius(grid, depth) < 1.5) & (field.abs() < random.uniform(0.06, 0.25))] = label
        else:  # A cluster of small blobs of one intensity, of which usually only one becomes a target.
            cells = random.uniform(8, 18)
            field = random.smooth_noise(1, shape, cells, depth * cells)[0]
            labels[(field > 1.1) & (self._ellipsoid_radius(grid, depth) < 1.6)] = label
        return label

    def _ellipsoid_radius(self, grid, depth) -> torch.Tensor:
        """Return each voxel's normalised radius (T, H, W) in a random ellipsoid: below 1 inside, above 1 outside."""
        random, scale = self.random, 2 ** self.random.uniform(-5.0, -1.6)
        radii = [scale * 2 ** random.uniform(-0.7, 0.7) for _ in range(3)]
        if random.chance(0.5):  # Both ends lie in the clip or close to it.
            radii[0] = depth * random.uniform(0.15, 0.7)
        max_offset = 0.5 * depth + (radii[0] if random.chance(0.5) else 0.0)
        dz, dy, dx = (grid[axis] - random.uniform(-limit, limit) for axis, limit in enumerate((max_offset, 0.38, 0.38)))
        angle, tilt = random.uniform(0, np.pi), random.uniform(-0.8, 0.8)
        y = np.cos(angle) * dy + np.sin(angle) * dx + tilt * dz
        x = -np.sin(angle) * dy + np.cos(angle) * dx
        return ((dz / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2).sqrt()
