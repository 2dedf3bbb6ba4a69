"""Datastores without a server: a change happens as a whole or not at all, whatever stops it and whoever else writes."""

import errno
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
from fastapi import HTTPException
from monailabel.datastore import dicom as monai_dicom
from monailabel.interfaces.exception import ImageNotFoundException

from lib.common.errors import UserError
from lib.imaging.volume import Volume
from lib.samples import sample_data
from lib.serving.datastore import dicom as store_module
from lib.serving.datastore import folder as folder_module
from lib.serving.datastore.dicom import UNSENT, SafeDicomDatastore
from lib.serving.datastore.folder import SafeDatastore

JSON = "datastore_v2.json"


def volume_file(path: Path, value: int) -> str:
    """A volume of one value: what is half-written or mixed shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((16, 16, 8), value, np.uint8), np.eye(4)), path)
    return str(path)


@pytest.fixture
def studies(tmp_path):
    for name in "ab":
        volume_file(tmp_path / "studies" / f"{name}.nii.gz", 1)
    return tmp_path / "studies"


@pytest.fixture
def label(tmp_path):
    return lambda value, ending=".nii.gz": volume_file(tmp_path / "uploads" / f"label_{value}{ending}", value)


def opened(studies, **more) -> SafeDatastore:
    return SafeDatastore(str(studies), extensions=("*.nii.gz", "*.nii"), **more)


def saved(store, image="a", tag="final") -> tuple[int, int]:
    """(value of all voxels, value in the info) of a label."""
    values = np.unique(nib.load(store.get_label_uri(image, tag)).get_fdata())
    assert len(values) == 1
    return int(values[0]), store.get_label_info(image, tag).get("value")


def names(studies) -> list[str]:
    return sorted(p.name for p in studies.rglob("*") if p.is_file() and p.name != ".lock")


def fails(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("module, function", [(shutil, "copyfileobj"), (folder_module, "write_text")])
def test_on_a_full_disk_the_old_label_stays(studies, label, monkeypatch, module, function):
    store = opened(studies)
    store.save_label("a", label(1), "final", {"value": 1})
    before = names(studies)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, fails)
        with pytest.raises(OSError) as e:
            store.save_label("a", label(2), "final", {"value": 2})
    assert e.value.errno == errno.ENOSPC and names(studies) == before
    assert saved(store) == saved(opened(studies)) == (1, 1)


@pytest.mark.parametrize("known", [False, True], ids=["first label", "next label"])
@pytest.mark.parametrize("step", range(6))
def test_a_kill_at_any_step_leaves_the_old_or_the_new_label(studies, label, step, known):
    """Steps: the label on the disk, the JSON file on the disk, it is renamed, the label is renamed, names on the disk."""
    if known:
        opened(studies).save_label("a", label(1), "final", {"value": 1})
    store, new = opened(studies), label(2)
    child = os.fork()
    if child == 0:
        count = iter(range(step + 1))

        def mortal(function):
            def call(*args):
                if next(count) == step:
                    os._exit(9)
                return function(*args)

            return call

        try:
            os.fsync, os.replace = mortal(os.fsync), mortal(os.replace)
            store.save_label("a", new, "final", {"value": 2})
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    again = opened(studies)
    if step < 3:
        assert saved(again) == (1, 1) if known else not again.get_labels_by_image_id("a")
    else:
        assert saved(again) == (2, 2)
    assert not [n for n in names(studies) if n.endswith(".tmp")]


def test_servers_on_one_folder_lose_nothing_of_each_other(studies, label):
    stores = [opened(studies) for _ in range(3)]
    files = [label(n) for n in range(3)]

    def work(n):
        for round_ in range(6):
            stores[n].save_label("a", files[n], "final", {"value": n})
            stores[n].save_label("b", files[n], f"tag{n}", {"value": n})
            stores[n].update_image_info("a", {f"score{n}": round_})

    with ThreadPoolExecutor() as pool:
        list(pool.map(work, range(3)))
    last = opened(studies)
    assert {f"score{n}": 5 for n in range(3)}.items() <= last.get_image_info("a").items()
    assert [saved(last, "b", f"tag{n}") for n in range(3)] == [(n, n) for n in range(3)]
    assert saved(last)[0] == saved(last)[1]


@pytest.mark.parametrize("content", [b"", b'{"name": "x", "objects": {"a"', b"\xff\xfe", b"[]", b'{"objects": 3}'])
def test_a_damaged_json_file_is_kept_and_made_anew(studies, label, caplog, content):
    opened(studies).save_label("a", label(3), "final", {"value": 3})
    for kept in (f"{JSON}.damaged", f"{JSON}.damaged1"):
        (studies / JSON).write_bytes(content)
        store = opened(studies)
        assert sorted(store.list_images()) == ["a", "b"] and saved(store)[0] == 3
        assert (studies / kept).read_bytes() == content and kept in caplog.text
        assert "a" in json.loads((studies / JSON).read_text())["objects"]


def test_a_running_server_repairs_a_damaged_json_file_with_what_it_knows(studies, label):
    store = opened(studies)
    store.save_label("a", label(3), "final", {"value": 3})
    (studies / JSON).write_text("{")
    store.save_label("b", label(4), "final", {"value": 4})
    again = opened(studies)
    assert saved(again) == (3, 3) and saved(again, "b") == (4, 4)


@pytest.mark.parametrize("name", ["../x", "/x", "..", "", "a/b", "a\\b", "a\0b", "x" * 300])
def test_names_that_leave_the_folder_are_refused(studies, label, tmp_path, name):
    store, before = opened(studies), sorted(tmp_path.rglob("*"))
    file = label(1)
    for attempt in (
        lambda: store.save_label("a", file, name, {}), lambda: store.save_label(name, file, "final", {}),
        lambda: store.add_image(name or "..", file, {}), lambda: store.remove_label("a", name),
    ):  # fmt: skip
        with pytest.raises(UserError, match="cannot be an id or a tag"):
            attempt()
    assert {p for p in tmp_path.rglob("*")} - set(before) == {Path(file), Path(file).parent}


def test_a_damaged_upload_replaces_nothing(studies, label, tmp_path):
    store = opened(studies)
    store.save_label("a", label(1), "final", {"value": 1})
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(Path(label(2)).read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged"):
        store.save_label("a", str(broken), "final", {"value": 2})
    with pytest.raises(UserError, match="damaged"):
        store.add_image("a", str(broken), {})
    assert saved(store) == (1, 1) and nib.load(studies / "a.nii.gz").get_fdata().min() == 1


def test_labels_of_unknown_images_are_refused(studies, label):
    with pytest.raises(ImageNotFoundException):
        opened(studies).save_label("c", label(1), "final", {})


def test_an_image_sent_again_keeps_its_labels(studies, label):
    store = opened(studies)
    store.save_label("a", label(1), "final", {"value": 1})
    store.add_image("a", label(9), {"patient": "x"})
    assert saved(store) == (1, 1) and store.get_image_info("a")["patient"] == "x"


def test_a_label_with_another_ending_replaces_the_first(studies, label):
    store = opened(studies)
    store.save_label("a", label(1), "final", {"value": 1})
    store.save_label("a", label(2, ".nii"), "final", {"value": 2})
    (studies / JSON).unlink()
    assert saved(opened(studies))[0] == 2 and "a.nii.gz" not in os.listdir(studies / "labels" / "final")
    store = opened(studies)
    store.remove_label("a", "final")
    assert not store.get_labels_by_image_id("a") and not os.listdir(studies / "labels" / "final")


def test_nothing_else_of_the_folder_is_renamed_by_an_info(studies, label):
    """Clients can write infos; the name of a temporary file in one is no order to move any file."""
    store = opened(studies)
    store.save_label("a", label(1), "final", {"value": 1})
    store.update_label_info("a", "final", {folder_module.TEMPORARY: "../../b.nii.gz"})
    assert saved(opened(studies)) == (1, 1) and (studies / "b.nii.gz").is_file()


def test_a_folder_that_cannot_be_written_can_be_read(studies, label, monkeypatch):
    opened(studies).save_label("a", label(1), "final", {"value": 1})
    volume_file(studies / "c.nii.gz", 1)
    monkeypatch.setattr(folder_module, "write_text", fails)
    store = opened(studies)
    assert sorted(store.list_images()) == ["a", "b", "c"] and saved(store) == (1, 1)


def test_a_json_file_older_than_before_is_read(studies, label):
    """The clock of the other server, or of this one, was set back."""
    one, other = opened(studies), opened(studies)
    other.save_label("a", label(1), "final", {"value": 1})
    os.utime(studies / JSON, (0, 0))
    one.refresh()
    assert saved(one) == (1, 1)


def test_files_renamed_into_a_watched_folder_are_seen(studies, label):
    store = opened(studies, auto_reload=True)
    try:
        shutil.copy(label(1), studies / ".c.tmp")
        os.replace(studies / ".c.tmp", studies / "c.nii.gz")
        opened(studies).save_label("a", label(2), "final", {"value": 2})
        end = time.monotonic() + 20
        while "c" not in store.list_images() or not store.get_labels_by_image_id("a"):
            assert time.monotonic() < end
            time.sleep(0.05)
        assert saved(store) == (2, 2)
    finally:
        store._observer.stop()
        store._observer.join()


class Client:
    """Stands for a DICOMweb client whose store has one series."""

    base_url = "http://store"

    def __init__(self):
        self._session = requests.Session()

    def set_http_retry_params(self, **_):
        pass

    def search_for_series(self, **_):
        return [{}]


@pytest.fixture
def dicom(tmp_path, monkeypatch):
    """A datastore with the series "1.2"; `down` makes its network fail after so many slices."""
    volume = Volume(np.arange(16 * 16 * 6, dtype=np.int16).reshape(16, 16, 6), np.diag([-2.0, -2.0, 5.0, 1.0]), "ct")
    sample_data.write_dicom(volume, tmp_path / "series", modality="CT", description="ct")

    def download(_, series, folder, *__):
        os.makedirs(folder)
        for n, file in enumerate(sorted((tmp_path / "series").iterdir())):
            if n == store.down:
                raise requests.ConnectionError("closed")
            shutil.copy(file, folder)

    monkeypatch.setattr(store_module, "dicom_web_download_series", download)
    slice_ = next((tmp_path / "series").iterdir())
    monkeypatch.setattr(monai_dicom, "nifti_to_dicom_seg", lambda *_: shutil.copy(slice_, tmp_path / "seg.dcm"))
    store = SafeDicomDatastore(Client(), {}, str(tmp_path / "cache"))
    store.down = None
    yield store
    store._observer.stop()
    store._observer.join()


def test_half_a_series_is_not_taken_for_all_of_it(dicom):
    dicom.down = 3
    with pytest.raises(requests.ConnectionError):
        dicom.get_image_uri("1.2")
    dicom.down = None
    assert nib.load(dicom.get_image_uri("1.2")).shape == (16, 16, 6)
    assert len(os.listdir(Path(dicom._datastore.image_path(), "1.2"))) == 6


@pytest.mark.parametrize("answer", [requests.ConnectionError("closed"), ""], ids=["down", "says that nothing was stored"])
def test_a_label_that_the_dicom_store_did_not_take_is_kept(dicom, tmp_path, monkeypatch, answer):
    def upload(*_):
        if isinstance(answer, Exception):
            raise answer
        return answer

    mask = nib.load(dicom.get_image_uri("1.2"))
    nib.save(nib.Nifti1Image(np.full(mask.shape, 7, np.uint8), mask.affine), tmp_path / "label.nii.gz")
    monkeypatch.setattr(monai_dicom, "dicom_web_upload_dcm", upload)
    with pytest.raises(HTTPException, match="unsent") as e:
        dicom.save_label("1.2", str(tmp_path / "label.nii.gz"), "final", {"value": 7})
    assert e.value.status_code == 502
    assert saved(dicom, "1.2", UNSENT) == (7, 7) and set(dicom.get_labels_by_image_id("1.2")) == {UNSENT}
    monkeypatch.setattr(monai_dicom, "dicom_web_upload_dcm", lambda *_: "1.2.3")
    dicom.save_label("1.2", str(tmp_path / "label.nii.gz"), "final", {"value": 7})
    assert set(dicom.get_labels_by_image_id("1.2")) == {"final"} and dicom.get_label_info("1.2", "final")["SeriesInstanceUID"] == "1.2.3"


def test_empty_labels_cannot_become_dicom_seg(dicom, tmp_path):
    pixels = tmp_path / "label.bin"  # as OHIF sends it
    pixels.write_bytes(bytes(16 * 16 * 6))
    with pytest.raises(UserError, match="empty"):
        dicom.save_label("1.2", str(pixels), "final", {})
    assert not dicom.get_labels_by_image_id("1.2")


@pytest.mark.parametrize("series", ["../../uploads", "/etc"])
def test_series_are_no_paths(dicom, series):
    for attempt in (
        lambda: dicom.get_image_uri(series), lambda: dicom.get_label_uri(series, "final"),
        lambda: dicom.save_label(series, "x", "final", {}),
    ):  # fmt: skip
        with pytest.raises(UserError):
            attempt()
