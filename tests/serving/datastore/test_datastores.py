"""Tests of the datastores without a server.

A change takes place as a whole or not at all, whatever interrupts it and whoever else writes to the folder.
"""

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
from monailabel.interfaces.exception import ImageNotFoundException

from lib.common.errors import UserError
from lib.serving.datastore import transaction
from lib.serving.datastore.folder import TEMPORARY
from lib.serving.datastore.studies import StudiesDatastore

JSON_NAME = "datastore_v2.json"


def write_volume(path: Path, value: int) -> str:
    """Write a volume of a single value, so that a half-written or mixed file is noticed, and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(np.full((16, 16, 8), value, np.uint8), np.eye(4)), path)
    return str(path)


@pytest.fixture
def studies(tmp_path):
    """Return a folder with the images a and b."""
    for name in "ab":
        write_volume(tmp_path / "studies" / f"{name}.nii.gz", 1)
    return tmp_path / "studies"


@pytest.fixture
def label(tmp_path):
    """Return a function that writes a label of a single value and returns its path."""
    return lambda value, ending=".nii.gz": write_volume(tmp_path / "uploads" / f"label_{value}{ending}", value)


def open_store(studies, **options) -> StudiesDatastore:
    """Return a datastore on a folder, as a new server would open it."""
    return StudiesDatastore(str(studies), **options)


def saved_values(store, image="a", tag="final") -> tuple[int, int]:
    """Return the value of all voxels of a saved label and the value in its info."""
    values = np.unique(nib.load(store.get_label_uri(image, tag)).get_fdata())
    assert len(values) == 1
    return int(values[0]), store.get_label_info(image, tag).get("value")


def file_names(studies) -> list[str]:
    """Return the names of all files below a folder but the lock."""
    return sorted(p.name for p in studies.rglob("*") if p.is_file() and p.name != ".lock")


def raise_disk_full(*_, **__):
    """Fail as a full disk does."""
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("module, function", [(shutil, "copyfileobj"), (transaction, "write_text")])
def test_on_a_full_disk_the_old_label_stays(studies, label, monkeypatch, module, function):
    store = open_store(studies)
    store.save_label("a", label(1), "final", {"value": 1})
    before = file_names(studies)
    with monkeypatch.context() as patch:
        patch.setattr(module, function, raise_disk_full)
        with pytest.raises(OSError) as e:
            store.save_label("a", label(2), "final", {"value": 2})
    assert e.value.errno == errno.ENOSPC and file_names(studies) == before
    assert saved_values(store) == saved_values(open_store(studies)) == (1, 1)


@pytest.mark.parametrize("has_label", [False, True], ids=["first label", "next label"])
@pytest.mark.parametrize("step", range(9))
def test_a_kill_at_any_step_leaves_the_old_or_the_new_label(studies, label, step, has_label):
    """The steps: sync the label, sync and rename the history's description, sync and rename the JSON file, rename the label, sync folders."""
    steps_of_history = 2 if has_label else 0
    if step > 5 + steps_of_history + has_label:
        pytest.skip("There are no further steps.")
    if has_label:
        open_store(studies).save_label("a", label(1), "final", {"value": 1})
    store, new_label = open_store(studies), label(2)
    child = os.fork()
    if child == 0:
        calls = iter(range(step + 1))

        def killed_at_step(function):
            def call(*args):
                if next(calls) == step:
                    os._exit(9)
                return function(*args)

            return call

        try:
            os.fsync, os.replace = killed_at_step(os.fsync), killed_at_step(os.replace)
            store.save_label("a", new_label, "final", {"value": 2})
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    reopened = open_store(studies)
    if step < 3 + steps_of_history:
        assert saved_values(reopened) == (1, 1) if has_label else not reopened.get_labels_by_image_id("a")
    else:
        assert saved_values(reopened) == (2, 2)
    assert not [n for n in file_names(studies) if n.endswith(".tmp")]
    history = reopened.history.items("a", reopened.image_digest("a"))
    assert len(history) == 1 if has_label and step > 2 else len(history) <= has_label


def test_servers_on_one_folder_keep_the_changes_of_each_other(studies, label):
    stores = [open_store(studies) for _ in range(3)]
    files = [label(n) for n in range(3)]

    def save_repeatedly(n):
        for iteration in range(6):
            stores[n].save_label("a", files[n], "final", {"value": n})
            stores[n].save_label("b", files[n], f"tag{n}", {"value": n})
            stores[n].update_image_info("a", {f"score{n}": iteration})

    with ThreadPoolExecutor() as pool:
        list(pool.map(save_repeatedly, range(3)))
    reopened = open_store(studies)
    assert {f"score{n}": 5 for n in range(3)}.items() <= reopened.get_image_info("a").items()
    assert [saved_values(reopened, "b", f"tag{n}") for n in range(3)] == [(n, n) for n in range(3)]
    assert saved_values(reopened)[0] == saved_values(reopened)[1]


