"""Random numbers of the generators: everything comes from one `torch.Generator`, so a seed fixes a clip."""

import torch
import torch.nn.functional as F


class Draw:
    """Draws numbers and smooth noise.

    Args:
        seed: of the random numbers.
        device: where tensors are made.
    """

    def __init__(self, seed: int, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.rng = torch.Generator(self.device).manual_seed(seed)

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        return float(torch.rand((), generator=self.rng, device=self.device)) * (high - low) + low

    def chance(self, probability: float) -> bool:
        """True in `probability` of the cases."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """A whole number in [low, high]."""
        return int(torch.randint(low, high + 1, (), generator=self.rng, device=self.device))

    def uniforms(self, *shape: int) -> torch.Tensor:
        """Numbers in [0, 1)."""
        return torch.rand(*shape, generator=self.rng, device=self.device)

    def normals(self, *shape: int) -> torch.Tensor:
        """Numbers of the standard normal distribution."""
        return torch.randn(*shape, generator=self.rng, device=self.device)

    def field(self, channels: int, shape: tuple[int, int, int], cells: float, cells_z: float) -> torch.Tensor:
        """Smooth noise (channels, T, H, W) of unit scale with `cells` random values along each slice side."""
        grid = (max(2, round(cells_z) + 1), max(2, round(cells)), max(2, round(cells)))
        return F.interpolate(self.normals(1, channels, *grid), size=shape, mode="trilinear", align_corners=True)[0]
