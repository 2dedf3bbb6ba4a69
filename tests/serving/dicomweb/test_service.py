"""The service as a client meets it: what it offers of a studies folder, and what it makes of images that are no DICOM."""

import io
import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
import pytest
import requests
from pydicom.uid import ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from lib.imaging.geometry import has_shear
from lib.imaging.readers import read_volume
from lib.serving.dicomweb.viewer_grid import mask_to_viewer, viewer_grid
from tests.imaging.real_cases import (
    block_image,
    copies,
    lps_affine,
    multiframe,
    nrrd_fields,
    save_dicom,
    series,
    tilted_affine,
    write_nifti,
    write_nrrd,
)

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
LEFT_HANDED = lps_affine(np.diag([1.0, 1.0, -1.0]))
OBLIQUE = lps_affine(np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0])


def write_images(studies):
    """Fill a studies folder with an image of each kind, and return how each is to be read."""
    write_nifti(studies / "whole.nii.gz")
    write_nifti(studies / "left_handed.nii.gz", affine_lps=LEFT_HANDED)
    write_nrrd(studies / "oblique.nrrd", nrrd_fields(OBLIQUE), block_image(dtype=np.float32) / 7)
    save_dicom(series(), studies / "plain")
    frames = copies(series(), 1)
    save_dicom([multiframe(frames[::-1])], studies / "multiframe")
    phases = copies(series(tilted_affine()), 2)
    save_dicom(phases, studies / "tilted", syntax=ImplicitVRLittleEndian, preamble=False)
    for ds in frames + phases:
        ds.SeriesInstanceUID += f".{ds.SOPInstanceUID.rpartition('.')[2][0]}"
    save_dicom([multiframe(frames[::-1])], studies / "multiframe")
    save_dicom(phases, studies / "tilted", syntax=ImplicitVRLittleEndian, preamble=False)


@pytest.fixture
def filled(studies, serve):
    write_images(studies)
    return serve()


def series_of(service) -> dict[str, tuple[str, str]]:
    """Return (StudyInstanceUID, SeriesInstanceUID) of the images by their ids."""
    states = {i: requests.get(f"{service.base}/sam2/state", params={"image": i}, timeout=30).json() for i in service.store.list_images()}
    return {i: (state["StudyInstanceUID"], state["SeriesInstanceUID"]) for i, state in states.items()}


@pytest.mark.parametrize("image", ["whole", "left_handed", "oblique", "plain", "multiframe", "tilted"])
def test_retrieved_objects_hold_the_image_voxel_by_voxel(filled, tmp_path, image):
    study, uid = series_of(filled)[image]
    folder = tmp_path / "retrieved"
    folder.mkdir()
    for n, ds in enumerate(filled.client.retrieve_series(study, uid)):
        pydicom.dcmwrite(folder / f"{n}.dcm", ds, write_like_original=False)
    retrieved, original = read_volume(folder), read_volume(filled.store.get_image_uri(image))
    expected = mask_to_viewer(original.grid, original.array)
    tolerance = np.ptp(original.array) / 65535 / 2 * 1.01 if image == "oblique" else 0
    assert np.abs(retrieved.array - expected).max() <= tolerance
    np.testing.assert_allclose(retrieved.affine, viewer_grid(original.grid).affine, atol=1e-4)
    assert has_shear(retrieved.affine) == (image == "tilted")


@pytest.mark.parametrize("image", ["left_handed", "oblique", "plain", "multiframe"])
def test_metadata_and_frames_agree_with_the_objects(filled, image):
    study, uid = series_of(filled)[image]
    metadata = filled.client.retrieve_series_metadata(study, uid)
    objects = {ds.SOPInstanceUID: ds for ds in filled.client.retrieve_series(study, uid)}
    assert len(metadata) == len(objects) == 9
    for attributes in metadata:
        header = pydicom.Dataset.from_json(attributes)
        ds = objects[header.SOPInstanceUID]
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns", "ImagePositionPatient", "RescaleSlope", "PixelRepresentation"):
            assert header[keyword].value == ds[keyword].value, keyword
        (frame,) = filled.client.retrieve_instance_frames(study, uid, header.SOPInstanceUID, [1])
        assert frame == ds.PixelData[: ds.Rows * ds.Columns * 2]
    one = filled.client.retrieve_instance_metadata(study, uid, header.SOPInstanceUID)
    assert one == [metadata[-1]] or one == metadata[-1]
    assert filled.client.retrieve_instance(study, uid, header.SOPInstanceUID) == ds


