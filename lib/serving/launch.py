"""Starts MONAI Label on a folder and, where Orthanc is installed, a second one on a DICOM store, and says what to click."""

import atexit
import json
import logging
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

logger = logging.getLogger(__name__)

ROOT = Path(__file__).resolve().parents[2]
APP = ROOT / "apps" / "sam2"
PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins", "/usr/local/share/orthanc/plugins")


def serve(studies: str | None, host: str = "127.0.0.1", port: int = 8000, conf=()) -> int:
    """Runs until interrupted; returns the exit status of the server.

    Args:
        studies: folder or DICOMweb address; None for the sample data, then also as DICOM if Orthanc is installed.
        conf: pairs passed to the app.

    Raises:
        OptionError: the port is taken, or the folder does not exist.
    """
    web = str(studies or "").startswith(("http://", "https://"))
    if studies and not web and not Path(studies).is_dir():
        raise OptionError(f"There is no folder {studies}.")
    _check_free(host, port)
    processes: list[subprocess.Popen] = []
    atexit.register(stop, processes)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    lines = []
    if studies is None:
        store = start_orthanc(processes, ROOT / "sample-data" / "dicom")
        if store:
            _check_free(host, port + 1)
            processes.append(start_monailabel(store["dicomweb"], host, port + 1, conf))
            lines += _ohif_help(host, port + 1, store)
        else:
            lines += ["OHIF needs a DICOM store: install Orthanc (Debian: apt install orthanc orthanc-dicomweb), start again."]
        studies = str(ROOT / "sample-data" / "nifti")
    server = start_monailabel(studies, host, port, conf)
    processes.append(server)
    address = f"http://{host}:{port}"
    wait_for(f"{address}/info/", server)
    lines = _slicer_help(address) + lines
    logger.info("Ready.\n\n%s\n", "\n".join(lines))
    return server.wait()


def start_monailabel(studies: str, host: str, port: int, conf=()) -> subprocess.Popen:
    """A MONAI Label server process for this app."""
    command = [sys.executable, "-m", "monailabel.main", "start_server", "--app", str(APP), "--studies", studies]
    command += ["--host", host, "--port", str(port)]
    for key, value in conf:
        command += ["--conf", key, value]
    # Programs of the environment (itkimage2segimage for DICOM SEG) must be found also when it is not activated.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return subprocess.Popen(command, env={**os.environ, "PATH": path}, cwd=ROOT)


def start_orthanc(processes: list, dicom: Path, port: int = 8042) -> dict | None:
    """A private Orthanc on loopback with the DICOM files below `dicom`, or None if it is not installed.

    Args:
        processes: the new process is appended.

    Returns:
        {"dicomweb": address, "studies": {description: StudyInstanceUID}}
    """
    program = shutil.which("Orthanc")
    plugin = next((p for d in PLUGINS if (p := Path(d, "libOrthancDicomWeb.so")).exists()), None)
    if program is None or plugin is None:
        return None
    port = next(p for p in range(port, port + 50) if _free("127.0.0.1", p))
    folder = Path(tempfile.mkdtemp(prefix="orthanc_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    settings = {
        "Name": "samples", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": port, "DicomServerEnabled": False, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
        "Plugins": [str(plugin)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    with open(folder / "orthanc.log", "w") as log:
        process = subprocess.Popen([program, str(folder / "orthanc.json")], stdout=log, stderr=subprocess.STDOUT)
    processes.append(process)
    address = f"http://127.0.0.1:{port}"
    wait_for(f"{address}/system", process)
    for file in sorted(dicom.rglob("*.dcm")):
        requests.post(f"{address}/instances", data=file.read_bytes(), timeout=30).raise_for_status()
    studies = {}
    for study in requests.get(f"{address}/studies?expand", timeout=30).json():
        tags = study["MainDicomTags"]
        studies[tags.get("StudyDescription", tags["StudyInstanceUID"])] = tags["StudyInstanceUID"]
    return {"dicomweb": f"{address}/dicom-web", "studies": studies}


def wait_for(address: str, process: subprocess.Popen, seconds: float = 180) -> None:
    """Waits until `address` answers.

    Raises:
        OptionError: the process ended or did not answer in time.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if process.poll() is not None:
            raise OptionError(f"The server for {address} ended with status {process.returncode}; see its messages above.")
        try:
            if requests.get(address, timeout=5).ok:
                return
        except requests.RequestException:
            pass
        time.sleep(0.3)
    raise OptionError(f"The server did not answer at {address} within {seconds:.0f} s.")


def _free(host: str, port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((host, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def _check_free(host: str, port: int) -> None:
    if not _free(host, port):
        raise OptionError(f"Port {port} on {host} is taken: stop the other server or choose another --port.")


def stop(processes: list) -> None:
    """Ends processes, the newest first, by force after ten seconds."""
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
        f"Volumes and slices by need: {address}/sam2/",
        f"Scripts: {address}/docs",
    ]


def _ohif_help(host: str, port: int, store: dict) -> list[str]:
    lines = ["OHIF: open one of"]
    for name, uid in sorted(store["studies"].items()):
        lines.append(f"   {name}: http://{host}:{port}/ohif/monai-label?StudyInstanceUIDs={uid}")
    lines.append(f"   panel MONAI Label: enter the server http://{host}:{port}/ and press the round arrow;")
    lines.append("   tab Point Prompts, model sam2; pick a segment,")
    lines.append("   click on the structure, press Run in that tab.")
    lines.append(f"   Or begin at http://{host}:{port}/sam2/: volumes by need, with links to the slice in a connected OHIF.")
    return lines
