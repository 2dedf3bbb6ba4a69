"""Datastores that keep what they were given: MONAI Label's own, made safe against kills, full disks and other servers on the folder.

Every change is made under the folder's lock to the state that the JSON file has at that moment, so that nothing of another server is
lost. New files are written completely beside their place, then the JSON file is replaced, then the files are renamed into place. A
label's info names its file until then (TEMPORARY): if the server is killed in between, the next start finishes the renaming.
"""

import itertools
import json
import logging
import os
import shutil
import tempfile
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import requests
from fastapi import HTTPException
from filelock import FileLock
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore, LocalDatastoreModel
from monailabel.datastore.utils.convert import binary_to_image
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces import app as base
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException, LabelNotFoundException

from lib.errors import UserError, VolumeError
from lib.io.atomic import write_text
from lib.io.read import ITK, NIFTI, read_volume
from lib.serving.checks import is_name

LOCK_SECONDS = 60  # how long a change waits for those of other threads and servers
STORE_SECONDS = 60  # how long the DICOM store may send nothing
FINAL, UNSENT = DefaultLabelTag.FINAL.value, "unsent"
TEMPORARY = "temporary"
PART = ".part"  # a series that is being fetched

logger = logging.getLogger(__name__)


class KeepsLabels:
    """Mix-in for a `MONAILabelApp`, before it in the bases: its datastore is one of those below."""

    def init_datastore(self):
        base.LocalDatastore, base.DICOMWebDatastore = SafeDatastore, SafeDicomDatastore
        SafeDicomDatastore.seconds = float(self.conf.get("store_seconds", STORE_SECONDS))
        return super().init_datastore()


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

    @cached_property
    def _guard(self) -> FileLock:
        """The folder's lock; the thread that has it may take it again. The system takes it from killed processes."""
        return FileLock(self._lock_file, timeout=LOCK_SECONDS)

    @contextmanager
    def _changing(self):
        """A `Change` of the newest state, which is carried out at the end, or not at all."""
        with self._guard:
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
                write_text(file, change.text or "{}")
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
        image_id = _name(image_id or own)
        name = self._filename(image_id, ext)
        with self._changing() as change:
            known = change.model.objects.get(image_id)
            if known:
                _check_readable(image_filename)
            change.put(image_filename, Path(change.model.image_path(), name))
            entry = ImageLabelModel(image=_entry(name, ext, image_info), labels=known.labels if known else {})
            change.model.objects[image_id] = entry
        return image_id

    def save_label(self, image_id, label_filename, label_tag, label_info):
        image_id, tag = _name(image_id), _name(label_tag)
        ext = self._to_id(os.path.basename(label_filename))[1]
        _check_readable(label_filename)
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
        tag = _name(label_tag)
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
        seen = self._datastore.model_copy(deep=True)
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


class _Acknowledged(SafeDatastore):
    """Keeps as final only what the DICOM store said that it has; MONAI Label takes any answer of status 200 for that."""

    def save_label(self, image_id, label_filename, label_tag, label_info):
        if label_tag == FINAL and not label_info.get("SeriesInstanceUID"):
            raise requests.RequestException("The DICOM store's answer names no series that it keeps.")
        return super().save_label(image_id, label_filename, label_tag, label_info)


class SafeDicomDatastore(DICOMWebDatastore, _Acknowledged):
    """A DICOM store with its cache. A label that the store did not take stays in the cache under the tag `UNSENT`."""

    seconds = STORE_SECONDS

    def __init__(self, client, *args, **kwargs):
        for scheme in ("http://", "https://"):
            client._session.mount(scheme, _Impatient(self.seconds))
        client.set_http_retry_params(max_attempts=2, wait_exponential_multiplier=250)  # it would try for half a minute
        super().__init__(client, *args, **kwargs)

    def get_image_uri(self, image_id):
        self._fetch(_name(image_id), Path(self._datastore.image_path()))
        return super().get_image_uri(image_id)

    def get_label_uri(self, label_id, label_tag, image_id=""):
        if _name(label_tag) == FINAL:
            self._fetch(_name(label_id), Path(self._datastore.label_path(FINAL)))
        return super().get_label_uri(label_id, label_tag, image_id)

    def _fetch(self, series: str, folder: Path) -> None:
        """Has a series in the cache whole: half of one would be taken for all of it, for ever.

        Raises:
            ImageNotFoundException: the store has no such series. RequestException: it does not answer.
        """
        place = folder / series
        if place.is_dir() and any(place.iterdir()):
            return
        part = Path(tempfile.mkdtemp(PART, ".", folder))
        try:
            dicom_web_download_series(None, series, str(part), self._client, self._fetch_by_frame)
            with suppress(OSError):  # another thread was first
                os.replace(part, place)
        except LookupError as e:
            raise ImageNotFoundException(f"There is no series {series} in the DICOM store.") from e
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def save_label(self, image_id, label_filename, label_tag, label_info, label_id=""):
        """As in MONAI Label.

        Raises:
            HTTPException: 502, the DICOM store did not take a final label.
        """
        info = dict(label_info or {})
        if _name(label_tag) != FINAL:
            return super().save_label(image_id, label_filename, label_tag, info)
        converted = None
        try:
            if str(label_filename).endswith(".bin"):
                label_filename = converted = binary_to_image(self.get_image_uri(image_id), label_filename)
            _check_readable(label_filename)
            if not read_volume(label_filename).array.any():
                raise UserError("The label is empty, which DICOM SEG cannot express: delete the label in the DICOM store instead.")
            self.get_image_uri(image_id)
            SafeDatastore.save_label(self, image_id, label_filename, UNSENT, info)
            saved = super().save_label(image_id, label_filename, label_tag, info)
        except requests.RequestException as e:
            logger.warning("Label of %s not sent: %s", image_id, e)
            kept = self._datastore.label(image_id, UNSENT)
            how = f"The server keeps it under the tag {UNSENT}; submit it again later." if kept else "Submit it again later."
            raise HTTPException(502, f"The DICOM store did not take the label. {how}") from e
        finally:
            if converted:
                Path(converted).unlink(missing_ok=True)
        self.remove_label(image_id, UNSENT)
        return saved


class _Impatient(requests.adapters.HTTPAdapter):
    """Waits for an answer, and for its parts, so many seconds."""

    def __init__(self, seconds: float):
        super().__init__()
        self._seconds = seconds

    def send(self, request, stream=False, timeout=None, **kwargs):
        return super().send(request, stream=stream, timeout=timeout or self._seconds, **kwargs)


def _name(text) -> str:
    """An id or tag that names a file or folder of the datastore.

    Raises:
        UserError: it leads elsewhere.
    """
    text = str(getattr(text, "value", text))
    if not is_name(text):
        raise UserError(f"{text[:80]!r} cannot be an id or a tag: use a name without / and \\.")
    return text


def _check_readable(path: str | Path) -> None:
    """Refuses a damaged image file; other kinds of files, and images that are no volumes, are left to who asked.

    Raises:
        UserError: damaged or incomplete.
    """
    if not str(path).lower().endswith((*NIFTI, *ITK)):
        return
    try:
        read_volume(path)
    except VolumeError as e:
        if e.__cause__:  # what the reader said
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
