"""Keep fine-tuned versions of checkpoints. One version of each base checkpoint is served; those that were no better lie aside."""

import hashlib
import json
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from lib.common.atomic_files import write_text
from lib.common.errors import CheckpointError

_NAME = re.compile(r"v\d{4}")


@dataclass(frozen=True)
class Versions:
    """The versions of one base checkpoint, in a folder `root/BASE/` with v0001.safetensors, v0001.json, ..., served.json and aside/.

    BASE is the name of a checkpoint, or the name of a checkpoint's file and a digest of its path. `served.json` names the version that
    answers requests for BASE. It is replaced as a whole, so a server that reads it while a training writes it sees the old or the new one.
    """

    root: Path
    base: str

    @property
    def folder(self) -> Path:
        """The folder of this base, which need not exist."""
        name = re.sub(r"[^\w.+-]", "_", Path(self.base.partition("@")[0]).stem)
        if name != self.base:  # A path: files of one name in two folders are two bases.
            name += "_" + hashlib.sha256(self.base.encode()).hexdigest()[:8]
        return self.root / name

    def served(self) -> Path | None:
        """Return the file of the served version, or None where the base checkpoint itself is served."""
        try:
            name = json.loads((self.folder / "served.json").read_text())["version"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        path = self.folder / f"{name}.safetensors"
        return path if name and path.is_file() else None

    def names(self) -> list[str]:
        """Return the versions that were accepted at some time, the oldest first."""
        return sorted(p.stem for p in self.folder.glob("v*.safetensors") if _NAME.fullmatch(p.stem))

    def path(self, name: str) -> Path:
        """Return the file of a version.

        Raises:
            CheckpointError: There is no such version.
        """
        path = self.folder / f"{name}.safetensors"
        if not _NAME.fullmatch(name) or not path.is_file():
            raise CheckpointError(f"There is no version {name!r} of {self.base}: {', '.join(self.names()) or 'none yet'}.")
        return path

    def add(self, checkpoint: Path, info: dict, *, better: bool) -> Path:
        """Add a checkpoint, and return its new path.

        Args:
            info: Further fields of the JSON file beside it.
            better: Whether it is served from now on; otherwise it is kept under aside/.
        """
        (self.folder / "aside").mkdir(parents=True, exist_ok=True)
        taken = [int(p.stem[1:]) for p in self.folder.rglob("v*.safetensors") if _NAME.fullmatch(p.stem)]
        name = f"v{max(taken, default=0) + 1:04d}"
        folder = self.folder if better else self.folder / "aside"
        path = folder / f"{name}.safetensors"
        shutil.copy(checkpoint, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
        content = {"version": name, "base": self.base, "time": time.strftime("%Y-%m-%d %H:%M:%S"), **info}
        write_text(folder / f"{name}.json", json.dumps(content, indent=1))
        if better:
            self.serve(name)
        return path

    def serve(self, name: str | None) -> None:
        """Serve a version from now on, or with None the base checkpoint again.

        Raises:
            CheckpointError: There is no such version.
        """
        if name:
            self.path(name)
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "served.json", json.dumps({"version": name}, indent=1))
