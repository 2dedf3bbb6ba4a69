"""Volumes that a client uploads for its own use: MONAI Label's sessions, which here also end when they have expired."""

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from monailabel.utils.sessions import Sessions

from lib.common.atomic_files import write_text
from lib.common.errors import UserError
from lib.imaging.studies import StudiesFolder

logger = logging.getLogger(__name__)

RECORD_PREFIX = "session-"  # Begins the ids under which the annotation records of such volumes are kept.
MIN_AGE_S = 60  # An upload may be incomplete for so long, so younger folders are not removed.


class UploadSessions(Sessions):
    """MONAI Label's sessions by id; `expiry` is the time in seconds without access after which a session ends.

    Args:
        read: Reads the image at a path; raises UserError with the reason if it cannot be read.
        on_added: Called with the path of a new image.
        on_removed: Called with the record id (see `record_id`) of an image that was removed.
    """

    def __init__(
        self, store_path: str, expiry: int, read: Callable[[str], object], on_added: Callable[[str], object],
        on_removed: Callable[[str], object],
    ):  # fmt: skip
        super().__init__(store_path, expiry)
        self._read, self._on_added, self._on_removed, self._write_lock = read, on_added, on_removed, threading.Lock()

    def __bool__(self):
        """Return True even without an entry, because sessions of an earlier run of the server lie on the disk."""
        return True

    def record_id(self, image: str) -> str | None:
        """Return the id for the annotation records of the uploaded image at a path, or None for other paths and ids."""
        if not Path(image).is_absolute():
            return None
        store, path = Path(self.store_path).resolve(), Path(image).resolve()
        return RECORD_PREFIX + path.relative_to(store).parts[0] if store in path.parents else None

    def add_session(self, *args, **kwargs):
        """Add a session as MONAI Label does and report its image.

        Raises:
            UserError: What was uploaded cannot be read as one volume; there is no session then.
        """
        session_id, info = super().add_session(*args, **kwargs)
        upload = info.image
        try:
            info.image = _image_path(upload)
            self._read(info.image)
        except UserError as e:
            is_file = os.path.isfile(upload)
            super().remove_session(session_id)
            if is_file:
                raise
            name = Path(upload).name  # It is a temporary one.
            raise UserError(str(e).replace(f"The folder {name}", "The upload").replace(name, "The upload")) from e
        self._write_meta_info(session_id, info)
        self._on_added(info.image)
        return session_id, info

    def get_session(self, session_id: str, update_ts: bool = True, fetch_cache: bool = True):
        """Return a session, or None if it is unknown, damaged, or has expired but was not removed yet."""
        try:
            info = super().get_session(session_id, update_ts=False, fetch_cache=fetch_cache)
        except ValueError:  # The file that describes it is damaged.
            return None
        if info is None or 0 < info.expiry < time.time() - info.last_access_ts:
            return None
        if update_ts:
            info.last_access_ts = int(time.time())
            self._write_meta_info(session_id, info)
        return info

    def remove_session(self, session_id: str):
        """Remove a session and report it."""
        super().remove_session(session_id)
        self._on_removed(RECORD_PREFIX + session_id)

    def remove_expired(self) -> int:
        """Remove expired and damaged sessions and return their number."""
        newest = time.time() - MIN_AGE_S
        candidates = [f.name for f in Path(self.store_path).glob("*") if f.is_dir() and f.stat().st_mtime < newest]
        expired = [name for name in candidates if self.get_session(name, update_ts=False, fetch_cache=False) is None]
        for session_id in expired:
            logger.info("Removing the session %s.", session_id)
            self.remove_session(session_id)
        return len(expired)

    def _write_meta_info(self, session_id, session_info):
        """Replace the file that describes a session as a whole, since several requests may read and write it."""
        with self._write_lock:
            write_text(Path(self.store_path, session_id, "meta.info"), session_info.to_str())


def _image_path(upload: str) -> str:
    """Return the path of the image in an upload: the file, or the only image in a folder of several files, as of a header and its voxels.

    Raises:
        UserError: The folder holds several images.
    """
    if not os.path.isdir(upload):
        return upload
    images = [image for image in StudiesFolder(upload, excluded=()).list_images({}).images.values() if image.stack is None]
    if len(images) > 1:
        raise UserError(f"The upload holds {len(images)} images ({', '.join(i.path.name for i in images)}): send one.")
    return str(images[0].path) if images else upload
