"""Searches, bad requests, and attempts to get at other files than images."""

import socket
from urllib.parse import urlsplit

import numpy as np
import pydicom
import pytest
import requests

from lib.imaging.dicom.segmentations import write_segmentation
from lib.imaging.dicom.stacks import Stack, find_stacks
from lib.imaging.readers import read_mask, read_volume
from lib.serving.dicomweb import multipart
from lib.serving.dicomweb.series import to_file
from tests.imaging.real_cases import SHAPE, block_image, lps_affine, save_dicom, series, write_nifti

LEFT_HANDED = lps_affine(np.diag([1.0, 1.0, -1.0]))


@pytest.fixture
def service(studies, serve):
    """A server with a DICOM series "ct" and a left-handed NIfTI image "nifti"."""
    save_dicom(series(), studies / "ct")
    write_nifti(studies / "nifti.nii.gz", affine_lps=LEFT_HANDED)
    return serve()


def names(results) -> list[str]:
    return [pydicom.Dataset.from_json(r).PatientID for r in results]


@pytest.mark.parametrize("filters, expected", [
    ({}, ["7", "nifti"]), ({"PatientID": "nifti"}, ["nifti"]), ({"00100020": "nif*"}, ["nifti"]), ({"PatientName": "block^*"}, ["7"]),
    ({"PatientName": "BLOCK?BRIGHT"}, ["7"]), ({"StudyDate": "20260101"}, ["7"]), ({"StudyDate": "20251231-20260102"}, ["7"]),
    ({"StudyDate": "20260102-"}, []), ({"StudyDate": "-20260101"}, ["7"]), ({"ModalitiesInStudy": "CT"}, ["7"]),
    ({"PatientID": "*"}, ["7", "nifti"]), ({"PatientID": ""}, ["7", "nifti"]), ({"PatientID": "[7]"}, []),
    ({"StudyInstanceUID": "1.2,1.2.826.0.1.3680043.10.1337.1"}, ["7"]), ({"AccessionNumber": "5"}, []),
])  # fmt: skip
def test_studies_are_found_by_their_attributes(service, filters, expected):
    results = service.client.search_for_studies(search_filters=filters)
    assert names(results) == expected


def test_pages_and_attributes_of_results(service):
    everything = service.client.search_for_studies()
    assert service.client.search_for_studies(limit=1) == everything[:1]
    assert service.client.search_for_studies(limit=5, offset=1) == everything[1:] and service.client.search_for_studies(offset=2) == []
    study = everything[0]["0020000D"]["Value"][0]
    (found,) = service.client.search_for_series(study)
    assert found["00201209"]["Value"] == [9] and "00080070" not in found
    uid = found["0020000E"]["Value"][0]
    instances = service.client.search_for_instances(study, uid, fields=["ImagePositionPatient"])
    assert len(instances) == 9 and all("00200032" in i and "00200037" not in i for i in instances)
    (last,) = service.client.search_for_instances(study, search_filters={"InstanceNumber": "9"})
    assert last["00080018"] == instances[8]["00080018"]
    complete = service.get(f"/studies/{study}/instances", includefield="all", SOPInstanceUID=last["00080018"]["Value"][0]).json()
    assert len(complete) == 1 and "00200037" in complete[0]
    address = complete[0]["00081190"]["Value"][0]
    assert address.startswith(service.address) and requests.get(address + "/metadata", timeout=30).json()[0]["00080018"] == last["00080018"]


