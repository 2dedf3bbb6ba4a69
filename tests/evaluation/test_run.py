"""Test runs: which results are kept, which cases are repeated, errors, and a process that is killed."""

import csv
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import main
from lib.common.errors import UserError
from lib.evaluation import report, run
from lib.evaluation.case_evaluation import EvaluationSettings
from lib.evaluation.distribute import run_in_process
from lib.evaluation.run import ResultStore
from lib.imaging.datasets import Case

ROOT = Path(__file__).resolve().parents[2]
CASES = [Case(name, Path(name), Path(name), {1: "spleen"}) for name in ("a", "b/c", "d.1")]


def row(case, **extra):
    """Return a row of results."""
    return {"case": case, "label": "spleen", "setting": "full", "round": 1, "method": "app", "slices": "3", "clicks": 1, "dice": 0.5,
            "iou": 0.3, "nsd": 0.2, "hd95": float("nan"), "slice_dice": 0.5, "seconds": 0.1} | extra  # fmt: skip


def failing_worker_factory(started, *failing_names):
    """Return a factory of workers that append the names of their cases to `started` and fail at some cases."""
    def work(case):
        started.append(case.name)
        if case.name in failing_names:
            return {"case": case.name, "rows": [], "error": "no such file", "seconds": 0.1}
        return {"case": case.name, "rows": [row(case.name)], "seconds": 0.1}

    return lambda: work


def no_progress(reports, total):
    """Return the reports without displaying progress."""
    return reports


def test_finished_cases_are_not_repeated(tmp_path):
    """A case that failed is repeated."""
    settings = EvaluationSettings("he")
    started = []
    store = ResultStore(tmp_path, settings, "data")
    first = run.run_cases(CASES, store, failing_worker_factory(started, "b/c"), run_in_process, no_progress)
    assert started == ["a", "b/c", "d.1"] and ["error" in r for r in first] == [False, True, False]
    store = ResultStore(tmp_path, settings, "data")
    second = run.run_cases(CASES, store, failing_worker_factory(started), run_in_process, no_progress)
    assert started == ["a", "b/c", "d.1", "b/c"] and not any("error" in r for r in second)
    assert [r["case"] for r in second] == ["a", "b/c", "d.1"], "in the order of the data"
    store = ResultStore(tmp_path, settings, "data", resume=False)
    run.run_cases(CASES, store, failing_worker_factory(started), run_in_process, no_progress)
    assert len(started) == 7


def test_reports_in_any_order(tmp_path):
    def run_backwards(cases, make_worker):
        return (make_worker()(c) for c in reversed(cases))

    store = ResultStore(tmp_path, EvaluationSettings("he"), "data")
    reports = run.run_cases(CASES, store, failing_worker_factory([]), run_backwards, no_progress)
    assert [r["case"] for r in reports] == ["a", "b/c", "d.1"]


@pytest.mark.parametrize("settings, data, words", [
    (EvaluationSettings("shen"), "data", "protocol"), (EvaluationSettings("he", seed=2), "data", "seed"),
    (EvaluationSettings("he"), "elsewhere", "data"),
])  # fmt: skip
def test_the_folder_of_another_run_is_refused(tmp_path, settings, data, words):
    ResultStore(tmp_path, EvaluationSettings("he"), "data")
    with pytest.raises(UserError, match=f"another {words}"):
        ResultStore(tmp_path, settings, data)


