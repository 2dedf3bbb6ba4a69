"""A small U-Net that carries a mask from slice to slice.

Beside the memory of SAM 2 networks for small images, which carries shape and place but hardly looks at the image.
"""

import torch
from torch import nn

from lib.model.side_networks import SideNetwork
from lib.model.u_net import UNet

# The slice, the one before and its mask, the annotated slice at the near end and its mask, the same of the far end, how far it is on the way
# to that end, and the number of steps.
CHANNELS = 9
_PREVIOUS_MASK = 2  # Its channel.


class TrackingNetwork(UNet):
    """Maps inputs float (B, CHANNELS, h, w) to logits of the masks of their slices, float (B, h, w); h and w are multiples of 16."""

    def __init__(self):
        super().__init__(CHANNELS, (40, 64, 104, 144))
        self.kept = nn.Parameter(torch.tensor(0.5))  # How much of the previous mask is taken over from the beginning.

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return the logits of the masks, float (B, h, w)."""
        return super().forward(inputs) + 4 * self.kept * inputs[:, _PREVIOUS_MASK]


TRACKING_NETWORK = SideNetwork(
    "tracking network", TrackingNetwork, "0fea2e30e98df162e9cbfaacd9f4ad20dcf8e9a787391e3316e17dff7d7eaac0"
)
