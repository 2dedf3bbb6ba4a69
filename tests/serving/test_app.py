"""Volumes that are opened ahead of their first request, without a server: a base class stands in for MONAI Label's app."""

from types import SimpleNamespace

import pytest
from monailabel.config import settings

from lib.serving.app import PrefetchMixin


class Base:
    def __init__(self, sessions):
        self.opened, self.read = [], []
        self._infers = {"sam2": SimpleNamespace(open=self._open, read=self.read.append)}
        self._sessions = self._load_sessions(sessions)

    def _open(self, path):
        self.opened.append(path)
        if "broken" in path:
            raise ValueError("no image")

    def next_sample(self, request):
        return {"id": "a", "path": request["path"]} if "path" in request else {}


class App(PrefetchMixin, Base):
    def open_ahead(self, path):
        thread = super().open_ahead(path)
        if thread:
            thread.join()


@pytest.mark.parametrize("path", ["a.nii.gz", "broken.nii.gz"])
def test_the_next_sample_is_opened_and_a_broken_one_does_no_harm(path):
    app = App(sessions=False)
    assert app.next_sample({"path": path}) == {"id": "a", "path": path}
    assert app.opened == [path]


def test_without_a_next_sample_nothing_is_opened():
    app = App(sessions=False)
    assert app.next_sample({}) == {} and not app.opened


def test_an_uploaded_session_is_read_and_opened_where_it_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(settings, "MONAI_LABEL_SESSION_PATH", str(tmp_path / "sessions"))
    (tmp_path / "a.nii").touch()
    app = App(sessions=True)
    session_id, _ = app._sessions.add_session(str(tmp_path / "a.nii"))
    assert app.read == app.opened == [str(tmp_path / "sessions" / session_id / "a.nii")]
