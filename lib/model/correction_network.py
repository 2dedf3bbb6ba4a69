"""A small U-Net that corrects the mask of a slice by the clicks and the box on it.

Beside SAM 2 networks for small images, which often do not understand a further click or what fills a box. It is trained by `lib.training.correction_training`.
"""

from lib.model.side_networks import SideNetwork
from lib.model.u_net import UNet

CHANNELS = 7  # The image, two maps of clicks inside, two of clicks outside, the displayed mask, and the box.


class CorrectionNetwork(UNet):
    """Maps inputs float (B, CHANNELS, h, w) to logits of the corrected masks, float (B, h, w); h and w are multiples of 16."""

    def __init__(self):
        super().__init__(CHANNELS, (40, 72, 112, 144))


CORRECTION_NETWORK = SideNetwork(
    "correction network", CorrectionNetwork, "7539f9b4631fd9dec7fed183bae44f9bb6e68881efc932da81adbfc651240801"
)
