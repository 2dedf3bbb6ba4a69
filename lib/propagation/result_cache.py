"""Keep results of the network by everything they depend on."""

import threading
from collections import OrderedDict

DEFAULT_LIMIT_BYTES = 512 << 20


class ResultCache:
    """Results by key. When `limit_bytes` are exceeded, the one that was used longest ago goes first.

    A key holds everything a result depends on (volume, crop, network, prompts). A second click therefore finds the results of the first
    one, whoever made it. Any number of threads may use one object.
    """

    def __init__(self, limit_bytes: int = DEFAULT_LIMIT_BYTES):
        self.limit_bytes, self.bytes = limit_bytes, 0
        self._entries: OrderedDict = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key):
        """Return the result of `key`, or None."""
        with self._lock:
            if key not in self._entries:
                return None
            self._entries.move_to_end(key)
            return self._entries[key][0]

    def put(self, key, result, size_bytes: int) -> None:
        """Keep `result`, which takes `size_bytes`. The result that was put last stays in any case."""
        with self._lock:
            self.bytes += size_bytes - self._entries.pop(key, (None, 0))[1]
            self._entries[key] = result, size_bytes
            while len(self._entries) > 1 and self.bytes > self.limit_bytes:
                self.bytes -= self._entries.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0
