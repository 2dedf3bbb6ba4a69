"""Check a DICOMweb service with programs of others: dicomweb-client asks and parses, dciodvfy (Debian: dicom3tools) judges the objects.

Every study, series and instance that the service lists is asked for in all ways, and what it says in one way is compared with what it says
in the others. Objects of the class Secondary Capture, which this project makes of images that are no DICOM, must have no error for dciodvfy.

examples:
  python benchmarks/dicomweb.py                                  # a server on the sample data
  python benchmarks/dicomweb.py --studies /data/images --instances 3
  python benchmarks/dicomweb.py --url http://127.0.0.1:8042/dicom-web
"""

import argparse
import io
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import pydicom
import requests
from dicomweb_client.api import DICOMwebClient
from pydicom.uid import SecondaryCaptureImageStorage

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib.serving.launch import start_monailabel, stop, wait_for  # noqa: E402

DCIODVFY = shutil.which("dciodvfy")
UNKNOWN = "1.2.826.0.1.3680043.10.1337.404"
# Requests that must be refused, with the statuses that PS3.18 allows for them.
WRONG = {
    f"/studies/{UNKNOWN}": (404,), f"/studies/{UNKNOWN}/metadata": (404,), f"/studies/{UNKNOWN}/series/{UNKNOWN}": (404,),
    "/studies?limit=none": (400,), "/studies?offset=-1": (400,), "/studies/../../etc/passwd": (400, 404),
    "/studies/..%2F..%2Fetc%2Fpasswd/metadata": (400, 404),
}  # fmt: skip


class Checks:
    """Counts what was checked, and keeps what was wrong."""

    def __init__(self):
        self.counts, self.problems = Counter(), []

    def expect(self, holds: bool, subject: str, problem: str) -> None:
        """Note the result of a check of a subject; `problem` says what is wrong if it does not hold."""
        self.counts[subject] += 1
        if not holds:
            self.problems.append(f"{subject}: {problem}")


def check_service(url: str, instances: int, checks: Checks) -> None:
    """Check a service; `instances` is the number of objects of each series that are retrieved."""
    client = DICOMwebClient(url)
    for study in map(pydicom.Dataset.from_json, client.search_for_studies()):
        uid = study.StudyInstanceUID
        found = client.search_for_studies(search_filters={"StudyInstanceUID": uid})
        checks.expect(len(found) == 1, "search for a study", f"{uid} is found {len(found)} times")
        all_series = [pydicom.Dataset.from_json(s) for s in client.search_for_series(uid)]
        checks.expect(len(all_series) == study.NumberOfStudyRelatedSeries, "search for series", f"{uid} has other numbers of series")
        for series in all_series:
            check_series(client, uid, series, instances, checks)
    for path, statuses in WRONG.items():
        status = requests.get(url + path, timeout=60).status_code
        checks.expect(status in statuses, "wrong requests", f"{path} is answered with {status}")
    status = requests.get(f"{url}/studies", headers={"Accept": "image/gif"}, timeout=60).status_code
    checks.expect(status == 406, "wrong requests", f"image/gif for a search is answered with {status}")


def check_series(client: DICOMwebClient, study: str, series: pydicom.Dataset, instances: int, checks: Checks) -> None:
    """Check what a service says of a series, and some of its objects."""
    uid = series.SeriesInstanceUID
    listed = {i["00080018"]["Value"][0] for i in client.search_for_instances(study, uid)}
    metadata = {i["00080018"]["Value"][0]: i for i in client.retrieve_series_metadata(study, uid)}
    checks.expect(listed == set(metadata), "metadata", f"{uid}: search and metadata list other instances")
    checks.expect(len(listed) == series.NumberOfSeriesRelatedInstances, "search for instances", f"{uid} has another number of instances")
    for sop, attributes in list(metadata.items())[:instances]:
        ds = client.retrieve_instance(study, uid, sop)
        header = pydicom.Dataset.from_json(attributes)
        names = [e.keyword for e in header if e.VR not in ("OB", "OW", "SQ", "UN") and e.keyword != "SpecificCharacterSet" and (e.keyword not in ds or ds[e.keyword].value != e.value)]
        checks.expect(not names, "metadata", f"{sop}: {', '.join(names)} differ from the object")
        if ds.get("NumberOfFrames", 1) == 1 and "PixelData" in ds:
            (frame,) = client.retrieve_instance_frames(study, uid, sop, [1])
            checks.expect(ds.PixelData.startswith(frame), "frames", f"{sop}: the frame differs from the object's pixels")
        if DCIODVFY and ds.SOPClassUID == SecondaryCaptureImageStorage:
            errors = errors_of(ds)
            checks.expect(not errors, "dciodvfy", f"{sop}: {'; '.join(errors)}")


def errors_of(ds: pydicom.Dataset) -> list[str]:
    """Return the errors that dciodvfy finds in an object."""
    buffer = io.BytesIO()
    ds.save_as(buffer, write_like_original=False)
    with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
        file.write(buffer.getvalue())
        file.flush()
        done = subprocess.run([DCIODVFY, "-new", file.name], capture_output=True, text=True)
    return [line for line in (done.stdout + done.stderr).splitlines() if line.startswith("Error")]


def main() -> int:
    """Check a service, print how many checks of each kind there were and what was wrong, and return the exit status."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--url", help="address of a service (default: a server is started on the studies)")
    p.add_argument("--studies", default=str(ROOT / "sample-data" / "nifti"), help="studies folder (default: sample-data/nifti)")
    p.add_argument("--instances", type=int, default=2, help="objects of each series that are retrieved (default: %(default)s)")
    a = p.parse_args()
    checks, processes = Checks(), []
    try:
        url = a.url
        if not url:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            processes.append(start_monailabel(a.studies, "127.0.0.1", port, log=Path(tempfile.gettempdir(), "dicomweb_server.log")))
            wait_for(f"http://127.0.0.1:{port}/info/", processes[0])
            url = f"http://127.0.0.1:{port}/dicomweb"
        check_service(url, a.instances, checks)
    finally:
        stop(processes)
    print(*(f"{count:6d} checks: {subject}" for subject, count in checks.counts.items()), sep="\n")
    if not DCIODVFY:
        print("dciodvfy is not installed (Debian: apt install dicom3tools), so no objects were judged.")
    print(*(checks.problems or ["No problems."]), sep="\n")
    return bool(checks.problems)


if __name__ == "__main__":
    sys.exit(main())
