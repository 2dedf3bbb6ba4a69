"""Volumes that a client uploaded for itself: MONAI Label's sessions, which here also end when their time is over."""

import logging
import threading
import time
from pathlib import Path

from monailabel.utils.sessions import Sessions

from lib.common.atomic_files import write_text

logger = logging.getLogger(__name__)

PREFIX = "session-"  # of the names under which the state of such a volume is kept
GRACE = 60  # seconds in which an upload may be incomplete


class OwnVolumes(Sessions):
    """As MONAI Label's, by session id.

    Args:
        store_path, expiry: as there. added: is given the path of a new image. removed: is given the name of one that is gone,
            see `name_of`.
    """

    def __init__(self, store_path: str, expiry: int, added, removed):
        super().__init__(store_path, expiry)
        self._added, self._removed, self._writing = added, removed, threading.Lock()

    def __bool__(self):
        return True  # also without an entry: sessions of an earlier run of the server lie on the disk

    def name_of(self, image: str) -> str | None:
        """The name for the state of an uploaded image at that path; None for other paths and ids."""
        if not Path(image).is_absolute():
            return None
        store, path = Path(self.store_path).resolve(), Path(image).resolve()
        return PREFIX + path.relative_to(store).parts[0] if store in path.parents else None

    def add_session(self, *args, **kwargs):
        session_id, info = super().add_session(*args, **kwargs)
        self._added(info.image)
        return session_id, info

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True):
        """None for one whose time is over, even if nobody has removed it yet."""
        try:
            info = super().get_session(session_id, update_ts=False, fetch_cache=fetch_cache)
        except ValueError:  # its file is damaged
            return None
        if info is None or 0 < info.expiry < time.time() - info.last_access_ts:
            return None
        if update_ts:
            info.last_access_ts = int(time.time())
            self._write_meta_info(session_id, info)
        return info

    def remove_session(self, session_id: str):
        super().remove_session(session_id)
        self._removed(PREFIX + session_id)

    def remove_expired(self) -> int:
        """Removes those whose time is over, and damaged ones; returns how many."""
        store = Path(self.store_path)
        old = [f.name for f in store.iterdir() if f.is_dir() and f.stat().st_mtime < time.time() - GRACE] if store.is_dir() else []
        over = [name for name in old if self.get_session(name, update_ts=False, fetch_cache=False) is None]
        for session_id in over:
            logger.info("Removing the session %s.", session_id)
            self.remove_session(session_id)
        return len(over)

    def _write_meta_info(self, session_id, session_info):
        with self._writing:
            write_text(Path(self.store_path, session_id, "meta.info"), session_info.to_str())