def test_the_checks_with_programs_of_others_find_no_problem(filled, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import dicomweb

    checks = dicomweb.Checks()
    dicomweb.check_service(filled.address, 1, checks)
    assert not checks.problems and {"search for series", "metadata", "frames", "wrong requests"} <= set(checks.counts)


def test_made_objects_say_no_more_than_the_file(filled):
    study, uid = series_of(filled)["whole"]
    ds = filled.client.retrieve_series(study, uid)[0]
    assert (ds.PatientName, ds.PatientID, ds.Modality, ds.StudyDate) == ("whole", "whole", "MR", "")
    assert ds.RescaleSlope == 1 and ds.RescaleIntercept == 0 and ds.WindowWidth > 1
    study, uid = series_of(filled)["multiframe"]
    ds = filled.client.retrieve_series(study, uid)[0]
    assert ds.StudyInstanceUID == study == series()[0].StudyInstanceUID and ds.PatientName == "Block^Bright" and ds.Modality == "CT"


def test_hounsfield_units_are_ct(studies, serve):
    array = np.full((8, 8, 4), -1000, np.int16)
    array[2:6, 2:6] = 40
    write_nifti(studies / "ct.nii.gz", array)
    write_nifti(studies / "fractions.nii.gz", array.astype(np.float32) / 3)
    service = serve()
    (of_ct, of_fractions) = (service.client.search_for_series(*[series_of(service)[i][0]])[0] for i in ("ct", "fractions"))
    assert of_ct["00080060"]["Value"] == ["CT"] and of_fractions["00080060"]["Value"] == ["MR"]


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRBigEndian, RLELossless])
def test_objects_are_sent_uncompressed_or_as_they_are_stored(studies, serve, syntax):
    images = series()
    folder = save_dicom(images, studies / "stored", syntax=ImplicitVRLittleEndian if syntax == RLELossless else syntax)
    if syntax == RLELossless:
        for file in folder.iterdir():
            ds = pydicom.dcmread(file)
            ds.compress(RLELossless)
            ds.save_as(file)
    elif syntax == ExplicitVRBigEndian:
        for file, image in zip(sorted(folder.iterdir()), images, strict=True):
            ds = pydicom.dcmread(file)
            ds.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
            ds.save_as(file)
    service = serve()
    study, uid = series_of(service)["stored"]
    sop = images[3].SOPInstanceUID
    path = f"/studies/{study}/series/{uid}/instances/{sop}"
    stored = service.get(path, headers={"Accept": "application/dicom; transfer-syntax=*"})
    assert stored.content == (folder / "003.dcm").read_bytes()
    plain = pydicom.dcmread(io.BytesIO(service.get(path, headers={"Accept": "application/dicom"}).content))
    assert plain.file_meta.TransferSyntaxUID == "1.2.840.10008.1.2.1" and plain.PixelData == images[3].PixelData
    named = service.get(path, headers={"Accept": f"application/dicom; transfer-syntax={syntax}"})
    assert named.content == stored.content
    other = service.get(path, headers={"Accept": "application/dicom; transfer-syntax=1.2.840.10008.1.2.4.90"})
    assert other.status_code == 406


def test_several_volumes_of_a_series_are_series_of_one_study(studies, serve):
    first = series()
    second = copies(first, 1)
    for number, images in enumerate((first, second)):
        for ds in images:
            ds.TemporalPositionIdentifier = number + 1
    save_dicom(first + second, studies / "phases")
    service = serve()
    found = series_of(service)
    assert set(found) == {"phases#1", "phases#2"} and len({study for study, _ in found.values()}) == 1
    assert len({uid for _, uid in found.values()}) == 2
    (study,) = service.client.search_for_studies()
    assert study["00201206"]["Value"] == [2] and study["00201208"]["Value"] == [18]


def test_identifiers_depend_on_name_and_content_only(studies, serve, tmp_path):
    write_nifti(studies / "a.nii.gz")
    write_nifti(studies / "copy.nii.gz")
    first = series_of(serve())
    assert first["a"] != first["copy"], "a copy is an image of its own"
    os.utime(studies / "a.nii.gz", (0, 0))
    assert series_of(serve()) == first
    array = block_image()
    array[3, 3, 3] += 1
    write_nifti(studies / "a.nii.gz", array)
    changed = series_of(serve())
    assert changed["a"] != first["a"] and changed["copy"] == first["copy"]


def test_unusual_headers_become_valid_json(studies, serve):
    images = series()
    for ds in images:
        ds.SpecificCharacterSet, ds.PatientName = "ISO_IR 100", "Müller^Jörg"
        ds.ReconstructionDiameter, ds.PatientWeight = "1e400", None
        ds.add_new(0x00189074, "DT", "")
        item = pydicom.Dataset()
        item.add_new(0x00189306, "FD", [float("nan"), float("inf")])
        ds.add_new(0x00091001, "SQ", [item])
        ds.add_new(0x60003000, "OW", bytes(10_000))
    save_dicom(images, studies / "ct")
    service = serve()
    study, uid = series_of(service)["ct"]
    answer = service.get(f"/studies/{study}/series/{uid}/metadata")
    attributes = answer.json()[0]
    assert attributes["00080005"]["Value"] == ["ISO_IR 192"] and attributes["00100010"]["Value"][0]["Alphabetic"] == "Müller^Jörg"
    assert attributes["00091001"]["Value"][0]["00189306"]["Value"] == ["NaN", "Infinity"] and "60003000" not in attributes
    assert service.client.search_for_studies(search_filters={"PatientName": "Müller*"})


def test_images_that_come_and_go_are_noticed(studies, serve):
    write_nifti(studies / "a.nii.gz")
    service = serve()
    before = series_of(service)
    write_nifti(studies / "b.nii.gz", affine_lps=OBLIQUE)
    save_dicom(series(), studies / "ct")
    service.store.refresh()
    assert set(series_of(service)) == {"a", "b", "ct"} and series_of(service)["a"] == before["a"]
    (studies / "a.nii.gz").unlink()
    shutil.rmtree(studies / "ct")
    service.store.refresh()
    assert set(series_of(service)) == {"b"}
    assert service.get("/studies/{}/series/{}/metadata".format(*before["a"])).status_code == 404


def test_an_image_that_cannot_be_read_does_not_spoil_the_others(studies, serve):
    write_nifti(studies / "a.nii.gz")
    (studies / "damaged.nii.gz").write_bytes((studies / "a.nii.gz").read_bytes()[:600])
    write_nifti(studies / "four_dimensions.nii.gz", np.zeros((6, 6, 6, 2), np.int16), lps_affine())
    service = serve()
    studies_found = {s["00100020"]["Value"][0]: s["0020000D"]["Value"][0] for s in service.client.search_for_studies()}
    for image, reason in (("damaged", "damaged"), ("four_dimensions", "channel")):
        answer = service.get(f"/studies/{studies_found[image]}/metadata")
        assert answer.status_code == 400 and reason in answer.json()["detail"]
    assert len(service.client.search_for_instances()) == 9
