"""Encode the slices of volumes in the background, while an annotator looks at them."""

import logging
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import contextmanager

from lib.model.device import release_memory
from lib.model.features import SliceFeatures

logger = logging.getLogger(__name__)


class Prefetcher:
    """One background thread for all volumes. It serves the latest request first and pauses while a click is being answered.

    The thread ends when there is nothing to do, and before the program ends, because a thread that is stopped while a network computes
    makes the whole process fail.
    """

    def __init__(self):
        self._requests: deque[tuple[SliceFeatures, list[int]]] = deque()
        self._condition = threading.Condition()
        self._clicks_in_progress = 0
        self._thread: threading.Thread | None = None

    def request(self, features: SliceFeatures, slices: Iterable[int]) -> None:
        """Have `slices` encoded in this order when there is time. This replaces an earlier request for the same volume."""
        with self._condition:
            self._requests = deque(r for r in self._requests if r[0] is not features)
            self._requests.appendleft((features, features.missing(slices)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="prefetch")
                self._thread.start()
            self._condition.notify_all()

    @contextmanager
    def paused(self):
        """Return a context in which the background begins with no further slices; those that are being encoded get done."""
        with self._condition:
            self._clicks_in_progress += 1
        try:
            yield
        finally:
            with self._condition:
                self._clicks_in_progress -= 1
                self._condition.notify_all()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until everything requested is encoded, and return False if that takes longer than `timeout_s` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._requests, timeout_s)

    def _run(self) -> None:
        while self._encode_some():
            pass

    def _encode_some(self) -> bool:
        """Encode a few slices of the latest request, keep no reference to them, and return False if nothing is left to do."""
        main_thread = threading.main_thread()
        with self._condition:
            while self._clicks_in_progress and main_thread.is_alive():
                self._condition.wait(0.5)
            if not self._requests or not main_thread.is_alive():
                self._thread = None
                return False
            features, slices = self._requests[0]
        try:
            encoded = features.ensure(slices[: features.slices_per_round])
            rest = slices[features.slices_per_round :]
            if encoded and not rest:  # Not after each round, which would have to ask the system for the memory again.
                release_memory()
        except Exception:  # A click that needs the slice will raise the same error.
            main_thread.join(1.0)  # When a program ends, worker threads take no more tasks shortly before the main thread stops.
            if main_thread.is_alive():
                logger.exception("Encoding in the background failed")
            rest = []
        with self._condition:
            if self._requests and self._requests[0][1] is slices:  # Otherwise a newer request came meanwhile.
                self._requests[0] = features, rest
                if not rest:
                    self._requests.popleft()
                    self._condition.notify_all()
        return True
