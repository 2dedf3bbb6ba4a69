"""Faults on real servers: kills, full and read-only disks, damaged files, a DICOM store that fails, two servers on one folder.

Each fault adds a row to build/faults.jsonl, which `benchmarks/faults.py` prints; SAM2_FAULT_TRIES sets how often a server is killed.
"""

import gzip
import itertools
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
import torch
from fastapi import HTTPException

from lib import phantom, samples
from lib.serving.errors import clear_errors
from lib.serving.folder import SafeDatastore
from lib.serving.launch import PLUGINS, start_monailabel, start_orthanc, stop, wait_for
from lib.serving.rounds import Rounds
from tests.serving.test_next_sample import work
from tests.serving.test_server import free_port

pytestmark = pytest.mark.server

TRIES = int(os.environ.get("SAM2_FAULT_TRIES", 1))
ROWS = Path(__file__).resolve().parents[2] / "build" / "faults.jsonl"
SHAPE = (48, 48, 8)
CLICK = {"foreground": [[20, 24, 4]], "label": "ball", "result_extension": ".nii.gz"}
STORE = shutil.which("Orthanc") and any(Path(d, "libOrthancDicomWeb.so").exists() for d in PLUGINS)


def row(fault: str, tries: int, got, lost: int) -> None:
    """Notes what happened; nothing may be lost. `got`: what clients were answered, text or a Counter of texts."""
    text = got if isinstance(got, str) else ", ".join(f"{k} ({n})" for k, n in sorted(got.items()))
    ROWS.parent.mkdir(exist_ok=True)
    with open(ROWS, "a") as file:
        file.write(json.dumps({"fault": fault, "tries": tries, "client_got": text, "lost": int(lost)}) + "\n")
    assert lost == 0


class Server:
    """A server process on a folder or a DICOM store, and what a client asks of it."""

    def __init__(self, studies, conf=(), **environment):
        self.studies, self.conf, self.environment = studies, list(conf), environment
        self.port = free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, str(value))
            self.process = start_monailabel(str(self.studies), "127.0.0.1", self.port, self.conf)
        wait_for(f"{self.address}/openapi.json", self.process, 120)

    def kill(self):
        """With what it started: else a training would go on without it."""
        children = psutil.Process(self.process.pid).children(recursive=True)
        self.process.kill()
        self.process.wait()
        for child in children:
            child.kill()
        psutil.wait_procs(children, 10)

    def infer(self, image="ball_0", **params):
        fields = {"params": json.dumps({**CLICK, **params})}
        return requests.post(f"{self.address}/infer/sam2", params={"image": image, "output": "image"}, data=fields, timeout=120)

    def save(self, image, tag, content: bytes, value=None):
        fields, file = {"params": json.dumps({"value": value})}, {"label": ("label.nii.gz", content)}
        where = {"image": image, "tag": tag}
        return requests.put(f"{self.address}/datastore/label", params=where, data=fields, files=file, timeout=120)

    def saved(self, image, tag) -> tuple[int, int] | None:
        """(value of all voxels, value in the info) of a label; None if the server knows none."""
        where = {"label": image, "tag": tag}
        answer = requests.get(f"{self.address}/datastore/label", params=where, timeout=30)
        if answer.status_code == 404:
            return None
        info = requests.get(f"{self.address}/datastore/label/info", params=where, timeout=30).json()
        values = np.unique(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj)
        assert answer.ok and len(values) == 1, "half-written, or of two labels"
        return int(values[0]), info["value"]


def image_bytes(array) -> bytes:
    return gzip.compress(nib.Nifti1Image(array, np.diag([2.0, 2.0, 5.0, 1.0])).to_bytes(), 1)


def label_bytes(value: int) -> bytes:
    return image_bytes(np.full(SHAPE, value, np.uint8))


def said(answer) -> str:
    """Status and sentence of a refusal."""
    assert answer.status_code >= 400 and "Traceback" not in answer.text, answer.text
    return f"{answer.status_code}: {answer.json()['detail']}"


