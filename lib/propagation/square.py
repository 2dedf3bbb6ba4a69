"""A square of a slice, as the small networks beside SAM 2 see it."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from lib.model.u_net import SIDE


class Square(NamedTuple):
    """Where a network's square lies in a slice: its centre in pixels (y, x), and how many of its pixels are one of the slice."""

    centre: np.ndarray
    zoom: float

    def from_slice(self, points_yx: np.ndarray) -> np.ndarray:
        """Return places in the square of places (N, 2) in the slice."""
        return (points_yx - self.centre) * self.zoom + SIDE / 2 - 0.5

    def cut(self, image: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        """Return an image (Y, X) in the square, float (SIDE, SIDE), and where the square lies within the slice, bool (SIDE, SIDE).

        Beyond the edges of the slice, values are those of the edges.
        """
        ys, xs = ((torch.arange(SIDE) + 0.5 - SIDE / 2) / self.zoom + float(c) for c in self.centre)
        is_within = ((ys >= 0) & (ys <= image.shape[0] - 1))[:, None] & ((xs >= 0) & (xs <= image.shape[1] - 1))
        return _sample(image, ys, xs), is_within

    def enlarge(self, values: torch.Tensor, shape: tuple[int, int], outside: np.ndarray | float) -> np.ndarray:
        """Return values (SIDE, SIDE) at the pixels of a slice, float32 (Y, X); beyond the square those of `outside` (Y, X)."""
        ys, xs = (torch.from_numpy((np.arange(n) - c) * self.zoom + SIDE / 2 - 0.5).float() for n, c in zip(shape, self.centre, strict=True))
        beyond = ((ys < -0.5) | (ys > SIDE - 0.5))[:, None] | ((xs < -0.5) | (xs > SIDE - 0.5))
        return np.where(beyond.numpy(), outside, _sample(values.numpy(), ys, xs).numpy()).astype(np.float32)


def _sample(values: np.ndarray, ys: torch.Tensor, xs: torch.Tensor) -> torch.Tensor:
    """Return values (Y, X) at all places of rows `ys` and columns `xs`, interpolated linearly; beyond the edges those of the edges."""
    height, width = values.shape
    y, x = ((v.float() + 0.5) / n * 2 - 1 for v, n in ((ys, height), (xs, width)))
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1)[None]
    source = torch.from_numpy(np.ascontiguousarray(values, np.float32))[None, None]
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="border", align_corners=False)[0, 0]
