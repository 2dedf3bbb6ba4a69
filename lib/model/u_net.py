"""A small U-Net for squares of slices, which the networks beside SAM 2 are made of."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

SIDE = 96  # Pixels of the square inputs; other multiples of 16 are possible, too.


class _Block(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(channels_in, channels, 3, padding=1, bias=False), nn.GroupNorm(8, channels)
        self.second, self.second_norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.GroupNorm(8, channels)
        self.shortcut = nn.Conv2d(channels_in, channels, 1, bias=False) if channels_in != channels else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class UNet(nn.Module):
    """Maps inputs float (B, `channels`, h, w) to masks; h and w are multiples of 16.

    Args:
        widths: Numbers of channels at a half, a quarter, an eighth and a sixteenth of the resolution.
    """

    def __init__(self, channels: int, widths: Sequence[int]):
        super().__init__()
        widths_in = 4 * channels, *widths[:-1]  # Blocks of 2 x 2 pixels become channels, which saves most of the time.
        self.encoder = nn.ModuleList(_Block(a, b) for a, b in zip(widths_in, widths, strict=True))
        self.decoder = nn.ModuleList(_Block(a + b, a) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.last = nn.Conv2d(widths[0] + 4 * channels, 32, 3, padding=1)
        self.out = nn.Conv2d(32, 4, 3, padding=1)
        self.to(memory_format=torch.channels_last)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits of the masks, float (B, h, w)."""
        x = cells = F.pixel_unshuffle(inputs, 2).contiguous(memory_format=torch.channels_last)
        levels = []
        for n, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if n else x)
            levels.append(x)
        for block, finer in zip(reversed(self.decoder), reversed(levels[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, size=finer.shape[-2:], mode="bilinear", align_corners=False), finer], 1))
        return F.pixel_shuffle(self.out(F.relu(self.last(torch.cat([x, cells], 1)))), 2)[:, 0]