def fill(folder: Path) -> list[Path]:
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    for n in range(3):
        ball = ((x - 20 - 3 * n) / 9) ** 2 + ((y - 24) / 9) ** 2 + ((z - 4) / 3.2) ** 2 < 1
        noise = np.random.default_rng(n).normal(0, 8, SHAPE)
        (folder / f"ball_{n}.nii.gz").write_bytes(image_bytes((80 + 90 * ball + noise).astype(np.int16)))
        (folder / f"ball_{n}.mask").write_bytes(image_bytes(ball.astype(np.uint8)))
    return sorted(folder.glob("*.mask"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """On a folder with three volumes, damaged ones, a checkpoint that is cut off, and one that is a program."""
    folder, versions, downloads = (tmp_path_factory.mktemp(n) for n in ("studies", "versions", "downloads"))
    fill(folder)
    whole = (folder / "ball_0.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "swapped.nii.gz").write_bytes(whole[:3000] + bytes(b ^ 255 for b in whole[3000:3400]) + whole[3400:])
    (folder / "text.nii.gz").write_bytes(b"no image")
    (versions / "embedded").mkdir()
    embedded = Path(__file__).resolve().parents[2] / "apps" / "sam2" / "model" / "sam2_hiera_nano_256.safetensors"
    (versions / "embedded" / "v0001.safetensors").write_bytes(embedded.read_bytes()[:1_000_000])
    (downloads / "MedSAM2_latest.pt").write_bytes(pickle.dumps(Program(str(downloads / "code_ran"))))
    server = Server(folder, [("versions", str(versions))], SAM2_CHECKPOINTS=downloads)
    server.downloads, server.versions = downloads, versions
    try:
        yield server
    finally:
        server.kill()


class Program:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


@pytest.fixture
def tmpfs(tmp_path):
    """Makes a small file system of its own in memory."""
    made = []

    def make(name: str, size: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"file systems may not be mounted here: {done.stderr.strip()}")
        made.append(folder)
        return folder

    if os.geteuid() != 0 or not shutil.which("mount"):
        pytest.skip("only root may mount a small file system")
    yield make
    for folder in made:
        subprocess.run(["umount", "-l", folder], check=True)


def fill_up(folder: Path) -> Path:
    """A file that takes what is left, or what has been left since."""
    path = folder / "filler"
    with open(path, "ab", 0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))
    return path


class Saver(threading.Thread):
    """Saves labels of growing value until the server is gone; `acknowledged` is the last that was answered 200."""

    def __init__(self, server, image, values):
        super().__init__(daemon=True)
        self.server, self.image, self.values, self.acknowledged, self.got = server, image, values, None, Counter()

    def run(self):
        for value in self.values:
            try:
                answer = self.server.save(self.image, "final", label_bytes(value), value)
            except requests.RequestException:
                self.got["connection closed"] += 1
                return
            self.got[f"{answer.status_code}"] += 1
            if answer.ok:
                self.acknowledged = value


def not_kept(server, savers) -> int:
    """Labels that were acknowledged and are not there, whole, with their info."""
    lost = 0
    for s in savers:
        found = server.saved(s.image, "final")
        lost += s.acknowledged is not None and (found is None or found[0] != found[1] or found[0] < s.acknowledged)
    return lost


def test_killed_while_it_answers_and_saves(server):
    got, asked, lost = Counter(), Counter(), 0
    values = itertools.count(1)
    for _ in range(TRIES):
        savers = [Saver(server, f"ball_{n}", itertools.islice(values, 80)) for n in (1, 2)]
        asker = threading.Thread(target=ask_until_gone, args=(server, asked), daemon=True)
        for thread in (asker, *savers):
            thread.start()
        time.sleep(random.uniform(0.1, 1.5))  # any moment will do
        server.kill()
        for thread in (asker, *savers):
            thread.join(60)
        got.update(sum((s.got for s in savers), Counter()))
        server.start()
        lost += not_kept(server, savers)
        assert not list(Path(server.studies).glob("**/.*.tmp")) and server.infer().ok
    row("server killed (-9) while it saves labels", TRIES, got, lost)
    row("server killed (-9) while it segments", TRIES, asked, lost)


def ask_until_gone(server, got: Counter) -> None:
    """Another window each time, so that every mask takes its time: slices are encoded anew."""
    with suppress(requests.RequestException):
        for n in itertools.count():
            got[str(server.infer(window=f"{-100 - n},{300 + n}").status_code)] += 1
    got["connection closed"] += 1


def test_killed_while_it_scores(server):
    """Its process is killed between two results; the labels and their infos, which it read and wrote beside, stay."""
    folder, count = Path(server.studies), 12
    content = image_bytes(np.random.default_rng(0).integers(0, 3, (96, 96, 24), dtype=np.uint8))
    for n in range(count):
        for place in (folder, folder / "labels" / "final", folder / "labels" / "original"):
            (place / f"more_{n}.nii.gz").write_bytes(content)
    until(lambda: server.save("more_0", "final", content, 7).ok)
    assert requests.post(f"{server.address}/scoring/slice_dice", timeout=30).ok
    until(lambda: "slice_dice" in (folder / "datastore_v2.json").read_text(), pause=0.01)
    for process in psutil.Process(server.process.pid).children(recursive=True):
        process.kill()
    kept = SafeDatastore(str(folder))
    scored = sum("slice_dice" in kept.get_image_info(f"more_{n}") for n in range(count))
    assert 0 < scored < count, "killed too late"
    lost = sum(f.read_bytes() != content for f in folder.rglob("more_*")) + abs(len(list(folder.rglob("more_*"))) - 3 * count)
    lost += kept.get_label_info("more_0", "final")["value"] != 7
    for file in folder.rglob("more_*"):
        file.unlink()
    row("scoring killed (-9)", 1, f"{scored} of {count} results, whole", lost)


def test_killed_while_it_trains(server):
    folder, masks = Path(server.studies), {}
    for n in range(3):
        masks[n] = (folder / f"ball_{n}.mask").read_bytes()
        assert server.save(f"ball_{n}", "final", masks[n], 7).ok
    served = server.infer()
    assert requests.post(f"{server.address}/train/sam2", json={"max_epochs": 50, "steps_per_epoch": 50}, timeout=30).ok
    until(lambda: list(server.versions.rglob("runs/*")))
    server.kill()
    server.start()
    after, lost = server.infer(), 0
    info = requests.get(f"{server.address}/info/", timeout=30).json()
    assert after.content == served.content and "v0002" not in info["models"]["sam2"]["config"]["checkpoint"]
    for n in range(3):
        answer = requests.get(f"{server.address}/datastore/label", params={"label": f"ball_{n}", "tag": "final"}, timeout=30)
        lost += answer.content != masks[n] or SafeDatastore(str(folder)).get_label_info(f"ball_{n}", "final")["value"] != 7
    row("server and its training killed (-9)", 1, "the same masks from the same version", lost)


def until(condition, seconds=120, pause=0.1):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(pause)


def test_damaged_images_and_checkpoints(server):
    before = server.infer().content
    for image in ("cut", "swapped", "text"):
        answer = server.infer(image)
        assert said(answer).startswith("400") and "damaged" in answer.text
    row("image cut off, with wrong bytes, or no image", 3, said(answer), server.infer().content != before)
    cut = server.infer(checkpoint="v0001")
    assert cut.status_code == 400
    row("checkpoint cut off", 1, said(cut), server.infer().content != before)
    program = server.infer(checkpoint="medsam2")
    assert program.status_code == 400 and not (server.downloads / "code_ran").exists()
    row("checkpoint that is a pickle with code", 1, said(program) + " Its code did not run.", server.infer().content != before)


def test_damaged_labels_replace_nothing(server):
    assert server.save("ball_1", "original", label_bytes(5), 5).ok
    broken = label_bytes(6)
    for content in (broken[:-30], broken[:40], b"", b"no image"):
        answer = server.save("ball_1", "original", content, 6)
        assert 400 <= answer.status_code < 500, answer.text
    row("label cut off, empty, or no image", 4, said(answer), server.saved("ball_1", "original") != (5, 5))


def test_names_that_lead_out_of_the_folder(server):
    before = sorted(p for p in Path(server.studies).parent.rglob("*") if "sam2_rounds" not in str(p))
    for image, tag in (("../x", "final"), ("ball_0", "../../x"), ("/etc/hostname", "final"), ("ball_0", "..")):
        answer = server.save(image, tag, label_bytes(1))
        assert 400 <= answer.status_code < 500, answer.text
    after = sorted(p for p in Path(server.studies).parent.rglob("*") if "sam2_rounds" not in str(p))
    row("ids and tags with ../", 4, said(answer), before != after)


def test_two_servers_on_one_folder(server):
    other = Server(server.studies, server.conf)
    try:
        savers = [Saver(server, "ball_0", range(10, 18)), Saver(other, "ball_0", range(20, 28)),
                  Saver(server, "ball_1", range(30, 38)), Saver(other, "ball_2", range(40, 48))]  # fmt: skip
        for thread in savers:
            thread.start()
        for thread in savers:
            thread.join()
        got = sum((s.got for s in savers), Counter())
        until(lambda: other.saved("ball_1", "final") == (37, 37) and server.saved("ball_2", "final") == (47, 47), 20)
        until(lambda: server.saved("ball_0", "final") == other.saved("ball_0", "final"), 20)
        kept = SafeDatastore(str(server.studies))
        lost = sum(kept.get_label_info(f"ball_{n}", "final")["value"] not in last for n, last in ((0, (17, 27)), (1, (37,)), (2, (47,))))
        assert server.saved("ball_0", "final")[0] in (17, 27) and set(got) == {"200"}
        row("two servers save on one folder at the same time", sum(got.values()), got, lost)
    finally:
        other.kill()


def test_full_and_read_only_disks(tmpfs):
    studies, temporary = tmpfs("studies", "4m"), tmpfs("temporary", "4m")
    fill(studies)
    server = Server(studies, [("rounds", str(studies / "rounds"))], TMPDIR=temporary)
    try:
        noise = image_bytes(np.random.default_rng(0).integers(0, 255, (80, 80, 80), dtype=np.uint8))
        kept = []
        for n in range(30):
            assert server.save("ball_0", f"small{n}", label_bytes(n), n).ok
            kept.append(n)
            answer = server.save("ball_1", f"large{n}", noise)
            if not answer.ok:
                break
        assert answer.status_code == 507 and not list(studies.glob("**/.*.tmp"))
        filler = fill_up(studies)
        assert server.save("ball_0", "small0", label_bytes(9), 9).status_code == 507
        lost = sum(server.saved("ball_0", f"small{n}") != (n, n) for n in kept)
        assert server.infer().ok, "masks need no room in the folder"
        filler.unlink()
        assert server.save("ball_0", "after", label_bytes(9), 9).ok
        row("disk of the studies full", n + 2, said(answer), lost)

        def full() -> bool:  # uploads are removed a moment after their answer, which makes room again
            nonlocal answer
            filler = fill_up(temporary)
            answer = server.infer()
            filler.unlink()
            return answer.status_code == 507

        until(full, 30)
        row("disk for temporary files full", 1, said(answer), not server.infer().ok)

        subprocess.run(["mount", "-o", "remount,ro", studies], check=True)
        answer = server.save("ball_0", "small0", label_bytes(8), 8)
        assert answer.status_code == 500 and server.infer().ok
        reader = SafeDatastore(str(studies))  # a server that starts now
        lost = sum(server.saved("ball_0", f"small{n}") != (n, n) for n in kept)
        lost += sum(reader.get_label_info("ball_0", f"small{n}")["value"] != n for n in kept)
        subprocess.run(["mount", "-o", "remount,rw", studies], check=True)
        assert server.save("ball_0", "small0", label_bytes(8), 8).ok
        row("datastore becomes read-only", 1, said(answer), lost)
    finally:
        server.kill()


@contextmanager
def stopped(process):
    """The process does nothing, its connections stay open."""
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


@pytest.mark.skipif(not STORE, reason="needs Orthanc and its DICOMweb plugin")
def test_a_dicom_store_that_fails(tmp_path):
    for n in range(2):
        volume, _ = phantom.abdomen(seed=n, shape=(48, 48, 12), spacing_mm=(7.0, 7.0, 20.0))
        samples.write_dicom(volume, tmp_path / "dicom" / str(n), modality="CT", description=f"ct_{n}")
    processes = []
    try:
        store = start_orthanc(processes, tmp_path / "dicom", free_port())
        conf = [(k, str(tmp_path / k)) for k in ("rounds", "versions")] + [("store_seconds", "2")]
        server = Server(store["dicomweb"], conf, MONAI_LABEL_DICOMWEB_CACHE_PATH=tmp_path / "cache")
        processes.append(server.process)
        first, second = (s["0020000E"]["Value"][0] for s in series_of(store, "CT"))
        mask = server.infer(first, foreground=[[24, 24, 6]])
        assert mask.ok, mask.text
        with stopped(processes[0]):
            slow = server.save(first, "final", mask.content, 1)
            fetch = server.infer(second, foreground=[[24, 24, 6]])
            assert slow.status_code == fetch.status_code == 502 and "unsent" in slow.text
            assert server.infer(first, foreground=[[24, 24, 6]]).ok, "what is in the cache needs no store"
        unsent = requests.get(f"{server.address}/datastore/label", params={"label": first, "tag": "unsent"}, timeout=30)
        assert voxels(unsent) == voxels(mask)
        row("DICOM store takes requests and does not answer", 2, Counter([said(slow), said(fetch)]), unsent.status_code != 200)
        taken = server.save(first, "final", mask.content, 1)
        assert taken.ok and len(series_of(store, "SEG")) >= 1, taken.text
        processes[0].send_signal(signal.SIGSTOP)
        dies = threading.Timer(1.5, processes[0].kill)  # the label has been sent by then
        dies.start()
        down = server.save(first, "final", mask.content, 2)
        dies.join()
        fetch = server.infer(second, foreground=[[24, 24, 6]])
        assert down.status_code == fetch.status_code == 502
        unsent = requests.get(f"{server.address}/datastore/label", params={"label": first, "tag": "unsent"}, timeout=30)
        row("DICOM store dies in mid-request, is down", 2, Counter([said(down), said(fetch)]), voxels(unsent) != voxels(mask))
    finally:
        stop(processes)


def series_of(store, modality) -> list:
    return requests.get(f"{store['dicomweb']}/series", params={"Modality": modality}, timeout=30).json()


def voxels(answer) -> bytes:
    return np.asarray(nib.Nifti1Image.from_bytes(gzip.decompress(answer.content)).dataobj).astype(np.uint8).tobytes()


def test_the_clock_is_set_back(tmp_path, monkeypatch):
    rounds = Rounds(tmp_path / "rounds")
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: 4e9)
        work(rounds, "b", 0.6)
        work(rounds, "a", 0.5, label="liver")
    new = work(rounds, "b", 0.7, annotated=(5, 8))
    again = Rounds(tmp_path / "rounds")
    lost = again.of("b")["spleen"] != new or again.of("a")["liver"]["annotated"] != [5]
    row("clock set back by decades (records of rounds)", 1, "goes on", lost)


def test_out_of_memory():
    for error in (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()):
        with pytest.raises(HTTPException) as e, clear_errors(400):
            raise error
        assert e.value.status_code == 503
    row("no memory left, on the GPU or at all (raised by hand)", 2, f"503: {e.value.detail}", 0)
