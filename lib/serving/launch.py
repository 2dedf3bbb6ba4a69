"""Starts MONAI Label on a folder and, where Orthanc is installed, a second server on a DICOM store, and prints what to click."""

import atexit
import json
import os
import shutil
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
PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins", "/usr/local/share/orthanc/plugins")


def serve(studies: str | None, host: str = "127.0.0.1", port: int = 8000, conf=()) -> int:
    """Start the servers, print what to click, and wait until one of the servers ends.

    All that the servers print goes to log files in the folder build/, which are emptied at each start.

    Args:
        studies: Folder or DICOMweb address; None for the sample data, then also as DICOM if Orthanc is installed.
        host, port: Where the server listens. The server for OHIF listens on the next port.
        conf: Pairs (key, value) passed to the app.

    Returns:
        The exit status of the server that ended.

    Raises:
        OptionError: A port is taken, the folder does not exist, or a server does not start.
    """
    is_web = str(studies or "").startswith(("http://", "https://"))
    if studies and not is_web and not Path(studies).is_dir():
        raise OptionError(f"There is no folder {studies}.")
    _check_free(host, port)
    LOGS.mkdir(exist_ok=True)
    processes: list[subprocess.Popen] = []
    atexit.register(stop, processes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sources, logs = {port: studies or str(ROOT / "sample-data" / "nifti")}, []
    help_lines, page = _slicer_help(f"http://{host}:{port}"), "the volumes by need"
    if studies is None:
        store = start_orthanc(processes, ROOT / "sample-data" / "dicom", log=LOGS / "orthanc.log")
        if store:
            logs.append(LOGS / "orthanc.log")
            sources[port + 1] = store["dicomweb"]
            help_lines += _ohif_help(host, port + 1, store)
            page += ", with links to the slice in a connected OHIF"
        else:
            help_lines.append("OHIF needs a DICOM store: install Orthanc (Debian: apt install orthanc orthanc-dicomweb), start again.")
    first = len(processes)
    for server_port, source in sources.items():
        _check_free(host, server_port)
        log = LOGS / f"server_{server_port}.log"
        _print(f"Starting MONAI Label on port {server_port} for {source}; its log file is {os.path.relpath(log)}.")
        processes.append(start_monailabel(source, host, server_port, conf, log))
        logs.append(log)
    for server_port, process, log in zip(sources, processes[first:], logs[first:], strict=True):
        address = f"http://{host}:{server_port}"
        wait_for(f"{address}/info/", process, log=log)
    _print("Ready. Ctrl+C ends it.", "", *help_lines, "", f"To begin, open {page}:", f"   {address}/sam2/")
    while all(p.poll() is None for p in processes):
        time.sleep(0.5)
    process, log = next((p, log) for p, log in zip(processes, logs, strict=True) if p.poll() is not None)
    sys.stderr.write(f"A server ended with status {process.returncode}{_log_end(log)}\n")
    return process.returncode


def start_monailabel(studies: str, host: str, port: int, conf=(), log: Path | None = None) -> subprocess.Popen:
    """Start a MONAI Label server for this app, see `serve`. Its output goes to the file `log`, emptied first, or None for the terminal."""
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", studies]
    command += ["--host", host, "--port", str(port), *(word for key, value in conf for word in ("--conf", key, value))]
    if log is None:
        return subprocess.Popen(command, cwd=ROOT)
    with open(log, "w") as output:
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}  # A killed server has then written all of its messages.
        return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)


def start_orthanc(processes: list, dicom: Path, port: int = 8042, log: Path | None = None) -> dict | None:
    """Start a private Orthanc on loopback that holds the DICOM files below the folder `dicom`.

    Args:
        processes: List to which the new process is appended.
        port: First port to try.
        log: File that takes its output, emptied first; None for one in a temporary folder.

    Returns:
        {"dicomweb": address, "studies": {description: StudyInstanceUID}}, or None if Orthanc or its DICOMweb plugin is not installed.
    """
    program = shutil.which("Orthanc")
    plugin = next((p for d in PLUGINS if (p := Path(d, "libOrthancDicomWeb.so")).exists()), None)
    if program is None or plugin is None:
        return None
    port = next(p for p in range(port, port + 50) if _is_free("127.0.0.1", p))
    folder = Path(tempfile.mkdtemp(prefix="orthanc_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    settings = {
        "Name": "samples", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": port, "DicomServerEnabled": False, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
        "Plugins": [str(plugin)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    log, address = log or folder / "orthanc.log", f"http://127.0.0.1:{port}"
    with open(log, "w") as output:
        processes.append(subprocess.Popen([program, str(folder / "orthanc.json")], stdout=output, stderr=subprocess.STDOUT))
    wait_for(f"{address}/system", processes[-1], log=log)
    for file in sorted(dicom.rglob("*.dcm")):
        requests.post(f"{address}/instances", data=file.read_bytes(), timeout=30).raise_for_status()
    tags = [study["MainDicomTags"] for study in requests.get(f"{address}/studies?expand", timeout=30).json()]
    studies = {t.get("StudyDescription", t["StudyInstanceUID"]): t["StudyInstanceUID"] for t in tags}
    return {"dicomweb": f"{address}/dicom-web", "studies": studies}


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


def _slicer_help(address: str) -> list[str]:
    return [
        f"3D Slicer: module MONAILabel, server {address}, press the round arrow; Next Sample;",
        "   section SmartEdit: model sam2, pick a label, place a foreground point on the structure.",
        f"Scripts: {address}/docs",
    ]


def _ohif_help(host: str, port: int, store: dict) -> list[str]:
    address = f"http://{host}:{port}"
    return [
        "OHIF: open one of",
        *(f"   {name}: {address}/ohif/monai-label?StudyInstanceUIDs={uid}" for name, uid in sorted(store["studies"].items())),
        f"   panel MONAI Label: enter the server {address}/ and press the round arrow;",
        "   tab Point Prompts, model sam2; pick a segment,",
        "   click on the structure, press Run in that tab.",
    ]
