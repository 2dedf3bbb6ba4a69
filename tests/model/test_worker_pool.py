"""Work side by side: order, cores, errors, cancelling."""

import threading
import time
from contextvars import ContextVar

import pytest
import torch

from lib.model import worker_pool
from lib.model.worker_pool import Ticks, also, cores, piece, share, side_by_side, soon, spare, threads

CPU = torch.device("cpu")


@pytest.fixture
def four(monkeypatch):
    monkeypatch.setattr(worker_pool, "CORES", 4)
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items(four):
    meet = threading.Barrier(3)  # passed only if all three run at the same time

    def work(n):
        meet.wait(10)
        return n * n

    assert share(work, [3, 1, 2], CPU) == [9, 1, 4]


def together(lanes):
    """What a lane says of its cores, when all have begun and none is done."""
    meet = threading.Barrier(lanes)

    def say(_):
        meet.wait(10)
        said = cores(), torch.get_num_threads()
        meet.wait(10)
        return said

    return say


@pytest.mark.parametrize(("items", "each"), [(1, 4), (2, 2), (3, 1), (4, 1), (8, 1)])
def test_cores_are_divided(four, items, each):
    torch.set_num_threads(4)
    assert share(together(min(items, 4)), range(items), CPU) == [(each, each)] * items
    assert cores() == torch.get_num_threads() == 4


def test_lanes_within_a_lane_divide_its_share(four):
    say = together(4)
    assert share(lambda _: share(say, range(2), CPU), range(2), CPU) == [[(1, 1)] * 2] * 2


def steps(count, do=lambda: None, result=None):
    """A job of so many steps."""
    for n in range(count):
        do()
        yield count - 1 - n
    return result


@pytest.mark.parametrize("device", [CPU, torch.device("meta")])
def test_jobs_return_their_results_in_order(four, device):
    torch.set_num_threads(4)
    assert side_by_side([steps(5, result="a"), steps(0, result="b"), steps(2, result="c")], device) == ["a", "b", "c"]
    assert side_by_side([], device) == []
    assert cores() == torch.get_num_threads() == 4


def test_lanes_of_jobs_have_one_thread_and_their_share_of_the_cores(four):
    said = []
    assert side_by_side(
        [steps(1, lambda: said.append((cores(), torch.get_num_threads(), share(together(4), range(4), CPU))))], CPU
    ) == [None]
    assert said == [(4, 1, [(1, 1)] * 4)] and torch.get_num_threads() == 4


def test_lanes_go_on_with_the_job_that_has_most_to_do(monkeypatch):
    monkeypatch.setattr(worker_pool, "CORES", 1)
    order = []
    side_by_side([steps(n, lambda n=n: order.append(n)) for n in (2, 4, 3)], CPU)
    assert order == [2, 4, 3, 4, 4, 3, 2, 4, 3]


def test_three_equal_jobs_keep_two_lanes_busy_to_the_end(monkeypatch):
    monkeypatch.setattr(worker_pool, "CORES", 2)
    meet = threading.Barrier(2)  # two steps of different jobs at any time: six steps in three rounds
    assert side_by_side([steps(2, lambda: meet.wait(10), result=n) for n in range(3)], CPU) == [0, 1, 2]


def test_a_wish_is_done_by_another_lane_while_the_job_goes_on(monkeypatch):
    monkeypatch.setattr(worker_pool, "CORES", 2)
    done = threading.Event()

    def job():
        soon(done.set)
        assert done.wait(10), "by another thread"
        yield 0

    side_by_side([job()], CPU)


def test_a_lane_that_has_nothing_to_do_takes_over_what_a_job_gives_away(monkeypatch):
    monkeypatch.setattr(worker_pool, "CORES", 2)
    meet, said = threading.Barrier(2), []

    def half(n):
        meet.wait(10)  # both halves at the same time
        said.append(spare())
        meet.wait(10)
        yield 0
        return n

    def job():
        while not spare():  # until the other lane has come to wait
            yield 10
        also(half("second"))
        return (yield from half("first"))

    assert side_by_side([job()], CPU) == ["first", "second"] and said == [False, False]


def test_no_lane_is_spare_while_there_are_wishes_nor_where_there_are_no_lanes(monkeypatch):
    monkeypatch.setattr(worker_pool, "CORES", 2)
    begun, go_on, said = threading.Event(), threading.Event(), []

    def wish():
        begun.set()
        go_on.wait(10)

    def job():
        soon(wish)
        said.append(spare())
        begun.wait(10)
        said.append(spare())
        go_on.set()
        yield 0

    side_by_side([job()], CPU)
    side_by_side([steps(1, lambda: said.append(spare()))], torch.device("meta"))
    assert said == [False] * 3 and not spare()


