"""Random numbers for the clip generators. All of them come from one `torch.Generator`, so a seed determines a clip."""

import torch
import torch.nn.functional as F


class RandomSource:
    """A seeded source of random numbers and of smooth noise; tensors are created on `device`."""

    def __init__(self, seed: int, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.generator = torch.Generator(self.device).manual_seed(seed)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Return a number in [low, high)."""
        return float(torch.rand((), generator=self.generator, device=self.device)) * (high - low) + low

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """Return an integer in [low, high], both ends included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator, device=self.device))

    def uniforms(self, *shape: int) -> torch.Tensor:
        """Return a tensor of uniformly distributed numbers in [0, 1)."""
        return torch.rand(*shape, generator=self.generator, device=self.device)

    def normals(self, *shape: int) -> torch.Tensor:
        """Return a tensor of numbers with a standard normal distribution."""
        return torch.randn(*shape, generator=self.generator, device=self.device)

    def smooth_noise(self, channels: int, shape: tuple[int, int, int], cells: float, cells_z: float) -> torch.Tensor:
        """Return smooth noise (channels, T, H, W): normal numbers on a grid of `cells` points per side and `cells_z` cells across."""
        grid = (max(2, round(cells_z) + 1), max(2, round(cells)), max(2, round(cells)))
        return F.interpolate(self.normals(1, channels, *grid), size=shape, mode="trilinear", align_corners=True)[0]
