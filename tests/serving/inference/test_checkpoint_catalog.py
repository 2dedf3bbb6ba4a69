"""Tests of the checkpoint names that clients can choose from, and of the files behind them."""

from dataclasses import replace

import pytest

from lib.common.errors import CheckpointError
from lib.model import checkpoints
from lib.serving.inference.checkpoint_catalog import AUTO, CheckpointCatalog


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    """Return the catalog of the app's checkpoint on a machine where, besides it, only "tiny" is installed."""
    others = {n: replace(c, path=tmp_path / f"{n}.pt") for n, c in checkpoints.KNOWN.items() if n != "embedded"}
    monkeypatch.setattr(checkpoints, "KNOWN", {"embedded": checkpoints.KNOWN["embedded"], **others})
    (tmp_path / "tiny.pt").write_bytes(b"weights")
    return CheckpointCatalog.of("embedded", tmp_path / "versions")


@pytest.fixture
def weights(tmp_path):
    """Return the file of a fine-tuned checkpoint."""
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


def test_other_checkpoints_resolve_to_their_own_names(catalog):
    assert catalog.resolve("tiny") == ("tiny", "tiny")


@pytest.mark.parametrize("name", ["", "large", "v0001", "v0002", "../x", "embedded/v0001", "embedded@x.yaml@512"])
def test_names_that_are_not_offered_are_refused(catalog, weights, name):
    catalog.versions.add(weights, {}, better=False)
    with pytest.raises(CheckpointError, match="auto, embedded, tiny"):
        catalog.resolve(name)


def test_clients_cannot_choose_checkpoints_by_path(catalog, weights):
    version = catalog.versions.add(weights, {}, better=True)
    for path in (weights, version):
        with pytest.raises(CheckpointError):
            catalog.resolve(str(path))


def test_a_base_given_as_a_path_can_be_chosen(tmp_path, weights):
    base = f"{weights}@sam2_hiera_nano_256.yaml@256"
    catalog = CheckpointCatalog.of(base, tmp_path / "versions")
    assert catalog.names()[:2] == ["auto", base] and "embedded" in catalog.names()
    assert catalog.resolve("auto") == catalog.resolve(base) == (base, base)
