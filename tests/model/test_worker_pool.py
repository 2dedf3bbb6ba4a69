"""Worker threads: every task is computed alone, with its own number of threads, and errors reach the caller."""

import os
import threading
import time
from contextvars import ContextVar

import pytest
import torch

from lib.model.worker_pool import CPU_CORES, run_all, threads_per_task

CPU = torch.device("cpu")


def test_results_come_in_the_order_of_the_items():
    def slow_first(n):
        time.sleep(0.05 if n == 0 else 0)
        return n * n

    assert run_all(slow_first, range(5), CPU) == [0, 1, 4, 9, 16]
    assert run_all(slow_first, [], CPU) == []


@pytest.mark.parametrize("threads", sorted({1, CPU_CORES}))
def test_a_task_has_its_own_number_of_threads_wherever_it_runs(threads):
    assert set(run_all(lambda _: torch.get_num_threads(), range(8), CPU, threads)) == {threads}


def test_the_caller_and_new_threads_keep_their_number_of_threads():
    before, seen_later = torch.get_num_threads(), []
    run_all(lambda _: None, range(2), CPU, 1)
    thread = threading.Thread(target=lambda: seen_later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert torch.get_num_threads() == before and seen_later == [before]


def test_tasks_run_in_workers_and_their_own_tasks_in_the_same_worker():
    def outer(_):
        here = threading.current_thread()
        return here is not threading.main_thread() and all(run_all(lambda _: threading.current_thread() is here, range(3), CPU))

    assert all(run_all(outer, range(4), CPU))


def test_an_error_reaches_the_caller_and_what_has_not_begun_is_not_begun():
    begun = []

    def fail(n):
        begun.append(n)
        if n == 0:
            raise ValueError("broken")
        time.sleep(0.2)

    with pytest.raises(ValueError, match="broken"):
        run_all(fail, range(200), CPU)
    assert len(begun) < 100
    assert run_all(str, [1], CPU) == ["1"], "the workers go on"


def test_a_task_sees_the_context_of_its_caller():
    variable = ContextVar("variable", default="")
    variable.set("request 7")
    assert run_all(lambda _: variable.get(), range(2), CPU) == ["request 7"] * 2


def test_a_gpu_computes_one_after_the_other_in_the_calling_thread():
    assert set(run_all(lambda _: threading.current_thread(), range(3), torch.device("cuda"))) == {threading.current_thread()}


def test_large_networks_share_the_cores_between_two_directions():
    assert threads_per_task(256) == threads_per_task(512) == 1
    assert threads_per_task(1024) == max(1, CPU_CORES // 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_process_has_workers_of_its_own():
    run_all(str, range(3), CPU)
    child = os.fork()
    if child == 0:
        os._exit(0 if run_all(str, range(3), CPU) == ["0", "1", "2"] else 1)
    end = time.monotonic() + 20
    while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < end:
        time.sleep(0.02)
    if status[0] == 0:
        os.kill(child, 9)
    assert status == (child, 0)
