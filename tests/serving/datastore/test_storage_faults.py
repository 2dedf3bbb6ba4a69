"""Tests of full and read-only disks, failing DICOM stores, a clock that is set back and exhausted memory, mostly on real servers."""

import gzip
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import requests
import torch
from fastapi import HTTPException

from lib.samples import phantom, sample_data
from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.datastore.studies import StudiesDatastore
from lib.serving.launch import stop
from lib.serving.web.http_errors import clear_errors
from tests.serving import orthanc
from tests.serving.active_learning.test_strategies import note_round
from tests.serving.faults import (
    KillableServer,
    image_bytes,
    label_bytes,
    record_fault,
    refusal_text,
    wait_until,
    write_ball_volumes,
)
from tests.serving.processes import free_port

pytestmark = pytest.mark.server


@pytest.fixture
def tmpfs(tmp_path):
    """Yield a function that mounts a small file system in memory and returns its folder."""
    mounted = []

    def mount(name: str, size: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        completed = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
        if completed.returncode:
            pytest.skip(f"file systems may not be mounted here: {completed.stderr.strip()}")
        mounted.append(folder)
        return folder

    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root may mount a small file system")
    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


def fill_up(folder: Path) -> Path:
    """Let the filler file take all the space that is left, and return its path."""
    path = folder / "filler"
    with open(path, "ab", 0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    return path


def test_full_and_read_only_disks(tmpfs):
    studies, temporary = tmpfs("studies", "4m"), tmpfs("temporary", "4m")
    write_ball_volumes(studies)
    (studies / "large.nii.gz").write_bytes(image_bytes(np.zeros((80, 80, 80), np.uint8)))
    server = KillableServer(studies, [("rounds", str(studies / "rounds"))], TMPDIR=temporary)
    try:
        noise = image_bytes(np.random.default_rng(0).integers(0, 255, (80, 80, 80), dtype=np.uint8))
        saved = []
        for n in range(30):
            assert server.save("ball_0", f"small{n}", label_bytes(n), n).ok
            saved.append(n)
            answer = server.save("large", f"large{n}", noise)
            if not answer.ok:
                break
        assert answer.status_code == 507 and not list(studies.glob("**/.*.tmp"))
        filler = fill_up(studies)
        assert server.save("ball_0", "small0", label_bytes(9), 9).status_code == 507
        lost = sum(server.saved_values("ball_0", f"small{n}") != (n, n) for n in saved)
        assert server.infer().ok, "masks need no space in the folder"
        filler.unlink()
        assert server.save("ball_0", "after", label_bytes(9), 9).ok
        record_fault("disk of the studies full", n + 2, refusal_text(answer), lost)

        def is_disk_full() -> bool:  # Uploads are removed a moment after their answer, which frees space again.
            nonlocal answer
            filler = fill_up(temporary)
            answer = server.infer()
            filler.unlink()
            return answer.status_code == 507

        wait_until(is_disk_full, 30)
        record_fault("disk for temporary files full", 1, refusal_text(answer), not server.infer().ok)

        subprocess.run(["mount", "-o", "remount,ro", studies], check=True)
        answer = server.save("ball_0", "small0", label_bytes(8), 8)
        assert answer.status_code == 500 and server.infer().ok
        reader = StudiesDatastore(str(studies))  # as a server that starts now
        lost = sum(server.saved_values("ball_0", f"small{n}") != (n, n) for n in saved)
        lost += sum(reader.get_label_info("ball_0", f"small{n}")["value"] != n for n in saved)
        subprocess.run(["mount", "-o", "remount,rw", studies], check=True)
        assert server.save("ball_0", "small0", label_bytes(8), 8).ok
        record_fault("datastore becomes read-only", 1, refusal_text(answer), lost)
    finally:
        server.kill()


@contextmanager
def suspended(process):
    """Suspend a process within the context; its connections stay open."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.skipif(not orthanc.IS_INSTALLED, reason="needs Orthanc and its DICOMweb plugin")
def test_a_dicom_store_that_fails(tmp_path):
    for n in range(2):
        volume, _ = phantom.abdomen(seed=n, shape=(48, 48, 12), spacing_mm=(7.0, 7.0, 20.0))
        sample_data.write_dicom(volume, tmp_path / "dicom" / str(n), modality="CT", description=f"ct_{n}")
    processes = []
    try:
        store = orthanc.start_orthanc(processes, tmp_path / "dicom", free_port())
        conf = [(k, str(tmp_path / k)) for k in ("rounds", "versions")] + [("store_seconds", "2")]
        server = KillableServer(store["dicomweb"], conf, MONAI_LABEL_DICOMWEB_CACHE_PATH=tmp_path / "cache")
        processes.append(server.process)
        first, second = (s["0020000E"]["Value"][0] for s in series_of(store, "CT"))
        mask = server.infer(first, foreground=[[24, 24, 6]])
        assert mask.ok, mask.text
        with suspended(processes[0]):
            silent = server.save(first, "final", mask.content, 1)
            fetch = server.infer(second, foreground=[[24, 24, 6]])
            assert silent.status_code == fetch.status_code == 502 and "unsent" in silent.text
            assert server.infer(first, foreground=[[24, 24, 6]]).ok, "what is in the cache needs no store"
        unsent = requests.get(f"{server.address}/datastore/label", params={"label": first, "tag": "unsent"}, timeout=30)
        assert voxels(unsent) == voxels(mask)
        answers = Counter([refusal_text(silent), refusal_text(fetch)])
        record_fault("DICOM store takes requests and does not answer", 2, answers, unsent.status_code != 200)
        accepted = server.save(first, "final", mask.content, 1)
        assert accepted.ok and len(series_of(store, "SEG")) >= 1, accepted.text
        processes[0].send_signal(signal.SIGSTOP)
        killer = threading.Timer(1.5, processes[0].kill)  # The label has been sent by then.
        killer.start()
        down = server.save(first, "final", mask.content, 2)
        killer.join()
        fetch = server.infer(second, foreground=[[24, 24, 6]])
        assert down.status_code == fetch.status_code == 502
        unsent = requests.get(f"{server.address}/datastore/label", params={"label": first, "tag": "unsent"}, timeout=30)
        answers = Counter([refusal_text(down), refusal_text(fetch)])
        record_fault("DICOM store dies in mid-request, is down", 2, answers, voxels(unsent) != voxels(mask))
    finally:
        stop(processes)


def series_of(store, modality) -> list:
    """Return the DICOM JSON of all series of a modality."""
    return requests.get(f"{store['dicomweb']}/series", params={"Modality": modality}, timeout=30).json()


def voxels(answer) -> bytes:
    """Return the voxels of the NIfTI file in an HTTP answer."""
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj).astype(np.uint8).tobytes()


def test_the_clock_is_set_back(tmp_path, monkeypatch):
    records = AnnotationRecords(tmp_path / "rounds")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 4e9)
        note_round(records, "b", 0.6)
        note_round(records, "a", 0.5, label="liver")
    newest = note_round(records, "b", 0.7, annotated=(5, 8))
    reopened = AnnotationRecords(tmp_path / "rounds")
    lost = reopened.for_image("b")["spleen"] != newest or reopened.for_image("a")["liver"]["annotated"] != [5]
    record_fault("clock set back by decades (records of rounds)", 1, "goes on", lost)


def test_out_of_memory():
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        with pytest.raises(HTTPException) as e, clear_errors(400):
            raise error
        assert e.value.status_code == 503
    record_fault("no memory left, on the GPU or at all (raised by hand)", 2, f"503: {e.value.detail}", 0)
