"""Generated 3D clips with the mask of one target structure each: training data without patients.

A clip is a short stack of slices. Structures live in 3D: smooth noise partitions, warped ellipsoids with cores
(part and whole), tubes across and within the slices, thin sheets, a body outline with air around it. Intensities are
drawn per structure, some on purpose equal or nearly equal to a neighbour's; the ends of structures lie inside the clip
often, so that a model must learn to stop. Ideas: SynthSeg (arXiv 2107.09559), AnyStar (arXiv 2307.07044),
ScribblePrompt (arXiv 2312.07381). Everything is drawn from one `torch.Generator`: same seed, same clips.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage


@dataclass(frozen=True)
class Clip:
    """A batch of clips.

    Attributes:
        frames: float32 (B, T, H, W) in [0, 255].
        masks: bool (B, T, H, W), the target; on the first slice never empty, on the others it may be.
    """

    frames: torch.Tensor
    masks: torch.Tensor


class ClipGenerator:
    """Draws batches of clips.

    Args:
        seed: of the random numbers.
        device: where tensors are made.
    """

    def __init__(self, seed: int, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.rng = torch.Generator(self.device).manual_seed(seed)

    def batch(self, clips: int, slices: int, size: int) -> Clip:
        """`clips` clips of `slices` slices of `size` x `size` pixels."""
        drawn = [self._clip(slices, size) for _ in range(clips)]
        return Clip(torch.stack([f for f, _ in drawn]), torch.stack([m for _, m in drawn]))

    # random numbers -------------------------------------------------------------------------------------------------
    def _u(self, low: float = 0.0, high: float = 1.0) -> float:
        return float(torch.rand((), generator=self.rng, device=self.device)) * (high - low) + low

    def _n(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.rng, device=self.device)

    def _i(self, low: int, high: int) -> int:
        """Integer in [low, high]."""
        return int(torch.randint(low, high + 1, (), generator=self.rng, device=self.device))

    def _field(self, channels: int, shape: tuple[int, int, int], cells: float, cells_z: float) -> torch.Tensor:
        """Smooth noise (channels, T, H, W) of unit scale with `cells` random values along each slice side."""
        grid = (max(2, round(cells_z) + 1), max(2, round(cells)), max(2, round(cells)))
        return F.interpolate(self._n(1, channels, *grid), size=shape, mode="trilinear", align_corners=True)[0]

    # one clip -------------------------------------------------------------------------------------------------------
    def _clip(self, slices: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        thickness = 2 ** self._u(-7.5, -4.0)  # slice distance as a share of the field of view
        depth = max(slices * thickness, 0.02)
        shape = (slices, size, size)
        z = (torch.arange(slices, device=self.device) - (slices - 1) / 2) * thickness
        axis = torch.linspace(-0.5, 0.5, size, device=self.device)
        grid = torch.stack(torch.meshgrid(z, axis, axis, indexing="ij"))
        warp = self._field(3, shape, self._i(3, 6), depth * 5) * self._u(0.0, 0.06)
        warp[0] *= 0.5
        labels, wholes = self._labels(grid + warp, shape, depth)
        frames = self._acquire(self._intensities(labels, shape, depth), shape, depth)
        target = self._target(labels, wholes)
        turns = self._i(0, 3)
        return torch.rot90(frames, turns, (1, 2)).contiguous(), torch.rot90(target, turns, (1, 2)).contiguous()

    def _labels(self, grid, shape, depth):
        """Label map int64 (T, H, W), 0 = air, and for each label the labels that belong to it as a whole."""
        regions = self._i(3, 12)
        cells = self._u(2, 9)
        fields = self._field(regions, shape, cells, depth * cells)
        fields = fields + 0.3 * self._field(regions, shape, cells * 3, depth * cells * 3) * self._u()
        labels = fields.argmax(0) + 1
        wholes: dict[int, set[int]] = {}
        count = regions
        for _ in range(self._i(3, 12)):
            count, wholes = self._add_structure(labels, wholes, count, grid, shape, depth)
        if self._u() < 0.6:  # a body outline with air around it, perhaps a layer of fat and a shell of bone
            radii = [self._u(0.33, 0.55), self._u(0.33, 0.55)]
            r = ((grid[1] / radii[0]) ** 2 + (grid[2] / radii[1]) ** 2).sqrt()
            for limit in ([1 - self._u(0.04, 0.2)] if self._u() < 0.6 else []):
                count += 1
                labels[r > limit] = count
            labels[r > 1] = 0
        return labels, wholes

    def _add_structure(self, labels, wholes, count, grid, shape, depth):
        """Paints one more structure over `labels`."""
        kind = self._u()
        count += 1
        if kind < 0.55:  # warped ellipsoid, with a core in a third of the cases
            r = self._ellipsoid(grid, depth)
            bumps = self._field(1, shape, self._i(4, 12), depth * 8)[0] * self._u(0.0, 0.35)
            inside = r + bumps < 1
            labels[inside] = count
            if self._u() < 0.35:
                whole = count
                count += 1
                labels[inside & (r + bumps < self._u(0.4, 0.8) + 0.3 * bumps)] = count
                wholes[whole] = {whole, count}
        elif kind < 0.75:  # vessel crossing the slices: a disc that wanders
            y, x = self._u(-0.35, 0.35), self._u(-0.35, 0.35)
            slope = self._n(2) * self._u(0.0, 1.2)
            bend = self._n(2) * self._u(0.0, 6.0)
            radius = 2 ** self._u(-6.0, -3.2)
            dy = grid[1] - y - slope[0] * grid[0] - bend[0] * grid[0] ** 2
            dx = grid[2] - x - slope[1] * grid[0] - bend[1] * grid[0] ** 2
            labels[(dy**2 + dx**2) < radius**2 * (1 + 4 * self._u(-1, 1) * grid[0]).clamp(0.2, 3)] = count
        elif kind < 0.9:  # in-plane tube or sheet: the neighbourhood of a level set
            cells = self._u(2, 5)
            field = self._field(1, shape, cells, depth * cells)[0]
            near = self._ellipsoid(grid, depth) < 1.5
            labels[(field.abs() < self._u(0.06, 0.25)) & near] = count
        else:  # cluster of small blobs of one intensity: only one of them is ever the target
            cells = self._u(8, 18)
            field = self._field(1, shape, cells, depth * cells)[0]
            labels[(field > 1.1) & (self._ellipsoid(grid, depth) < 1.6)] = count
        return count, wholes

    def _ellipsoid(self, grid, depth):
        """Normalised radius of a randomly placed and turned ellipsoid."""
        scale = 2 ** self._u(-5.0, -1.6)
        radii = [scale * 2 ** self._u(-0.7, 0.7) for _ in range(3)]
        if self._u() < 0.4:  # both ends near or in the clip
            radii[0] = depth * self._u(0.15, 0.7)
        span = 0.5 * depth + (radii[0] if self._u() < 0.5 else 0.0)
        centre = [self._u(-span, span), self._u(-0.38, 0.38), self._u(-0.38, 0.38)]
        d = [grid[a] - centre[a] for a in range(3)]
        angle, tilt = self._u(0, np.pi), self._u(-0.8, 0.8)
        y = np.cos(angle) * d[1] + np.sin(angle) * d[2] + tilt * d[0]
        x = -np.sin(angle) * d[1] + np.cos(angle) * d[2]
        return ((d[0] / radii[0]) ** 2 + (y / radii[1]) ** 2 + (x / radii[2]) ** 2).sqrt()

    def _intensities(self, labels, shape, depth):
        """Image in about [0, 1]: a mean per label, sub-clusters and texture inside the labels."""
        count = int(labels.max()) + 1
        means = torch.rand(count, generator=self.rng, device=self.device)
        if self._u() < 0.5:  # soft tissue: most structures lie close together
            means = self._u(0.3, 0.6) + (means - 0.5) * self._u(0.25, 0.8)
        if count > 3 and self._u() < 0.6:  # hard negatives: some structures look alike
            means[self._i(1, count - 1)] = means[self._i(1, count - 1)]
        means[0] = 0.0 if self._u() < 0.8 else means[0]
        image = means[labels]
        texture = self._field(2, shape, self._u(6, 40), depth * 20)
        amount = torch.rand(count, generator=self.rng, device=self.device) * self._u(0.0, 0.12)
        image = image + texture[0] * amount[labels]
        if self._u() < 0.4:
            image = image + (texture[1] > 0.6) * (self._n(count) * self._u(0.02, 0.1))[labels]
        return image

    def _acquire(self, image, shape, depth):
        """What a scanner and a viewer do: partial volume, blur, bias, noise, streaks, window, gamma, inversion."""
        slices, size = shape[0], shape[1]
        if slices > 1 and self._u() < 0.4:  # thick slices overlap
            w = self._u(0.05, 0.3)
            padded = torch.cat([image[:1], image, image[-1:]])
            image = w * padded[:-2] + (1 - 2 * w) * padded[1:-1] + w * padded[2:]
        image = self._blur(image, self._u(0.3, 1.4) * size / 128)
        if self._u() < 0.5:
            image = image * torch.exp(self._u(0.0, 0.4) * self._field(1, shape, 2, depth * 2)[0])
        noise = self._n(*shape)
        if self._u() < 0.5:
            noise = self._blur(noise, self._u(0.4, 1.2)) * 2
        image = image + noise * self._u(0.0, 0.08) ** 1.0
        if self._u() < 0.1:  # metal streaks
            angle = self._u(0, np.pi)
            axis = torch.linspace(-1, 1, size, device=self.device)
            line = axis[:, None] * np.cos(angle) + axis[None] * np.sin(angle)
            image = image + self._u(0.02, 0.1) * torch.sin(line * self._u(20, 60)) * torch.rand(
                slices, 1, 1, generator=self.rng, device=self.device
            )
        sample = image.flatten()[:: max(1, image.numel() // 4096)]
        low, high = torch.quantile(sample, torch.tensor([self._u(0, 0.05), self._u(0.95, 1.0)], device=self.device))
        image = ((image - low) / (high - low).clamp_min(1e-3)).clamp(0, 1)
        image = image ** (2 ** self._u(-0.7, 0.7))
        if self._u() < 0.5:
            image = 1 - image
        return image * 255.0

    @staticmethod
    def _blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
        """In-plane Gaussian of `sigma` pixels on (T, H, W)."""
        radius = max(1, int(2.5 * sigma + 0.5))
        x = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
        k = torch.exp(-0.5 * (x / max(sigma, 1e-3)) ** 2)
        k = k / k.sum()
        image = F.conv2d(F.pad(image[:, None], (radius, radius, 0, 0), mode="replicate"), k.view(1, 1, 1, -1))
        return F.conv2d(F.pad(image, (0, 0, radius, radius), mode="replicate"), k.view(1, 1, -1, 1))[:, 0]

    def _target(self, labels, wholes):
        """A structure that is on the first slice, preferring painted ones and those that end within the clip."""
        array = labels.cpu().numpy()
        slices, pixels = len(array), array[0].size
        count = int(array.max()) + 1
        areas = np.stack([np.bincount(a.ravel(), minlength=count) for a in array])
        ok = (areas[0] >= 12) & (areas[0] < 0.4 * pixels)
        ok[0] = False
        candidates = np.flatnonzero(ok)
        if not len(candidates):
            candidates = np.array([int(np.argmax(areas[0]))])
        ends = (areas == 0).any(0)[candidates]
        weights = areas[0][candidates] ** 0.1 * np.where(ends, 3.0, 1.0) * np.where(candidates > 12, 2.0, 1.0)
        label = int(candidates[min(np.searchsorted(weights.cumsum(), self._u() * weights.sum()), len(candidates) - 1)])
        whole = label in wholes and self._u() < 0.6
        chosen = np.isin(array, list(wholes[label])) if whole else array == label
        parts, _ = ndimage.label(chosen)
        in_first = np.bincount(parts[0].ravel())
        in_first[0] = 0
        largest = parts == int(in_first.argmax())
        if slices > 1 and self._u() < 0.1:  # several parts as one target
            largest = chosen
        return torch.from_numpy(largest).to(self.device)
