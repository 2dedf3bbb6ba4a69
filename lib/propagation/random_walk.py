"""Adapt the mask of a volume to all of its prompts at once: what one of them says also holds near it on other slices.

Tracking follows shapes from slice to slice, and a click is obeyed on its own slice. So a mask that is wrong in many places would give way
only piece by piece. Here each voxel goes to the side that a random walk from it would reach first (random walks with priors, Grady, CVPR
2005). A walk hardly crosses edges of the image. It ends at a prompt, or with the side of the mask where it just is, and the latter is the
less likely the nearer a prompt that contradicts the mask is, in comparison with one that agrees with it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage, sparse
from scipy.sparse.linalg import cg

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
        part, depth = array[self.window], self.shape[0]
        total = len(part)
        cells = np.empty(self.shape, np.float32)
        for n in range(depth):  # A float32 copy of a whole volume could be large.
            slices = part[n * total // depth : -(-(n + 1) * total // depth)]
            copy = torch.from_numpy(np.clip(slices.astype(np.float32), low, high))
            cells[n] = F.adaptive_avg_pool3d(copy[None], (1, *self.shape[1:]))[0, 0].numpy()
        return cells

    def enlarge(self, cells: np.ndarray, t: int) -> np.ndarray:
        """Return values of the voxels of slice `t` of the window, float32 (y, x), interpolated between cells."""
        total, depth = self.window[0].stop - self.window[0].start, self.shape[0]
        position = np.clip((t + 0.5) * depth / total - 0.5, 0, depth - 1)
        first = int(position)
        share = position - first
        plane = (1 - share) * cells[first] + share * cells[min(first + 1, depth - 1)]
        size = tuple(w.stop - w.start for w in self.window[1:])
        return F.interpolate(torch.from_numpy(plane)[None, None], size, mode="bilinear", align_corners=False)[0, 0].numpy()


def adapt_to_prompts(stack: np.ndarray, frames: Frames, prompts: Mapping[int, SlicePrompt], low: int, high: int) -> None:
    """Adapt masks, bool (T, Y, X), to the prompts by slice, in place.

    Slices with prompts and slices outside of low..high stay as they are. Elsewhere only voxels whose side changes on the grid of the walk
    change, so that fine details stay.
    """
    if not stack.any():
        return
    points = [(t, y, x, label) for t, p in prompts.items() for (x, y), label in zip(p.points, p.labels, strict=True) if label < 2]
    clicks = np.array(points, float).reshape(-1, 4)
    grid = _Grid.around(stack, np.rint(clicks[:, :3]).astype(int), frames, low, high)
    sure = [t for t, p in prompts.items() if len(prompts) == 1 or p.mask is not None or (p.labels > 1).any() or len(p.labels) >= SURE_CLICKS]
    prior = grid.shrink(stack, 0, 1)
    seeds = _seeds(grid, clicks, prior, sure)
    probability = _walk(_scaled(grid.shrink(frames.stack, *frames.bounds)), prior, seeds, PRIOR_WEIGHT * _trust(grid, prior, seeds))
    first = grid.window[0].start
    for t in range(first, grid.window[0].stop):
        if t not in prompts:
            before, after = (grid.enlarge(cells, t - first) > 0.5 for cells in (prior, probability))
            part = stack[t][grid.window[1:]]
            part[before != after] = after[before != after]


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
            return np.full(grid.shape, FAR * grid.side)
        return ndimage.distance_transform_edt(~is_there, sampling=grid.spacing)

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
    index = np.arange(image.size).reshape(image.shape)
    first, second, weights = [], [], []
    for axis, n in enumerate(image.shape):
        first.append(index.take(range(n - 1), axis).ravel())
        second.append(index.take(range(1, n), axis).ravel())
        weights.append(np.exp(-EDGE_WEIGHT * np.diff(image, axis=axis).ravel() ** 2) + 1e-6)
    first, second, weights = map(np.concatenate, (first, second, weights))
    ends = np.concatenate([first, second]), np.concatenate([second, first])
    neighbours = sparse.coo_matrix((np.concatenate([weights, weights]), ends), (image.size, image.size)).tocsr()
    laplacian = sparse.diags(neighbours @ np.ones(image.size)) - neighbours
    free, probability = np.flatnonzero(seeds == 0), np.where(seeds.ravel() == INSIDE, 1.0, 0.0)
    if not len(free):
        return probability.reshape(image.shape).astype(np.float32)
    weight, start = prior_weight.ravel()[free] + 1e-9, prior.ravel()[free].astype(float)
    matrix = laplacian[free][:, free] + sparse.diags(weight)
    wanted = weight * start - laplacian[free] @ probability
    solution, _ = cg(matrix, wanted, x0=start, rtol=_TOLERANCE, maxiter=_MOST_STEPS, M=sparse.diags(1 / matrix.diagonal()))
    probability[free] = solution
    return probability.reshape(image.shape).astype(np.float32)
