"""Processes that a test starts and ends."""

import socket
import subprocess
from contextlib import contextmanager

from lib.serving.launch import wait_for


def free_port() -> int:
    """Return a port of this machine on which nobody listens."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def running(command: list[str], address: str, seconds: float = 120, **options):
    """Run a command and yield its process once `address` answers; end it after the context.

    Args:
        command: The program and its arguments.
        address: URL that the program serves when it is ready.
        seconds: How long to wait for that.
        **options: Options of `subprocess.Popen`.
    """
    process = subprocess.Popen(command, **options)
    try:
        wait_for(address, process, seconds)
        yield process
    finally:
        process.terminate()
        process.wait(20)
