"""The folder of images and labels: MONAI Label's datastore, made safe against kills, full disks and other servers on the folder.

Every change is made under the folder's lock to the state that the JSON file has at that moment, so that nothing of another server is
lost. New files are written completely beside their place, then the JSON file is replaced, then the files are renamed into place. A
label's info names its file until then (TEMPORARY): if the server is killed in between, the next start finishes the renaming.
"""

import itertools
import json
import logging
import os
import shutil
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from lib.common.atomic_files import write_text
from lib.common.errors import UserError, VolumeError
from lib.imaging.readers import ITK_ENDINGS, NIFTI_ENDINGS, read_volume
from lib.imaging.volume import Volume
from lib.serving.web.request_checks import is_name

LOCK_SECONDS = 60  # how long a change waits for those of other threads and servers
TEMPORARY = "temporary"

logger = logging.getLogger(__name__)


@dataclass
class Change:
    """What becomes of the folder.

    Attributes:
        model: the state to be changed. text: of the JSON file before, "" if there is none.
        files: new files, complete under a temporary name, and their places. obsolete: files to be removed.
    """

    model: LocalDatastoreModel
    text: str = ""
    files: dict[Path, Path] = field(default_factory=dict)
    obsolete: list[Path] = field(default_factory=list)

    def put(self, source: str | Path, place: Path) -> str:
        """Copies `source` beside `place`, onto the disk; returns the temporary name, which is in none of the datastore's patterns."""
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f".{uuid.uuid4().hex}.tmp")
        self.files[temporary] = place
        with open(source, "rb") as old, open(temporary, "wb") as new:
            shutil.copyfileobj(old, new)
            new.flush()
            os.fsync(new.fileno())
        return temporary.name


