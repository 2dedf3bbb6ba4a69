"""The background encoder: order, pause, failure; with a stand-in for features."""

import threading

from lib.model.prefetch import Prefetcher


class Slices:
    """Remembers the order of encoding."""

    batch = 2

    def __init__(self, fail=False):
        self.done, self.fail = [], fail

    def missing(self, indices):
        return [t for t in indices if t not in self.done]

    def ensure(self, indices):
        if self.fail:
            raise RuntimeError("broken")
        self.done += indices


def test_wishes_are_encoded_in_their_order():
    prefetcher, slices = Prefetcher(), Slices()
    slices.done = [4]
    prefetcher.wish(slices, [5, 4, 6, 3, 7])
    assert prefetcher.wait(5) and slices.done == [4, 5, 6, 3, 7]


def test_it_stands_still_while_a_request_runs():
    prefetcher, slices = Prefetcher(), Slices()
    with prefetcher.paused():
        prefetcher.wish(slices, [1, 2, 3])
        assert not prefetcher.wait(0.2) and slices.done == []
    assert prefetcher.wait(5) and slices.done == [1, 2, 3]


def test_a_failure_does_not_end_the_thread():
    prefetcher, slices = Prefetcher(), Slices()
    prefetcher.wish(Slices(fail=True), [1, 2])
    assert prefetcher.wait(5)
    prefetcher.wish(slices, [1])
    assert prefetcher.wait(5) and slices.done == [1]
    assert sum(t.name == "prefetch" for t in threading.enumerate()) >= 1
