"""A folder of images and labels: MONAI Label's datastore, made safe against kills, full disks and other servers on the same folder.

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

from lib.serving.datastore.checks import checked_file_name, read_upload
from lib.serving.datastore.transaction import Change, sync_folder

LOCK_TIMEOUT_S = 60  # How long a change waits for the changes of other threads and servers.
TEMPORARY = "temporary"

logger = logging.getLogger(__name__)


class FolderDatastore(LocalDatastore):
    """A folder of images and labels that any number of threads and servers may use at the same time. Reading never waits.

    Methods that change the folder raise UserError for ids and tags that cannot be file names and for damaged files, ImageNotFoundException
    for unknown images, and OSError if the folder cannot be written to. The folder then stays as it was.
    """

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
        """Copy an image into the folder and return its id. An image that replaces another one keeps the labels of that one."""
        default_id, ext = self._to_id(os.path.basename(image_filename))
        image_id = checked_file_name(image_id or default_id)
        name = self._filename(image_id, ext)
        with self._changing() as change:
            previous = change.model.objects.get(image_id)
            if previous:
                read_upload(image_filename)  # Raises UserError: a damaged file must not replace an image.
            change.add_file(image_filename, Path(change.model.image_path(), name))
            labels = previous.labels if previous else {}
            change.model.objects[image_id] = ImageLabelModel(image=_file_entry(name, ext, image_info), labels=labels)
        return image_id

    def save_label(self, image_id, label_filename, label_tag, label_info):
        """Copy a label into the folder, in place of an earlier one with this tag, and return the id of its image."""
        image_id, tag = checked_file_name(image_id), checked_file_name(label_tag)
        ext = self._to_id(os.path.basename(label_filename))[1]
        read_upload(label_filename)  # Raises UserError for a damaged file.
        with self._changing() as change:
            labels = _image_entry(change.model, image_id).labels
            destination = self._label_file(change.model, image_id, tag, ext)
            temporary = change.add_file(label_filename, destination)
            if tag in labels and labels[tag].ext != ext:
                change.obsolete_files.append(self._label_file(change.model, image_id, tag, labels[tag].ext))
            labels[tag] = _file_entry(destination.name, ext, {**(label_info or {}), TEMPORARY: temporary})
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

        If several files belong to one entry (a.nii and a.nii.gz), the entry names the newest.
        """
        def exists(path: Path) -> bool:
            return path in expected or path.exists()

        images = Path(model.image_path())
        for image, entry in list(model.objects.items()):
            if not exists(images / self._filename(image, entry.image.ext)):
                del model.objects[image]
                continue
            for tag, label in list(entry.labels.items()):
                if not exists(self._label_file(model, image, tag, label.ext)):
                    del entry.labels[tag]
        for name in self._newest_first(images):
            image, ext = self._to_id(name)
            if image not in model.objects:
                model.objects[image] = ImageLabelModel(image=_file_entry(name, ext))
        for folder in _label_folders(model):
            for name in self._newest_first(folder):
                image, ext = self._to_id(name)
                if image in model.objects and folder.name not in model.objects[image].labels:
                    model.objects[image].labels[folder.name] = _file_entry(name, ext)

    def _newest_first(self, folder: Path) -> list[str]:
        """Return the names of the image files in a folder, sorted by the time of their last change."""
        def age(name):
            with suppress(OSError):
                return -(folder / name).stat().st_mtime_ns
            return 0

        return sorted(self._list_files(folder, self._extensions), key=age)


def _image_entry(model: LocalDatastoreModel, image: str) -> ImageLabelModel:
    """Return the entry of an image, or raise ImageNotFoundException."""
    if image not in model.objects:
        raise ImageNotFoundException(f"Image {image} not found")
    return model.objects[image]


def _file_entry(name: str, ext: str, info: dict | None = None) -> DataModel:
    """Return a new entry for a file, with the time and the file's name in its info."""
    return DataModel(info={**(info or {}), "ts": int(time.time()), "name": name}, ext=ext)


def _label_folders(model: LocalDatastoreModel) -> list[Path]:
    """Return the folders of labels, one for each tag."""
    return [p for p in Path(model.label_path(None)).iterdir() if p.is_dir() and not p.name.startswith(".")]


def _file_version(file: Path) -> tuple[int, int, int]:
    """Return what changes whenever a file is replaced: its time, size and inode. The time alone may be set back with the clock."""
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
