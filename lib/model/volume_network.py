"""A small 3D U-Net that adapts the mask of a volume to all of its prompts.

It works on cells of a coarse grid, whatever network made the mask. It is trained by `lib.training.volume_training`.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn

from lib.model.side_networks import SideNetwork

CHANNELS = 10  # See `lib.propagation.volume_correction.network_input`.
_WIDTHS = 24, 40, 64  # Channels at a half, a quarter and an eighth of the resolution.
_MASK_LOGIT = 2.5  # Of cells within the mask before the network changes anything.


class _Convolution(nn.Conv3d):
    """A 3 x 3 x 3 convolution with padding, computed as one in 2D over each plane and its two neighbours: 3 to 4 times as fast on a CPU."""

    def __init__(self, channels_in: int, channels: int, bias: bool):
        super().__init__(channels_in, channels, 3, padding=1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count, channels, depth, height, width = x.shape
        padded = F.pad(x, (0, 0, 0, 0, 1, 1))
        planes = torch.cat([padded[:, :, n : n + depth] for n in range(3)], 1).transpose(1, 2)
        planes = planes.reshape(count * depth, 3 * channels, height, width).contiguous(memory_format=torch.channels_last)
        weight = self.weight.transpose(1, 2).reshape(-1, 3 * channels, 3, 3)
        return F.conv2d(planes, weight, self.bias, padding=1).reshape(count, depth, -1, height, width).transpose(1, 2)


class _Block(nn.Module):
    """Two convolutions with a shortcut."""

    def __init__(self, channels_in: int, channels: int):
        super().__init__()
        self.first, self.first_norm = _Convolution(channels_in, channels, bias=False), nn.GroupNorm(8, channels)
        self.second, self.second_norm = _Convolution(channels, channels, bias=False), nn.GroupNorm(8, channels)
        self.shortcut = nn.Conv3d(channels_in, channels, 1, bias=False) if channels_in != channels else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.shortcut(x))


class VolumeNetwork(nn.Module):
    """Maps inputs float (B, CHANNELS, d, h, w), of any size, to logits of the adapted masks, float (B, d, h, w).

    The second channel is the mask before, 1 inside and -1 outside. A network without training returns it.
    """

    def __init__(self, widths: Sequence[int] = _WIDTHS):
        super().__init__()
        self.stem = nn.Conv3d(8 * CHANNELS, widths[0], 1)  # Blocks of 2 x 2 x 2 cells become channels, which saves most of the time.
        self.encoder = nn.ModuleList(_Block(a, b) for a, b in zip((widths[0], *widths[:-1]), widths, strict=True))
        self.decoder = nn.ModuleList(_Block(a + b, a) for a, b in zip(widths[:-1], widths[1:], strict=True))
        self.last = _Convolution(2 * widths[0], widths[0], bias=True)
        self.out = nn.Conv3d(widths[0], 8, 1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits, float (B, d, h, w)."""
        depth, height, width = inputs.shape[2:]
        even = F.pad(inputs, (0, width % 2, 0, height % 2, 0, depth % 2), mode="replicate")
        x = blocks = self.stem(_to_blocks(even))
        levels = []
        for n, block in enumerate(self.encoder):
            x = block(F.max_pool3d(x, 2, ceil_mode=True) if n else x)
            levels.append(x)
        for block, finer in zip(reversed(self.decoder), reversed(levels[:-1]), strict=True):
            enlarged = F.interpolate(x, size=finer.shape[2:], mode="trilinear", align_corners=False)
            x = block(torch.cat([enlarged, finer], 1))
        logits = _from_blocks(self.out(F.relu(self.last(torch.cat([x, blocks], 1)))))
        return logits[:, :depth, :height, :width] + _MASK_LOGIT * inputs[:, 1].clamp(-1, 1)


def _to_blocks(x: torch.Tensor) -> torch.Tensor:
    """Return (B, 8 C, d / 2, h / 2, w / 2), with the cells of a block of 2 x 2 x 2 as channels, of (B, C, d, h, w)."""
    count, channels, *size = x.shape
    depth, height, width = (n // 2 for n in size)
    return x.reshape(count, channels, depth, 2, height, 2, width, 2).permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(count, -1, depth, height, width)


def _from_blocks(x: torch.Tensor) -> torch.Tensor:
    """Return (B, d, h, w) of the eight cells of each block, (B, 8, d / 2, h / 2, w / 2)."""
    count, _, depth, height, width = x.shape
    return x.reshape(count, 2, 2, 2, depth, height, width).permute(0, 4, 1, 5, 2, 6, 3).reshape(count, 2 * depth, 2 * height, 2 * width)


VOLUME_NETWORK = SideNetwork(
    "volume network", VolumeNetwork, "954f2928e13318ffe32636dfa296ebf31a6d392476276a25048964b5f00f90c1"
)
