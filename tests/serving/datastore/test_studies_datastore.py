"""Tests of a studies folder as clients meet it: through MONAI Label's HTTP routes, in this process and without an engine."""

import gzip
import io
import json
import os
import shutil
import time
import zipfile

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from lib.imaging.geometry import ras_from_itk
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.writers import write_mask
from lib.serving.datastore.studies import StudiesDatastore
from tests.imaging.real_cases import (
    SHAPE,
    block_image,
    copies,
    lps_affine,
    nrrd_fields,
    save_dicom,
    series,
    tilted_affine,
    write_metaimage,
    write_nifti,
    write_nrrd,
)

AFFINE = np.diag([-1.0, -1.0, 1.0, 1.0]) @ lps_affine()  # That of the makers of images, in RAS.


def download(client, image: str, folder):
    """Download an image as 3D Slicer does, under the name that its info states, and return its path."""
    answer = client.get("/datastore/image", params={"image": image})
    assert answer.status_code == 200, answer.text
    path = folder / client.get("/datastore/image/info", params={"image": image}).json()["name"]
    path.write_bytes(answer.content)
    return path


def put_label(client, image: str, path, fields=None, **params):
    """Upload a label file, with `fields` in the form field params, and return the answer."""
    files, data = {"label": (path.name, path.read_bytes())}, {"params": json.dumps(fields or {})}
    return client.put("/datastore/label", params={"image": image, **params}, files=files, data=data)


def files_below(folder) -> dict[str, bytes]:
    """Return the content of all files below a folder, without those that the datastore keeps for itself."""
    own = ("datastore_v2.json", ".lock")
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name not in own}


def test_dicom_is_offered_as_a_file_that_clients_read(serve, studies, tmp_path):
    save_dicom(series(tilted_affine()), studies / "patient" / "ct")
    before = files_below(studies)
    store, client = serve()
    objects = client.get("/datastore/?output=all").json()["objects"]
    assert set(objects) == {"a", "patient_ct"} and "9 slices" in objects["patient_ct"]["image"]["info"]["description"]
    image = sitk.ReadImage(str(download(client, "patient_ct", tmp_path)))
    volume = read_volume(studies / "patient" / "ct")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(image).transpose(2, 1, 0), volume.array)
    np.testing.assert_allclose(ras_from_itk(image.GetOrigin(), image.GetSpacing(), image.GetDirection()), volume.affine, atol=1e-6)
    path = store.get_image_uri("patient_ct")
    assert store.get_image_info("patient_ct")["path"] == path and files_below(studies) == before
    assert client.head("/datastore/image", params={"image": "patient_ct"}).status_code == 200
    assert os.stat(os.path.dirname(os.path.dirname(path))).st_mode & 0o077 == 0, "others must not read patients' images"


def test_converted_images_go_with_their_sources(serve, studies, tmp_path):
    save_dicom(series(), studies / "ct")
    store, _ = serve()
    first = store.get_image_uri("ct")
    assert store.get_image_uri("ct") == first and os.path.exists(first)
    os.utime(studies / "ct" / "000.dcm", (1, 1))
    store.refresh()
    second = store.get_image_uri("ct")
    assert second != first and not os.path.exists(first) and os.path.exists(second)
    shutil.rmtree(studies / "ct")
    store.refresh()
    assert not os.path.exists(second) and store.list_images() == ["a"]


def test_formats_that_clients_would_not_read_are_converted_and_others_are_not(serve, studies, tmp_path):
    nib.save(nib.Nifti1Pair(block_image(), AFFINE), studies / "pair.hdr")
    nib.save(nib.Nifti2Image(block_image(), AFFINE), studies / "two.nii.gz")
    nib.save(nib.Nifti1Image(block_image(), np.diag([-1.0, -1.0, 1.0, 1.0]) @ tilted_affine()), studies / "tilted.nii.gz")
    write_metaimage(studies / "upper.MHA")
    write_nrrd(studies / "n.nhdr", nrrd_fields(), data_file="n.raw.gz")
    write_nrrd(studies / "plain.nrrd", nrrd_fields())
    store, client = serve()
    assert set(store.list_images()) == {"a", "pair", "two", "tilted", "upper", "n", "plain"}
    for image in store.list_images():
        path = download(client, image, tmp_path)
        assert sitk.GetArrayFromImage(sitk.ReadImage(str(path))).transpose(2, 1, 0)[9, 3, 5] == 1000, image
        assert path.name == store.json()["objects"][image]["image"]["info"]["name"]
    for image, name in (("a", "a.nii.gz"), ("plain", "plain.nrrd")):
        assert store.get_image_uri(image) == str(studies / name)


