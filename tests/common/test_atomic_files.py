"""Tests of writing files atomically."""

import pytest

from lib.common import atomic_files


def test_folders_are_created_and_the_content_is_replaced(tmp_path):
    path = tmp_path / "a" / "b.json"
    atomic_files.write_text(path, "old")
    atomic_files.write_text(path, "new")
    assert path.read_text() == "new" and [p.name for p in path.parent.iterdir()] == ["b.json"]


def test_the_old_content_stays_when_writing_fails(tmp_path, monkeypatch):
    path = tmp_path / "b.json"
    atomic_files.write_text(path, "old")

    def raise_disk_full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic_files.os, "fsync", raise_disk_full)
    with pytest.raises(OSError, match="No space"):
        atomic_files.write_text(path, "new")
    assert path.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["b.json"]
