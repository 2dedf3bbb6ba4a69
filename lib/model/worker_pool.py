"""Compute networks on a CPU by a pool of worker threads.

Every slice to encode, every prompt and every pass through a gap is one task, and a task is always computed alone, by one worker with a
fixed number of threads. The result therefore does not depend on what else the machine computes at the time: the same prompts give the
same mask. Several workers with one thread each are also the quickest way to compute a small network, whose single operations are too
short to be shared between threads.
"""

import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextvars import copy_context

import torch

CPU_CORES = torch.get_num_threads()  # The cores that this process may use: all, unless OMP_NUM_THREADS says fewer.
SMALL_IMAGE_SIZE = 512  # Pixels. Networks for larger images have operations that are worth sharing between threads.

_pools: dict[int, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()
_this_thread = threading.local()


def threads_per_task(image_size: int) -> int:
    """Return how many threads compute one task of a network for square images of `image_size` pixels.

    Two passes (both directions from a slice) run side by side, so a large network gets half of the cores for each.
    """
    return 1 if image_size <= SMALL_IMAGE_SIZE else max(1, CPU_CORES // 2)


def run_all(function: Callable, items: Iterable, device: torch.device, threads_each: int = 1) -> list:
    """Return [function(item) for item in items].

    If `device` is a CPU, worker threads compute the items side by side, each alone; on a GPU the calling thread computes one after the
    other. A call from within a worker computes its items in that worker.

    Args:
        items: What to compute, the longest first if they differ much.
        threads_each: Threads of each worker. Each such number has a pool of its own, whose workers together have `CPU_CORES` threads.

    Raises:
        Exception: The error that `function` raised first; items that have not begun by then are not begun.
    """
    items = list(items)
    if device.type != "cpu" or getattr(_this_thread, "is_worker", False):
        return [function(item) for item in items]
    pool = _pool(threads_each)
    tasks = [pool.submit(copy_context().run, function, item) for item in items]
    try:
        for task in wait(tasks, return_when=FIRST_EXCEPTION).done:
            task.result()  # Raises what the task raised.
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        wait(tasks)  # The caller goes on only when nothing works on its behalf any more.


def _pool(threads_each: int) -> ThreadPoolExecutor:
    """Return the pool whose workers have `threads_each` threads, started when it is first needed."""
    with _pools_lock:
        if threads_each not in _pools:
            count = max(1, CPU_CORES // threads_each)
            before = torch.get_num_threads()
            pool = ThreadPoolExecutor(count, f"cpu-{threads_each}", _start_worker, (threads_each,))
            all_started = threading.Barrier(count)
            for task in [pool.submit(all_started.wait) for _ in range(count)]:
                task.result()
            torch.set_num_threads(before)  # A thread that begins later takes the number that was set last in any thread.
            _pools[threads_each] = pool
        return _pools[threads_each]


def _start_worker(threads: int) -> None:
    torch.get_num_threads()  # Asked first, because PyTorch then sets up the thread with the number that was set last in any thread.
    torch.set_num_threads(threads)
    _this_thread.is_worker = True


def _forget_pools() -> None:
    """Start anew in a forked process, which inherits the pools but not their threads."""
    global _pools_lock
    _pools_lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)
