"""Programs that a test starts and ends."""

import subprocess
from contextlib import contextmanager

from lib.serving.launch import wait_for


@contextmanager
def running(command: list[str], address: str, seconds: float = 120, **options):
    """The process, from when `address` answers; options of `subprocess.Popen`."""
    process = subprocess.Popen(command, **options)
    try:
        wait_for(address, process, seconds)
        yield process
    finally:
        process.terminate()
        process.wait(20)
