"""Training on a real Orthanc after the server's cache was deleted: the same labelled volumes, whoever wrote their segmentations."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import requests
from monailabel.datastore.dicom import DICOMwebClientX

from lib.imaging.writers import write_mask
from lib.serving.datastore.dicom import CachedDicomDatastore
from lib.serving.launch import stop
from lib.serving.training import usable_cases
from tests.imaging.dicom import dcmqi
from tests.imaging.dicom.series import SHAPE, write_single_frames
from tests.serving import orthanc
from tests.serving.processes import free_port

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not orthanc.IS_INSTALLED, reason="needs Orthanc and its DICOMweb plugin"),
    pytest.mark.skipif(not dcmqi.PROGRAM, reason="needs itkimage2segimage of dcmqi"),
]
OWN, FOREIGN = "1.2.3.20", "1.2.3.30"
PATIENT = {"PatientID": "7", "FrameOfReferenceUID": "1.2.3.9", "StudyDate": "20260101", "StudyTime": "120000", "StudyID": "1"}


@pytest.fixture
def store(tmp_path):
    """Yield the DICOMweb address of an Orthanc with two series."""
    processes: list = []
    for n, uid in enumerate((OWN, FOREIGN)):
        write_single_frames(tmp_path / "dicom" / uid, SeriesInstanceUID=uid, StudyInstanceUID=f"1.2.3.{n}", **PATIENT)
    try:
        yield orthanc.start_orthanc(processes, tmp_path / "dicom", free_port())["dicomweb"]
    finally:
        stop(processes)


@pytest.fixture
def open_datastore(store):
    """Yield a function that opens the datastore with a cache, as a server does when it starts."""
    opened = []

    def open_datastore(cache: Path) -> CachedDicomDatastore:
        opened.append(CachedDicomDatastore(DICOMwebClientX(url=store), {}, str(cache)))
        return opened[-1]

    yield open_datastore
    for datastore in opened:
        datastore._observer.stop()
        datastore._observer.join()


def make_labels() -> np.ndarray:
    labels = np.zeros(SHAPE, np.uint8)
    labels[1:5, 2:4, 1:3], labels[8, 8, 3] = 2, 5
    return labels


def send_segmentation_of_dcmqi(folder: Path, store: str, datastore: CachedDicomDatastore) -> None:
    """Send a segmentation of the series FOREIGN that dcmqi has written."""
    write_mask(make_labels(), datastore.image_grid(FOREIGN), folder / "labels.nrrd")
    segmentation = dcmqi.write_segmentation(folder, f"dicom/{FOREIGN}")
    address = store.removesuffix("/dicom-web")
    requests.post(f"{address}/instances", data=segmentation.read_bytes(), timeout=30).raise_for_status()


def test_segmentations_count_as_labels_after_the_cache_was_deleted(store, open_datastore, tmp_path):
    datastore = open_datastore(tmp_path / "cache")
    label = write_mask(make_labels(), datastore.image_grid(OWN), tmp_path / "label.nrrd")
    datastore.save_label(OWN, str(label), "final", {"label_info": [{"name": "肝臟", "idx": 2}, {"name": "Größe", "idx": 5}]})
    send_segmentation_of_dcmqi(tmp_path, store, datastore)
    before = {case.name: set(case.labels.values()) for case in usable_cases(datastore)}
    assert before == {OWN: {"肝臟", "Größe"}, FOREIGN: {"liver", "cyst"}}
    shutil.move(tmp_path / "cache", tmp_path / "deleted")
    reopened = open_datastore(tmp_path / "cache")
    assert {case.name: set(case.labels.values()) for case in usable_cases(reopened)} == before
    assert sorted(reopened.get_labeled_images()) == [OWN, FOREIGN] and reopened.get_unlabeled_images() == []