@pytest.mark.parametrize("content", [b"", b'{"name": "x", "objects": {"a"', b"\xff\xfe", b"[]", b'{"objects": 3}'])
def test_a_damaged_json_file_is_set_aside_and_rebuilt(studies, label, caplog, content):
    open_store(studies).save_label("a", label(3), "final", {"value": 3})
    for backup in (f"{JSON_NAME}.damaged", f"{JSON_NAME}.damaged1"):
        (studies / JSON_NAME).write_bytes(content)
        store = open_store(studies)
        assert sorted(store.list_images()) == ["a", "b"] and saved_values(store)[0] == 3
        assert (studies / backup).read_bytes() == content and backup in caplog.text
        assert "a" in json.loads((studies / JSON_NAME).read_text())["objects"]


def test_a_running_server_repairs_a_damaged_json_file_from_its_memory(studies, label):
    store = open_store(studies)
    store.save_label("a", label(3), "final", {"value": 3})
    (studies / JSON_NAME).write_text("{")
    store.save_label("b", label(4), "final", {"value": 4})
    reopened = open_store(studies)
    assert saved_values(reopened) == (3, 3) and saved_values(reopened, "b") == (4, 4)


@pytest.mark.parametrize("name", ["../x", "/x", "..", "", "a/b", "a\\b", "a\0b", "x" * 300])
def test_ids_and_tags_that_lead_out_of_the_folder_are_refused(studies, label, tmp_path, name):
    store, before = open_store(studies), sorted(tmp_path.rglob("*"))
    file = label(1)
    for attempt in (
        lambda: store.save_label("a", file, name, {}), lambda: store.save_label(name, file, "final", {}),
        lambda: store.add_image(name or "..", file, {}), lambda: store.remove_label("a", name),
    ):  # fmt: skip
        with pytest.raises(UserError, match="cannot be an id or a tag"):
            attempt()
    assert {p for p in tmp_path.rglob("*")} - set(before) == {Path(file), Path(file).parent}


def test_a_damaged_upload_replaces_nothing(studies, label, tmp_path):
    store = open_store(studies)
    store.save_label("a", label(1), "final", {"value": 1})
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(Path(label(2)).read_bytes()[:-20])
    with pytest.raises(UserError, match="damaged"):
        store.save_label("a", str(broken), "final", {"value": 2})
    with pytest.raises(UserError, match="damaged"):
        store.add_image("a", str(broken), {})
    assert saved_values(store) == (1, 1) and nib.load(studies / "a.nii.gz").get_fdata().min() == 1


def test_labels_of_unknown_images_are_refused(studies, label):
    with pytest.raises(ImageNotFoundException):
        open_store(studies).save_label("c", label(1), "final", {})


def test_an_image_sent_again_keeps_its_labels(studies, label):
    store = open_store(studies)
    store.save_label("a", label(1), "final", {"value": 1})
    store.add_image("a", str(studies / "a.nii.gz"), {"patient": "x"})
    assert saved_values(store) == (1, 1) and store.get_image_info("a")["patient"] == "x"


def test_a_label_with_another_ending_replaces_the_first(studies, label):
    store = open_store(studies)
    store.save_label("a", label(1), "final", {"value": 1})
    store.save_label("a", label(2, ".nii"), "final", {"value": 2})
    (studies / JSON_NAME).unlink()
    assert saved_values(open_store(studies))[0] == 2 and "a.nii.gz" not in os.listdir(studies / "labels" / "final")
    store = open_store(studies)
    store.remove_label("a", "final")
    assert not store.get_labels_by_image_id("a") and not os.listdir(studies / "labels" / "final")


def test_an_info_cannot_make_the_server_move_other_files(studies, label):
    """Clients can write infos, so the name of a temporary file in one must not move other files."""
    store = open_store(studies)
    store.save_label("a", label(1), "final", {"value": 1})
    store.update_label_info("a", "final", {TEMPORARY: "../../b.nii.gz"})
    assert saved_values(open_store(studies)) == (1, 1) and (studies / "b.nii.gz").is_file()


def test_a_folder_that_cannot_be_written_can_be_read(studies, label, monkeypatch):
    open_store(studies).save_label("a", label(1), "final", {"value": 1})
    write_volume(studies / "c.nii.gz", 1)
    monkeypatch.setattr(transaction, "write_text", raise_disk_full)
    store = open_store(studies)
    assert sorted(store.list_images()) == ["a", "b", "c"] and saved_values(store) == (1, 1)


def test_a_json_file_older_than_before_is_read(studies, label):
    """This happens if the clock of one of the servers is set back."""
    store, other = open_store(studies), open_store(studies)
    other.save_label("a", label(1), "final", {"value": 1})
    os.utime(studies / JSON_NAME, (0, 0))
    store.refresh()
    assert saved_values(store) == (1, 1)


def test_files_renamed_into_an_observed_folder_are_noticed(studies, label):
    store = open_store(studies, auto_reload=True)
    try:
        shutil.copy(label(1), studies / ".c.tmp")
        os.replace(studies / ".c.tmp", studies / "c.nii.gz")
        open_store(studies).save_label("a", label(2), "final", {"value": 2})
        deadline = time.monotonic() + 20
        while "c" not in store.list_images() or not store.get_labels_by_image_id("a"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert saved_values(store) == (2, 2)
    finally:
        store._observer.stop()
        store._observer.join()
