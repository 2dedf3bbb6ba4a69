"""Notice changes of a folder that other programs make."""

import threading
import time
from collections.abc import Callable
from pathlib import PurePath

from watchdog.events import (
    EVENT_TYPE_CREATED,
    EVENT_TYPE_DELETED,
    EVENT_TYPE_MODIFIED,
    EVENT_TYPE_MOVED,
    FileSystemEvent,
    FileSystemEventHandler,
)

QUIET_S = 0.5  # Without a change for so long, a folder is looked at: copying a DICOM series causes hundreds of changes.
LONGEST_DELAY_S = 5.0
_CHANGES = (EVENT_TYPE_CREATED, EVENT_TYPE_DELETED, EVENT_TYPE_MODIFIED, EVENT_TYPE_MOVED)
_IRRELEVANT_ENDINGS = (".json", ".npz", ".tmp", ".lock")  # Such files, as those of the annotation records, are no images and labels.


class ChangeHandler(FileSystemEventHandler):
    """Calls a function in a thread after changes of a folder, once for changes that follow each other.

    Args:
        refresh: The function.
        always: Name of a file whose changes count, although its ending is irrelevant otherwise.
    """

    def __init__(self, refresh: Callable[[], object], always: str):
        super().__init__()
        self._refresh, self._always = refresh, always
        self._lock, self._last_change_s, self._is_waiting = threading.Lock(), 0.0, False

    def on_any_event(self, event: FileSystemEvent) -> None:
        """Take note of a change, and start to wait for the last one unless a thread does so already."""
        paths = [PurePath(str(p)).name for p in (event.src_path, getattr(event, "dest_path", "")) if p]
        relevant = [n for n in paths if n == self._always or not n.lower().endswith(_IRRELEVANT_ENDINGS)]
        if event.event_type not in _CHANGES or not relevant or (event.is_directory and event.event_type == EVENT_TYPE_MODIFIED):
            return
        with self._lock:
            self._last_change_s = time.monotonic()
            if not self._is_waiting:
                self._is_waiting = True
                threading.Thread(target=self._refresh_when_quiet, name="folder", daemon=True).start()

    def _refresh_when_quiet(self) -> None:
        start_s = time.monotonic()
        while (now_s := time.monotonic()) - self._last_change_s < QUIET_S and now_s - start_s < LONGEST_DELAY_S:
            time.sleep(QUIET_S / 5)
        with self._lock:
            self._is_waiting = False
        self._refresh()
