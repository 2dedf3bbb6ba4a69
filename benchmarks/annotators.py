"""Let simulated annotators share a folder of volumes through a server that is killed now and then, and count what went wrong.

Each annotator asks for the *Next Sample*, clicks on the bright box of that volume, submits an own final label, and goes on until no volume
is free. Then each of them submits a label of volumes that others have finished, so that labels are replaced. Meanwhile the server is
killed (kill -9) and started again. At the end, every submitted label must be the present one or in the history, and each must come back.

examples:
  python benchmarks/annotators.py
  python benchmarks/annotators.py --volumes 4 --annotators 3 --kills 1
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import nibabel as nib
import numpy as np
import requests

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib.imaging.readers import read_grid, read_mask  # noqa: E402
from lib.serving.launch import start_monailabel, wait_for  # noqa: E402
from tests.serving.processes import free_port  # noqa: E402

logger = logging.getLogger("annotators")
SHAPE, AFFINE = (48, 48, 8), np.diag([-2.0, -2.0, 5.0, 1.0])
BOX_SIDE = 10  # Voxels; the boxes of the volumes do not overlap.
TIMEOUT_S = 300


def box_of(number: int) -> np.ndarray:
    """Return the mask, bool (I, J, K), of the bright box in the volume with this number (0 to 15)."""
    box = np.zeros(SHAPE, bool)
    i, j = 1 + 12 * (number % 4), 1 + 12 * (number // 4)
    box[i : i + BOX_SIDE, j : j + BOX_SIDE, 2:6] = True
    return box


def label_of(number: int, annotator: int, version: int) -> np.ndarray:
    """Return the label, uint8 (I, J, K), that an annotator submits: the box, and a voxel that tells annotators and versions apart."""
    label = box_of(number).astype(np.uint8)
    label[annotator, version, 0] = 1
    return label


class Site:
    """A folder of volumes with a server that can be killed, and the book of what the annotators were given and have submitted.

    Attributes:
        counts: Numbers of what went wrong and of what was done.
        submitted: (volume's number, annotator, version) of each label that the server has accepted.
    """

    def __init__(self, folder: Path, volumes: int):
        self.studies, self.volumes, self.port = folder / "studies", volumes, free_port()
        self.studies.mkdir()
        for number in range(volumes):
            noise = np.random.default_rng(number).normal(40, 5, SHAPE)
            nib.save(nib.Nifti1Image((noise + 120 * box_of(number)).astype(np.int16), AFFINE), self.studies / f"volume_{number}.nii.gz")
        self.counts: Counter = Counter()
        self.submitted: list[tuple[int, int, int]] = []
        self._lock, self._holders, self._asking = threading.Lock(), {}, 0
        self.start()

    def start(self) -> None:
        """Start the server and wait until it answers."""
        self.process = start_monailabel(str(self.studies), "127.0.0.1", self.port, [("versions", str(self.studies.parent / "versions"))],
                                        log=self.studies.parent / f"server_{self.counts['kills']}.log")  # fmt: skip
        wait_for(f"http://127.0.0.1:{self.port}/info/", self.process, TIMEOUT_S)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ask(self, method: str, path: str, **fields) -> requests.Response:
        """Send a request, again and again while the server is down, and count answers with status 500."""
        end = time.monotonic() + TIMEOUT_S
        while True:
            try:
                answer = requests.request(method, f"http://127.0.0.1:{self.port}{path}", timeout=TIMEOUT_S, **fields)
            except requests.RequestException:
                if time.monotonic() > end:
                    raise
                time.sleep(0.2)
                continue
            with self._lock:
                self.counts["requests"] += 1
                self.counts["http_500"] += answer.status_code == 500
            return answer

    def next_volume(self, annotator: int) -> int | None:
        """Return the number of the volume that *Next Sample* gives to an annotator, or None if none is free.

        It counts as given twice if another annotator has it, although there are more free volumes than annotators who are just asking.
        """
        with self._lock:
            self._asking += 1
        answer = self.ask("POST", "/activelearning/worst_slice", json={"client_id": f"annotator_{annotator}"}).json()
        with self._lock:
            self._asking -= 1
            if "id" not in answer:
                return None
            number = int(answer["id"].rpartition("_")[2])
            holder = self._holders.setdefault(number, annotator)
            if holder != annotator:
                self.counts["given_twice"] += self.volumes - len(self._holders) > self._asking
                return None
            return number

    def annotate(self, number: int, annotator: int, version: int) -> None:
        """Click on the box of a volume, check the mask, and submit a label."""
        i, j, k = (int(v) for v in np.argwhere(box_of(number)).mean(0))
        params = {"foreground": [[i, j, k]], "label": "box", "client_id": f"annotator_{annotator}", "result_extension": ".nii.gz"}
        path = f"/infer/sam2?image=volume_{number}&output=image"
        answer = self.ask("POST", path, data={"params": json.dumps(params)})
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "label.nii.gz")
            if answer.ok:
                file.write_bytes(answer.content)
                mask = np.asarray(nib.load(file).dataobj) > 0
                overlaps = [int((mask & box_of(n)).sum()) for n in range(16)]
                with self._lock:
                    self.counts["mixed"] += int(np.argmax(overlaps)) != number
            nib.save(nib.Nifti1Image(label_of(number, annotator, version), AFFINE), file)
            fields = {"client_id": f"annotator_{annotator}", "label_info": [{"name": "box", "idx": 1}]}
            saved = self.ask("PUT", f"/datastore/label?image=volume_{number}&tag=final", data={"params": json.dumps(fields)},
                             files={"label": ("label.nii.gz", file.read_bytes())})  # fmt: skip
        with self._lock:
            if saved.ok:
                self.submitted.append((number, annotator, version))
            self.counts["refused"] += not (saved.ok and answer.ok)

    def check_labels(self) -> None:
        """Count submitted labels that are neither present nor in the history, and entries whose annotator or volume is not theirs."""
        for number in range(self.volumes):
            entries = self.ask("GET", f"/sam2/labels/volume_{number}").json()
            final = next((e for e in entries["labels"] if e["tag"] == "final"), None)
            stored = [(self._present_label(number), final)] if final else []
            for entry in entries["history"]:
                stored.append((self._read(number, self.studies / "labels" / "history" / f"volume_{number}" / entry["name"]), entry))
            self.counts["stored"] += len(stored)
            found = set()
            for label, entry in stored:
                rest = np.argwhere(label.astype(bool) & ~box_of(number))
                annotator, version = (int(v) for v in rest[0][:2]) if len(rest) == 1 else (-1, -1)
                found.add((number, annotator, version))
                self.counts["mixed"] += (annotator < 0 or not label[box_of(number)].all() or entry["client"] != f"annotator_{annotator}"
                                         or entry["structures"] != ["box"])  # fmt: skip
            self.counts["lost"] += len({s for s in self.submitted if s[0] == number} - found)

    def check_command(self, restores: int) -> None:
        """Count labels that `main.py labels` does not list, and labels of so many volumes that it does not bring back."""
        listing = run_labels("--studies", str(self.studies))
        for number in range(self.volumes):
            history = self.ask("GET", f"/sam2/labels/volume_{number}").json()["history"]
            self.counts["not_listed"] += sum(entry["name"] not in listing for entry in history) + (f"volume_{number}" not in listing)
            for entry in history[-1:] if number < restores else ():
                file = self.studies / "labels" / "history" / f"volume_{number}" / entry["name"]
                wanted = self._read(number, file)
                run_labels("--studies", str(self.studies), "--image", f"volume_{number}", "--restore", entry["name"])
                self.counts["restored"] += 1
                self.counts["not_restored"] += not (self._present_label(number) == wanted).all()

    def _present_label(self, number: int) -> np.ndarray:
        answer = self.ask("GET", f"/datastore/label?label=volume_{number}&tag=final")
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder, "label.nii.gz")
            file.write_bytes(answer.content)
            return self._read(number, file)

    def _read(self, number: int, file: Path) -> np.ndarray:
        return read_mask(file, read_grid(self.studies / f"volume_{number}.nii.gz"))


def run_labels(*options: str) -> str:
    """Run `main.py labels` and return what it prints."""
    command = [sys.executable, str(ROOT / "main.py"), "labels", *options]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=TIMEOUT_S).stdout


def simulate(folder: Path, volumes: int, annotators: int, kills: int, restores: int) -> Counter:
    """Run the simulation in an empty folder and return the counts, see `Site`."""
    site = Site(folder, volumes)
    try:
        _run_in_threads([lambda a=a: _share(site, a) for a in range(annotators)], site, (kills + 1) // 2)
        _run_in_threads([lambda a=a: _replace(site, a) for a in range(annotators)], site, kills // 2)
        site.counts["volumes"] = len({number for number, *_ in site.submitted})
        site.counts["submitted"] = len(site.submitted)
        site.check_labels()
        site.check_command(restores)
    finally:
        site.kill()
    return site.counts


def _share(site: Site, annotator: int) -> None:
    """Annotate volumes until none is free."""
    while (number := site.next_volume(annotator)) is not None:
        site.annotate(number, annotator, 0)


def _replace(site: Site, annotator: int) -> None:
    """Submit labels of two volumes that somebody has finished."""
    for version in (1, 2):
        site.annotate((5 * annotator + version) % site.volumes, annotator, version)


def _run_in_threads(tasks: list, site: Site, kills: int) -> None:
    """Run tasks at the same time, and meanwhile kill the server and start it again; it is killed after every few requests."""
    errors: list[BaseException] = []

    def run(task):
        try:
            task()
        except BaseException as e:
            errors.append(e)

    threads = [threading.Thread(target=run, args=(task,)) for task in tasks]
    for thread in threads:
        thread.start()
    for _ in range(kills):
        answered = site.counts["requests"]
        while site.counts["requests"] < answered + len(threads) + 3 and any(t.is_alive() for t in threads):
            time.sleep(0.02)
        site.kill()
        site.counts["kills"] += 1
        site.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def failures(counts: Counter) -> dict[str, int]:
    """Return the counts of what must not happen."""
    return {name: counts[name] for name in ("given_twice", "lost", "mixed", "http_500", "refused", "not_listed", "not_restored")}


def main() -> int:
    """Read the options, simulate and print the table; return 1 if anything went wrong."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--volumes", type=int, default=12, help="number of volumes, at most 16 (default: %(default)s)")
    p.add_argument("--annotators", type=int, default=6, help="number of annotators at the same time (default: %(default)s)")
    p.add_argument("--kills", type=int, default=4, help="how often the server is killed (default: %(default)s)")
    options = p.parse_args()
    with tempfile.TemporaryDirectory(prefix="annotators_") as folder:
        counts = simulate(Path(folder), options.volumes, options.annotators, options.kills, options.volumes)
    done = {name: counts[name] for name in ("volumes", "submitted", "stored", "kills", "requests", "restored")}
    table = {**done, **failures(counts)}
    names, figures = " | ".join(table), " | ".join(map(str, table.values()))
    sys.stdout.write(f"| {names} |\n|{' --- |' * len(table)}\n| {figures} |\n")
    return int(any(failures(counts).values()) or counts["volumes"] != options.volumes)


if __name__ == "__main__":
    sys.exit(main())
