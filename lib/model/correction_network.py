"""A small U-Net that corrects the mask of a slice by the clicks and the box on it.

Beside SAM 2 networks for small images, which often do not understand a further click or what fills a box. It is trained by `lib.training.correction_training`.
"""

from pathlib import Path

from lib.model.checkpoints import EMBEDDED
from lib.model.u_net import UNet, check_shipped, load_into

EMBEDDED_CORRECTIONS = EMBEDDED.with_name("correction_network.safetensors")
SHA256 = "7539f9b4631fd9dec7fed183bae44f9bb6e68881efc932da81adbfc651240801"
CHANNELS = 7  # The image, two maps of clicks inside, two of clicks outside, the displayed mask, and the box.


class CorrectionNetwork(UNet):
    """Maps inputs float (B, CHANNELS, h, w) to logits of the corrected masks, float (B, h, w); h and w are multiples of 16."""

    def __init__(self):
        super().__init__(CHANNELS, (40, 72, 112, 144))


def load_embedded() -> CorrectionNetwork:
    """Return the network that ships with the project: float32, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: The file is missing or not the one that ships.
    """
    return load_corrections(check_shipped(EMBEDDED_CORRECTIONS, SHA256))


def load_corrections(path: Path) -> CorrectionNetwork:
    """Return the network of a safetensors file: float32, on the CPU, in evaluation mode.

    Raises:
        CheckpointError: The file is damaged or holds other weights.
    """
    return load_into(CorrectionNetwork(), path, "correction network")
