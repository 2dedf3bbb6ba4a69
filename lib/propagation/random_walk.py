"""Adapt the mask of a volume to all of its prompts at once: what one of them says also holds near it on other slices.

Tracking follows shapes from slice to slice, and a click is obeyed on its own slice. So a mask that is wrong in many places would give way
only piece by piece. Here each voxel goes to the side that a random walk from it would reach first (random walks with priors, Grady, CVPR
2005). A walk hardly crosses edges of the image. It ends at a prompt, or with the side of the mask where it just is, and the latter is the
less likely the nearer a prompt that contradicts the mask is, in comparison with one that agrees with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage
from scipy.sparse.linalg import LinearOperator, cg

from lib.imaging.frames import Frames
from lib.imaging.masks import bounding_box
from lib.prompts.volume_prompts import SlicePrompt

# Chosen on generated volumes and patients of the training data; docs/architecture.md has the figures.
MOST_CELLS = 250_000  # Of the grid of the walk; the structure and its surroundings are shrunk to it.
MARGIN, LEAST_MARGIN = 0.5, 8  # Surroundings on each side, as a share of the structure's size, and in voxels.
PRIOR_WEIGHT = 0.4  # Of the mask, if no prompt contradicts it; a step between cells of equal intensity has 1.
EDGE_WEIGHT = 6.0  # Of the squared difference of two intensities, in standard deviations of the image, that makes a step less likely.
FAR = 0.5  # If no prompt is outside (or none inside), the nearest is thought to be so many sides of the grid away.
SURE_CLICKS = 2  # So many clicks on a slice have made its whole mask right; a single one speaks for its surroundings only.
INSIDE, OUTSIDE = 1, -1
_TOLERANCE, _MOST_STEPS = 1e-2, 300  # Of the conjugate gradients.


@dataclass(frozen=True)
class _Grid:
    """The part of a volume in which walks are made, shrunk to cells.

    Attributes:
        window: The part of the volume, slices along T, Y and X.
        shape: Number of cells along each axis.
        spacing: Size of a cell along each axis, in units of the smallest.
    """

    window: tuple[slice, slice, slice]
    shape: tuple[int, int, int]
    spacing: np.ndarray

    @classmethod
    def around(cls, stack: np.ndarray, clicks: np.ndarray, frames: Frames, low: int, high: int) -> "_Grid":
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

    @property
    def side(self) -> float:
        """Mean number of cells along an axis."""
        return float(np.cbrt(np.prod(self.shape)))

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


def adapt_to_prompts(stack: np.ndarray, frames: Frames, prompts: Mapping[int, SlicePrompt], low: int, high: int) -> None:
    """Adapt masks, bool (T, Y, X), to the prompts by slice, in place.

    Slices with prompts stay as they are, and so do slices outside of low..high, empty ones, because tracking has found where the structure
    ends, and those between two sure ones, because tracking knows both ends of such a gap. Elsewhere only voxels whose side changes on the
    grid of the walk change, so that fine details stay. With prompts on one slice nothing changes: tracking has used them already.

    Args:
        frames: The slices, T frames of Y x X pixels.
        prompts: Prompts of slices within low..high, in pixels of `frames`.
        low, high: First and last slice that may change.
    """
    sure = [t for t, p in prompts.items() if _is_sure(p)]
    stays = set(prompts).union(*(range(a, b) for a, b in pairwise(sorted(prompts)) if a in sure and b in sure))
    if len(prompts) < 2 or not stack.any() or stays.issuperset(range(low, high + 1)):
        return
    points = [(t, y, x, label) for t, p in prompts.items() for (x, y), label in zip(p.points, p.labels, strict=True) if label < 2]
    clicks = np.array(points, float).reshape(-1, 4)
    grid = _Grid.around(stack, np.rint(clicks[:, :3]).astype(int), frames, low, high)
    prior = grid.shrink(stack, 0, 1)
    seeds = _seeds(grid, clicks, prior, sure)
    probability = _walk(_scaled(grid.shrink(frames.stack, *frames.bounds)), prior, seeds, PRIOR_WEIGHT * _trust(grid, prior, seeds))
    changes, first = ((prior > 0.5) != (probability > 0.5)).any((1, 2)), grid.window[0].start
    for t in range(first, grid.window[0].stop):
        planes = grid.planes(t - first)[:2]
        if t not in stays and stack[t].any() and changes[list(planes)].any():
            before, after = (grid.enlarge(cells, t - first) > 0.5 for cells in (prior, probability))
            part = stack[t][grid.window[1:]]
            part[before != after] = after[before != after]


def _is_sure(prompt: SlicePrompt) -> bool:
    """Return whether the mask of a slice is thought to be right as a whole."""
    return prompt.mask is not None or bool((prompt.labels > 1).any()) or len(prompt.labels) >= SURE_CLICKS


def _seeds(grid: _Grid, clicks: np.ndarray, prior: np.ndarray, sure: list[int]) -> np.ndarray:
    """Return the cells that prompts decide, int8 in the shape of the grid: `INSIDE`, `OUTSIDE`, else 0.

    Args:
        clicks: float (P, 4), slice, row, column and label of each. It decides the 3 x 3 x 3 cells round it.
        prior: The mask, in the shape of the grid.
        sure: Slices whose masks decide all of their cells.
    """
    seeds = np.zeros(grid.shape, np.int8)
    cells = [(grid.cell(*click[:3]), INSIDE if click[3] else OUTSIDE) for click in clicks]
    for cell, side in cells:
        near = seeds[tuple(slice(max(c - 1, 0), c + 2) for c in cell)]
        near[near == 0] = side
    for t in sure:
        plane = grid.cell(t, 0, 0)[0]
        seeds[plane] = np.where(prior[plane] > 0.5, INSIDE, OUTSIDE)
    for cell, side in cells:
        seeds[cell] = side
    return seeds


def _trust(grid: _Grid, prior: np.ndarray, seeds: np.ndarray) -> np.ndarray:
    """Return how far the mask is believed in each cell, from 0 beside a prompt that contradicts it to 1 beside one that agrees.

    It is the square of the distance to the nearest contradiction as a share of the distances to it and to the nearest agreement.
    """

    def distance(side: int) -> np.ndarray:
        is_there = seeds == side
        if not is_there.any():
            return np.full(grid.shape, FAR * grid.side, np.float32)
        return ndimage.distance_transform_edt(~is_there, sampling=grid.spacing).astype(np.float32)

    inside, outside = distance(INSIDE), distance(OUTSIDE)
    return (np.where(prior > 0.5, outside, inside) / np.maximum(inside + outside, 1e-6)) ** 2


def _scaled(image: np.ndarray) -> np.ndarray:
    """Return an image without outliers, in standard deviations."""
    image = np.clip(image, *np.percentile(image, [0.5, 99.5]))
    return image / max(float(image.std()), 1e-6)


def _walk(image: np.ndarray, prior: np.ndarray, seeds: np.ndarray, prior_weight: np.ndarray) -> np.ndarray:
    """Return the probability that a walk from each cell ends inside; all arrays are in the shape of the grid.

    The probabilities p are those with the least sum of w (p - p')² over pairs of neighbours and of prior_weight (p - prior)² over cells.
    """
    weights = [np.exp(-EDGE_WEIGHT * np.diff(image, axis=axis) ** 2) + 1e-6 for axis in range(3)]
    total, is_free = prior_weight + 1e-6, seeds == 0
    for axis, weight in enumerate(weights):
        _after(total, axis)[...] += weight
        _before(total, axis)[...] += weight

    def from_neighbours(values: np.ndarray) -> np.ndarray:
        result = np.zeros_like(values)
        for axis, weight in enumerate(weights):
            _after(result, axis)[...] += weight * _before(values, axis)
            _before(result, axis)[...] += weight * _after(values, axis)
        return result

    def apply(vector: np.ndarray) -> np.ndarray:
        values = vector.reshape(image.shape)
        return np.where(is_free, total * values - from_neighbours(values), values).ravel()

    decided = (seeds == INSIDE).astype(np.float32)
    wanted = np.where(is_free, prior_weight * prior + from_neighbours(decided), 0).ravel()
    start, scale = np.where(is_free, prior, 0).ravel(), np.where(is_free, 1 / total, 1).ravel()
    shape, kind = (image.size, image.size), np.float32
    solution, _ = cg(
        LinearOperator(shape, apply, dtype=kind), wanted, x0=start, rtol=_TOLERANCE, maxiter=_MOST_STEPS,
        M=LinearOperator(shape, lambda vector: scale * vector, dtype=kind),
    )  # fmt: skip
    return np.where(is_free, solution.reshape(image.shape), decided)


def _before(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the view of a 3D array without the last cells along an axis."""
    return array[tuple(slice(None, -1) if a == axis else slice(None) for a in range(3))]


def _after(array: np.ndarray, axis: int) -> np.ndarray:
    """Return the view of a 3D array without the first cells along an axis."""
    return array[tuple(slice(1, None) if a == axis else slice(None) for a in range(3))]
