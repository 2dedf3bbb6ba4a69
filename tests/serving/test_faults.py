"""Faults on real servers: kills, damaged files, names that lead elsewhere, two servers on one folder."""

import itertools
import pickle
import random
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests

from lib.serving.datastore.folder import FolderDatastore
from tests.serving.faults import TRIES, Server, fill, image_bytes, label_bytes, row, said, until

pytestmark = pytest.mark.server


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
    kept = FolderDatastore(str(folder))
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
        lost += answer.content != masks[n] or FolderDatastore(str(folder)).get_label_info(f"ball_{n}", "final")["value"] != 7
    row("server and its training killed (-9)", 1, "the same masks from the same version", lost)


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
        kept = FolderDatastore(str(server.studies))
        lost = sum(kept.get_label_info(f"ball_{n}", "final")["value"] not in last for n, last in ((0, (17, 27)), (1, (37,)), (2, (47,))))
        assert server.saved("ball_0", "final")[0] in (17, 27) and set(got) == {"200"}
        row("two servers save on one folder at the same time", sum(got.values()), got, lost)
    finally:
        other.kill()
