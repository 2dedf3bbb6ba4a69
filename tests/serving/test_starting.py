"""Starting under all circumstances: MONAI Label's own line in an activated environment, read-only folders, no HOME, CORS and a path prefix."""

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests

from lib.serving.launch import wait_for
from tests.serving.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
SITE = "https://seg.example.org"
ACTIVATE = Path(sys.prefix, "bin", "activate")

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not ACTIVATE.exists(), reason="The environment has no script that activates it."),
]


def can_mount() -> bool:
    """Return whether this process may make mounts that only its children see."""
    return bool(shutil.which("unshare")) and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.fixture
def studies(tmp_path):
    """Return a folder with the image "scan"."""
    (tmp_path / "studies").mkdir()
    voxels = np.random.default_rng(0).integers(0, 99, (24, 24, 6), dtype=np.int16)
    nib.save(nib.Nifti1Image(voxels, np.eye(4)), tmp_path / "studies" / "scan.nii.gz")
    return tmp_path / "studies"


@contextmanager
def started(line: str, port: int, log: Path, read_only: Path):
    """Run a line of MONAI Label in a new shell, in an activated environment without a home, and yield the server's address.

    Args:
        read_only: Folder that nobody can write to meanwhile, if this process may make mounts.
    """
    commands, program = ["set -e", f"source {ACTIVATE}", "unset HOME", f"exec {line} --port {port}"], ["bash", "-c"]
    if can_mount():
        commands.insert(1, f"mount --bind {read_only} {read_only} && mount -o remount,bind,ro {read_only}")
        program = ["unshare", "-m", *program]
    with open(log, "w") as output:
        process = subprocess.Popen(
            [*program, "\n".join(commands)], cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            env={k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")},
        )  # fmt: skip
    try:
        wait_for(f"http://127.0.0.1:{port}/info/", process, log=log)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def segment(address: str) -> requests.Response:
    params = {"params": '{"foreground": [[12, 12, 3]], "label": "spot"}'}
    return requests.post(f"{address}/infer/sam2?image=scan&output=json", data=params, timeout=120)


def test_the_line_of_monai_label_works_with_read_only_studies_without_home_and_under_a_prefix(studies, tmp_path):
    line = f"monailabel start_server --app apps/sam2 --studies {studies} --root_path /monai --conf cors_origins {SITE}"
    with started(line, free_port(), tmp_path / "log.txt", read_only=studies) as address:
        for client in ("ann", "ben"):
            sample = requests.post(f"{address}/activelearning/worst_slice", json={"client_id": client}, timeout=60).json()
            assert sample["id"] == "scan" and sample["RetrieveURL"].startswith("/monai/sam2/ohif?")
            assert ("lent to another" in sample["reason"]) == (client == "ben")
        assert segment(address).ok
        origins = [
            requests.get(f"{address}/info/", headers={"Origin": origin}, timeout=30).headers.get("access-control-allow-origin")
            for origin in (SITE, "https://other.example.org")
        ]
        assert origins == [SITE, None]
        batch = requests.post(f"{address}/batch/infer/sam2", json={}, timeout=60)
        assert batch.status_code == 400 and "main.py batch" in batch.json()["detail"]
        if can_mount():
            label = {"label": ("scan.nii.gz", (studies / "scan.nii.gz").read_bytes())}
            refused = requests.put(f"{address}/datastore/label?image=scan", files=label, timeout=60)
            assert refused.status_code == 500 and "read-only" in refused.json()["detail"]


@pytest.mark.skipif(not can_mount(), reason="This process cannot make a folder read-only.")
def test_an_app_folder_that_is_not_writable_serves_with_a_log_configuration(studies, tmp_path):
    """Without one, MONAI Label ends before it loads the app, because it keeps its log there."""
    line = f"monailabel start_server --app apps/sam2 --studies {studies} --log_config deploy/logging.json"
    with started(line, free_port(), tmp_path / "log.txt", read_only=ROOT / "apps" / "sam2") as address:
        assert requests.post(f"{address}/activelearning/worst_slice", json={}, timeout=60).json()["id"] == "scan"
        assert segment(address).ok and (studies / "sam2_rounds").is_dir()
        refused = requests.post(f"{address}/train/sam2?run_sync=true", json={}, timeout=60)
        assert refused.status_code == 500 and "read-only" in refused.json()["detail"]
