"""Tests of a real server on a real Orthanc: what clients get of series of all kinds, and what arrives in the DICOM store."""

import json
from io import BytesIO
from pathlib import Path

import highdicom as hd
import numpy as np
import pytest
import requests

from lib.imaging.readers import read_grid, read_mask
from lib.imaging.volume import Grid
from lib.imaging.writers import write_mask
from lib.samples import phantom, sample_data
from lib.serving.launch import stop
from tests.imaging.dicom.series import SHAPE, positions_mm, write_multi_frame, write_single_frames
from tests.serving import orthanc
from tests.serving.faults import KillableServer
from tests.serving.processes import free_port

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not orthanc.IS_INSTALLED, reason="needs Orthanc and its DICOMweb plugin"),
]
TILT_MM = 0.8
GAP, TILTED, ECHOES = "1.2.3.10", "1.2.3.20", "1.2.3.30"
PATIENT = {"PatientName": "王^小東", "SpecificCharacterSet": "ISO_IR 192", "PatientID": "7"}
LABEL_INFO = {"label_info": [{"name": "Größe", "idx": 7}, {"name": "肝臟", "idx": 2}]}
CLICK = {"foreground": [[24, 24, 6]], "label": "liver", "result_extension": ".nrrd"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Yield the addresses of a server and of its Orthanc, and the SeriesInstanceUID of a CT that can be segmented."""
    folder, processes = tmp_path_factory.mktemp("site"), []
    write_single_frames(folder / "dicom" / "gap", SeriesInstanceUID=GAP, **PATIENT)
    (folder / "dicom" / "gap" / "1.dcm").unlink()
    write_single_frames(folder / "dicom" / "tilted", TILT_MM, SeriesInstanceUID=TILTED, **PATIENT)
    write_multi_frame(folder / "dicom" / "echoes", TILT_MM, SeriesInstanceUID=ECHOES, **PATIENT)
    volume, _ = phantom.abdomen(seed=1, shape=(48, 48, 12), spacing_mm=(7.0, 7.0, 20.0))
    sample_data.write_dicom(volume, folder / "dicom" / "ct", modality="CT", description="ct")
    try:
        store = orthanc.start_orthanc(processes, folder / "dicom", free_port())
        series = requests.get(f"{store['dicomweb']}/series", params={"PatientID": "SAMPLE-ct"}, timeout=30).json()
        conf = [(k, str(folder / k)) for k in ("rounds", "versions")]
        server = KillableServer(store["dicomweb"], conf, MONAI_LABEL_DICOMWEB_CACHE_PATH=folder / "cache")
        processes.append(server.process)
        yield server.address, store["dicomweb"].removesuffix("/dicom-web"), series[0]["0020000E"]["Value"][0]
    finally:
        stop(processes)


def download(address: str, image: str, folder: Path) -> Path:
    """Return the file of an image, downloaded as clients do it."""
    answer = requests.get(f"{address}/datastore/image", params={"image": image}, timeout=60)
    assert answer.ok, answer.text
    path = folder / "image.nrrd"
    path.write_bytes(answer.content)
    return path


def submit(address: str, image: str, file: Path, tag="final"):
    data = {"params": json.dumps(LABEL_INFO)}
    with open(file, "rb") as opened:
        query = {"image": image, "tag": tag}
        return requests.put(f"{address}/datastore/label", params=query, data=data, files={"label": (file.name, opened)}, timeout=60)


def stored_segmentations(orthanc: str) -> list:
    """Return the segmentations in the store."""
    query = {"Level": "Instance", "Query": {"Modality": "SEG"}}
    found = requests.post(f"{orthanc}/tools/find", json=query, timeout=30).json()
    return [hd.seg.segread(BytesIO(requests.get(f"{orthanc}/instances/{i}/file", timeout=30).content)) for i in found]


def make_labels() -> np.ndarray:
    labels = np.zeros(SHAPE, np.int32)
    labels[1:5, 2:4, 1:3], labels[8, 8, 5] = 2, 7
    return labels


@pytest.mark.parametrize("image", [TILTED, f"{ECHOES}#2"], ids=["single frames", "multi-frame"])
def test_a_submitted_label_lies_on_the_slices_of_its_series(site, tmp_path, image):
    address, orthanc, _ = site
    if "#" in image:
        answer = requests.get(f"{address}/datastore/image", params={"image": ECHOES}, timeout=60)
        assert answer.status_code == 400 and f"{ECHOES}#1" in answer.text and image in answer.text
    grid = read_grid(download(address, image, tmp_path))
    answer = submit(address, image, write_mask(make_labels(), grid, tmp_path / "label.nrrd"))
    assert answer.ok, answer.text
    seg = next(s for s in stored_segmentations(orthanc) if s.ReferencedSeriesSequence[0].SeriesInstanceUID == image.partition("#")[0])
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["肝臟", "Größe"] and seg.PatientName == PATIENT["PatientName"]
    for groups in seg.PerFrameFunctionalGroupsSequence:
        position = np.array(groups.PlanePositionSequence[0].ImagePositionPatient, float)
        assert np.abs(positions_mm(TILT_MM) - position).max(1).min() < 0.01
    label = requests.get(f"{address}/datastore/label", params={"label": image, "tag": "final"}, timeout=60)
    (tmp_path / "downloaded.nrrd").write_bytes(label.content)
    assert (read_mask(tmp_path / "downloaded.nrrd", grid) == make_labels()).all()


def test_labels_that_do_not_fit_are_refused(site, tmp_path):
    address, orthanc, _ = site
    before = len(stored_segmentations(orthanc))
    grid = read_grid(download(address, TILTED, tmp_path))
    affine = grid.affine.copy()
    affine[:3, 3] += 30
    (tmp_path / "label.bin").write_bytes(bytes(10))
    shifted = write_mask(make_labels(), Grid(SHAPE, affine), tmp_path / "label.nrrd")
    for file, sentence in ((shifted, "elsewhere"), (tmp_path / "label.bin", "10 voxels")):
        answer = submit(address, TILTED, file)
        assert answer.status_code == 422 and sentence in answer.json()["detail"]
    assert len(stored_segmentations(orthanc)) == before


def test_a_series_that_is_no_volume_answers_with_the_reason(site, tmp_path):
    address, _, _ = site
    (tmp_path / "label.bin").write_bytes(bytes(10))
    answers = [
        requests.get(f"{address}/datastore/image", params={"image": GAP}, timeout=60),
        requests.post(f"{address}/infer/sam2", params={"image": GAP}, data={"params": json.dumps(CLICK)}, timeout=60),
        submit(address, GAP, tmp_path / "label.bin"),
    ]
    assert [a.status_code for a in answers] == [400, 400, 422] and all("not evenly spaced" in a.json()["detail"] for a in answers)
    strategies = ("first", "random", "any_volume")
    proposals = {requests.post(f"{address}/activelearning/{s}", json={}, timeout=60).json().get("id") for s in strategies}
    assert GAP not in proposals and None not in proposals


def test_an_answer_as_dicom_seg(site):
    address, _, ct = site
    fields = {"params": json.dumps({**CLICK, "label_info": [{"name": "Leber, größer", "idx": 1}]})}
    answer = requests.post(f"{address}/infer/sam2", params={"image": ct, "output": "dicom_seg"}, data=fields, timeout=120)
    assert answer.ok and answer.headers["content-type"] == "application/dicom", answer.text
    seg = hd.seg.segread(BytesIO(answer.content))
    assert [s.SegmentLabel for s in seg.SegmentSequence] == ["Leber, größer"] and seg.pixel_array.any()
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == ct
