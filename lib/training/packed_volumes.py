"""Clips of real volumes, cut and deformed in batches on the training device from a packed folder (`lib.training.volume_pack`)."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from lib.common.errors import UserError
from lib.training.batch_random import BatchRandom

INDEX = "index.json"
_ANCHORS = 64  # Voxels of each structure that are kept as possible starts of a clip.
_ANY_LABEL = 255  # The value that stands for all labels of a volume together.
_MAX_SIDE = 65_500  # Pixels along a side of a JPEG file.
_MIN_VOXELS = {"labels": 20, "regions": 60}


@dataclass(frozen=True)
class Structures:
    """Structures of one kind; all tensors have a row for each.

    Attributes:
        volume, map, value: Its volume, its label map and its value there (S,).
        anchors: Some of its voxels, as positions (S, N, 3) in voxels of the image (k, j, i).
        centre, extent_mm: Centre of its bounding box (S, 3) in voxels of the image, and the box's longest side (S,).
        cumulative: Cumulative probabilities (S,) by which structures are chosen.
    """

    volume: torch.Tensor
    map: torch.Tensor
    value: torch.Tensor
    anchors: torch.Tensor
    centre: torch.Tensor
    extent_mm: torch.Tensor
    cumulative: torch.Tensor


class PackedVolumes:
    """All volumes of a packed folder on one device.

    Attributes:
        structures: Labelled structures and regions, {"labels": Structures, "regions": Structures}; a kind without any is left out.

    Raises:
        UserError: The folder was not packed, or holds no structure.
    """

    def __init__(self, folder: str | Path, device: str | torch.device = "cpu"):
        folder, self.device = Path(folder), torch.device(device)
        if not (folder / INDEX).is_file():
            raise UserError(f"{folder} is not a packed folder: make one with the command pack.")
        self.rows = json.loads((folder / INDEX).read_text())
        images = [read_mosaic(folder / f"{row['name']}.jpg", row["shape"]) for row in self.rows]
        maps = [(n, m, read_mosaic(folder / m["file"], m["shape"])) for n, row in enumerate(self.rows) for m in row["maps"]]
        self.images, self.image_offsets = self._flat(images)
        self.maps, self.map_offsets = self._flat([array for _, _, array in maps])
        self.shapes, self.map_shapes = (self._floats([a.shape for a in arrays]) for arrays in (images, [a for _, _, a in maps]))
        self.spacings_mm = self._floats([row["spacing_mm"] for row in self.rows])
        structures = {kind: self._structures(maps, kind) for kind in ("labels", "regions")}
        self.structures = {kind: s for kind, s in structures.items() if s is not None}
        if not self.structures:
            raise UserError(f"{folder} holds no structure that is large enough to learn from.")

    def _flat(self, arrays) -> tuple[torch.Tensor, torch.Tensor]:
        """Return all arrays as one tensor, uint8, and the index where each begins."""
        offsets = np.cumsum([0, *(a.size for a in arrays)])[:-1]
        return torch.from_numpy(np.concatenate([a.ravel() for a in arrays])).to(self.device), torch.tensor(offsets).to(self.device)

    def _floats(self, values) -> torch.Tensor:
        return torch.tensor(np.array(values), dtype=torch.float32).to(self.device)

    def _structures(self, maps, kind: str) -> Structures | None:
        rng, found = np.random.default_rng(0), []
        for index, (volume, entry, array) in enumerate(maps):
            if entry["kind"] != kind:
                continue
            shape, spacing = np.array(self.rows[volume]["shape"]), np.array(self.rows[volume]["spacing_mm"])
            positions = np.argwhere(array)
            values = array[array > 0]
            order = np.argsort(values, kind="stable")
            positions, values = positions[order], values[order]
            distinct, starts = np.unique(values, return_index=True)
            groups = dict(zip(distinct.tolist(), np.split(positions, starts[1:]), strict=True))
            if kind == "labels" and len(groups) > 1:
                groups[_ANY_LABEL] = positions
            for value, voxels in groups.items():
                if len(voxels) < _MIN_VOXELS[kind]:
                    continue
                scaled = (voxels + 0.5) * shape / np.array(array.shape) - 0.5
                low, high = scaled.min(0), scaled.max(0)
                anchors = scaled[rng.integers(0, len(scaled), _ANCHORS)]
                extent = ((high - low + shape / np.array(array.shape)) * spacing).max()
                found.append((volume, index, value, anchors, (low + high) / 2, extent, self._weight(volume, kind, len(groups), extent)))
        if not found:
            return None
        columns = list(zip(*found, strict=True))
        integers = [torch.tensor(c, dtype=torch.long).to(self.device) for c in columns[:3]]
        weights = np.array(columns[6])
        return Structures(*integers, *(self._floats(c) for c in columns[3:6]), self._floats(np.cumsum(weights / weights.sum())))

    def _weight(self, volume: int, kind: str, count: int, extent_mm: float) -> float:
        """Return how often a structure is chosen: each group of volumes (modality and region of the body) has a fixed share."""
        row = self.rows[volume]
        group = "_".join(row["name"].split("_")[:2])
        size = sum("_".join(r["name"].split("_")[:2]) == group for r in self.rows)
        return extent_mm**0.5 / count if kind == "regions" else 1 / (count * size)

    def sample(self, random: BatchRandom, kind: str, clips: int, slices: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut clips whose first slice shows a structure; planes, strides, directions, scales and deformations are random.

        Return images, float32 (B, T, side, side) in [0, 1], and masks, float32 in [0, 1] of the same shape.
        """
        structures = self.structures[kind]
        n = torch.searchsorted(structures.cumulative, random.uniform(clips)).clamp_max(len(structures.cumulative) - 1)
        volume = structures.volume[n]
        anchor = structures.anchors[n, (random.uniform(clips) * _ANCHORS).long()]
        spacing, extent = self.spacings_mm[volume], structures.extent_mm[n]
        points_mm = self._planes(random, spacing, (structures.centre[n] - anchor) * spacing, extent, (slices, side), volume)
        voxels = anchor[:, None] + points_mm / spacing[:, None]
        map_index = structures.map[n]
        scale = (self.map_shapes[map_index] / self.shapes[volume])[:, None]
        shape = (clips, slices, side, side)
        image = _interpolate(self.images, self.image_offsets[volume], self.shapes[volume], voxels) / 255
        value = structures.value[n][:, None].to(torch.uint8)
        mask = _interpolate(
            self.maps, self.map_offsets[map_index], self.map_shapes[map_index], (voxels + 0.5) * scale - 0.5,
            lambda v: ((v == value) | ((value == _ANY_LABEL) & (v > 0))).float(),
        )  # fmt: skip
        return image.view(shape), mask.view(shape)

    def _planes(self, random: BatchRandom, spacing, to_centre_mm, extent_mm, size, volume) -> torch.Tensor:
        """Return the positions of all pixels of clips relative to the anchors in mm, float32 (B, T * H * W, 3) as (k, j, i)."""
        (slices, side), clips = size, len(spacing)
        axes = _orientations(random, spacing)
        field_mm = extent_mm * 2 ** random.uniform(clips, low=0.2, high=2.4)
        sides_mm = self.shapes[volume] * spacing
        field_mm = torch.maximum(torch.minimum(field_mm, 1.1 * sides_mm.median(1).values), 28 * spacing.amin(1))
        step_mm = extent_mm / 2 ** random.uniform(clips, low=2.0, high=5.0)
        steps = torch.where(random.chance(0.12, clips, 1), random.sign(clips, slices), torch.ones(clips, slices, device=self.device))
        steps = steps * (1 + 0.15 * random.uniform(clips, slices, low=-1))
        depth = (steps.cumsum(1) - steps[:, :1]) * step_mm[:, None]
        # In the plane the structure's centre lies off the middle, and the slices drift, turn and grow against each other.
        centre = torch.einsum("bij,bj->bi", axes, to_centre_mm)[:, 1:]
        room = (field_mm - 0.8 * extent_mm).clamp_min(0.15 * field_mm)[:, None]
        centre = centre + random.uniform(clips, 2, low=-0.35, high=0.35) * room
        walk = random.path(clips, 4, slices, 3)
        walk = walk - walk[:, :, :1]
        strength = random.uniform(clips, 1, 1) ** 2
        drift = (walk[:, :2] * strength * 0.12 * torch.where(random.chance(0.6, clips, 1, 1), 1.0, 0.0)).transpose(1, 2)
        angle, scale = 0.25 * walk[:, 2] * random.uniform(clips, 1) ** 2, torch.exp(0.15 * walk[:, 3] * random.uniform(clips, 1) ** 2)
        axis = (torch.arange(side, device=self.device) + 0.5) / side - 0.5
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(clips, slices, 2, 2) * scale[..., None, None]
        plane = torch.einsum("btij,jhw->btihw", turn, torch.stack([y, x])) + drift[..., None, None]
        bend = random.smooth(clips, 2, (slices, side, side), (4, 7)).transpose(1, 2)
        plane = plane + bend * (0.035 * random.uniform(clips, 1, 1, 1, 1) ** 2)
        plane = plane * field_mm.view(-1, 1, 1, 1, 1) + centre.view(clips, 1, 2, 1, 1)
        normal = depth.view(clips, slices, 1, 1, 1).expand(-1, -1, 1, side, side)
        points = torch.cat([normal, plane], 2).permute(0, 1, 3, 4, 2).reshape(clips, -1, 3)
        return points @ axes


