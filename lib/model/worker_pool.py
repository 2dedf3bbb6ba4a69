"""Work side by side on the cores of a CPU.

Within one step of a small network several threads wait for each other: two of them make it a third quicker at best. Two runs beside each
other, of one thread each, take hardly longer than one.
"""

import heapq
import math
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context

import torch

CORES = torch.get_num_threads()  # of the process; as many as there are, unless OMP_NUM_THREADS says less
_here = threading.local()


class _Team:
    """Lanes with some cores between them, and what they do.

    Args:
        jobs: generators; what each yields after a step is how much it still has to do, what it returns is its result.
        threads: of each lane.
    """

    def __init__(self, cores: int, lanes: int, jobs: list[Generator], threads: int):
        self.cores, self.lanes, self.threads = cores, lanes, threads
        self._ready = [(-math.inf, n) for n in range(len(jobs))]  # a heap: most to do first
        self._jobs, self._open, self.results = jobs, set(range(len(jobs))), [None] * len(jobs)
        self._wishes: deque[tuple[int, Callable]] = deque()
        self._changed, self._idle = threading.Condition(), 0  # lanes that wait for something to do

    def run(self) -> list:
        """Results of the jobs."""
        try:
            with ThreadPoolExecutor(max(1, self.lanes - 1), "lane") as pool:
                others = [pool.submit(copy_context().run, self._work) for _ in range(self.lanes - 1)]
                self._work()  # the calling thread is a lane, too: each thread more holds memory that only it uses again
            for lane in others:
                lane.result()
        finally:
            # The last number that any thread has set is what new threads begin with; one step of a lane stays on one core.
            outer = _team()
            torch.set_num_threads(outer.threads if outer else CORES)
        return self.results

    def share(self) -> int:
        """Cores for each of the lanes that still have something to do."""
        return self.cores // max(1, min(self.lanes, len(self._open)))

    def soon(self, function: Callable) -> None:
        """A wish of the calling job for something to be done while it goes on; dropped when it ends."""
        if self.lanes > 1:
            with self._changed:
                self._wishes.append((_here.job, function))
                self._changed.notify()

    def spare(self) -> bool:
        """Whether a lane has nothing to do, and there is nothing."""
        with self._changed:
            return self._idle > 0 and not self._wishes and not self._ready

    def also(self, job: Generator) -> None:
        """One job more."""
        with self._changed:
            n = len(self._jobs)
            self._jobs.append(job)
            self.results.append(None)
            self._open.add(n)
            heapq.heappush(self._ready, (-math.inf, n))
            self._changed.notify()

    def _work(self) -> None:
        """One lane: step after step, until all is done or something has failed."""
        before, _here.team = _team(), self
        torch.set_num_threads(self.threads)
        again = None
        try:
            while (found := self._take(again)) is not None:
                again = self._step(*found)
        except BaseException:
            with self._changed:  # the other lanes end with their step
                self._open.clear()
                self._changed.notify_all()
            raise
        finally:
            _here.team = before

    def _take(self, again: tuple[float, int] | None) -> tuple[int, Callable | None] | None:
        """A wish, or else the job with most to do; None when there is nothing left. `again`: a job that goes on."""
        with self._changed:
            if again:
                heapq.heappush(self._ready, again)
            self._idle += 1
            self._changed.wait_for(lambda: self._ready or self._wishes or not self._open)
            self._idle -= 1
            if not self._open:
                return None
            if not self._wishes:
                return heapq.heappop(self._ready)[1], None
            if self._ready:
                self._changed.notify()
            return self._wishes.popleft()

    def _step(self, n: int, wish: Callable | None) -> tuple[float, int] | None:
        """One step of a job, or what it wishes for; the job's place in the heap if it goes on."""
        if wish:
            wish()
            return None
        before, _here.job = getattr(_here, "job", None), n
        try:
            return -next(self._jobs[n]), n
        except StopIteration as end:
            with self._changed:
                self.results[n] = end.value
                self._open.discard(n)
                self._wishes = deque(w for w in self._wishes if w[0] != n)
                self._changed.notify_all()
        finally:
            _here.job = before


def _team() -> _Team | None:
    """That the calling thread is a lane of."""
    return getattr(_here, "team", None)


@contextmanager
def threads(wanted: int):
    """So many threads for what this thread does, while those that begin meanwhile have as many as before.

    Small networks are best computed by one: where several threads of a server each have helpers, more than there are cores, these go
    to sleep between any two operations, and waking them takes longer than what they help with.
    """
    before = torch.get_num_threads()
    if wanted == before:
        yield
        return
    torch.set_num_threads(wanted)
    other = threading.Thread(target=torch.set_num_threads, args=(before,))  # the last one to say it decides for new ones
    other.start()
    other.join()
    try:
        yield
    finally:
        torch.set_num_threads(before)


def cores() -> int:
    """That the calling thread may use; all, unless it works beside others, and more when some of these are done."""
    team = _team()
    return team.share() if team else CORES


def piece(count: int, batch: int, device: torch.device) -> int:
    """How many of `count` items to do at once, where `batch` fit into memory: on a CPU that many in all lanes together."""
    if device.type != "cpu":
        return batch
    return max(1, min(batch // CORES, -(-count // cores())))


def share(function: Callable, items: Iterable, device: torch.device) -> list:
    """[function(item) for item in items]: on a CPU side by side in the calling thread and others, each with its share of the cores;
    a GPU does one after the other.

    Raises:
        Whatever `function` raises; what has not been begun by then is not begun.
    """
    items, mine = list(items), cores()
    lanes = min(len(items), mine)
    if lanes < 2 or device.type != "cpu":
        return [function(item) for item in items]

    def once(item):
        return function(item)
        yield  # which makes it a job, of a single step

    return _Team(mine, lanes, [once(item) for item in items], mine // lanes).run()


def side_by_side(jobs: Iterable[Generator[int]], device: torch.device) -> list:
    """What generators return, run step by step: on a CPU the lanes, of one thread each, always go on with those that have most to do,
    so that all cores have work to the end; a GPU does one after the other.

    Args:
        jobs: each yields after every step how many are left at most. Steps of one may run in different threads.

    Raises:
        Whatever a step raises.
    """
    jobs, mine = list(jobs), cores()
    if device.type != "cpu":
        return [_result(job) for job in jobs]
    return _Team(mine, max(1, min(2 * len(jobs), mine)), jobs, 1).run()  # two for each: one for what it wishes for


def _result(job: Generator):
    while True:
        try:
            next(job)
        except StopIteration as end:
            return end.value


def soon(function: Callable) -> None:
    """From within a step: something that its job will need, for another lane that is free before, if there is one."""
    team = _team()
    if team:
        team.soon(function)


def inside() -> bool:
    """Whether the calling thread is a lane."""
    return _team() is not None


def spare() -> bool:
    """From within a step: whether a lane has nothing to do."""
    team = _team()
    return team is not None and team.spare()


def also(job: Generator) -> None:
    """From within a step, if a lane is `spare`: one job more, whose result comes after those of the others."""
    _team().also(job)


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
