"""Where networks run."""

import os

import numpy as np
import pytest

from lib.model.device import release_memory


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", ()), reason="needs the C library of Linux")
def test_freed_memory_goes_back_to_the_system():
    blocks = [np.ones(60_000, np.uint8) for _ in range(2000)]  # 120 MB, too small for pages of their own
    last = np.ones(60_000, np.uint8)  # above them, so that the heap cannot simply shrink
    before = resident_bytes()
    blocks.clear()
    release_memory()
    assert resident_bytes() < before - 80e6 and last.all()
