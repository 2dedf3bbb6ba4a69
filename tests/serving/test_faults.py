"""Tests of faults on real servers: kills, damaged files, ids that lead out of the folder, two servers on one folder."""

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

from lib.serving.datastore.studies import StudiesDatastore
from tests.serving.faults import (
    TRIES,
    KillableServer,
    image_bytes,
    label_bytes,
    record_fault,
    refusal_text,
    wait_until,
    write_ball_volumes,
)

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Yield a server on three volumes and damaged ones, with a truncated checkpoint and one that is a pickle with code."""
    folder, versions, downloads = (tmp_path_factory.mktemp(n) for n in ("studies", "versions", "downloads"))
    write_ball_volumes(folder)
    content = (folder / "ball_0.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(content[: len(content) // 2])
    (folder / "swapped.nii.gz").write_bytes(content[:3000] + bytes(b ^ 255 for b in content[3000:3400]) + content[3400:])
    (folder / "text.nii.gz").write_bytes(b"no image")
    (versions / "embedded").mkdir()
    embedded = Path(__file__).resolve().parents[2] / "apps" / "sam2" / "model" / "sam2_hiera_nano_256.safetensors"
    (versions / "embedded" / "v0001.safetensors").write_bytes(embedded.read_bytes()[:1_000_000])
    (downloads / "MedSAM2_latest.pt").write_bytes(pickle.dumps(MaliciousPickle(str(downloads / "code_ran"))))
    server = KillableServer(folder, [("versions", str(versions))], SAM2_CHECKPOINTS=downloads)
    server.downloads, server.versions = downloads, versions
    try:
        yield server
    finally:
        server.kill()


class MaliciousPickle:
    """An object that creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (Path(self.path),)


class LabelSaver(threading.Thread):
    """A client that saves labels of increasing values until the server is gone.

    Attributes:
        acknowledged: The value of the last label that the server has confirmed with status 200, or None.
        answers: How often each answer came.
    """

    def __init__(self, server, image, values):
        super().__init__(daemon=True)
        self.server, self.image, self.values, self.acknowledged, self.answers = server, image, values, None, Counter()

    def run(self):
        for value in self.values:
            try:
                answer = self.server.save(self.image, "final", label_bytes(value), value)
            except requests.RequestException:
                self.answers["connection closed"] += 1
                return
            self.answers[f"{answer.status_code}"] += 1
            if answer.ok:
                self.acknowledged = value


def count_lost_labels(server, savers) -> int:
    """Return how many labels were acknowledged but are missing, incomplete or without their info."""
    lost = 0
    for s in savers:
        saved = server.saved_values(s.image, "final")
        lost += s.acknowledged is not None and (saved is None or saved[0] != saved[1] or saved[0] < s.acknowledged)
    return lost


def test_killed_while_it_answers_and_saves(server):
    save_answers, infer_answers, lost = Counter(), Counter(), 0
    values = itertools.count(1)
    for _ in range(TRIES):
        savers = [LabelSaver(server, f"ball_{n}", itertools.islice(values, 80)) for n in (1, 2)]
        asker = threading.Thread(target=infer_until_gone, args=(server, infer_answers), daemon=True)
        for thread in (asker, *savers):
            thread.start()
        time.sleep(random.uniform(0.1, 1.5))  # The kill may come at any moment.
        server.kill()
        for thread in (asker, *savers):
            thread.join(60)
        save_answers.update(sum((s.answers for s in savers), Counter()))
        server.start()
        lost += count_lost_labels(server, savers)
        assert not list(Path(server.studies).glob("**/.*.tmp")) and server.infer().ok
    record_fault("server killed (-9) while it saves labels", TRIES, save_answers, lost)
    record_fault("server killed (-9) while it segments", TRIES, infer_answers, lost)


def infer_until_gone(server, answers: Counter) -> None:
    """Ask for masks until the server is gone, each with another window, so that all slices must be encoded again."""
    with suppress(requests.RequestException):
        for n in itertools.count():
            answers[str(server.infer(window=f"{-100 - n},{300 + n}").status_code)] += 1
    answers["connection closed"] += 1


def test_killed_while_it_scores(server):
    """The scoring process is killed between two results; the labels and infos that it reads and writes stay complete."""
    folder, count = Path(server.studies), 12
    content = image_bytes(np.random.default_rng(0).integers(0, 3, (96, 96, 24), dtype=np.uint8))
    for n in range(count):
        for target in (folder, folder / "labels" / "final", folder / "labels" / "original"):
            (target / f"more_{n}.nii.gz").write_bytes(content)
    wait_until(lambda: server.save("more_0", "final", content, 7).ok)
    assert requests.post(f"{server.address}/scoring/slice_dice", timeout=30).ok
    wait_until(lambda: "slice_dice" in (folder / "datastore_v2.json").read_text(), pause_s=0.01)
    for process in psutil.Process(server.process.pid).children(recursive=True):
        process.kill()
    store = StudiesDatastore(str(folder))
    scored = sum("slice_dice" in store.get_image_info(f"more_{n}") for n in range(count))
    assert 0 < scored < count, "killed too late"
    files = [f for f in folder.rglob("more_*") if "history" not in f.relative_to(folder).parts]
    lost = sum(f.read_bytes() != content for f in files) + abs(len(files) - 3 * count)
    lost += store.get_label_info("more_0", "final")["value"] != 7
    for file in files:
        file.unlink()
    record_fault("scoring killed (-9)", 1, f"{scored} of {count} results, whole", lost)