class SafeDatastore(LocalDatastore):
    """A folder of images and labels. Any number of threads and servers may use it; reading never waits.

    Methods raise UserError on ids and tags that are no file names and on labels that cannot be read, OSError (with its errno)
    where the folder cannot be written; what was there before then stays.
    """

    def __init__(self, *args, **kwargs):
        self._swap = threading.RLock()  # between the JSON file and the state in memory
        self._looked = False
        super().__init__(*args, **kwargs)
        if hasattr(self, "_handler"):
            self._handler.on_moved = self._on_any_event  # other servers rename their files into place

    @contextmanager
    def _changing(self):
        """A `Change` of the newest state, which is carried out at the end, or not at all."""
        with FileLock(self._lock_file, timeout=LOCK_SECONDS):  # the system takes it from killed processes
            change = self._newest()
            try:
                yield change
                self._carry_out(change)
            finally:
                for temporary in change.files:
                    with suppress(OSError):
                        temporary.unlink(missing_ok=True)

    def _newest(self) -> Change:
        file = Path(self._datastore_config_path)
        try:
            text = file.read_text()
            return Change(self._parsed(text), text)
        except FileNotFoundError:
            pass
        except ValueError as e:
            kept = next(p for n in itertools.count() if not (p := file.with_name(f"{file.name}.damaged{n or ''}")).exists())
            os.replace(file, kept)
            logger.warning("%s is damaged and was renamed to %s: entries are made anew from the files. %s", file, kept.name, e)
        return Change(self._datastore.model_copy(deep=True))

    def _carry_out(self, change: Change) -> None:
        file = Path(self._datastore_config_path)
        text = json.dumps(change.model.model_dump(exclude={"base_path"}), indent=2, default=str)
        with self._swap:
            if text != change.text:
                write_text(file, text)
            try:
                for temporary, place in change.files.items():
                    os.replace(temporary, place)
            except OSError:
                if change.text:
                    write_text(file, change.text)
                raise
            for old in change.obsolete:
                old.unlink(missing_ok=True)
            self._datastore, self._config_ts = change.model, _stamp(file)
        if text != change.text or change.files:
            for folder in {file.parent, *(p.parent for p in change.files.values())}:
                _sync(folder)

    def _parsed(self, text: str) -> LocalDatastoreModel:
        model = LocalDatastoreModel.model_validate_json(text)
        model.base_path = self._datastore_path
        return model

    def _init_from_datastore_file(self, throw_exception=False):
        """Reads the JSON file if it is another one than before. A damaged one is left to the next change, which sets it aside."""
        with self._swap:
            try:
                stamp = _stamp(Path(self._datastore_config_path))
                if stamp != self._config_ts:
                    self._datastore = self._parsed(Path(self._datastore_config_path).read_text())
                    self._config_ts = stamp
            except FileNotFoundError:
                pass
            except ValueError as e:
                logger.warning("%s is damaged: %s", self._datastore_config_path, e)

    def _update_datastore_file(self, lock=True):
        raise NotImplementedError("Changes go through _changing().")

    def set_name(self, name):
        with self._changing() as change:
            change.model.name = name

    def set_description(self, description):
        with self._changing() as change:
            change.model.description = description

    def add_image(self, image_id, image_filename, image_info):
        own, ext = self._to_id(os.path.basename(image_filename))
        image_id = file_name(image_id or own)
        name = self._filename(image_id, ext)
        with self._changing() as change:
            known = change.model.objects.get(image_id)
            if known:
                check_readable(image_filename)
            change.put(image_filename, Path(change.model.image_path(), name))
            entry = ImageLabelModel(image=_entry(name, ext, image_info), labels=known.labels if known else {})
            change.model.objects[image_id] = entry
        return image_id

    def save_label(self, image_id, label_filename, label_tag, label_info):
        image_id, tag = file_name(image_id), file_name(label_tag)
        ext = self._to_id(os.path.basename(label_filename))[1]
        check_readable(label_filename)
        with self._changing() as change:
            labels = _of(change.model, image_id).labels
            place = self._label_file(change.model, image_id, tag, ext)
            temporary = change.put(label_filename, place)
            if tag in labels and labels[tag].ext != ext:
                change.obsolete.append(self._label_file(change.model, image_id, tag, labels[tag].ext))
            labels[tag] = _entry(place.name, ext, {**(label_info or {}), TEMPORARY: temporary})
        logger.info("Saved label %s of %s.", tag, image_id)
        return image_id

    def remove_label(self, label_id, label_tag):
        tag = file_name(label_tag)
        with self._changing() as change:
            obj = change.model.objects.get(label_id)
            label = obj and obj.labels.pop(tag, None)
            if label:
                change.obsolete.append(self._label_file(change.model, label_id, tag, label.ext))

    def update_image_info(self, image_id, info):
        with self._changing() as change:
            _of(change.model, image_id).image.info.update(info)

    def update_label_info(self, label_id, label_tag, info):
        with self._changing() as change:
            label = change.model.label(label_id, label_tag)
            if label is None:
                raise LabelNotFoundException(f"Label: {label_id} Tag: {label_tag} not found")
            label.info.update(info)

    def _label_file(self, model: LocalDatastoreModel, image: str, tag: str, ext: str) -> Path:
        return Path(model.label_path(tag), self._filename(image, ext))

    def _on_any_event(self, event):
        try:
            self.refresh()
        except Exception:  # it would end the watching of the folder
            logger.exception("Looking at %s failed", self._datastore_path)

    def _reconcile_datastore(self):
        """Entries for files that were put into the folder, none for those that are gone; the first time, what a killed server left."""
        self._init_from_datastore_file()
        entries = {i: o.model_copy(update={"labels": dict(o.labels)}) for i, o in self._datastore.objects.items()}
        seen = self._datastore.model_copy(update={"objects": entries})
        self._compare(seen)
        if self._looked and seen == self._datastore:
            return
        try:
            with self._changing() as change:
                self._finish(change)
                self._compare(change.model, set(change.files.values()))
        except OSError as e:
            logger.warning("Cannot write to %s: %s. Images and labels can be read all the same.", self._datastore_path, e)
            self._datastore, self._config_ts = seen, None
        self._looked = True

    def _finish(self, change: Change) -> None:
        """Puts complete labels of a killed server in place and removes its other temporary files: under the lock none is in use."""
        for folder in _folders(change.model):
            left = {p.name: p for p in folder.glob(".*.tmp")}
            for image, obj in change.model.objects.items():
                label = obj.labels.get(folder.name)
                temporary = label and left.pop(str(label.info.get(TEMPORARY)), None)
                if temporary:
                    change.files[temporary] = self._label_file(change.model, image, folder.name, label.ext)
            change.obsolete += left.values()
        change.obsolete += Path(change.model.image_path()).glob(".*.tmp")
        change.obsolete += Path(self._datastore_path).glob(f"{Path(self._datastore_config_path).name}.*.tmp")

    def _compare(self, model: LocalDatastoreModel, coming=frozenset()) -> None:
        """Makes `model` name the files that are there, or `coming`; of several for one entry the newest."""

        def there(path: Path) -> bool:
            return path in coming or path.exists()

        images = Path(model.image_path())
        for image, obj in list(model.objects.items()):
            if not there(images / self._filename(image, obj.image.ext)):
                del model.objects[image]
                continue
            for tag, label in list(obj.labels.items()):
                if not there(self._label_file(model, image, tag, label.ext)):
                    del obj.labels[tag]
        for name in self._newest_first(images):
            image, ext = self._to_id(name)
            if image not in model.objects:
                model.objects[image] = ImageLabelModel(image=_entry(name, ext))
        for folder in _folders(model):
            for name in self._newest_first(folder):
                image, ext = self._to_id(name)
                if image in model.objects and folder.name not in model.objects[image].labels:
                    model.objects[image].labels[folder.name] = _entry(name, ext)

    def _newest_first(self, folder: Path) -> list[str]:
        def age(name):
            with suppress(OSError):
                return -(folder / name).stat().st_mtime_ns
            return 0

        return sorted(self._list_files(folder, self._extensions), key=age)


def file_name(text) -> str:
    """An id or tag that names a file or folder of the datastore.

    Raises:
        UserError: it leads elsewhere.
    """
    text = str(getattr(text, "value", text))
    if not is_name(text):
        raise UserError(f"{text[:80]!r} cannot be an id or a tag: use a name without / and \\.")
    return text


def check_readable(path: str | Path) -> Volume | None:
    """The volume in an image file; None for files that are something else.

    Raises:
        UserError: damaged or incomplete.
    """
    if not str(path).lower().endswith((*NIFTI_ENDINGS, *ITK_ENDINGS)):
        return None
    try:
        return read_volume(path)
    except VolumeError as e:
        if not e.__cause__:  # the reader had no trouble: it has four dimensions, say
            return None
        raise UserError("The file is damaged or incomplete and was not saved; what was there before stays.") from e


def _of(model: LocalDatastoreModel, image: str) -> ImageLabelModel:
    if image not in model.objects:
        raise ImageNotFoundException(f"Image {image} not found")
    return model.objects[image]


def _entry(name: str, ext: str, info: dict | None = None) -> DataModel:
    return DataModel(info={**(info or {}), "ts": int(time.time()), "name": name}, ext=ext)


def _folders(model: LocalDatastoreModel) -> list[Path]:
    """Of the labels, one for each tag."""
    return [p for p in Path(model.label_path(None)).iterdir() if p.is_dir() and not p.name.startswith(".")]


def _stamp(file: Path) -> tuple[int, int, int]:
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _sync(folder: Path) -> None:
    """Names of renamed files onto the disk, too."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
