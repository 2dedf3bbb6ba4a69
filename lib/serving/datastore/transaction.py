"""A change of a datastore's folder that takes place as a whole or not at all."""

import json
import os
import shutil
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from monailabel.datastore.local import LocalDatastoreModel

from lib.common.atomic_files import write_text


@dataclass
class Change:
    """The planned changes of a folder. Whoever makes one holds the folder's lock until it is applied or discarded."""

    json_file: Path  # Lists the images and labels.
    model: LocalDatastoreModel  # The new content of the JSON file; the caller edits it.
    previous_text: str = ""  # The text of the JSON file before the change; empty if there is none.
    new_files: dict[Path, Path] = field(default_factory=dict)  # Complete files with temporary names -> the paths where they belong.
    obsolete_files: list[Path] = field(default_factory=list)  # Files to be removed.

    def add_file(self, source: str | Path, destination: Path) -> str:
        """Copy `source` to a temporary file beside `destination`, wait until it is on the disk, and return the temporary file's name.

        None of the datastore's file patterns matches that name.
        """
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = destination.with_name(f".{uuid.uuid4().hex}.tmp")
        self.new_files[temporary] = destination
        with open(source, "rb") as original, open(temporary, "wb") as copy:
            shutil.copyfileobj(original, copy)
            copy.flush()
            os.fsync(copy.fileno())
        return temporary.name

    def apply(self) -> set[Path]:
        """Replace the JSON file, move the new files, remove the obsolete ones, and return the changed folders for `sync_folder`.

        Raises:
            OSError: A file cannot be written or moved; the JSON file then keeps its previous text.
        """
        text = json.dumps(self.model.model_dump(exclude={"base_path"}), indent=2, default=str)
        if text != self.previous_text:
            write_text(self.json_file, text)
        try:
            for temporary, destination in self.new_files.items():
                os.replace(temporary, destination)
        except OSError:
            if self.previous_text:
                write_text(self.json_file, self.previous_text)
            raise
        for file in self.obsolete_files:
            file.unlink(missing_ok=True)
        if text == self.previous_text and not self.new_files:
            return set()
        return {self.json_file.parent, *(destination.parent for destination in self.new_files.values())}

    def discard_temporary_files(self) -> None:
        """Remove the new files that were not moved to their places."""
        for temporary in self.new_files:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Wait until the names of renamed files in a folder are on the disk. This does nothing on Windows."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
