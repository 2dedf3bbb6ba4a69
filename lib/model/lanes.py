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


class _Team:
    """Lanes with some cores between them."""

    def __init__(self, cores: int, lanes: int, items: int, threads: int):
        self.cores, self.lanes, self._left, self._lock = cores, lanes, items, threading.Lock()
        self._threads, self._ended = threads or cores // lanes, False

    def enter(self) -> None:
        """Called by each lane's thread."""
        _here.team, _here.threads = self, self._threads
        torch.set_num_threads(_here.threads)

    def run(self, function: Callable, item):
        """What `function` makes of `item`; nothing once another one has failed."""
        try:
            return None if self._ended else function(item)
        except BaseException:
            self.end()
            raise
        finally:
            with self._lock:
                self._left -= 1

    def end(self) -> None:
        """Nothing further is begun."""
        self._ended = True

    def share(self) -> int:
        """Cores for each of the lanes that still have something to do."""
        return self.cores // min(self.lanes, self._left)


def cores() -> int:
    """That the calling thread may use; all, unless it works beside others, and more when some of these are done."""
    team = getattr(_here, "team", None)
    return team.share() if team else CORES


def piece(count: int, batch: int, device: torch.device) -> int:
    """How many of `count` items to do at once, where `batch` fit into memory: on a CPU that many in all lanes together."""
    if device.type != "cpu":
        return batch
    return max(1, min(batch // CORES, -(-count // cores())))


def share(function: Callable, items: Iterable, device: torch.device, threads: int = 0) -> list:
    """[function(item) for item in items], on a CPU side by side, each with its share of the cores; a GPU does one after the other.

    Args:
        threads: of each lane on a CPU, also where there is only one item; 0 = as many as it has cores.

    Raises:
        Whatever `function` raises; what has not been begun by then is not begun.
    """
    items, mine = list(items), cores()
    lanes = min(len(items), mine)
    if lanes < 1 or device.type != "cpu" or (lanes == 1 and threads in (0, mine)):
        return [function(item) for item in items]

    team = _Team(mine, lanes, len(items), threads)
    try:
        with ThreadPoolExecutor(lanes, "lane", team.enter) as pool:
            tasks = [pool.submit(copy_context().run, team.run, function, item) for item in items]
            try:
                return [task.result() for task in tasks]
            except BaseException:  # also an interrupt of this thread
                team.end()
                raise
    finally:
        # The last number that any thread has set is what new threads begin with; one step of a lane stays on one core.
        torch.set_num_threads(getattr(_here, "threads", CORES))


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