def test_a_damaged_folder_is_refused(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(UserError, match="run.json"):
        ResultStore(tmp_path, EvaluationSettings("he"), "data")


@pytest.mark.parametrize("error, words", [
    (UserError("This is wrong."), "This is wrong."), (ZeroDivisionError("x"), "ZeroDivisionError: x"),
])  # fmt: skip
def test_a_case_that_fails_is_reported(error, words):
    class FailingMethod:
        def __init__(self, options):
            raise error

    report = run.make_case_worker(EvaluationSettings("he"), [FailingMethod], None)(CASES[0])
    assert report["case"] == "a" and report["error"] == words and report["rows"] == []


def test_summary_lists_what_failed(tmp_path):
    reports = [{"case": "a", "rows": [row("a")], "seconds": 2.0}, {"case": "b", "rows": [], "error": "no such file", "seconds": 1.0}]
    path = report.write_report(tmp_path, EvaluationSettings("he", "published", weights="0123456789abcdef"), "MSD09", reports)
    text = path.read_text()
    for words in ("as published, on MSD09", "0123456789ab", "1 finished, 1 failed", "* b: no such file", "3 seconds"):
        assert words in text
    assert report.git_revision() in text
    assert (tmp_path / "results.csv").read_text().count("\n") == 2 and (tmp_path / "curves.png").is_file()


@pytest.mark.parametrize("settings, words", [
    (EvaluationSettings("shen", "published"), "1 voxel"), (EvaluationSettings("shen"), "2 mm"), (EvaluationSettings("he", tolerance_mm=3), "3 mm"),
])  # fmt: skip
def test_summary_names_the_tolerance_in_its_unit(settings, words):
    assert any(line.endswith(f"tolerance of {words}") for line in report.format_summary(settings, "mine", []))


def test_nothing_measured(tmp_path):
    path = report.write_report(tmp_path, EvaluationSettings("dong"), "mine", [{"case": "a", "rows": [], "seconds": 0.1}])
    assert "Nothing was measured" in path.read_text()


def evaluate_command(balls, out, *extra):
    """Return the command that evaluates the balls in a process of its own."""
    arguments = ["--protocol", "rounds", "--settings", "box", "--data", balls, "--device", "cpu", "--out", out, *extra]
    return [sys.executable, str(ROOT / "main.py"), "evaluate", *map(str, arguments)]


def read_results(out):
    """Return the rows of results.csv without the column of seconds."""
    with open(out / "results.csv") as file:
        return [{k: v for k, v in r.items() if k != "seconds"} for r in csv.DictReader(file)]


@pytest.fixture(scope="module")
def uninterrupted(balls, tmp_path_factory):
    """Return the folder of a run that was not interrupted."""
    out = tmp_path_factory.mktemp("whole")
    done = subprocess.run(evaluate_command(balls, out), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


def test_files_of_a_run(uninterrupted):
    assert {p.name for p in uninterrupted.iterdir()} == {"cases", "run.json", "results.csv", "summary.md", "curves.png", "slices.png"}
    rows = read_results(uninterrupted)
    assert {(r["case"], r["label"]) for r in rows} == {(f"ball_{n}", name) for n in range(3) for name in ("large", "small")}
    assert "all of balls" in (uninterrupted / "summary.md").read_text()


def test_a_killed_and_resumed_run_gives_the_same_results(balls, uninterrupted, tmp_path):
    process = subprocess.Popen(evaluate_command(balls, tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 240
        while not list((tmp_path / "cases").glob("*.json")) and time.monotonic() < deadline and process.poll() is None:
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, "killed before its end"
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cases").glob("*.json")}
    assert 1 <= len(kept) < 3 and not (tmp_path / "results.csv").exists()
    done = subprocess.run(evaluate_command(balls, tmp_path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and f"{len(kept)} of 3 cases are finished already" in done.stderr, done.stderr
    assert all(p.stat().st_mtime_ns == t for p, t in kept.items()), "finished cases are not repeated"
    assert read_results(tmp_path) == read_results(uninterrupted)


def test_random_clicks_from_the_command_line(balls, tmp_path, caplog):
    """The options reach the run, and the run is resumed with the same options only."""
    caplog.set_level(logging.INFO)
    folders = ["--data", str(balls), "--out", str(tmp_path)]
    command = ["evaluate", "--protocol", "isvalidate", "--edits", "3", "--method", "classical", *folders]
    assert main.main([*command, "--tolerance", "4"]) == 0
    rows, text = read_results(tmp_path), (tmp_path / "summary.md").read_text()
    assert {r["method"] for r in rows} == {"classical"} and max(int(r["round"]) for r in rows) == 3
    assert "Dice nAUC@3" in text and "tolerance of 4 mm" in text and "| random walker |" in text
    assert main.main([*command, "--tolerance", "4"]) == 0 and "3 of 3 cases are finished already" in caplog.text
    with pytest.raises(SystemExit):
        main.main(command)  # The tolerance is 2 mm now.


def test_the_tolerance_is_that_of_the_data_set(balls, tmp_path):
    """Three balls pose as a task of the Decathlon, for which the authors of IS_Validate have a tolerance."""
    task = tmp_path / "Task04_Hippocampus"
    shutil.copytree(balls, task)
    arguments = ["--limit", "1", "--labels", "large", "--method", "classical", "--data", str(task)]
    for protocol, tolerance_mm in (("isvalidate", 1.0), ("cvpr25", 2.0)):
        out = tmp_path / protocol
        assert main.main(["evaluate", "--protocol", protocol, "--out", str(out), *arguments]) == 0
        assert json.loads((out / "run.json").read_text())["tolerance_mm"] == tolerance_mm


def test_ray_gives_the_same(balls, uninterrupted, tmp_path):
    pytest.importorskip("ray")
    done = subprocess.run(evaluate_command(balls, tmp_path, "--engine", "ray", "--workers", 2), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert read_results(tmp_path) == read_results(uninterrupted)
