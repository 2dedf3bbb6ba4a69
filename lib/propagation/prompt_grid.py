"""A coarse grid of cells round the mask of a volume and its prompts."""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from lib.imaging.frames import Frames
from lib.imaging.masks import bounding_box

MOST_CELLS = 50_000  # The structure and its surroundings are shrunk to these.
MARGIN, LEAST_MARGIN = 0.5, 8  # Surroundings on each side, as a share of the structure's size, and in voxels.


@dataclass(frozen=True)
class PromptGrid:
    """The part of a volume in which masks are adapted to prompts, shrunk to cells.

    Attributes:
        window: The part of the volume, slices along T, Y and X.
        shape: Number of cells along each axis.
        spacing: Size of a cell along each axis, in units of the smallest.
    """

    window: tuple[slice, slice, slice]
    shape: tuple[int, int, int]
    spacing: np.ndarray

    @classmethod
    def around(cls, stack: np.ndarray, clicks: np.ndarray, frames: Frames, low: int, high: int) -> "PromptGrid":
        """Return the grid round a mask, bool (T, Y, X) with foreground, and clicks, int (P, 3), within the slices low..high."""
        box = bounding_box(stack)
        limits = [(low, high + 1), (0, stack.shape[1]), (0, stack.shape[2])]
        window = []
        for axis, (extent, (first, end)) in enumerate(zip(box, limits, strict=True)):
            start, stop = min(extent.start, *clicks[:, axis], end), max(extent.stop, *(clicks[:, axis] + 1), first)
            margin = max(LEAST_MARGIN, round(MARGIN * (stop - start)))
            window.append(slice(max(start - margin, first), min(stop + margin, end)))
        voxels = np.array([w.stop - w.start for w in window])
        spacing_mm, cells = np.array([frames.slice_mm, *frames.pixel_mm]), voxels.astype(float)
        while np.prod(cells) > MOST_CELLS:  # The axes with the smallest cells first.
            cells[np.argmin(np.where(cells > 1, spacing_mm * voxels / cells, np.inf))] *= 0.95
        shape = np.maximum(np.rint(cells).astype(int), 1)
        size_mm = spacing_mm * voxels / shape
        return cls(tuple(window), tuple(int(n) for n in shape), size_mm / size_mm.min())

    def cell(self, t: int, y: float, x: float) -> tuple[int, int, int]:
        """Return the cell in which a voxel of the volume lies."""
        voxel = zip((t, y, x), self.window, self.shape, strict=True)
        return tuple(int(np.clip((v - w.start + 0.5) * n / (w.stop - w.start), 0, n - 1)) for v, w, n in voxel)

    def shrink(self, array: np.ndarray, low: float, high: float) -> np.ndarray:
        """Return the means in each cell of an array (T, Y, X) whose values are limited to low..high, float32 in the shape of the grid."""
        part = array[self.window]
        order = np.argsort([-abs(s) for s in part.strides])  # As the array lies in memory, because other orders take several times as long.
        part, (count, *plane) = part.transpose(order), (self.shape[axis] for axis in order)
        total, cells = len(part), np.empty([self.shape[axis] for axis in order], np.float32)
        for n in range(count):  # A float32 copy of a whole volume could be large.
            layers = part[n * total // count : -(-(n + 1) * total // count)]
            copy = torch.from_numpy(np.clip(layers.astype(np.float32), low, high))
            cells[n] = F.adaptive_avg_pool3d(copy[None], (1, *plane))[0, 0].numpy()
        return np.ascontiguousarray(cells.transpose(np.argsort(order)))

    def planes(self, t: int) -> tuple[int, int, float]:
        """Return the two planes of cells between which slice `t` of the window lies, and how far it is from the first, in [0, 1]."""
        total, depth = self.window[0].stop - self.window[0].start, self.shape[0]
        position = float(np.clip((t + 0.5) * depth / total - 0.5, 0, depth - 1))
        return int(position), min(int(position) + 1, depth - 1), position - int(position)

    def enlarge(self, cells: np.ndarray, t: int) -> np.ndarray:
        """Return values of the voxels of slice `t` of the window, float32 (y, x), interpolated between cells."""
        first, second, share = self.planes(t)
        plane = (1 - share) * cells[first] + share * cells[second]
        size = tuple(w.stop - w.start for w in self.window[1:])
        return F.interpolate(torch.from_numpy(plane)[None, None], size, mode="bilinear", align_corners=False)[0, 0].numpy()
