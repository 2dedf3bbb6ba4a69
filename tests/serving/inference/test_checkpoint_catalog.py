"""The names that clients may choose from, and what they mean at the moment."""

from dataclasses import replace

import pytest

from lib.common.errors import CheckpointError
from lib.model import checkpoints
from lib.serving.inference.checkpoint_catalog import AUTO, CheckpointCatalog


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    """Of the app's checkpoint on a machine that has "tiny" besides, and no other one."""
    known = {n: replace(c, path=tmp_path / f"{n}.pt") for n, c in checkpoints.KNOWN.items() if n != "embedded"}
    monkeypatch.setattr(checkpoints, "KNOWN", {"embedded": checkpoints.KNOWN["embedded"], **known})
    (tmp_path / "tiny.pt").write_bytes(b"weights")
    return CheckpointCatalog.of("embedded", tmp_path / "versions")


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "candidate.safetensors"
    path.write_bytes(b"weights")
    return path


def test_the_default_comes_first_and_missing_files_are_not_offered(catalog):
    assert catalog.names() == [AUTO, "embedded", "tiny"] and AUTO == "auto"


def test_auto_means_the_base_without_versions(catalog):
    assert catalog.resolve("auto") == ("embedded", "embedded")


def test_auto_means_the_served_version(catalog, weights):
    path = catalog.versions.add(weights, {}, better=True)
    assert catalog.resolve("auto") == (str(path), "embedded/v0001")
    assert catalog.resolve("embedded") == ("embedded", "embedded"), "the base stays available"
    catalog.versions.serve(None)
    assert catalog.resolve("auto") == ("embedded", "embedded")


def test_versions_are_offered_newest_first(catalog, weights):
    for better in (True, True, False, True):
        catalog.versions.add(weights, {}, better=better)
    assert catalog.names() == ["auto", "embedded", "tiny", "v0004", "v0002", "v0001"]
    assert catalog.resolve("v0001") == (str(catalog.versions.path("v0001")), "embedded/v0001")


def test_other_checkpoints_keep_their_names(catalog):
    assert catalog.resolve("tiny") == ("tiny", "tiny")


@pytest.mark.parametrize("name", ["", "large", "v0001", "v0002", "../x", "embedded/v0001", "embedded@x.yaml@512"])
def test_what_is_not_offered_is_refused(catalog, weights, name):
    catalog.versions.add(weights, {}, better=False)
    with pytest.raises(CheckpointError, match="auto, embedded, tiny"):
        catalog.resolve(name)


def test_paths_are_for_whoever_starts_the_server(catalog, weights):
    version = catalog.versions.add(weights, {}, better=True)
    for path in (weights, version):
        with pytest.raises(CheckpointError):
            catalog.resolve(str(path))


def test_a_base_given_as_a_path_can_be_chosen(tmp_path, weights):
    base = f"{weights}@sam2_hiera_nano_256.yaml@256"
    catalog = CheckpointCatalog.of(base, tmp_path / "versions")
    assert catalog.names()[:2] == ["auto", base] and "embedded" in catalog.names()
    assert catalog.resolve("auto") == catalog.resolve(base) == (base, base)
