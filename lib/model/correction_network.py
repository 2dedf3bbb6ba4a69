"""A small U-Net that corrects the mask of a slice by the clicks on it.

Beside SAM 2 networks for small images, which often do not understand a further click. It is trained by `lib.training.correction_training`.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lib.common.errors import CheckpointError
from lib.model.checkpoints import EMBEDDED, read_weights, sha256

EMBEDDED_CORRECTIONS = EMBEDDED.with_name("correction_network.safetensors")
SHA256 = "85ecfbbbe27f65b7af6522fd19bd7936428802e1845318d562cc15313e1e64ef"
SIDE = 96  # Pixels of its square input; other multiples of 16 are possible, too.
CHANNELS = 6  # The image, two maps of clicks inside, two of clicks outside, and the displayed mask.
_WIDTHS = 40, 72, 112, 144  # Channels at a half, a quarter, an eighth and a sixteenth of the resolution.


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


class CorrectionNetwork(nn.Module):
    """Maps inputs float (B, CHANNELS, h, w) to logits of the corrected masks, float (B, h, w); h and w are multiples of 16."""

    def __init__(self):
        super().__init__()
        widths_in = 4 * CHANNELS, *_WIDTHS[:-1]  # Blocks of 2 x 2 pixels become channels, which saves most of the time.
        self.encoder = nn.ModuleList(_Block(a, b) for a, b in zip(widths_in, _WIDTHS, strict=True))
        self.decoder = nn.ModuleList(_Block(a + b, a) for a, b in zip(_WIDTHS[:-1], _WIDTHS[1:], strict=True))
        self.last = nn.Conv2d(_WIDTHS[0] + 4 * CHANNELS, 32, 3, padding=1)
        self.out = nn.Conv2d(32, 4, 3, padding=1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of the corrected masks."""
        x = cells = F.pixel_unshuffle(inputs, 2).contiguous(memory_format=torch.channels_last)
        levels = []
        for n, block in enumerate(self.encoder):
            x = block(F.max_pool2d(x, 2) if n else x)
            levels.append(x)
        for block, finer in zip(reversed(self.decoder), reversed(levels[:-1]), strict=True):
            x = block(torch.cat([F.interpolate(x, size=finer.shape[-2:], mode="bilinear", align_corners=False), finer], 1))
        return F.pixel_shuffle(self.out(F.relu(self.last(torch.cat([x, cells], 1)))), 2)[:, 0]


def load_embedded() -> CorrectionNetwork:
    """Return the network that ships with the project: float32, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: The file is missing or not the one that ships.
    """
    if not EMBEDDED_CORRECTIONS.is_file() or sha256(EMBEDDED_CORRECTIONS) != SHA256:
        raise CheckpointError(f"{EMBEDDED_CORRECTIONS.name} is missing or damaged: fetch the project's files again.")
    return load_corrections(EMBEDDED_CORRECTIONS)


def load_corrections(path: Path) -> CorrectionNetwork:
    """Return the network of a safetensors file: float32, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: The file is damaged or holds other weights.
    """
    network = CorrectionNetwork()
    try:
        network.load_state_dict({name: value.float() for name, value in read_weights(path).items()})
    except RuntimeError as e:
        raise CheckpointError(f"{path.name} does not hold weights of a correction network.") from e
    return network.to(memory_format=torch.channels_last).eval()