def test_killed_while_it_trains(server):
    folder, masks = Path(server.studies), {}
    for n in range(3):
        masks[n] = (folder / f"ball_{n}.mask").read_bytes()
        assert server.save(f"ball_{n}", "final", masks[n], 7).ok
    served = server.infer()
    assert requests.post(f"{server.address}/train/sam2", json={"max_epochs": 50, "steps_per_epoch": 50}, timeout=30).ok
    wait_until(lambda: list(server.versions.rglob("runs/*")))
    server.kill()
    server.start()
    after, lost = server.infer(), 0
    info = requests.get(f"{server.address}/info/", timeout=30).json()
    assert after.content == served.content and "v0002" not in info["models"]["sam2"]["config"]["checkpoint"]
    for n in range(3):
        answer = requests.get(f"{server.address}/datastore/label", params={"label": f"ball_{n}", "tag": "final"}, timeout=30)
        lost += answer.content != masks[n] or StudiesDatastore(str(folder)).get_label_info(f"ball_{n}", "final")["value"] != 7
    record_fault("server and its training killed (-9)", 1, "the same masks from the same version", lost)


def test_damaged_images_and_checkpoints(server):
    mask_before = server.infer().content
    for image in ("cut", "swapped", "text"):
        answer = server.infer(image)
        assert refusal_text(answer).startswith("400") and "damaged" in answer.text
    record_fault("image cut off, with wrong bytes, or no image", 3, refusal_text(answer), server.infer().content != mask_before)
    truncated = server.infer(checkpoint="v0001")
    assert truncated.status_code == 400
    record_fault("checkpoint cut off", 1, refusal_text(truncated), server.infer().content != mask_before)
    malicious = server.infer(checkpoint="medsam2")
    assert malicious.status_code == 400 and not (server.downloads / "code_ran").exists()
    answer = refusal_text(malicious) + " Its code did not run."
    record_fault("checkpoint that is a pickle with code", 1, answer, server.infer().content != mask_before)


def test_damaged_labels_replace_nothing(server):
    assert server.save("ball_1", "original", label_bytes(5), 5).ok
    content = label_bytes(6)
    for damaged in (content[:-30], content[:40], b"", b"no image"):
        answer = server.save("ball_1", "original", damaged, 6)
        assert 400 <= answer.status_code < 500, answer.text
    record_fault("label cut off, empty, or no image", 4, refusal_text(answer), server.saved_values("ball_1", "original") != (5, 5))


def test_ids_and_tags_that_lead_out_of_the_folder(server):
    before = sorted(p for p in Path(server.studies).parent.rglob("*") if "sam2_rounds" not in str(p))
    for image, tag in (("../x", "final"), ("ball_0", "../../x"), ("/etc/hostname", "final"), ("ball_0", "..")):
        answer = server.save(image, tag, label_bytes(1))
        assert 400 <= answer.status_code < 500, answer.text
    after = sorted(p for p in Path(server.studies).parent.rglob("*") if "sam2_rounds" not in str(p))
    record_fault("ids and tags with ../", 4, refusal_text(answer), before != after)


def test_two_servers_on_one_folder(server):
    other = KillableServer(server.studies, server.conf)
    try:
        savers = [LabelSaver(server, "ball_0", range(10, 18)), LabelSaver(other, "ball_0", range(20, 28)),
                  LabelSaver(server, "ball_1", range(30, 38)), LabelSaver(other, "ball_2", range(40, 48))]  # fmt: skip
        for thread in savers:
            thread.start()
        for thread in savers:
            thread.join()
        answers = sum((s.answers for s in savers), Counter())
        wait_until(lambda: other.saved_values("ball_1", "final") == (37, 37) and server.saved_values("ball_2", "final") == (47, 47), 20)
        wait_until(lambda: server.saved_values("ball_0", "final") == other.saved_values("ball_0", "final"), 20)
        store = StudiesDatastore(str(server.studies))
        lost = sum(store.get_label_info(f"ball_{n}", "final")["value"] not in last for n, last in ((0, (17, 27)), (1, (37,)), (2, (47,))))
        assert server.saved_values("ball_0", "final")[0] in (17, 27) and set(answers) == {"200"}
        record_fault("two servers save on one folder at the same time", sum(answers.values()), answers, lost)
    finally:
        other.kill()
