"""Random numbers for whole batches of clips. They never leave the device, so that a GPU is not interrupted."""

import torch
import torch.nn.functional as F


class BatchRandom:
    """A source of random tensors on a device; parameters of clips have the shape (B, 1, 1, ...), so that they broadcast.

    Args:
        generator: Generator of the device, or None for the device's own.
    """

    def __init__(self, device: str | torch.device = "cpu", generator: torch.Generator | None = None):
        self.device, self.generator = torch.device(device), generator

    def uniform(self, *shape: int, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
        """Return uniform numbers in [low, high)."""
        return torch.empty(*shape, device=self.device).uniform_(low, high, generator=self.generator)

    def normal(self, *shape: int) -> torch.Tensor:
        """Return numbers with a standard normal distribution."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def chance(self, probability: float, *shape: int) -> torch.Tensor:
        """Return bool numbers that are True with the given probability."""
        return torch.rand(*shape, generator=self.generator, device=self.device) < probability

    def sign(self, *shape: int) -> torch.Tensor:
        """Return -1 or 1."""
        return self.chance(0.5, *shape).float() * 2 - 1

    def choose(self, weights: torch.Tensor, count: int = 1) -> torch.Tensor:
        """Return `count` different indices (..., count) into the last axis of `weights`, with probabilities proportional to them."""
        race = weights / -torch.log(torch.rand(weights.shape, generator=self.generator, device=self.device).clamp_min(1e-20))
        return race.topk(count, dim=-1).indices

    def smooth(self, batch: int, channels: int, shape: tuple[int, int, int], cells: tuple[int, ...] = (4, 8, 16), knots: int = 4):
        """Return smooth noise (B, channels, T, H, W) of deviation about 1, of a random mixture of grids with `cells` points per side."""
        weights = self.normal(batch, len(cells)).mul(2).softmax(1).sqrt()
        total = None
        for n, side in enumerate(cells):
            grid = self.normal(batch, channels, min(knots, shape[0]), side, side)
            layer = F.interpolate(grid, size=shape, mode="trilinear", align_corners=True) * weights[:, n].view(-1, 1, 1, 1, 1)
            total = layer if total is None else total + layer
        return total * 1.5

    def path(self, batch: int, channels: int, length: int, knots: int = 4) -> torch.Tensor:
        """Return smooth random curves (B, channels, length) of deviation about 1."""
        return F.interpolate(self.normal(batch, channels, knots), size=length, mode="linear", align_corners=True)
