"""Encodes the slices of a volume in the background while the annotator looks at it."""

import logging
import threading
from collections import deque
from collections.abc import Iterable
from contextlib import contextmanager

from lib.model.device import release_memory
from lib.model.features import SliceFeatures

logger = logging.getLogger(__name__)


class Prefetcher:
    """One thread for all volumes, the latest wish first; it stands still while a request is being answered.

    The thread ends when there is nothing to do, or when the program ends: cut off in the middle of a network, it would take the whole
    process down with an error.
    """

    def __init__(self):
        self._todo: deque[tuple[SliceFeatures, list[int]]] = deque()
        self._condition = threading.Condition()
        self._requests = 0
        self._thread: threading.Thread | None = None

    def wish(self, features: SliceFeatures, slices: Iterable[int]) -> None:
        """Encodes `slices` in this order when there is time; replaces an earlier wish for the same volume."""
        with self._condition:
            self._todo = deque(job for job in self._todo if job[0] is not features)
            self._todo.appendleft((features, features.missing(slices)))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="prefetch")
                self._thread.start()
            self._condition.notify_all()

    @contextmanager
    def paused(self):
        """While a request runs."""
        with self._condition:
            self._requests += 1
        try:
            yield
        finally:
            with self._condition:
                self._requests -= 1
                self._condition.notify_all()

    def wait(self, timeout: float | None = None) -> bool:
        """Until everything wished for is done; False after `timeout` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: not self._todo, timeout)

    def _run(self) -> None:
        while self._some():
            pass

    def _some(self) -> bool:
        """One batch of the latest wish, after which nothing of it is held here; False if that was all."""
        program = threading.main_thread()
        with self._condition:
            while self._requests and program.is_alive():
                self._condition.wait(0.5)
            if not self._todo or not program.is_alive():
                self._thread = None
                return False
            features, slices = self._todo[0]
        try:
            made = features.ensure(slices[: features.batch])
            rest = slices[features.batch :]
            if made and not rest:  # once for a volume; between clicks, the next one would have to ask for it again
                release_memory()
        except Exception:  # the request that needs the slice will say what is wrong
            if program.is_alive():
                logger.exception("Encoding in the background failed")
            rest = []
        with self._condition:
            if self._todo and self._todo[0][0] is features:
                self._todo[0] = features, rest
                if not rest:
                    self._todo.popleft()
                    self._condition.notify_all()
        return True
