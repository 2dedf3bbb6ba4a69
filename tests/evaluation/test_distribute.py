"""Distribution by Ray, where it is installed; what is said where it is not."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from lib.common.errors import UserError
from lib.evaluation import distribute
from lib.evaluation.run import local
from lib.imaging.datasets import Case
from tests.evaluation.mortal import maker

CASES = [Case(name, Path(name), Path(name), {}) for name in "abcd"]


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="requirements-ray.txt"):
        list(distribute.remote(CASES, partial(maker, Path("."))))


def test_engines():
    assert distribute.executor("local") is local
    assert distribute.executor("ray", "auto", 2).keywords == {"address": "auto", "workers": 2}
    with pytest.raises(UserError, match="local or ray"):
        distribute.executor("spark")


def test_a_lost_workers_case_is_retried(tmp_path):
    pytest.importorskip("ray")
    found = {r["case"]: r for r in distribute.remote(CASES, partial(maker, tmp_path), workers=2)}
    assert sorted(found) == ["a", "b", "c", "d"] and (tmp_path / "b").exists() and not any("error" in r for r in found.values())
    assert os.getpid() not in {r["process"] for r in found.values()}
