"""Share one progress bar between several threads."""

import threading
from collections.abc import Callable


class SharedProgress:
    """A progress bar that any thread may advance. An error that the bar raises (to cancel the work) is raised in all threads.

    Args:
        progress: Wraps an iterable for display, as `tqdm` does.
        total: Number of steps at most.
    """

    def __init__(self, progress: Callable, total: int):
        self._steps, self._lock, self._error = iter(progress(range(total))), threading.Lock(), None

    def advance(self) -> None:
        """Move on by one step.

        Raises:
            Exception: What the progress bar has raised, in this or another thread.
        """
        with self._lock:
            if self._error is not None:
                raise self._error
            try:
                next(self._steps, None)
            except Exception as e:
                self._error = e
                raise

    def finish(self) -> None:
        """Move to the end, because fewer steps may have been needed. No other thread may use the bar any more."""
        for _ in self._steps:
            pass
