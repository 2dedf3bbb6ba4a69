"""Keep the features of the volumes that were used last, bounded in bytes."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from lib.model.feature_overflow import FeatureOverflow
from lib.model.features import DEFAULT_LIMIT_BYTES, SliceFeatures

logger = logging.getLogger(__name__)


@dataclass
class FeatureCache:
    """Features by volume, window, axis, crop and encoder. When `limit_bytes` are exceeded, the volume that was used longest ago goes first.

    Attributes:
        limit_bytes: Bytes of features that `trim` leaves. The volume that was used last always stays.
        overflow: Where features go that do not fit, or None.
    """

    limit_bytes: int = DEFAULT_LIMIT_BYTES
    overflow: FeatureOverflow | None = None

    def __post_init__(self):
        self._entries: OrderedDict[tuple, SliceFeatures] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple, make: Callable[[], SliceFeatures]) -> SliceFeatures:
        """Return the entry of `key`, which `make()` makes if there is none."""
        with self._lock:
            if key not in self._entries:
                self._entries[key] = make()
            self._entries.move_to_end(key)
            return self._entries[key]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()

    def trim(self) -> None:
        """Put aside the volumes that were used longest ago until the rest fits."""
        with self._lock:
            while len(self._entries) > 1 and sum(e.bytes for e in self._entries.values()) > self.limit_bytes:
                key, entry = self._entries.popitem(last=False)
                entry.put_all_aside()
                logger.info("Put the features of %s aside.", key[0])

    @property
    def bytes(self) -> int:
        """Bytes of all features that are held."""
        return sum(e.bytes for e in list(self._entries.values()))
