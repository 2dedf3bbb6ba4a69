"""Test the executors; those of Ray only where it is installed."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest

from lib.common.errors import UserError
from lib.evaluation import distribute
from lib.imaging.datasets import Case
from tests.evaluation.dying_worker import make_dying_worker

CASES = [Case(name, Path(name), Path(name), {}) for name in "abcd"]


def test_without_ray_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="requirements-ray.txt"):
        list(distribute.run_on_ray(CASES, partial(make_dying_worker, Path("."))))


def test_choose_executor():
    assert distribute.choose_executor("local") is distribute.run_in_process
    assert distribute.choose_executor("ray", "auto", 2).keywords == {"address": "auto", "workers": 2}
    with pytest.raises(UserError, match="local or ray"):
        distribute.choose_executor("spark")


def test_the_case_of_a_worker_that_died_is_retried(tmp_path):
    pytest.importorskip("ray")
    reports = {r["case"]: r for r in distribute.run_on_ray(CASES, partial(make_dying_worker, tmp_path), workers=2)}
    assert sorted(reports) == ["a", "b", "c", "d"] and (tmp_path / "b").exists() and not any("error" in r for r in reports.values())
    assert os.getpid() not in {r["process"] for r in reports.values()}
