"""Adapt the mask of a volume to all of its prompts at once: what one of them says also holds near it on other slices.

Tracking follows shapes from slice to slice, and a click is obeyed on its own slice. So a mask that is wrong in many places would give way
only piece by piece. Here a small 3D network sees the image, the mask, the prompts, and where random walks from each cell to the prompts
would end, on a coarse grid.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from lib.imaging.frames import Frames
from lib.model.volume_network import VolumeNetwork
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.obedience import click_seeds
from lib.propagation.prompt_grid import PromptGrid
from lib.propagation.random_walk import INSIDE, OUTSIDE, walk_to_seeds

SURE_CLICKS = 2  # So many clicks on a slice have made its whole mask right; a single one speaks for its surroundings only.
_PAINTED, _MOST_COUNTED = 1.5, 5  # How sure the masks of slices are: painted or boxed ones, and with so many clicks or more: 1.
_INTENSITY_LIMIT = 4.0  # Standard deviations.


@dataclass(frozen=True)
class Cells:
    """A mask and what is known about it, on a grid of d x h x w cells.

    Attributes:
        image: Intensities in standard deviations of the image, float32 (d, h, w).
        mask: Share of each cell within the mask, float32 (d, h, w).
        walk: Probability that a random walk ends at a prompt inside, float32 (d, h, w).
        clicks: Cell and label (1 inside, 0 outside) of each click, int (P, 4).
        sureness: How sure the mask is in each plane, from 0 without prompts, float32 (d,).
        spacing: Size of a cell along each axis, in units of the smallest.
    """

    image: np.ndarray
    mask: np.ndarray
    walk: np.ndarray
    clicks: np.ndarray
    sureness: np.ndarray
    spacing: np.ndarray

    def network_input(self) -> torch.Tensor:
        """Return an input of the network, float (CHANNELS, d, h, w)."""
        image, mask, walk, sureness = (torch.from_numpy(a) for a in (self.image, self.mask, self.walk, self.sureness))
        picture, inside, signed = (image - image.mean()) / image.std().clamp_min(1e-3), mask > 0.5, 2 * mask - 1
        some = picture[inside] if inside.any() else picture
        deviation = some.std().clamp_min(0.1) if len(some) > 8 else torch.tensor(1.0)
        is_alike = torch.exp(-(((picture - some.mean()) / deviation) ** 2) / 2)
        maps = [m for side in (1, 0) for m in self._click_maps(self.clicks[self.clicks[:, 3] == side])]
        thickness = torch.full(mask.shape, float(np.log2(self.spacing[0] / self.spacing[1:].mean())))
        limited = picture.clamp(-_INTENSITY_LIMIT, _INTENSITY_LIMIT)
        return torch.stack([limited, signed, *maps, 2 * walk - 1, sureness[:, None, None] * signed, is_alike, thickness])

    def _click_maps(self, clicks: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return two maps (d, h, w) that are 1 at clicks and fall off quickly and slowly."""
        shape = self.mask.shape
        if not len(clicks):
            return torch.zeros(shape), torch.zeros(shape)
        nearest = torch.full(shape, torch.inf)
        axes = [torch.arange(n, dtype=torch.float32) * float(size) for n, size in zip(shape, self.spacing, strict=True)]
        for click in clicks:
            depth, height, width = ((axis - axis[c]) ** 2 for axis, c in zip(axes, click[:3], strict=True))
            nearest = torch.minimum(nearest, depth[:, None, None] + height[:, None] + width)
        return torch.exp(-nearest / 6), torch.exp(-nearest.sqrt() / 10)


