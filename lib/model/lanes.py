"""Work side by side on the cores of a CPU.

Within one step of a small network several threads wait for each other more than they help: on two cores a step takes longer with two
threads than with one. Two runs beside each other, of one thread each, take hardly longer than one.
"""

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import torch

CORES = torch.get_num_threads()  # of the process; as many as there are, unless OMP_NUM_THREADS says less
_here = threading.local()


def cores() -> int:
    """That the calling thread may use; all, unless it works beside others."""
    return getattr(_here, "cores", CORES)


def piece(count: int, batch: int, device: torch.device) -> int:
    """How many of `count` items to do at once, where `batch` fit into memory: on a CPU that many in all lanes together."""
    if device.type != "cpu":
        return batch
    return max(1, min(batch // CORES, -(-count // cores())))


def share(function: Callable, items: Iterable, device: torch.device) -> list:
    """[function(item) for item in items], on a CPU side by side, each with its share of the cores; a GPU does one after the other.

    Raises:
        Whatever `function` raises; what has not been begun by then is not begun.
    """
    items, mine = list(items), cores()
    lanes = min(len(items), mine) if device.type == "cpu" else 1
    if lanes < 2:
        return [function(item) for item in items]

    def enter():
        _here.cores = mine // lanes
        torch.set_num_threads(_here.cores)

    try:
        with ThreadPoolExecutor(lanes, "lane", enter) as pool:
            tasks = [pool.submit(copy_context().run, function, item) for item in items]
            try:
                return [task.result() for task in tasks]
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    finally:
        torch.set_num_threads(mine)  # the last number that any thread has set is what new threads begin with


class Ticks:
    """A progress bar that moves for whoever has done a step; what it raises (to cancel), it raises to all.

    Args:
        progress: wraps an iterable. total: steps.
    """

    def __init__(self, progress: Callable, total: int):
        self._steps, self._lock, self._raised = iter(progress(range(total))), threading.Lock(), None

    def next(self) -> None:
        """One step further."""
        with self._lock:
            if self._raised is not None:
                raise self._raised
            try:
                next(self._steps, None)
            except Exception as e:
                self._raised = e
                raise

    def finish(self) -> None:
        """To the end, where fewer steps were needed."""
        for _ in self._steps:
            pass
