"""Work side by side on the cores of a CPU.

Within one step of a small network several threads wait for each other more than they help: on two cores a step takes longer with two
threads than with one. Two runs beside each other, of one thread each, take hardly longer than one.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import torch

CORES = torch.get_num_threads()  # of the process; as many as there are, unless OMP_NUM_THREADS says less
_here = threading.local()


class _Team:
    """Lanes with some cores between them, and what they do.

    Args:
        threads: of each lane; 0 = as many as it has cores.
    """

    def __init__(self, cores: int, lanes: int, function: Callable, items: list, threads: int):
        self.cores, self.lanes, self.threads = cores, lanes, threads or cores // lanes
        self._function, self._todo, self._left = function, deque(enumerate(items)), len(items)
        self._lock, self.results = threading.Lock(), [None] * len(items)

    def work(self) -> None:
        """One lane: item after item, until none is left or one has failed."""
        before, _here.team = _team(), self
        torch.set_num_threads(self.threads)
        try:
            while True:
                try:
                    n, item = self._todo.popleft()
                except IndexError:
                    return
                try:
                    self.results[n] = self._function(item)
                except BaseException:
                    self._todo.clear()
                    raise
                finally:
                    with self._lock:
                        self._left -= 1
        finally:
            _here.team = before

    def share(self) -> int:
        """Cores for each of the lanes that still have something to do."""
        return self.cores // min(self.lanes, self._left)


def _team() -> _Team | None:
    """That the calling thread is a lane of."""
    return getattr(_here, "team", None)


def cores() -> int:
    """That the calling thread may use; all, unless it works beside others, and more when some of these are done."""
    team = _team()
    return team.share() if team else CORES


def piece(count: int, batch: int, device: torch.device) -> int:
    """How many of `count` items to do at once, where `batch` fit into memory: on a CPU that many in all lanes together."""
    if device.type != "cpu":
        return batch
    return max(1, min(batch // CORES, -(-count // cores())))


def share(function: Callable, items: Iterable, device: torch.device, threads: int = 0) -> list:
    """[function(item) for item in items]: on a CPU side by side in the calling thread and others, each with its share of the cores;
    a GPU does one after the other.

    Args:
        threads: of each lane on a CPU, also where there is only one item; 0 = as many as it has cores.

    Raises:
        Whatever `function` raises; what has not been begun by then is not begun.
    """
    items, mine = list(items), cores()
    lanes = min(len(items), mine)
    if lanes < 1 or device.type != "cpu" or (lanes == 1 and threads in (0, mine)):
        return [function(item) for item in items]

    team = _Team(mine, lanes, function, items, threads)
    try:
        with ThreadPoolExecutor(max(1, lanes - 1), "lane") as pool:
            others = [pool.submit(copy_context().run, team.work) for _ in range(lanes - 1)]
            team.work()  # the calling thread is a lane, too: each thread more holds memory that only it uses again
        for lane in others:
            lane.result()
    finally:
        # The last number that any thread has set is what new threads begin with; one step of a lane stays on one core.
        outer = _team()
        torch.set_num_threads(outer.threads if outer else CORES)
    return team.results


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
