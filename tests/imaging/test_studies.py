"""Tests of what a studies folder lists: under which ids, what is left out with which reason, and how both stay as files come and go."""

import gzip
import json
import os
import shutil

import nibabel as nib
import numpy as np
import pytest

from lib.imaging import study_images
from lib.imaging.readers import read_volume
from lib.imaging.studies import StudiesFolder
from tests.imaging.real_cases import (
    block_image,
    copies,
    dicom_file,
    lps_affine,
    multiframe,
    nrrd_fields,
    save_dicom,
    series,
    write_metaimage,
    write_nifti,
    write_nrrd,
)


def write(path):
    """Write a small image in the format of the path's ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in (".nrrd", ".nhdr"):
        return write_nrrd(path, nrrd_fields())
    return write_metaimage(path) if path.suffix.lower() == ".mha" else write_nifti(path)


def ids(folder, **options) -> dict[str, str]:
    """Return the name of the file or folder of each image by id, as a new process lists them."""
    return {i: image.path.name for i, image in StudiesFolder(folder, **options).list_images().images.items()}


def series_of(number: int, **options) -> list:
    """Return a series that differs from those of other numbers in all UIDs."""
    images = copies(series(**options), number)
    for image in images:
        image.SeriesInstanceUID = f"1.2.3.{number}"
    return images


def test_ids_are_names_without_their_last_ending(tmp_path):
    names = ("scan.2024.01.nii.gz", "scan.2024.02.nii.gz", "a.nii.nii.gz", "UPPER.NII.GZ", "m.mha", "n.NRRD", "1.2.840.7.nii")
    for name in names:
        write(tmp_path / name)
    found = {"scan.2024.01", "scan.2024.02", "a.nii", "UPPER", "m", "n", "1.2.840.7"}
    assert set(ids(tmp_path)) == found and len(found) == len(names)


def test_images_of_one_name_and_in_subfolders_have_ids_of_their_own(tmp_path):
    for name in ("a.nii.gz", "a.nrrd", "a.mha", "p/a.nii.gz", "p/q/a.nrrd", "p_a.nii.gz"):
        write(tmp_path / name)
    assert ids(tmp_path) == {
        "a": "a.nii.gz", "a.nrrd": "a.nrrd", "a.mha": "a.mha", "p_a": "p_a.nii.gz", "p_a.nii.gz": "a.nii.gz", "p_q_a": "a.nrrd"
    }  # fmt: skip


def test_an_id_keeps_its_image_when_files_are_added(tmp_path):
    """The ids in datastore_v2.json stay; another file of the name gets another id, whichever of them would have come first."""
    write(tmp_path / "a.nrrd")
    objects = {"a": {"image": {"ext": ".nrrd", "info": {}}}, "p_b": {"image": {"ext": ".nrrd", "info": {"source": "p/b.nrrd"}}}}
    (tmp_path / "datastore_v2.json").write_text(json.dumps({"objects": objects}))
    for name in ("a.nii.gz", "p_b.nii.gz", "p/b.nrrd"):
        write(tmp_path / name)
    assert ids(tmp_path) == {"a": "a.nrrd", "a.nii.gz": "a.nii.gz", "p_b": "b.nrrd", "p_b.nii.gz": "p_b.nii.gz"}


def test_an_image_of_two_files_is_listed_once(tmp_path):
    nib.save(nib.Nifti1Pair(block_image(), np.eye(4)), tmp_path / "pair.hdr")
    write_nrrd(tmp_path / "n.nhdr", nrrd_fields(), data_file="n.raw.gz")
    write_metaimage(tmp_path / "with space.mhd", data_file="with space.raw")
    assert ids(tmp_path) == {"pair": "pair.hdr", "n": "n.nhdr", "with space": "with space.mhd"}
    for name in ("pair.img", "n.raw.gz"):
        (tmp_path / name).unlink()
    (tmp_path / "with space.mhd").unlink()
    listing = StudiesFolder(tmp_path).list_images()
    assert not listing.images
    assert "pair.img, are missing" in listing.left_out["pair.hdr"] and "n.raw.gz, are missing" in listing.left_out["n.nhdr"]
    assert "no header" in listing.left_out["with space.raw"]


@pytest.mark.skipif(os.name != "posix", reason="makes links")
def test_what_is_no_image_is_left_out_with_its_reason(tmp_path, caplog):
    folder, outside = tmp_path / "studies", tmp_path / "outside.nii.gz"
    write(outside)
    write(folder / "a.nii.gz")
    (folder / "._a.nii.gz").write_bytes(b"x")
    (folder / "empty.nii.gz").touch()
    (folder / "gone.nii.gz").symlink_to(folder / "nothing")
    (folder / "elsewhere.nii.gz").symlink_to(outside)
    (folder / "up").symlink_to(tmp_path)
    (folder / "loop").symlink_to(folder)
    (folder / "preview.png").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    write_nrrd(folder / "a.seg.nrrd", nrrd_fields())
    write(folder / "decathlon" / "labelsTr" / "a.nii.gz")
    for name in ("labels/final/a.nii.gz", "sam2_rounds/a.json", "datastore_v2.json.damaged1", ".lock"):  # The server's own files are no news.
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    studies = StudiesFolder(folder)
    listing = studies.list_images()
    assert list(listing.images) == ["a"]
    words = {
        "._a.nii.gz": "Hidden", "empty.nii.gz": "empty", "gone.nii.gz": "nowhere", "elsewhere.nii.gz": "out of the studies",
        "up": "out of the studies", "loop": "another folder|out of", "preview.png": "Pictures", "notes.txt": "no image", "a.seg.nrrd": "label",
        "decathlon/labelsTr": "label",
    }  # fmt: skip
    assert set(listing.left_out) == set(words)
    for name, word in words.items():
        assert any(w in listing.left_out[name] for w in word.split("|")), name
        assert name in caplog.text
    caplog.clear()
    studies.list_images()
    assert not caplog.text, "each reason is logged once"


@pytest.mark.parametrize("name", ["{:03d}.dcm", "IM{:04d}", "{:03d}.IMA"])
def test_a_dicom_folder_is_one_image(tmp_path, name):
    save_dicom(series(), tmp_path / "patient" / "ct", name=name)
    (tmp_path / "patient" / "ct" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    listing = StudiesFolder(tmp_path).list_images()
    assert list(listing.images) == ["patient_ct"] and not listing.left_out
    assert len(listing.images["patient_ct"].files) == len(series())


def test_a_series_in_several_folders_is_one_image_but_copies_are_several(tmp_path):
    images = series()
    save_dicom(images[:5], tmp_path / "cd" / "1")
    save_dicom(images[5:], tmp_path / "cd" / "2")
    assert ids(tmp_path) == {"cd": "cd"}
    shutil.copytree(tmp_path / "cd" / "1", tmp_path / "cd" / "2", dirs_exist_ok=True)
    shutil.copytree(tmp_path / "cd" / "2", tmp_path / "copy")
    shutil.rmtree(tmp_path / "cd" / "1")
    assert set(ids(tmp_path)) == {"cd_2", "copy"}


def test_several_volumes_of_a_dicom_folder_are_numbered(tmp_path):
    save_dicom([*series_of(1), *series_of(2, affine_lps=lps_affine(origin=(0, 0, 0)))], tmp_path / "ct")
    listing = StudiesFolder(tmp_path).list_images()
    assert list(listing.images) == ["ct#1", "ct#2"]
    assert "choose one of ct#1 (" in listing.refused["ct"] and "ct#2 (" in listing.refused["ct"]
    for image in listing.images.values():
        assert read_volume(image.reader_path()).key == image.read("x").key
    assert len({image.read("x").key for image in listing.images.values()}) == 2


def test_a_new_series_in_a_dicom_folder_changes_no_id(tmp_path):
    save_dicom(series_of(5), tmp_path / "ct")
    studies = StudiesFolder(tmp_path)
    before = studies.list_images().images
    known = {i: image.key for i, image in before.items()}
    save_dicom(series_of(1), tmp_path / "ct", name="new{:03d}.dcm")
    after = studies.list_images(known).images
    assert set(before) == {"ct"} and set(after) == {"ct", "ct#1"} and after["ct"].stack.series_uid == before["ct"].stack.series_uid


def test_a_dicom_series_that_cannot_be_used_is_refused_with_the_reason(tmp_path):
    images = series()
    save_dicom(images[:3] + images[4:], tmp_path / "gap")
    images[2].ImagePositionPatient = None
    save_dicom(images, tmp_path / "nowhere")
    listing = StudiesFolder(tmp_path).list_images()
    assert not listing.images and set(listing.left_out) == set(listing.refused) == {"gap", "nowhere"}
    assert "missing" in listing.refused["gap"] and "ImagePositionPatient" in listing.refused["nowhere"]


def test_dicom_files_directly_in_the_studies_folder(tmp_path):
    folder = tmp_path / "studies"
    dicom_file(multiframe(series_of(1)), folder / "enhanced.dcm")
    dicom_file(multiframe(series_of(2)), folder / "other.dcm")
    save_dicom(series_of(3), folder)
    save_dicom(series_of(4), folder / "sub")
    assert ids(folder) == {"enhanced": "enhanced.dcm", "other": "other.dcm", "studies": "studies", "sub": "sub"}


def test_headers_are_read_once_and_again_after_a_change(tmp_path, monkeypatch):
    save_dicom(series_of(1), tmp_path / "a")
    save_dicom(series_of(2), tmp_path / "b")
    read, find = [], study_images.find_stacks
    monkeypatch.setattr(study_images, "find_stacks", lambda files: read.append(files[0].parent.name) or find(files))
    studies = StudiesFolder(tmp_path)
    first = studies.list_images().images
    assert studies.list_images().images["a"].version == first["a"].version and sorted(read) == ["a", "b"]
    os.utime(next((tmp_path / "a").iterdir()), (1, 1))
    again = studies.list_images().images
    assert read[2:] == ["a"] and again["a"].version != first["a"].version and again["b"].version == first["b"].version
    shutil.rmtree(tmp_path / "b")
    assert list(studies.list_images().images) == ["a"]


def test_headers_are_remembered_for_the_next_start(tmp_path, monkeypatch):
    folder, memory_file = tmp_path / "studies", tmp_path / "cache" / "headers.json"
    save_dicom(series_of(1, affine_lps=lps_affine(spacing_mm=(1, 2, 3))), folder / "a")
    save_dicom(series_of(2)[::2] + series_of(2)[1:2], folder / "gap")
    first = StudiesFolder(folder, memory_file=memory_file).list_images()
    monkeypatch.setattr(study_images, "find_stacks", lambda files: pytest.fail("the headers were read again"))
    again = StudiesFolder(folder, memory_file=memory_file).list_images()
    assert again.refused == first.refused and again.images["a"].version == first.images["a"].version
    before, after = first.images["a"].stack, again.images["a"].stack
    assert after.frames == before.frames and after.description == before.description and after.shape == before.shape
    np.testing.assert_array_equal(after.affine, before.affine)
    monkeypatch.undo()
    memory_file.write_text("{")
    assert set(StudiesFolder(folder, memory_file=memory_file).list_images().images) == {"a"}


def test_names_that_cannot_be_ids_are_left_out(tmp_path):
    write(tmp_path / "a\nb.nii.gz")
    write(tmp_path / "back\\slash.nii.gz")
    listing = StudiesFolder(tmp_path).list_images()
    assert list(listing.images) == ["back_slash"] and "rename" in listing.left_out["a\nb.nii.gz"]


def test_patterns_limit_the_listing(tmp_path):
    write(tmp_path / "a.nii.gz")
    write(tmp_path / "b.nrrd")
    save_dicom(series(), tmp_path / "ct")
    assert set(ids(tmp_path, patterns=["*.nii.gz"])) == {"a"}


def test_a_compressed_file_with_any_ending_is_not_mistaken_for_dicom(tmp_path):
    (tmp_path / "archive.gz").write_bytes(gzip.compress(b"x"))
    assert StudiesFolder(tmp_path).list_images().left_out == {"archive.gz": "This is no image in a format that can be read."}
