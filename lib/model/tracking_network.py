"""A small U-Net that carries a mask from slice to slice.

Beside the memory of SAM 2 networks for small images, which carries shape and place but hardly looks at the image.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from lib.model.checkpoints import EMBEDDED
from lib.model.u_net import UNet, check_shipped, load_into

EMBEDDED_TRACKING = EMBEDDED.with_name("tracking_network.safetensors")
SHA256 = "0ea4b7ee86a2a5e3bd0988d89cce85165e0005bae1984afe9cd97df7c20dbcb1"
# The slice, the one before and its mask, the annotated slice at the near end and its mask, the same of the far end, how far it is on the way
# to that end, and the number of steps.
CHANNELS = 9
_PREVIOUS_MASK = 2  # Its channel.
_WIDTHS = 40, 64, 104, 144


class TrackingNetwork(UNet):
    """Maps inputs float (B, CHANNELS, h, w) to the masks of their slices; h and w are multiples of 16."""

    def __init__(self):
        super().__init__(CHANNELS, _WIDTHS)
        self.presence = nn.Sequential(nn.Linear(2 * _WIDTHS[-1] + 2 * _WIDTHS[0], 64), nn.ReLU(), nn.Linear(64, 1))
        self.kept = nn.Parameter(torch.tensor(0.5))  # How much of the previous mask is taken over from the beginning.

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of the masks, float (B, h, w), and of the structure's being there at all, float (B,)."""
        previous, output = inputs[:, _PREVIOUS_MASK], self.compute(inputs)
        inside = F.avg_pool2d((previous > 0).float()[:, None], 2)
        mean_inside = (output.decoded * inside).sum((2, 3)) / inside.sum((2, 3)).clamp_min(1)
        summary = [output.deepest.mean((2, 3)), output.deepest.amax((2, 3)), mean_inside, output.decoded.mean((2, 3))]
        return output.logits + 4 * self.kept * previous, self.presence(torch.cat(summary, 1))[:, 0]


def load_embedded() -> TrackingNetwork:
    """Return the network that ships with the project: float32, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: The file is missing or not the one that ships.
    """
    return load_tracking(check_shipped(EMBEDDED_TRACKING, SHA256))


def load_tracking(path: Path) -> TrackingNetwork:
    """Return the network of a safetensors file: float32, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: The file is damaged or holds other weights.
    """
    return load_into(TrackingNetwork(), path, "tracking network")
