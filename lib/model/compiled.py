"""`torch.compile` for the parts of a network that every tracking step goes through, without anybody waiting for it.

A part is compiled for inputs like those it is often called with, one after the other, on a thread of its own. Until that is done, and
for all other inputs, it runs as it is. Answers may differ in the last digit before and after.
"""

import logging
import os
import sys
import threading
from collections import Counter, deque
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.model import device, worker_pool
from lib.model.features import SliceFeatures
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.propagator import Tracker

logger = logging.getLogger(__name__)

PARTS = (("memory_attention", "forward"), ("sam_mask_decoder", "predict_masks"), ("memory_encoder", "forward"))
OFTEN = 3  # calls with like inputs after which these are worth a compilation of some seconds


class Compiler:
    """Compiles in the background; its thread ends when there is nothing to do, or with the program."""

    def __init__(self):
        self._todo: deque[Callable] = deque()
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._failed = False

    def install(self, tracker: Tracker, where: torch.device) -> None:
        """Has `PARTS` of a tracker's network compiled as they are used, which a small empty volume begins with."""
        tracker.compiled = True
        for name, method in PARTS:
            part = getattr(tracker.model, name)
            setattr(part, method, Part(getattr(part, method), self, where.type))
        self.wish(partial(_warm_up, tracker, where))

    def wish(self, job: Callable) -> None:
        """A function to call in the background."""
        with self._condition:
            if self._failed:
                return
            self._todo.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="compile")
                self._thread.start()

    def wait(self, timeout: float | None = None) -> bool:
        """Until all that was wished for is done; False after `timeout` seconds."""
        with self._condition:
            return self._condition.wait_for(lambda: self._thread is None, timeout)

    def _run(self) -> None:
        program = threading.main_thread()
        if sys.platform == "linux":
            os.nice(19)  # of this thread and the C++ compiler: clicks go first
        while True:
            with self._condition:
                if not self._todo or self._failed or not program.is_alive():
                    self._todo.clear()
                    self._thread = None
                    self._condition.notify_all()
                    return
                job = self._todo.popleft()
            try:
                job()
            except Exception as e:
                self._failed = True
                logger.warning("torch.compile does not work here, going on without it: %s", str(e).strip().partition("\n")[0])


class Part:
    """Stands for a function of tensors: compiled for some inputs, as it is for all others."""

    def __init__(self, function: Callable, compiler: Compiler, where: str):
        self._function, self._compiler, self._where = function, compiler, where
        self._ready: dict[tuple, Callable] = {}
        self._seen: Counter = Counter()

    def __call__(self, *args, **kwargs):
        threads = torch.get_num_threads()
        autocast = torch.is_autocast_enabled(self._where), torch.get_autocast_dtype(self._where)
        key = threads, autocast, torch.is_inference_mode_enabled(), _like((args, kwargs))
        ready = self._ready.get(key)
        if ready is not None:
            return ready(*args, **kwargs)
        self._seen[key] += 1
        # On a CPU only tracking steps, which are of few kinds: while something is compiled, a click waits for Python.
        if self._seen[key] == OFTEN and torch.is_inference_mode_enabled() and (worker_pool.inside() or self._where != "cpu"):
            self._compiler.wish(partial(self._compile, key, args, kwargs))
        return self._function(*args, **kwargs)

    def _compile(self, key, args, kwargs) -> None:
        import torch._dynamo.config  # takes a while

        torch._dynamo.config.recompile_limit = 256  # per function; each key is one on purpose
        # Lanes have one core each. No pool of compiling processes, which would stay.
        made = torch.compile(self._function, dynamic=False, options={"cpp.threads": 1, "compile_threads": 1})
        count, (enabled, kind), *_ = key  # what is compiled is for the state of the thread, too
        with worker_pool.threads(count), torch.inference_mode(), torch.autocast(self._where, kind, enabled):
            made(*args, **kwargs)
        self._ready[key] = made


def _warm_up(tracker: Tracker, where: torch.device) -> None:
    """Tracks what is not there through a small empty volume, in all kinds of runs, until all that tracking calls is compiled."""
    frames = Frames.of(Volume(np.zeros((64, 64, 24), np.int16), np.eye(4), "warm-up"), window="0,1", axis=2)
    features = SliceFeatures(tracker.model, frames, where, device.autocast_factory(where), 4)
    square = np.zeros((64, 64), bool)
    square[24:40, 24:40] = True
    painted = SlicePrompt(np.zeros((0, 2)), np.zeros(0, np.int32), square)
    annotated = {t: tracker.annotate(features, t, painted) for t in (8, 15)}
    for _ in range(OFTEN):
        tracker.propagate(features, annotated, low=0, high=23, batch=device.run_batch(where, tracker.compiled))


def _like(value):
    """What compiled code depends on of a (nested) argument."""
    if torch.is_tensor(value):
        return tuple(value.shape), value.stride(), value.dtype, value.device.type, value.is_inference()
    if isinstance(value, (list, tuple)):
        return tuple(_like(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _like(v)) for k, v in value.items())
    return value
