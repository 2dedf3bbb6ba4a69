"""A private Orthanc, a DICOM store of others, for tests; those that need it are skipped where it or its DICOMweb plugin is not installed."""

import atexit
import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import requests

from lib.serving.launch import wait_for

PROGRAM = shutil.which("Orthanc")
_PLUGINS = ("/usr/share/orthanc/plugins", "/usr/lib/orthanc/plugins", "/usr/local/share/orthanc/plugins")
PLUGIN = next((p for d in _PLUGINS if (p := Path(d, "libOrthancDicomWeb.so")).exists()), None)
IS_INSTALLED = PROGRAM is not None and PLUGIN is not None


def start_orthanc(processes: list, dicom: Path, port: int) -> dict:
    """Start a private Orthanc on loopback that holds the DICOM files below the folder `dicom`.

    Args:
        processes: List to which the new process is appended.
        port: Where it listens.

    Returns:
        {"dicomweb": address, "studies": {description: StudyInstanceUID}}
    """
    folder = Path(tempfile.mkdtemp(prefix="orthanc_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    settings = {
        "Name": "samples", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
        "HttpPort": port, "DicomServerEnabled": False, "RemoteAccessAllowed": False, "AuthenticationEnabled": False,
        "Plugins": [str(PLUGIN)], "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }  # fmt: skip
    (folder / "orthanc.json").write_text(json.dumps(settings))
    log, address = folder / "orthanc.log", f"http://127.0.0.1:{port}"
    with open(log, "w") as output:
        processes.append(subprocess.Popen([PROGRAM, str(folder / "orthanc.json")], stdout=output, stderr=subprocess.STDOUT))
    wait_for(f"{address}/system", processes[-1], log=log)
    for file in sorted(dicom.rglob("*.dcm")):
        requests.post(f"{address}/instances", data=file.read_bytes(), timeout=30).raise_for_status()
    tags = [study["MainDicomTags"] for study in requests.get(f"{address}/studies?expand", timeout=30).json()]
    studies = {t.get("StudyDescription", t["StudyInstanceUID"]): t["StudyInstanceUID"] for t in tags}
    return {"dicomweb": f"{address}/dicom-web", "studies": studies}
