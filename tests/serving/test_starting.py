"""Starting under all circumstances: the user's own line in an activated environment, read-only studies, no HOME, CORS and a path prefix."""

import os
import shutil
import signal
import subprocess
import sys
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

pytestmark = pytest.mark.server


def can_mount() -> bool:
    """Return whether this process may make mounts that only its children see."""
    return bool(shutil.which("unshare")) and subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not ACTIVATE.exists(), reason="The environment has no script that activates it.")
def test_the_line_of_monai_label_works_with_read_only_studies_without_home_and_under_a_prefix(tmp_path):
    studies, port = tmp_path / "studies", free_port()
    studies.mkdir()
    nib.save(nib.Nifti1Image(np.random.default_rng(0).integers(0, 99, (24, 24, 6), dtype=np.int16), np.eye(4)), studies / "scan.nii.gz")
    line = f"monailabel start_server --app apps/sam2 --studies {studies} --port {port} --root_path /monai --conf cors_origins {SITE}"
    commands = ["set -e", f"source {ACTIVATE}", "unset HOME", f"exec {line}"]
    program = ["bash", "-c"]
    if can_mount():
        commands.insert(1, f"mount --bind {studies} {studies} && mount -o remount,bind,ro {studies}")
        program = ["unshare", "-m", *program]
    with open(tmp_path / "log.txt", "w") as log:
        process = subprocess.Popen(
            [*program, "\n".join(commands)], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            env={k: v for k, v in os.environ.items() if k not in ("VIRTUAL_ENV", "PYTHONPATH")},
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        wait_for(f"{address}/info/", process, log=tmp_path / "log.txt")
        for client in ("ann", "ben"):
            sample = requests.post(f"{address}/activelearning/worst_slice", json={"client_id": client}, timeout=60).json()
            assert sample["id"] == "scan" and sample["RetrieveURL"].startswith("/monai/sam2/ohif?")
            assert ("lent to another" in sample["reason"]) == (client == "ben")
        params = {"params": '{"foreground": [[12, 12, 3]], "label": "spot"}'}
        assert requests.post(f"{address}/infer/sam2?image=scan&output=json", data=params, timeout=120).ok
        origins = [
            requests.get(f"{address}/info/", headers={"Origin": origin}, timeout=30).headers.get("access-control-allow-origin")
            for origin in (SITE, "https://other.example.org")
        ]
        assert origins == [SITE, None]
        if can_mount():
            label = {"label": ("scan.nii.gz", (studies / "scan.nii.gz").read_bytes())}
            refused = requests.put(f"{address}/datastore/label?image=scan", files=label, timeout=60)
            assert refused.status_code == 500 and "read-only" in refused.json()["detail"]
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)