@pytest.mark.parametrize("path, status", [
    ("/studies?limit=-1", 400), ("/studies?limit=x", 400), ("/studies?offset=1.5", 400), ("/studies?Nonsense=1", 400),
    ("/studies?includefield=Nonsense", 400), ("/studies?PatientID=" + "x" * 3000, 200), ("/studies/1.2.3/metadata", 404),
    ("/studies/1.2.3", 404), ("/studies/abc", 400), ("/studies/1.2.3/series/..", 404), ("/studies/1.2.3/series/x/metadata", 400),
    ("/studies/{study}/series/1.2.3/metadata", 404), ("/studies/{study}/series/{series}/instances/1.2.3", 404),
    ("/studies/1.2.3/series/{series}/metadata", 404), ("/studies/{study}/series/{series}/instances/{sop}/frames/0", 400),
    ("/studies/{study}/series/{series}/instances/{sop}/frames/2", 404), ("/studies/{study}/series/{series}/instances/{sop}/frames/x", 400),
    ("/studies/{study}/series/{series}/instances/{sop}/frames/1,1", 200), ("/nonsense", 404), ("/studies/1.2.3/series", 200),
])  # fmt: skip
def test_wrong_requests_are_answered_with_a_sentence(service, path, status):
    (found,) = service.client.search_for_instances(search_filters={"PatientID": "7", "InstanceNumber": "1"})
    ds = pydicom.Dataset.from_json(found)
    uids = {"study": ds.StudyInstanceUID, "series": ds.SeriesInstanceUID, "sop": ds.SOPInstanceUID}
    answer = requests.get(service.address + path.format(**uids), timeout=30)
    assert answer.status_code == status and (status == 200 or answer.json()["detail"])


@pytest.mark.parametrize("accept", ["image/png", "application/dicom+xml", "text/html", "application/dicom+json; q=0"])
def test_other_media_types_are_refused(service, accept):
    assert service.get("/studies", headers={"Accept": accept}).status_code == 406
    assert service.get("/studies", headers={"Accept": f"{accept}, application/dicom+json;q=0.5"}).status_code == 200 or "q=0" in accept


@pytest.mark.parametrize("path", [
    "/dicomweb/../../etc/passwd", "/dicomweb/studies/..%2f..%2f..%2fetc%2fpasswd", "/dicomweb/studies/%2e%2e/%2e%2e/secret.txt/metadata",
    "/dicomweb/studies/1.2/series/..%5c..%5csecret.txt", "/dicomweb/studies//etc/passwd", "/ohif/../../secret.txt",
    "/ohif/..%2f..%2fsecret.txt", "/ohif/%2e%2e/%2e%2e/secret.txt", "/ohif//etc/passwd", "/ohif/assets/..%2f..%2f..%2f..%2fohif.py",
    "/sam2/ohif?image=../secret.txt", "/sam2/state?image=%2fetc%2fpasswd",
])  # fmt: skip
def test_nothing_outside_the_studies_is_served(service, studies, path):
    (studies.parent / "secret.txt").write_text("root:secret:0:0")
    address = urlsplit(service.base)
    with socket.create_connection((address.hostname, address.port), 10) as connection:  # A client that does not clean the path.
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert b"root:" not in answer and b"import" not in answer.split(b"<script")[0]
    assert int(answer.split()[1]) in (307, 400, 404, 422) or b"<title>OHIF Viewer</title>" in answer


def segmentation(series_folder, folder):
    """Return a DICOM SEG with the block of a DICOM series, which is written to a folder, and the label map."""
    labels = (block_image() > 500).astype(np.uint8)
    (stack,) = find_stacks(series_folder)
    return pydicom.dcmread(write_segmentation(labels, stack, {1: "bright block"}, folder / "seg.dcm")), labels


def test_a_segmentation_that_is_stored_becomes_the_label_of_its_image(service, studies, tmp_path):
    ds, labels = segmentation(studies / "ct", tmp_path)
    answer = service.client.store_instances([ds])
    assert answer.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == ds.SOPInstanceUID and "FailedSOPSequence" not in answer
    label = service.store.get_label_uri("ct", "final")
    np.testing.assert_array_equal(read_mask(label, read_volume(studies / "ct")), labels)
    assert service.store.get_label_info("ct", "final")["label_info"][0]["name"] == "bright block"
    written = pydicom.dcmread(studies / "labels" / "final" / "ct.dcm")
    assert written.Modality == "SEG" and {r.SeriesInstanceUID for r in written.ReferencedSeriesSequence} == {series()[0].SeriesInstanceUID}
    service.store.remove_label("ct", "final")
    assert not list((studies / "labels" / "final").iterdir())


