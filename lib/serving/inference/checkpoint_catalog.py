"""The checkpoints that a server offers to its clients, by name."""

from dataclasses import dataclass
from pathlib import Path

from lib.common.errors import CheckpointError
from lib.model import checkpoints
from lib.model.versions import Versions

AUTO = "auto"  # The fine-tuned version that is served at present, or the app's own checkpoint if there is none.


@dataclass(frozen=True)
class CheckpointCatalog:
    """The names of checkpoints and the files behind them. Both may change while the server runs, because fine-tuning adds versions."""

    base: str  # The app's checkpoint, a name or a path as `lib.model.checkpoints.find` takes it.
    versions: Versions  # The fine-tuned versions of the base.

    @classmethod
    def of(cls, base: str, folder: str | Path) -> "CheckpointCatalog":
        """Return the catalog of a base checkpoint whose fine-tuned versions lie below `folder`."""
        return cls(base, Versions(Path(folder), base))

    def names(self) -> list[str]:
        """Return the names that clients can choose from, the default first."""
        installed = [c.name for c in checkpoints.KNOWN.values() if c.name != self.base and c.path.is_file()]
        return list(dict.fromkeys([AUTO, self.base, *installed, *reversed(self.versions.names())]))

    def resolve(self, name: str) -> tuple[str, str]:
        """Return what a name stands for now: a name or path for `lib.model.checkpoints.find`, and the name for the answer.

        Raises:
            CheckpointError: The name is not one of `names()`. Paths are not: only the person who starts the server may choose files.
        """
        if name not in self.names():
            raise CheckpointError(f"The server offers the checkpoints {', '.join(self.names())}; not {name!r}.")
        if name == AUTO:
            served = self.versions.served()
            return (str(served), f"{self.base}/{served.stem}") if served else (self.base, self.base)
        if name in self.versions.names():
            return str(self.versions.path(name)), f"{self.base}/{name}"
        return name, name
