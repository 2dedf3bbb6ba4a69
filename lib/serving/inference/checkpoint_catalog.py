"""Which checkpoints a server offers to its clients, by name."""

from dataclasses import dataclass
from pathlib import Path

from lib.common.errors import CheckpointError
from lib.model import checkpoints
from lib.model.versions import Versions

AUTO = "auto"  # the best fine-tuned version of the app's checkpoint, or that checkpoint


@dataclass(frozen=True)
class CheckpointCatalog:
    """Names and what they mean at this moment: a fine-tuning may add versions while the server runs.

    Attributes:
        base: the app's checkpoint, a name or path as `lib.model.checkpoints.find` takes it.
        versions: its fine-tuned versions.
    """

    base: str
    versions: Versions

    @classmethod
    def of(cls, base: str, folder: str | Path) -> "CheckpointCatalog":
        return cls(base, Versions(Path(folder), base))

    def names(self) -> list[str]:
        """What clients can choose, the default first."""
        known = [c.name for c in checkpoints.KNOWN.values() if c.name != self.base and c.path.is_file()]
        return list(dict.fromkeys([AUTO, self.base, *known, *reversed(self.versions.names())]))

    def resolve(self, name: str) -> tuple[str, str]:
        """(what `checkpoints.find` takes, what the answer calls it) for a name.

        Raises:
            CheckpointError: not offered; paths are for whoever starts the server.
        """
        if name not in self.names():
            raise CheckpointError(f"The server offers the checkpoints {', '.join(self.names())}; not {name!r}.")
        if name == AUTO:
            served = self.versions.served()
            return (str(served), f"{self.base}/{served.stem}") if served else (self.base, self.base)
        if name in self.versions.names():
            return str(self.versions.path(name)), f"{self.base}/{name}"
        return name, name