def test_an_image_that_cannot_be_used_answers_with_the_reason(serve, studies):
    save_dicom(series()[:3] + series()[4:], studies / "gap")
    other = copies(series(lps_affine(origin=(0, 0, 0))), 1)
    for image in other:
        image.SeriesInstanceUID += ".1"
    save_dicom([*series(), *other], studies / "two")
    _, client = serve()
    for image, words in (("gap", "missing"), ("two", "choose one of two#1")):
        for status, answer in (
            (400, client.get("/datastore/image", params={"image": image})),
            (400, client.get("/datastore/image/info", params={"image": image})),
            (422, put_label(client, image, studies / "a.nii.gz")),
        ):  # fmt: skip
            assert answer.status_code == status and words in answer.json()["detail"]
    assert client.get("/datastore/image", params={"image": "two#2"}).status_code == 200
    assert client.get("/datastore/image", params={"image": "nobody"}).status_code == 404


def test_an_image_whose_voxels_are_damaged_is_not_proposed_again(serve, studies):
    images = series()
    del images[4].PixelData
    save_dicom(images, studies / "ct")
    store, client = serve()
    assert store.get_unlabeled_images() == ["a", "ct"]
    answer = client.get("/datastore/image", params={"image": "ct"})
    assert answer.status_code == 400 and "no pixels" in answer.json()["detail"] and store.get_unlabeled_images() == ["a"]
    save_dicom(series(), studies / "ct")
    store.refresh()
    assert store.get_unlabeled_images() == ["a", "ct"]


