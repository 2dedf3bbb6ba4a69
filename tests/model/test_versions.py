"""Fine-tuned versions: all are kept and numbered, one is served, names from outside reach no other file."""

import json
from pathlib import Path

import pytest

from lib.common.errors import CheckpointError
from lib.model.versions import Versions


@pytest.fixture
def versions(tmp_path):
    return Versions(tmp_path / "versions", "embedded")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "candidate.safetensors"
    path.write_bytes(b"weights")
    return path


def test_nothing_is_served_at_first(versions):
    assert versions.served() is None and versions.names() == []


def test_a_better_version_is_served(versions, weights):
    path = versions.add(weights, {"best_metric": 0.9}, better=True)
    assert path == versions.folder / "v0001.safetensors" and path.read_bytes() == b"weights"
    assert versions.served() == versions.path("v0001") == path
    assert weights.exists(), "the checkpoint is copied, not moved"
    info = json.loads(path.with_suffix(".json").read_text())
    assert (info["version"], info["base"], info["best_metric"]) == ("v0001", "embedded", 0.9)


def test_a_worse_version_lies_aside_and_keeps_its_number(versions, weights):
    first = versions.add(weights, {}, better=True)
    aside = versions.add(weights, {}, better=False)
    assert aside == versions.folder / "aside" / "v0002.safetensors" and aside.with_suffix(".json").is_file()
    assert versions.served() == first and versions.names() == ["v0001"]
    with pytest.raises(CheckpointError):
        versions.path("v0002")
    assert versions.add(weights, {}, better=True).stem == "v0003"
    assert versions.served().stem == "v0003" and versions.names() == ["v0001", "v0003"]


def test_no_temporary_files_are_left(versions, weights):
    versions.add(weights, {}, better=True)
    versions.add(weights, {}, better=False)
    assert not list(versions.folder.rglob("*.tmp"))


def test_an_earlier_version_or_the_base_can_be_served_again(versions, weights):
    for _ in range(2):
        versions.add(weights, {}, better=True)
    versions.serve("v0001")
    assert versions.served() == versions.path("v0001")
    versions.serve(None)
    assert versions.served() is None and versions.names() == ["v0001", "v0002"]


def test_the_base_can_be_served_before_there_is_any_version(versions):
    versions.serve(None)
    assert versions.served() is None


@pytest.mark.parametrize("name", ["v0009", "embedded", "../x", "../embedded/v0001", "aside/v0002", "v0001.safetensors", ""])
def test_unknown_versions_are_refused(versions, weights, name):
    versions.add(weights, {}, better=True)
    versions.add(weights, {}, better=False)
    (versions.root / "x.safetensors").write_bytes(b"not a version")
    with pytest.raises(CheckpointError, match="v0001"):
        versions.path(name)
    if name:
        with pytest.raises(CheckpointError):
            versions.serve(name)
    assert versions.served().stem == "v0001"


@pytest.mark.parametrize("content", [
    b"", b"{", b'{"version": "v00', b"[]", b"{}", b'{"version": null}', b'{"version": "v0009"}', b'{"version": 1}', b"\xff\xfe",
])  # fmt: skip
def test_a_damaged_note_means_the_base(versions, weights, content):
    versions.add(weights, {}, better=True)
    (versions.folder / "served.json").write_bytes(content)
    assert versions.served() is None
    versions.serve("v0001")
    assert versions.served() == versions.path("v0001")


def test_missing_files_mean_the_base(versions, weights):
    path = versions.add(weights, {}, better=True)
    (versions.folder / "served.json").unlink()
    assert versions.served() is None
    versions.serve("v0001")
    path.unlink()
    assert versions.served() is None


@pytest.mark.parametrize(("base", "folder"), [
    ("embedded", "embedded"),
    ("/a/b/my.pt", "my"),
    ("/a/b/my.pt@cfg@512", "my"),
    ("/a/b/my.pt@sam2.1/sam2.1_hiera_t.yaml@512", "my"),
    ("/a/b/sam2.1_hiera_tiny.pt", "sam2.1_hiera_tiny"),
    ("/a/b/mine (new).safetensors", "mine__new_"),
])  # fmt: skip
def test_the_folder_is_named_after_the_base(base, folder):
    made = Versions(Path("/versions"), base).folder
    assert made.parent == Path("/versions")
    assert made.name == folder if base == folder else made.name.startswith(f"{folder}_")


def test_files_of_one_name_have_versions_of_their_own():
    folders = {Versions(Path("/versions"), base).folder for base in ("/a/my.pt", "/b/my.pt", "/a/my.pt@cfg", "my")}
    assert len(folders) == 4
