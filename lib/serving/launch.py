"""Starts MONAI Label on a folder or a DICOM store, and prints what to click."""

import atexit
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import requests

from lib.common.errors import OptionError

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "apps" / "sam2"
LOGS = ROOT / "build"
LAST_LOG_LINES = 20  # Printed when a server fails.


def serve(studies: str | None, host: str = "127.0.0.1", port: int = 8000, conf=(), root_path: str = "") -> int:
    """Start a server for OHIF, 3D Slicer and scripts, print what to click, and wait until it ends.

    All that the server prints goes to a log file in the folder build/, which is emptied at each start.

    Args:
        studies: Folder or DICOMweb address; None for the sample data.
        host, port: Where the server listens.
        conf: Pairs (key, value) passed to the app.
        root_path: See `start_monailabel`.

    Returns:
        The exit status of the server.

    Raises:
        OptionError: The port is taken, the folder does not exist, a folder of the project cannot be written to, or the server does not start.
    """
    is_web = str(studies or "").startswith(("http://", "https://"))
    if studies and not is_web and not Path(studies).is_dir():
        raise OptionError(f"There is no folder {studies}.")
    if root_path and not re.fullmatch(r"(/[\w.~-]+)+", root_path):
        raise OptionError(f"The root path {root_path!r} must look like /monai.")
    _check_free(host, port)
    _check_environment()
    processes: list[subprocess.Popen] = []
    atexit.register(stop, processes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    source, log, address = studies or str(ROOT / "sample-data" / "nifti"), LOGS / f"server_{port}.log", f"http://{host}:{port}"
    _print(f"Starting MONAI Label on port {port} for {source}; its log file is {os.path.relpath(log)}.")
    processes.append(start_monailabel(source, host, port, conf, log, root_path))
    wait_for(f"{address}/info/", processes[0], log=log)
    _print("Ready. Ctrl+C ends it.", "", *_help(address), "", "To begin, open the volumes by need, and click one to annotate it in OHIF:",
           f"   {address}{root_path}/sam2/")  # fmt: skip
    while processes[0].poll() is None:
        time.sleep(0.5)
    sys.stderr.write(f"The server ended with status {processes[0].returncode}{_log_end(log)}\n")
    return processes[0].returncode


def start_monailabel(
    studies: str, host: str, port: int, conf=(), log: Path | None = None, root_path: str = ""
) -> subprocess.Popen:  # fmt: skip
    """Start a MONAI Label server for this app, see `serve`.

    Args:
        log: File for its output, emptied first, or None for the terminal.
        root_path: Path like "/monai" under which a proxy offers the server, which removes it from requests; "" without one.
    """
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", studies]
    command += ["--host", host, "--port", str(port), *(word for key, value in conf for word in ("--conf", key, value))]
    command += ["--root_path", root_path] if root_path else []
    if log is None:
        return subprocess.Popen(command, cwd=ROOT)
    with open(log, "w") as output:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # A killed server has then written all of its messages.
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def wait_for(address: str, process: subprocess.Popen, timeout_s: float = 180, log: Path | None = None) -> None:
    """Wait until a process answers at an address.

    Raises:
        OptionError: The process ended or did not answer in time. The message has the end of its output, if that is in the file `log`.
    """
    end = time.monotonic() + timeout_s
    while time.monotonic() < end:
        if process.poll() is not None:
            raise OptionError(f"The server for {address} ended with status {process.returncode}{_log_end(log)}")
        try:
            if requests.get(address, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.3)
    raise OptionError(f"The server did not answer at {address} within {timeout_s:.0f} s{_log_end(log)}")


def _log_end(log: Path | None) -> str:
    """Return the end of an error message: the last lines of a server's log."""
    if log is None:
        return "; see its messages above."
    lines = log.read_text(errors="replace").splitlines()[-LAST_LOG_LINES:]
    return "\n".join([f". The last lines of {os.path.relpath(log)}:", *lines])


def _print(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
        return True


def _check_free(host: str, port: int) -> None:
    if not _is_free(host, port):
        raise OptionError(f"Port {port} on {host} is taken: stop the other server or choose another --port.")


def _check_environment() -> None:
    """Raise OptionError if MONAI Label could not start: it writes into the app's folder, and one of its settings does not work."""
    if os.environ.get("MONAI_LABEL_CORS_ORIGINS"):
        raise OptionError("MONAI Label does not start with MONAI_LABEL_CORS_ORIGINS: unset it, and use --conf cors_origins https://... instead.")
    for folder in (LOGS, APP / "model", APP / "logs"):
        try:
            folder.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as e:
            raise OptionError(f"The server keeps files in {folder}, but cannot write there ({e.strerror}): run a copy of the project.") from e


def stop(processes: list) -> None:
    """End processes, the newest first, and kill those that still run after ten seconds."""
    for p in reversed(processes):
        if p.poll() is None:
            p.terminate()
    for p in processes:
        try:
            p.wait(10)
        except subprocess.TimeoutExpired:
            p.kill()


def _help(address: str) -> list[str]:
    """Return lines that say what to do in each client."""
    return [
        f"3D Slicer: module MONAILabel, server {address}, press the round arrow; Next Sample;",
        "   section SmartEdit: model sam2, pick a label, place a foreground point on the structure.",
        f"OHIF's list of studies: {address}/ohif/",
        f"Scripts: {address}/docs",
    ]