def misfits(folder):
    """Write labels that do not fit the image "a", and return pairs of their paths with words of the reason."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[5:8, 5:8, 4] = 1
    shifted = AFFINE.copy()
    shifted[0, 3] += 5
    nib.save(nib.Nifti1Image(mask[:-1], AFFINE), folder / "cropped.nii.gz")
    nib.save(nib.Nifti1Image(mask, shifted), folder / "shifted.nii.gz")
    scaled = nib.Nifti1Image(mask, AFFINE)
    scaled.header.set_slope_inter(0.5, 0)
    nib.save(scaled, folder / "scaled.nii.gz")
    nib.save(nib.Nifti1Image(mask + np.float32(0.3), AFFINE), folder / "fractions.nii.gz")
    nib.save(nib.Nifti1Image(-mask.astype(np.int16), AFFINE), folder / "negative.nii.gz")
    colours = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(colours, AFFINE), folder / "colours.nii.gz")
    layers = sitk.GetImageFromArray(np.stack([mask.transpose(2, 1, 0)] * 2, -1), isVector=True)
    sitk.WriteImage(layers, str(folder / "layers.nrrd"))
    (folder / "broken.nii.gz").write_bytes((folder / "cropped.nii.gz").read_bytes()[:100])
    (folder / "short.bin").write_bytes(bytes(mask.size - 1))
    (folder / "text.txt").write_text("x")
    words = {
        "cropped.nii.gz": "has shape", "shifted.nii.gz": "lies elsewhere than the image (by 5 mm)", "scaled.nii.gz": "scales its values",
        "fractions.nii.gz": "whole numbers", "negative.nii.gz": "the value -1", "colours.nii.gz": "colours", "layers.nrrd": "2 layers", "broken.nii.gz": "damaged",
        "short.bin": "voxels", "text.txt": "endings",
    }  # fmt: skip
    return [(folder / name, words[name]) for name in words]


def test_labels_that_do_not_fit_are_refused_and_change_nothing(serve, studies, tmp_path):
    store, client = serve()
    good = tmp_path / "good.nii.gz"
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE), good)
    assert put_label(client, "a", good).status_code == 200
    before, state = files_below(studies), store.json()
    for path, words in misfits(tmp_path):
        answer = put_label(client, "a", path)
        assert answer.status_code == 422 and words in answer.json()["detail"], (path.name, answer.text)
        assert "tmp" not in answer.json()["detail"], "names of temporary files say nothing to users"
    assert files_below(studies) == before and store.json() == state


def test_bare_voxels_become_a_label_map_on_the_image(serve, studies, tmp_path):
    save_dicom(series(tilted_affine()), studies / "ct")
    store, client = serve()
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:11, 3:5, 5:7] = 3
    (tmp_path / "label.bin").write_bytes(mask.tobytes(order="F"))
    assert put_label(client, "ct", tmp_path / "label.bin").status_code == 200
    (tmp_path / "saved.nrrd").write_bytes(client.get("/datastore/label", params={"label": "ct", "tag": "final"}).content)
    np.testing.assert_array_equal(read_mask(tmp_path / "saved.nrrd", read_volume(studies / "ct")), mask)
    assert [os.path.basename(row["label"]) for row in client.get("/datastore/?output=train").json()] == ["ct.nrrd"]


def test_labels_are_found_again_under_the_ids_of_images(serve, studies, tmp_path):
    """Labels of earlier servers lie in labels/final under the id of their image."""
    save_dicom(series(), studies / "ct")
    volume = read_volume(studies / "ct")
    for name in ("a.nii.gz", "ct.seg.nrrd", "gone.nii.gz"):
        write_mask(np.ones(SHAPE, np.uint8), volume, studies / "labels" / "final" / name)
    store, client = serve()
    assert set(store.get_labeled_images()) == {"a", "ct"}
    assert os.path.basename(store.get_label_uri("ct", "final")) == "ct.seg.nrrd"
    (studies / "datastore_v2.json").unlink()
    assert set(StudiesDatastore(str(studies)).get_labeled_images()) == {"a", "ct"}


def put_image(client, name: str, content: bytes, **params):
    """Upload an image file and return the answer."""
    return client.put("/datastore/image", params=params, files={"file": (name, content)})


def test_uploaded_images_keep_their_names(serve, studies):
    _, client = serve()
    content = (studies / "a.nii.gz").read_bytes()
    for name in ("scan.2024.01.nii.gz", "scan.2024.02.nii.gz", "UPPER.NII.GZ"):
        answer = put_image(client, name, content)
        assert answer.status_code == 200 and answer.json()["image"] == name[:-7], answer.text
    assert set(client.get("/datastore/?output=all").json()["objects"]) == {"a", "scan.2024.01", "scan.2024.02", "UPPER"}


@pytest.mark.parametrize("name, content, words", [
    ("x.nii.gz", b"no image", "x.nii.gz could not be read"), ("x.nii.gz", gzip.compress(bytes(500), mtime=0), "could not be read"),
    ("x.png", b"x", "endings"), ("x.mhd", b"x", "single files"), ("x.dcm", bytes(500), "could not be read"),
])  # fmt: skip
def test_uploaded_images_that_cannot_be_read_are_refused(serve, studies, name, content, words):
    store, client = serve()
    answer = put_image(client, name, content)
    assert answer.status_code == 422 and words in answer.json()["detail"]
    assert store.list_images() == ["a"] and list(files_below(studies)) == ["a.nii.gz"]


def test_an_upload_does_not_touch_other_images(serve, studies):
    write_nrrd(studies / "a.nrrd", nrrd_fields())
    (studies / "p").mkdir()
    write_nifti(studies / "p" / "b.nii.gz")
    save_dicom(series(), studies / "ct")
    _, client = serve()
    before = files_below(studies)
    content = (studies / "a.nrrd").read_bytes()
    for image in ("a", "p_b", "ct"):  # a.nrrd is the file of the image "a.nrrd".
        answer = put_image(client, "x.nrrd", content, image=image)
        assert answer.status_code == 409 and "name of another image" in answer.json()["detail"], answer.text
    assert files_below(studies) == before


def test_deleting_an_image_deletes_its_files_only(serve, studies):
    other = copies(series(), 1)
    for image in other:
        image.SeriesInstanceUID += ".1"
    save_dicom([*series(), *other], studies / "ct")
    (studies / "ct" / "report.pdf").write_bytes(b"x")
    nib.save(nib.Nifti1Pair(block_image(), AFFINE), studies / "pair.hdr")
    store, client = serve()
    for image in ("ct#1", "pair"):
        assert client.delete("/datastore/image", params={"id": image}).status_code == 200
    assert set(store.list_images()) == {"a", "ct#2"} and len(os.listdir(studies / "ct")) == len(other) + 1
    assert not list(studies.glob("pair.*")) and client.delete("/datastore/image", params={"id": "nobody"}).status_code == 404


def test_clients_cannot_exchange_the_files_of_images(serve, studies):
    (studies / "p").mkdir()
    write_nifti(studies / "p" / "b.nii.gz", block_image() + 1)
    store, client = serve()
    paths = {i: store.get_image_uri(i) for i in store.list_images()}
    for image, source in (("a", "p/b.nii.gz"), ("p_b", "../../etc/passwd")):
        client.put("/datastore/image/info", params={"image": image}, data={"info": json.dumps({"source": source, "mood": "good"})})
    store, client = serve()
    assert {i: store.get_image_uri(i) for i in store.list_images()} == paths and store.get_image_info("a")["mood"] == "good"


def test_the_archive_holds_images_of_one_file_name(serve, studies, tmp_path):
    for folder in ("p", "q"):
        (studies / folder).mkdir()
        write_nifti(studies / folder / "b.nii.gz")
    store, client = serve()
    nib.save(nib.Nifti1Image(np.ones(SHAPE, np.uint8), AFFINE), tmp_path / "label.nii.gz")
    for image in ("p_b", "q_b"):
        assert put_label(client, image, tmp_path / "label.nii.gz").status_code == 200
    names = zipfile.ZipFile(io.BytesIO(client.get("/datastore/dataset").content)).namelist()
    assert sorted(names) == ["image/p_b.nii.gz", "image/q_b.nii.gz", "label/p_b.nii.gz", "label/q_b.nii.gz", "metadata.json"]


def test_a_folder_that_cannot_be_written_is_served_all_the_same(serve, studies, monkeypatch):
    save_dicom(series(), studies / "ct")
    _, client = serve()

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(StudiesDatastore, "_changing", refuse)
    (studies / "b.nii.gz").write_bytes((studies / "a.nii.gz").read_bytes())
    store, client = serve()
    assert set(store.list_images()) == {"a", "b", "ct"} and client.get("/datastore/image", params={"image": "ct"}).status_code == 200


def test_a_series_that_is_copied_into_the_folder_is_noticed(serve, studies):
    store, _ = serve(auto_reload=True)
    try:
        save_dicom(series(), studies / "new" / "ct")
        deadline = time.monotonic() + 20
        while "new_ct" not in store.list_images():
            assert time.monotonic() < deadline
            time.sleep(0.05)
        shutil.rmtree(studies / "new")
        while "new_ct" in store.list_images():
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        store._observer.stop()
        store._observer.join()


def test_a_session_of_what_cannot_be_read_is_refused(serve, studies, tmp_path):
    _, client = serve()
    gap = [("files", (p.name, p.read_bytes())) for p in save_dicom(series()[:3] + series()[4:], tmp_path / "gap").iterdir()]
    pair = [("files", (n, (studies / "a.nii.gz").read_bytes())) for n in ("a.nii.gz", "b.nii.gz")]
    for files, words in (([("files", ("x.nii.gz", b"x"))], "x.nii.gz could not be read"), (gap, "missing"), (pair, "send one")):
        answer = client.put("/session/", files=files)
        assert answer.status_code == 422 and words in answer.json()["detail"] and "tmp" not in answer.json()["detail"], answer.text
    assert not list((tmp_path / "sessions").glob("*"))


def test_a_session_takes_dicom_slices_and_images_of_two_files(serve, tmp_path):
    _, client = serve()
    folder = save_dicom(series(), tmp_path / "ct")
    (tmp_path / "two").mkdir()
    write_metaimage(tmp_path / "two" / "m.mhd", data_file="m.raw")
    for source in (folder, tmp_path / "two"):
        answer = client.put("/session/", files=[("files", (p.name, p.read_bytes())) for p in source.iterdir()])
        assert answer.status_code == 200, answer.text
        session = client.get(f"/session/{answer.json()['session_id']}").json()
        assert read_volume(session["image"]).shape == SHAPE
