"""The weights of the small networks that work beside SAM 2 and ship with the project."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from lib.common.errors import CheckpointError
from lib.model.checkpoints import EMBEDDED, read_weights, sha256


@dataclass(frozen=True)
class SideNetwork:
    """A kind of network, and the file of the weights that ship.

    Attributes:
        name: What the network is called in errors; its file has this name, too.
        new: Returns a network with new weights.
        sha256: Of the file that ships.
    """

    name: str
    new: Callable[[], nn.Module]
    sha256: str

    @property
    def path(self) -> Path:
        """The file that ships."""
        return EMBEDDED.with_name(self.name.replace(" ", "_") + ".safetensors")

    def load_shipped(self) -> nn.Module:
        """Return the network that ships with the project: float32, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: The file is missing or not the one that ships.
        """
        if not self.path.is_file() or sha256(self.path) != self.sha256:
            raise CheckpointError(f"{self.path.name} is missing or damaged: fetch the project's files again.")
        return self.load(self.path)

    def load(self, path: Path) -> nn.Module:
        """Return the network of a safetensors file: float32, on the CPU, in evaluation mode.

        Raises:
            CheckpointError: The file is damaged or holds other weights.
        """
        network = self.new()
        try:
            network.load_state_dict({name: value.float() for name, value in read_weights(path).items()})
        except RuntimeError as e:
            raise CheckpointError(f"{path.name} does not hold weights of a {self.name}.") from e
        return network.eval()
