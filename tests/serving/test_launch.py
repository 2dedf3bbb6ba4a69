"""`main.py serve`: what it prints, what goes to the log file, and how it reports a server that fails."""

import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
import requests

from lib.common.errors import OptionError
from lib.serving import launch
from lib.serving.launch import wait_for
from tests.serving.processes import free_port

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def studies(tmp_path):
    (tmp_path / "studies").mkdir()
    nib.save(nib.Nifti1Image(np.zeros((9, 8, 4), np.int16), np.eye(4)), tmp_path / "studies" / "scan.nii.gz")
    return tmp_path / "studies"


@pytest.fixture
def port():
    """A free port, whose log file is removed afterwards."""
    port = free_port()
    yield port
    (ROOT / "build" / f"server_{port}.log").unlink(missing_ok=True)


def serve_command(studies, port, *options):
    return [sys.executable, str(ROOT / "main.py"), "serve", "--studies", str(studies), "--port", str(port), *options]


@pytest.mark.server
def test_serve_prints_what_to_click_and_ends_with_the_address(studies, port, tmp_path):
    output, log = tmp_path / "output.txt", ROOT / "build" / f"server_{port}.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("a message of an earlier server\n")
    address = f"http://127.0.0.1:{port}"
    command = serve_command(studies, port)
    with open(output, "w") as file, subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT) as process:
        try:
            wait_for(f"{address}/info/", process, log=output)
            end = time.monotonic() + 20
            while address not in output.read_text().rstrip().rpartition("\n")[2]:
                assert time.monotonic() < end, output.read_text()
                time.sleep(0.1)
            ready = output.read_text()
            assert requests.post(f"{address}/infer/sam2?image=nobody", timeout=30).status_code == 404
            assert requests.get(f"{address}/sam2/", timeout=30).ok
        finally:
            process.terminate()
            process.wait(30)
    lines = output.read_text().splitlines()
    assert output.read_text() == ready, "the terminal stays quiet while the server runs and ends"
    assert len(lines) <= 25 and lines[-1].strip() == f"{address}/sam2/", lines
    assert f"build/{log.name}" in lines[0] and any(line.startswith("Ready") for line in lines)
    messages = log.read_text()
    assert "USING:: studies" in messages and "path=/sam2/ status=200" in messages and "earlier server" not in messages


@pytest.mark.server
def test_a_server_that_does_not_start_is_reported_with_the_end_of_its_log(studies, port):
    done = subprocess.run(serve_command(studies, port, "--conf", "random", "best"), capture_output=True, text=True, timeout=180, cwd=ROOT)
    lines = done.stderr.splitlines()
    assert done.returncode == 2 and f"build/server_{port}.log" in lines[0], done.stderr
    assert "choose one of worst_slice" in done.stderr and len(lines) <= 1 + launch.LAST_LOG_LINES


def test_a_server_that_ends_is_reported_with_the_end_of_its_log(studies, port, tmp_path, monkeypatch, capsys):
    def start(studies, host, port, conf, log, root_path):
        with open(log, "w") as output:
            return subprocess.Popen([sys.executable, "-c", "for n in range(99): print('message', n)\nraise SystemExit(5)"], stdout=output)

    monkeypatch.setattr(launch, "LOGS", tmp_path / "build")
    monkeypatch.setattr(launch, "start_monailabel", start)
    monkeypatch.setattr(launch, "wait_for", lambda *_, **__: None)
    monkeypatch.setattr(launch.signal, "signal", lambda *_: None)
    assert launch.serve(str(studies), port=port) == 5
    error = capsys.readouterr().err
    assert "status 5" in error and "message 98" in error and "message 79\n" in error and "message 78" not in error


def test_one_server_serves_the_sample_data_to_all_clients(tmp_path, monkeypatch, capsys):
    started = []

    def start(studies, host, port, conf, log, root_path):
        started.append((studies, port, log.name, root_path))
        return SimpleNamespace(poll=lambda: 0, returncode=0, terminate=lambda: None, wait=lambda seconds: 0)

    monkeypatch.setattr(launch, "LOGS", tmp_path)
    monkeypatch.setattr(launch, "start_monailabel", start)
    monkeypatch.setattr(launch, "wait_for", lambda *_, **__: None)
    monkeypatch.setattr(launch, "_check_free", lambda *_: None)
    monkeypatch.setattr(launch.signal, "signal", lambda *_: None)
    (tmp_path / "server_8000.log").touch()
    assert launch.serve(None, port=8000, root_path="/monai") == 0
    lines = capsys.readouterr().out.splitlines()
    assert started == [(str(ROOT / "sample-data" / "nifti"), 8000, "server_8000.log", "/monai")]
    assert len(lines) <= 25 and lines[-1].strip() == "http://127.0.0.1:8000/monai/sam2/"


def test_a_project_that_cannot_be_written_to_is_reported_with_a_sentence(studies, port, tmp_path, monkeypatch):
    (tmp_path / "build").write_text("no folder")
    monkeypatch.setattr(launch, "LOGS", tmp_path / "build")
    with pytest.raises(OptionError, match="cannot write there .*: run a copy of the project"):
        launch.serve(str(studies), port=port)


def test_a_setting_with_which_monai_label_does_not_start_is_reported(studies, port, monkeypatch):
    monkeypatch.setenv("MONAI_LABEL_CORS_ORIGINS", '["https://seg.example.org"]')
    with pytest.raises(OptionError, match="--conf cors_origins"):
        launch.serve(str(studies), port=port)


@pytest.mark.parametrize("root_path", ["monai", "/monai/", "/", "/a b", "/<x>"])
def test_a_root_path_that_cannot_be_one_is_refused(studies, root_path):
    with pytest.raises(OptionError, match="must look like /monai"):
        launch.serve(str(studies), root_path=root_path)


def test_a_process_that_does_not_answer_is_an_error(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("the last message\n")
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as process:
        try:
            with pytest.raises(OptionError, match="within 1 s. The last lines of .*:\nthe last message"):
                wait_for(f"http://127.0.0.1:{free_port()}", process, 1, log)
        finally:
            process.kill()
