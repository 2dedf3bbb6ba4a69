"""A folder that several threads and servers use: the state that MONAI Label keeps in a JSON file, and changes of it.

Every change is made under the folder's lock, to the state that the JSON file has at that moment, so that no server loses the changes of
another one.
"""

import itertools
import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock
from monailabel.datastore.local import LocalDatastore, LocalDatastoreModel

from lib.serving.datastore.optional_folders import make_folders_optional
from lib.serving.datastore.transaction import Change, sync_folder

LOCK_TIMEOUT_S = 60  # How long a change waits for the changes of other threads and servers.

logger = logging.getLogger(__name__)


class SharedFolder(LocalDatastore):
    """MONAI Label's datastore for any number of threads and servers at the same time. Reading never waits."""

    def __init__(self, *args, **kwargs):
        self._state_lock = threading.RLock()  # Keeps the JSON file and the state in memory in step.
        make_folders_optional()
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

    def _on_any_event(self, event):
        """Refresh the state after a file was added, removed or moved."""
        try:
            self.refresh()
        except Exception:  # An exception would end the thread that observes the folder.
            logger.exception("Looking at %s failed", self._datastore_path)


def _file_version(file: Path) -> tuple[int, int, int]:
    """Return what changes whenever a file is replaced: its time, size and inode. The time alone may be set back with the clock."""
    stat = file.stat()
    return stat.st_mtime_ns, stat.st_size, stat.st_ino