def _orientations(random: BatchRandom, spacing: torch.Tensor) -> torch.Tensor:
    """Return orthonormal rows (B, 3, 3): the normal of the slices, the direction of rows and that of columns, in (k, j, i)."""
    clips, device = len(spacing), spacing.device
    table = torch.eye(3)[torch.tensor(list(permutations(range(3))))].to(device)
    is_free = random.chance(0.35, clips) | (spacing.amax(1) < 1.6 * spacing.amin(1))
    choice = torch.where(is_free, (random.uniform(clips) * 6).long(), (random.uniform(clips) * 2).long())
    axes = table[choice] * random.sign(clips, 3, 1)
    tilt = torch.where(random.chance(0.2, clips, 1), 1.0, random.uniform(clips, 1) * 0.12)
    q = F.normalize(torch.cat([1 - 0.9 * (tilt == 1), random.normal(clips, 3) * tilt], 1), dim=1)
    in_plane = torch.where(random.chance(0.5, clips), random.normal(clips) * 0.2, random.uniform(clips, high=2 * math.pi))
    zero, one = torch.zeros_like(in_plane), torch.ones_like(in_plane)
    c, s = in_plane.cos(), in_plane.sin()
    spin = torch.stack([one, zero, zero, zero, c, -s, zero, s, c], 1).view(-1, 3, 3)
    return spin @ axes @ _rotation(q)