def test_a_segmentation_of_a_made_series_lies_on_the_image(service, studies, tmp_path):
    state = requests.get(f"{service.base}/sam2/state?image=nifti", timeout=30).json()
    retrieved = service.client.retrieve_series(state["StudyInstanceUID"], state["SeriesInstanceUID"])
    save_dicom(retrieved, tmp_path / "retrieved")
    (stack,) = find_stacks(tmp_path / "retrieved")
    assert isinstance(stack, Stack) and stack.shape == SHAPE
    labels = (block_image() > 500)[:, :, ::-1].astype(np.uint8)  # The retrieved series counts slices the other way round.
    file = write_segmentation(labels, stack, {1: "bright block"}, tmp_path / "seg.dcm")
    service.client.store_instances([pydicom.dcmread(file)])
    image = read_volume(studies / "nifti.nii.gz")
    np.testing.assert_array_equal(read_mask(service.store.get_label_uri("nifti", "final"), image), block_image() > 500)


def test_what_is_no_segmentation_of_an_image_here_is_not_stored(service, studies, tmp_path):
    ds, _ = segmentation(studies / "ct", tmp_path)
    ds.ReferencedSeriesSequence[0].SeriesInstanceUID = "1.2.3"
    for refused in (series()[0], ds):
        content = to_file(refused)
        answer = post(service, [content])
        assert answer.status_code == 409 and "00081198" in answer.json() and "00081199" not in answer.json()
    assert post(service, [b"nonsense"]).status_code == 409
    assert service.store.get_labeled_images() == []


def test_bodies_that_are_not_as_they_should_be_are_refused(service, studies, tmp_path):
    ds, _ = segmentation(studies / "ct", tmp_path)
    good = to_file(ds)
    address = f"{service.address}/studies"
    assert requests.post(address, good, headers={"Content-Type": "application/dicom"}, timeout=30).status_code == 415
    kind = 'multipart/related; type="application/dicom"; boundary=b'
    assert requests.post(address, b"--b\r\n\r\n" + good, headers={"Content-Type": kind}, timeout=30).status_code == 400
    assert requests.post(address, b"--b\r\nnonsense\r\n--b--", headers={"Content-Type": kind}, timeout=30).status_code == 400
    body = b"--b\r\nContent-Type: application/dicom+json\r\n\r\n[]\r\n--b--"
    assert requests.post(address, body, headers={"Content-Type": kind}, timeout=30).status_code == 415
    assert post(service, [good], "/studies/1.2.3").status_code == 409
    assert post(service, [good, b"nonsense"]).status_code == 202 and service.store.get_labeled_images() == ["ct"]


def post(service, files, path="/studies"):
    boundary = multipart.new_boundary()
    body = b"".join(multipart.body(((f, "Content-Type: application/dicom") for f in files), boundary))
    kind = f'multipart/related; type="application/dicom"; boundary={boundary}'
    return requests.post(service.address + path, body, headers={"Content-Type": kind}, timeout=30)


def test_labels_that_ohif_sends_lie_on_the_image(service, studies):
    """OHIF sends bare voxels as it counts them, and names the image by its SeriesInstanceUID."""
    expected = (block_image() > 500).astype(np.uint8)
    uid = requests.get(f"{service.base}/sam2/state?image=nifti", timeout=30).json()["SeriesInstanceUID"]
    for image, voxels in ((uid, expected[:, :, ::-1]), ("nifti", expected)):
        files = {"label": ("label.bin", voxels.tobytes(order="F"))}
        answer = requests.put(f"{service.base}/datastore/label", params={"image": image}, files=files, timeout=30)
        assert answer.ok, answer.text
        label = read_mask(service.store.get_label_uri("nifti", "final"), read_volume(studies / "nifti.nii.gz"))
        np.testing.assert_array_equal(label, expected)
    files = {"label": ("label.bin", b"12345")}
    assert requests.put(f"{service.base}/datastore/label", params={"image": uid}, files=files, timeout=30).status_code == 422
