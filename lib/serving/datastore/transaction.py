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


@dataclass(frozen=True)
class Retirement:
    """A label that goes into the history before it is replaced or removed.

    Attributes:
        source: The label's file.
        destination: Its file in the history, beside which the description is written, as JSON.
        description: Text of that.
        stays: Whether the file also stays where it is, because another one will replace it as a whole.
    """

    source: Path
    destination: Path
    description: str
    stays: bool

    def carry_out(self) -> None:
        """Write the description, then link, copy or move the file; OSError if that fails."""
        write_text(description_file(self.destination), self.description)
        if not self.stays:
            os.replace(self.source, self.destination)
            return
        try:
            os.link(self.source, self.destination)
        except OSError:  # This file system knows no links.
            temporary = self.destination.with_name(f".{uuid.uuid4().hex}.tmp")
            copy_to_disk(self.source, temporary)
            os.replace(temporary, self.destination)

    def take_back(self) -> None:
        """Undo what `carry_out` has done, as far as it came."""
        if not self.stays and self.destination.exists():
            os.replace(self.destination, self.source)
        for file in (self.destination, description_file(self.destination)):
            file.unlink(missing_ok=True)


def description_file(label: Path) -> Path:
    """Return the file that describes a label of the history."""
    return label.with_name(f"{label.name}.json")


def copy_to_disk(source: str | Path, destination: Path) -> None:
    """Copy a file and wait until the copy is on the disk."""
    with open(source, "rb") as original, open(destination, "wb") as copy:
        shutil.copyfileobj(original, copy)
        copy.flush()
        os.fsync(copy.fileno())


@dataclass
class Change:
    """The planned changes of a folder. Whoever makes one holds the folder's lock until it is applied or discarded."""

    json_file: Path  # Lists the images and labels.
    model: LocalDatastoreModel  # The new content of the JSON file; the caller edits it.
    previous_text: str = ""  # The text of the JSON file before the change; empty if there is none.
    new_files: dict[Path, Path] = field(default_factory=dict)  # Complete copies (.tmp) and files of the history -> where they belong.
    obsolete_files: list[Path] = field(default_factory=list)  # Files to be removed.
    retirements: list[Retirement] = field(default_factory=list)  # Labels for the history; they come first, so that nothing is lost.

    def add_file(self, source: str | Path, destination: Path) -> str:
        """Copy `source` to a temporary file beside `destination`, wait until it is on the disk, and return the temporary file's name.

        None of the datastore's file patterns matches that name.
        """
        destination.parent.mkdir(parents=True, exist_ok=True)
        temporary = destination.with_name(f".{uuid.uuid4().hex}.tmp")
        self.new_files[temporary] = destination
        copy_to_disk(source, temporary)
        return temporary.name

    def apply(self) -> set[Path]:
        """Fill the history, replace the JSON file, move the new files, remove the obsolete ones; return the folders for `sync_folder`.

        Raises:
            OSError: A file cannot be written or moved; the JSON file then keeps its previous text, and the history its content.
        """
        text = json.dumps(self.model.model_dump(exclude={"base_path"}), indent=2, default=str)
        try:
            for retirement in self.retirements:
                retirement.carry_out()
            if text != self.previous_text:
                write_text(self.json_file, text)
            for temporary, destination in self.new_files.items():
                os.replace(temporary, destination)
        except OSError:
            for retirement in self.retirements:
                with suppress(OSError):
                    retirement.take_back()
            if self.previous_text and text != self.previous_text:
                with suppress(OSError):
                    write_text(self.json_file, self.previous_text)
            raise
        for file in self.obsolete_files:
            file.unlink(missing_ok=True)
        if text == self.previous_text and not self.new_files and not self.retirements:
            return set()
        destinations = [*self.new_files.values(), *(r.destination for r in self.retirements)]
        return {self.json_file.parent, *(destination.parent for destination in destinations)}

    def discard_temporary_files(self) -> None:
        """Remove the copies that were not moved to their places."""
        for temporary in (f for f in self.new_files if f.suffix == ".tmp"):  # Others come out of the history.
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