@torch.inference_mode()
def adapt_to_prompts(
    network: VolumeNetwork, stack: np.ndarray, frames: Frames, prompts: Mapping[int, SlicePrompt], low: int, high: int
) -> None:
    """Adapt masks, bool (T, Y, X), to the prompts by slice, in place.

    Slices that are painted or have a box or several clicks stay as they are, and so do slices outside of low..high, empty ones, because
    tracking has found where the structure ends, and those between two sure ones, because tracking knows both ends of such a gap. Elsewhere
    only voxels whose side changes on the grid change, so that fine details stay. With prompts on one slice nothing changes: tracking has
    used them already.

    Args:
        network: The network.
        frames: The slices, T frames of Y x X pixels.
        prompts: Prompts of slices within low..high, in pixels of `frames`.
        low, high: First and last slice that may change.
    """
    sure = {t for t, p in prompts.items() if _is_sure(p)}
    stays = sure.union(*(range(a, b) for a, b in pairwise(sorted(prompts)) if a in sure and b in sure))
    if len(prompts) < 2 or not stack.any() or stays.issuperset(range(low, high + 1)):
        return
    grid, cells = shrink_to_cells(stack, frames, prompts, low, high)
    before, after = cells.mask, torch.sigmoid(network(cells.network_input()[None])[0]).numpy()
    changes, first = ((before > 0.5) != (after > 0.5)).any((1, 2)), grid.window[0].start
    for t in range(first, grid.window[0].stop):
        planes = grid.planes(t - first)[:2]
        if t not in stays and stack[t].any() and changes[list(planes)].any():
            was_inside, is_inside = (grid.enlarge(values, t - first) > 0.5 for values in (before, after))
            part = stack[t][grid.window[1:]]
            part[was_inside != is_inside] = is_inside[was_inside != is_inside]
            if t in prompts:
                decided = click_seeds(prompts[t], stack.shape[1:])
                stack[t] = np.where(decided == 0, stack[t], decided > 0)


def shrink_to_cells(
    stack: np.ndarray, frames: Frames, prompts: Mapping[int, SlicePrompt], low: int, high: int
) -> tuple[PromptGrid, Cells]:
    """Return the grid round a mask, bool (T, Y, X) with foreground, and its prompts, and what the network needs to know on it.

    The arguments are those of `adapt_to_prompts`.
    """
    clicks = [(t, y, x, label) for t, p in prompts.items() for (x, y), label in zip(p.points, p.labels, strict=True) if label < 2]
    clicks = np.array(clicks, float).reshape(-1, 4)
    grid = PromptGrid.around(stack, np.rint(clicks[:, :3]).astype(int), frames, low, high)
    image, mask = grid.shrink(frames.stack, *frames.bounds), grid.shrink(stack, 0, 1)
    image = np.clip(image, *np.percentile(image, [0.5, 99.5]))
    image = (image / max(float(image.std()), 1e-6)).astype(np.float32)
    cells = np.array([(*grid.cell(*c[:3]), c[3]) for c in clicks], int).reshape(-1, 4)
    sureness = np.zeros(grid.shape[0], np.float32)
    for t, prompt in prompts.items():
        plane = grid.cell(t, 0, 0)[0]
        sureness[plane] = max(sureness[plane], _sureness(prompt))
    whole = [grid.cell(t, 0, 0)[0] for t, p in prompts.items() if _is_whole(p)]
    walk = walk_to_seeds(image, _seeds(cells, mask, whole)).clip(0, 1).astype(np.float32)
    return grid, Cells(image, mask, walk, cells, sureness, grid.spacing)


def _is_whole(prompt: SlicePrompt) -> bool:
    """Return whether a prompt says what the whole mask of its slice is: a painting or a box."""
    return prompt.mask is not None or bool((prompt.labels > 1).any())


def _is_sure(prompt: SlicePrompt) -> bool:
    """Return whether the mask of a slice is thought to be right as a whole."""
    return _is_whole(prompt) or len(prompt.labels) >= SURE_CLICKS


def _sureness(prompt: SlicePrompt) -> float:
    """Return how sure the mask of a slice is."""
    return _PAINTED if _is_whole(prompt) else min(len(prompt.labels), _MOST_COUNTED) / _MOST_COUNTED


def _seeds(clicks: np.ndarray, mask: np.ndarray, whole: list[int]) -> np.ndarray:
    """Return the cells that prompts decide, int8 in the shape of the grid: `INSIDE`, `OUTSIDE`, else 0.

    A click, its cell and label, decides the 3 x 3 x 3 cells round it, a painted or boxed slice its plane (`whole`); the sides of the grid are outside.
    """
    seeds = np.zeros(mask.shape, np.int8)
    cells = [(tuple(click[:3]), INSIDE if click[3] else OUTSIDE) for click in clicks]
    for cell, side in cells:
        near = seeds[tuple(slice(max(c - 1, 0), c + 2) for c in cell)]
        near[near == 0] = side
    for plane in whole:
        seeds[plane] = np.where(mask[plane] > 0.5, INSIDE, OUTSIDE)
    for cell, side in cells:
        seeds[cell] = side
    for edge in (seeds[:, 0], seeds[:, -1], seeds[:, :, 0], seeds[:, :, -1]):
        edge[edge == 0] = OUTSIDE
    return seeds
