"""The background encoder: order, pause, failure; with a stand-in for features."""

import subprocess
import sys
import time
import weakref
from pathlib import Path

from lib.model.prefetch import Prefetcher

ROOT = Path(__file__).resolve().parents[2]


class Slices:
    """Remembers the order of encoding."""

    slices_per_round = 2

    def __init__(self, fail=False):
        self.done, self.fail = [], fail

    def missing(self, indices):
        return [t for t in indices if t not in self.done]

    def ensure(self, indices):
        if self.fail:
            raise RuntimeError("broken")
        self.done += indices
        return len(indices)


def test_requests_are_encoded_in_their_order():
    prefetcher, slices = Prefetcher(), Slices()
    slices.done = [4]
    prefetcher.request(slices, [5, 4, 6, 3, 7])
    assert prefetcher.wait(5) and slices.done == [4, 5, 6, 3, 7]


def test_freed_memory_is_given_back_when_a_volume_is_encoded(monkeypatch):
    prefetcher, slices, given_back = Prefetcher(), Slices(), []
    monkeypatch.setattr("lib.model.prefetch.release_memory", lambda: given_back.append(len(slices.done)))
    prefetcher.request(slices, range(20))
    assert prefetcher.wait(5) and given_back == [20]
    prefetcher.request(slices, range(20))
    assert prefetcher.wait(5) and len(given_back) == 1, "not after each request on what is encoded already"


def test_it_stands_still_while_a_request_runs():
    prefetcher, slices = Prefetcher(), Slices()
    with prefetcher.paused():
        prefetcher.request(slices, [1, 2, 3])
        assert not prefetcher.wait(0.2) and slices.done == []
    assert prefetcher.wait(5) and slices.done == [1, 2, 3]


def test_a_request_that_comes_while_slices_of_the_same_volume_are_encoded_is_kept():
    prefetcher, slices = Prefetcher(), Slices()
    encode = slices.ensure

    def ensure_and_request(indices):
        if 1 in indices:
            prefetcher.request(slices, [7, 8, 9])
        return encode(indices)

    slices.ensure = ensure_and_request
    prefetcher.request(slices, [1, 2, 3, 4])
    assert prefetcher.wait(5) and slices.done == [1, 2, 7, 8, 9]


def test_a_failure_does_not_end_the_thread():
    prefetcher, slices = Prefetcher(), Slices()
    prefetcher.request(Slices(fail=True), [1, 2])
    assert prefetcher.wait(5)
    prefetcher.request(slices, [1])
    assert prefetcher.wait(5) and slices.done == [1]


def test_it_does_not_hold_what_it_has_encoded():
    prefetcher, slices = Prefetcher(), Slices()
    held = weakref.ref(slices)
    prefetcher.request(slices, [1, 2, 3])
    assert prefetcher.wait(5)
    del slices
    end = time.monotonic() + 5
    while held() is not None and time.monotonic() < end:  # the thread leaves its last step
        time.sleep(0.01)
    assert held() is None


def test_a_program_may_end_while_slices_are_encoded():
    """With the real network: a thread that is cut off within it takes the process down."""
    program = """
import numpy as np
from lib.engine.segmenter import Segmenter
from lib.imaging.volume import Volume
Segmenter().prefetch(Volume(np.random.default_rng(0).integers(0, 255, (64, 64, 400), dtype=np.int16)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode == 0 and "Error" not in done.stderr and "terminate" not in done.stderr, done.stderr
