"""A folder with labels of images: MONAI Label's datastore, made safe against kills, full disks and other servers on the same folder.

Every change is made under the folder's lock, to the state that the JSON file has at that moment, so that no server loses the changes of
another one. New files are written completely beside their places, then the JSON file is replaced, then the files are moved. Until then, a
label's info names its temporary file under the key `TEMPORARY`: if the server is killed in between, the next start moves the file.
"""

import itertools
import logging
import os
import threading
import time
from collections.abc import Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from lib.common.errors import UserError
from lib.imaging.studies import Listing, image_of_label
from lib.serving.datastore.checks import checked_file_name
from lib.serving.datastore.transaction import Change, sync_folder

LOCK_TIMEOUT_S = 60  # How long a change waits for the changes of other threads and servers.
TEMPORARY = "temporary"

logger = logging.getLogger(__name__)


class FolderDatastore(LocalDatastore):
    """A folder of images and labels that any number of threads and servers may use at the same time. Reading never waits.

    Methods that change the folder raise UserError for ids and tags that cannot be file names, ImageNotFoundException for unknown images,
    and OSError if the folder cannot be written to. The folder then stays as it was.

    Attributes:
        listing: The images in the folder that are offered, and those that are left out, if it is a studies folder; otherwise empty.
    """

    listing = Listing()

    def __init__(self, *args, **kwargs):
        self._state_lock = threading.RLock()  # Keeps the JSON file and the state in memory in step.
        self._is_reconciled = False
        super().__init__(*args, **kwargs)
        if hasattr(self, "_handler"):
            self._handler.on_moved = self._on_any_event  # MONAI Label ignores moves, by which other servers add files.

    @contextmanager
    def _changing(self) -> Iterator[Change]:
        """Yield a `Change` of the newest state, which is applied at the end, or discarded after an exception."""
        with FileLock(self._lock_file, timeout=LOCK_TIMEOUT_S):  # The operating system releases the lock of a killed process.
            change = self._new_change()
            try:
                yield change
                with self._state_lock:
                    changed_folders = change.apply()
                    self._datastore, self._config_ts = change.model, _file_version(change.json_file)
                for folder in changed_folders:
                    sync_folder(folder)
            finally:
                change.discard_temporary_files()

    def _new_change(self) -> Change:
        """Return an empty change of the JSON file's content. A damaged JSON file is set aside and replaced by the state in memory."""
        file = Path(self._datastore_config_path)
        try:
            text = file.read_text()
            return Change(file, self._parse(text), text)
        except FileNotFoundError:
            pass
        except ValueError as e:
            backup = next(p for n in itertools.count() if not (p := file.with_name(f"{file.name}.damaged{n or ''}")).exists())
            os.replace(file, backup)
            logger.warning("%s is damaged and was renamed to %s: entries are made anew from the files. %s", file, backup.name, e)
        return Change(file, self._datastore.model_copy(deep=True))

    def _parse(self, text: str) -> LocalDatastoreModel:
        """Return the state that the text of a JSON file describes, or raise ValueError."""
        model = LocalDatastoreModel.model_validate_json(text)
        model.base_path = self._datastore_path
        return model

    def _init_from_datastore_file(self, throw_exception=False):
        """Read the JSON file if it has changed. A damaged one is ignored; the next change sets it aside."""
        file = Path(self._datastore_config_path)
        with self._state_lock, suppress(FileNotFoundError):
            try:
                version = _file_version(file)
                if version != self._config_ts:
                    self._datastore, self._config_ts = self._parse(file.read_text()), version
            except ValueError as e:
                logger.warning("%s is damaged: %s", file, e)

    def _update_datastore_file(self, lock=True):
        """Fail, because MONAI Label would overwrite the changes of other servers. Its methods that call this are overridden or not used."""
        raise RuntimeError("Changes go through _changing().")

    def add_image(self, image_id, image_filename, image_info):
        """Refuse an image, because only a studies folder takes some: raise UserError."""
        raise UserError("The images come from a DICOM store: send new ones there.")

    def save_label(self, image_id, label_filename, label_tag, label_info):
        """Copy a label, which the caller has checked, into the folder in place of an earlier one with this tag; return its image's id."""
        image_id, tag = checked_file_name(image_id), checked_file_name(label_tag)
        ext = self._to_id(os.path.basename(label_filename))[1]
        with self._changing() as change:
            labels = _image_entry(change.model, image_id).labels
            destination = self._label_file(change.model, image_id, tag, ext)
            temporary = change.add_file(label_filename, destination)
            if tag in labels and labels[tag].ext != ext:
                change.obsolete_files.append(self._label_file(change.model, image_id, tag, labels[tag].ext))
            labels[tag] = file_entry(destination.name, ext, {**(label_info or {}), TEMPORARY: temporary})
        logger.info("Saved label %s of %s.", tag, image_id)
        return image_id

    def remove_label(self, label_id, label_tag):
        """Remove a label; do nothing if there is none."""
        tag = checked_file_name(label_tag)
        with self._changing() as change:
            label = change.model.label(label_id, tag)
            if label:
                del change.model.objects[label_id].labels[tag]
                change.obsolete_files.append(self._label_file(change.model, label_id, tag, label.ext))

    def update_image_info(self, image_id, info):
        """Add fields to the info of an image."""
        with self._changing() as change:
            _image_entry(change.model, image_id).image.info.update(info)

    def update_label_info(self, label_id, label_tag, info):
        """Add fields to the info of a label, or raise LabelNotFoundException."""
        with self._changing() as change:
            label = change.model.label(label_id, label_tag)
            if label is None:
                raise LabelNotFoundException(f"Label: {label_id} Tag: {label_tag} not found")
            label.info.update(info)

    def _label_file(self, model: LocalDatastoreModel, image: str, tag: str, ext: str) -> Path:
        """Return the path where the label of an image belongs."""
        return Path(model.label_path(tag), self._filename(image, ext))

    def _on_any_event(self, event):
        """Refresh the state after a file was added, removed or moved."""
        try:
            self.refresh()
        except Exception:  # An exception would end the thread that observes the folder.
            logger.exception("Looking at %s failed", self._datastore_path)

    def _reconcile_datastore(self):
        """Make the entries match the files in the folder, in memory only if it cannot be written to. The first time, also clean up."""
        self._init_from_datastore_file()
        entries = {i: entry.model_copy(update={"labels": dict(entry.labels)}) for i, entry in self._datastore.objects.items()}
        reconciled = self._datastore.model_copy(update={"objects": entries})
        self._match_files(reconciled)
        if self._is_reconciled and reconciled == self._datastore:
            return
        try:
            with self._changing() as change:
                self._clean_up(change)
                self._match_files(change.model, set(change.new_files.values()))
        except OSError as e:
            logger.warning("Cannot write to %s: %s. Images and labels can be read all the same.", self._datastore_path, e)
            self._datastore, self._config_ts = reconciled, None
        self._is_reconciled = True

    def _clean_up(self, change: Change) -> None:
        """Move complete labels of a killed server to their places and remove its other temporary files.

        No running server uses these files, because the caller holds the folder's lock.
        """
        for folder in _label_folders(change.model):
            leftovers = {p.name: p for p in folder.glob(".*.tmp")}
            for image, entry in change.model.objects.items():
                label = entry.labels.get(folder.name)
                temporary = label and leftovers.pop(str(label.info.get(TEMPORARY)), None)
                if temporary:
                    change.new_files[temporary] = self._label_file(change.model, image, folder.name, label.ext)
            change.obsolete_files += leftovers.values()
        change.obsolete_files += Path(change.model.image_path()).glob(".*.tmp")
        change.obsolete_files += Path(self._datastore_path).glob(f"{change.json_file.name}.*.tmp")

    def _match_files(self, model: LocalDatastoreModel, expected: Set[Path] = frozenset()) -> None:
        """Make a model list exactly the files in the folder and those that are `expected` to be moved there.

        If several label files belong to one entry (a.nii and a.nii.gz), the entry names the newest.
        """
        self._match_images(model)
        for image, entry in model.objects.items():
            for tag, label in list(entry.labels.items()):
                path = self._label_file(model, image, tag, label.ext)
                if path not in expected and not path.exists():
                    del entry.labels[tag]
        for folder in _label_folders(model):
            for name in _newest_first(folder):
                image, ext = image_of_label(name, model.objects)
                if ext and image in model.objects and folder.name not in model.objects[image].labels:
                    model.objects[image].labels[folder.name] = file_entry(name, ext)

    def _match_images(self, model: LocalDatastoreModel) -> None:
        """Remove images from a model whose files are gone."""
        for image, entry in list(model.objects.items()):
            if not Path(model.image_path(), self._filename(image, entry.image.ext)).exists():
                del model.objects[image]


def _image_entry(model: LocalDatastoreModel, image: str) -> ImageLabelModel:
    """Return the entry of an image, or raise ImageNotFoundException."""
    if image not in model.objects:
        raise ImageNotFoundException(f"Image {image} not found")
    return model.objects[image]


def file_entry(name: str, ext: str, info: dict | None = None) -> DataModel:
    """Return a new entry for a file, with the time and the file's name in its info."""
    return DataModel(info={**(info or {}), "ts": int(time.time()), "name": name}, ext=ext)


def _newest_first(folder: Path) -> list[str]:
    """Return the names of the files in a folder that are not hidden, those that were changed last first."""
    def age(name):
        with suppress(OSError):
            return -(folder / name).stat().st_mtime_ns
        return 0

    return sorted((n for n in os.listdir(folder) if not n.startswith(".")), key=age)


def _label_folders(model: LocalDatastoreModel) -> list[Path]:
    """Return the folders of labels, one for each tag."""
    return [p for p in Path(model.label_path(None)).iterdir() if p.is_dir() and not p.name.startswith(".")]


def _file_version(file: Path) -> tuple[int, int, int]:
    """Return what changes whenever a file is replaced: its time, size and inode. The time alone may be set back with the clock."""
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