def test_one_thread_here_while_others_have_what_they_had():
    torch.set_num_threads(2)
    new = []
    with threads(1):
        other = threading.Thread(target=lambda: new.append(torch.get_num_threads()))
        other.start()
        other.join()
        assert torch.get_num_threads() == 1 and new == [2]
        with threads(1):
            pass
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_wishes_are_dropped_with_their_job_and_where_nobody_is_free(monkeypatch):
    done = []

    def job():
        soon(lambda: done.append(threading.get_ident()))
        yield 0

    soon(lambda: done.append("outside"))
    side_by_side([job()], torch.device("meta"))
    monkeypatch.setattr(worker_pool, "CORES", 1)
    side_by_side([job()], CPU)
    assert done == []


def test_an_error_in_a_step_or_a_wish_ends_all(four):
    def fail():
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        side_by_side([steps(10**6), steps(3, fail)], CPU)

    def wish():
        soon(fail)
        for n in range(10**6):
            time.sleep(0.001)
            yield 10**6 - n

    with pytest.raises(ValueError, match="broken"):
        side_by_side([wish()], CPU)
    assert cores() == torch.get_num_threads() == 4


def test_who_is_left_gets_the_cores_of_those_who_are_done(four):
    first_is_done = threading.Event()

    def work(n):
        if n == 0:
            return cores()
        first_is_done.wait(10)
        while cores() == 2:  # the first has returned, and is about to be done
            time.sleep(0.001)
        inner = share(together(4), range(4), CPU)
        return cores(), inner, torch.get_num_threads()

    def noted(n):
        try:
            return work(n)
        finally:
            first_is_done.set()

    assert share(noted, range(2), CPU) == [2, (4, [(1, 1)] * 4, 2)]


@pytest.mark.parametrize(
    ("count", "batch", "on_cpu", "on_gpu"),
    [(64, 64, 16, 64), (64, 8, 2, 8), (3, 64, 1, 64), (9, 64, 3, 64), (5, 2, 1, 2), (0, 8, 1, 8), (1, 1, 1, 1)],
)
def test_a_gpu_takes_whole_batches_and_the_lanes_of_a_cpu_share_one(four, count, batch, on_cpu, on_gpu):
    assert piece(count, batch, CPU) == on_cpu and piece(count, batch, torch.device("meta")) == on_gpu


def test_the_caller_is_one_of_the_lanes_and_its_own_share_comes_back(four):
    all_four, both = threading.Barrier(4), threading.Barrier(2)

    def work(_):
        all_four.wait(10)
        return threading.get_ident()

    def outer(_):
        inner = share(work, range(2), CPU)
        said = threading.get_ident() in inner, cores(), torch.get_num_threads()
        both.wait(10)
        return said

    assert threading.get_ident() in share(work, range(4), CPU)
    assert share(outer, range(2), CPU) == [(True, 2, 2)] * 2


def test_a_gpu_does_one_after_the_other_in_the_calling_thread(four):
    assert share(lambda _: threading.get_ident(), range(3), torch.device("meta")) == [threading.get_ident()] * 3


def test_new_threads_are_not_left_with_the_share_of_a_lane(four):
    share(lambda _: None, range(4), CPU)
    found = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [4]


def test_context_goes_along(four):
    who = ContextVar("who")
    who.set("me")
    assert share(lambda _: who.get(), range(2), CPU) == ["me", "me"]


def test_an_error_ends_what_has_not_begun(four):
    begun = []

    def work(n):
        begun.append(n)
        raise ValueError(n)

    with pytest.raises(ValueError):
        share(work, range(1000), CPU)
    assert len(begun) <= 4 and cores() == 4  # one a lane at most, however fast the lanes are


def test_ticks_raise_to_all_who_go_on():
    def progress(steps):
        for n in steps:
            if n == 2:
                raise RuntimeError("gone")
            yield n

    ticks = Ticks(progress, 5)
    ticks.next()
    ticks.next()
    for _ in range(3):
        with pytest.raises(RuntimeError, match="gone"):
            ticks.next()


def test_ticks_finish_the_bar():
    seen = []

    def progress(steps):
        for n in steps:
            seen.append(n)
            yield n

    ticks = Ticks(progress, 4)
    ticks.next()
    ticks.finish()
    ticks.next()  # more steps than announced
    assert seen == [0, 1, 2, 3]