def _rotation(q: torch.Tensor) -> torch.Tensor:
    """Return the rotation matrices (B, 3, 3) of unit quaternions (B, 4)."""
    w, x, y, z = q.unbind(1)
    rows = [
        1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y), 2 * (x * y + w * z), 1 - 2 * (x * x + z * z),
        2 * (y * z - w * x), 2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y),
    ]  # fmt: skip
    return torch.stack(rows, 1).view(-1, 3, 3)


def _interpolate(flat, offset, shape, voxels, value_of=None) -> torch.Tensor:
    """Interpolate volumes of different shapes linearly.

    Args:
        flat: Voxels of all volumes, uint8; that of clip b begins at offset[b] and has the shape shape[b].
        voxels: Positions (B, N, 3) in voxels.
        value_of: Maps voxels to the numbers that are interpolated; by default their value.

    Returns:
        Float32 (B, N), 0 beyond the volume.
    """
    last = (shape - 1)[:, None]
    clamped = torch.minimum(voxels.clamp_min(0), last)
    low = torch.minimum(clamped.floor(), (last - 1).clamp_min(0))
    fraction, low = clamped - low, low.long()
    step = torch.minimum(torch.ones_like(last), last).long()  # 0 along an axis with a single voxel.
    size = shape.long()
    strides = torch.stack([size[:, 1] * size[:, 2], size[:, 2], torch.ones_like(size[:, 0])], 1)[:, None]
    base = (low * strides).sum(2) + offset[:, None]
    increments = (step * strides).unbind(2)
    total = 0.0
    for corner in range(8):
        index, weight = base, 1.0
        for axis in range(3):
            if corner >> axis & 1:
                index, weight = index + increments[axis], weight * fraction[..., axis]
            else:
                weight = weight * (1 - fraction[..., axis])
        value = flat[index]
        total = total + weight * (value.float() if value_of is None else value_of(value))
    return total * ((voxels > -0.5) & (voxels < last + 0.5)).all(2)


def make_mosaic(stack: np.ndarray) -> Image.Image:
    """Return the slices of a stack, uint8 (K, J, I), as one picture: below each other, in several columns if they are too many."""
    count, rows, width = stack.shape
    per_column = min(count, _MAX_SIDE // rows)
    columns = -(-count // per_column)
    padded = np.pad(stack, ((0, columns * per_column - count), (0, 0), (0, 0)))
    return Image.fromarray(padded.reshape(columns, -1, width).transpose(1, 0, 2).reshape(-1, columns * width))


def read_mosaic(path: Path, shape: Sequence[int]) -> np.ndarray:
    """Return the stack, uint8 (K, J, I), of this shape in a picture of `make_mosaic`."""
    picture, (count, rows, width) = np.asarray(Image.open(path)), shape
    return picture.reshape(len(picture), -1, width).transpose(1, 0, 2).reshape(-1, rows, width)[:count]
