"""Measure how long the stages of a computation take."""

import time
from contextlib import contextmanager


class Stopwatch:
    """The time spent in each stage of a computation; `with stopwatch("decode"): ...` adds the time of the block.

    Attributes:
        seconds: Total time of each stage in seconds, by the stage's name.
    """

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start
