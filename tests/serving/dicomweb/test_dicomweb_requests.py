"""Random requests: whatever a client sends, the server answers with a status below 500."""

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.imaging.real_cases import save_dicom, series, write_nifti

NAMES = st.sampled_from(["StudyInstanceUID", "PatientName", "00080020", "StudyTime", "limit", "offset", "includefield", "7FE00010", "accept", "x"])
VALUES = st.text(max_size=20) | st.sampled_from(["*", "1.2", "20260101-", "-", "all", "3", "a*b?", "[", "\\", ",,", "00081111.00080060"])
ACCEPTS = st.sampled_from(["*/*", "application/dicom+json", "multipart/related", 'multipart/related; type="application/dicom"; transfer-syntax=*',
                           "application/dicom; transfer-syntax=1.2", ";", ",", "a/b;q=x", '"', "multipart/*;type="])  # fmt: skip
BODIES = st.binary(max_size=60) | st.lists(
    st.sampled_from([b"--b", b"--b--", b"\r\n", b"\r\n\r\n", b"Content-Type: application/dicom", bytes(128) + b"DICM", b"\x08\x00"]), max_size=12
).map(b"".join)  # fmt: skip
QUICKLY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)


@pytest.fixture
def service(studies, serve):
    save_dicom(series(), studies / "ct")
    write_nifti(studies / "nifti.nii.gz")
    return serve()


@QUICKLY
@given(level=st.sampled_from(["studies", "series", "instances"]), parameters=st.lists(st.tuples(NAMES, VALUES), max_size=4), accept=ACCEPTS)
def test_searches(service, level, parameters, accept):
    answer = requests.get(f"{service.address}/{level}", params=parameters, headers={"Accept": accept}, timeout=30)
    assert answer.status_code < 500 and (answer.ok or answer.json()["detail"])


@QUICKLY
@given(
    names=st.lists(st.sampled_from(["series", "instances", "metadata", "frames", "1", "0", "1.2.3", "..", "%2e%2e", "{0}", "{1}", "x" * 300]), max_size=6),
    accept=ACCEPTS,
)  # fmt: skip
def test_paths(service, names, accept):
    uids = requests.get(f"{service.base}/sam2/state?image=ct", timeout=30).json()
    path = "/".join(names).format(uids["StudyInstanceUID"], uids["SeriesInstanceUID"])
    assert requests.get(f"{service.address}/studies/{path}", headers={"Accept": accept}, timeout=30).status_code < 500


@QUICKLY
@given(body=BODIES, kind=st.sampled_from(['multipart/related; type="application/dicom"; boundary=b', "multipart/related; boundary=", "a", ""]))
def test_bodies(service, body, kind):
    answer = requests.post(f"{service.address}/studies", body, headers={"Content-Type": kind}, timeout=30)
    assert 400 <= answer.status_code < 500 or answer.json() == {}
