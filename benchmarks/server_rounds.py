"""Measure whether *Next Sample* leads to better masks: annotation rounds through a real server, which is killed in between.

For every label of at least 50 voxels, a simulated annotator annotates the largest slice and asks /infer through the Slicer plugin's
client. Then it asks next_sample("worst_slice") again and again, corrects the slice that the server names and asks /infer with all
prompts. In the middle of each loop the server gets a kill -9; a new server on the same folder must name the same slice. The benchmark
prints the volume Dice of each round and the share of rounds in which it rose.

examples:
  python benchmarks/server_rounds.py --data sample-data --rounds 4
  python benchmarks/server_rounds.py --data DIR --annotate paint --json rounds.json
"""

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from finetune import slicer_client  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lib.imaging import metrics  # noqa: E402
from lib.imaging.datasets import read_cases  # noqa: E402
from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.readers import read_mask, read_volume  # noqa: E402
from lib.prompts import simulated_annotator  # noqa: E402
from lib.quality import annotation_loop  # noqa: E402
from lib.serving.launch import start_monailabel, stop, wait_for  # noqa: E402
from tests.serving.processes import free_port  # noqa: E402

MIN_VOXELS = 50
RESULT_FORMAT = {"result_extension": ".nii.gz", "result_dtype": "uint8"}


class Server:
    """A server process on a folder of studies, and the Slicer plugin's client for it.

    Attributes:
        process: The server process.
        client: The client of that process.
        kill_count: How often the server was killed.
    """

    def __init__(self, studies: Path, folder: Path):
        self._studies, self._folder = studies, folder
        self._port = free_port()
        self.kill_count = 0
        self._start()

    def _start(self) -> None:
        """Start the process and wait until it answers."""
        self.process = start_monailabel(str(self._studies), "127.0.0.1", self._port)
        address = f"http://127.0.0.1:{self._port}"
        wait_for(f"{address}/info/", self.process)
        self.client = slicer_client(address, self._folder)

    def kill_and_restart(self) -> None:
        """Kill the process without warning and start a new one on the same folder and port."""
        self.process.kill()
        self.process.wait()
        self.kill_count += 1
        self._start()


class StructureAnnotator:
    """A simulated annotator of one structure, who works through the client of a server.

    Args:
        case: The case, see `lib.imaging.datasets`.
        value: The structure's value in the label map.
        label: The structure's name.
        labels: The label map, (I, J, K).
        paints: True paints a slice, False makes up to five clicks on it.
    """

    def __init__(self, server: Server, case, value: int, label: str, volume, labels: np.ndarray, *, paints: bool):
        self._server, self._case, self._label, self._volume, self._paints = server, case, label, volume, paints
        self._structure = labels == value
        self.frames = Frames.of(volume)
        self.reference = self.frames.from_volume(self._structure)

    def infer(self, model: str, prompts: dict, **params) -> np.ndarray:
        """Ask the server with these prompts and return its mask, bool (T, Y, X)."""
        upload = self._write_painting(prompts["painted"]) if prompts.get("painted") else None
        fields = {"foreground": prompts.get("positive", []), "background": prompts.get("negative", []), "absent": prompts.get("absent", [])}
        name = {"selected_label_name" if upload else "label": self._label}  # Slicer names the structure of an uploaded painting so.
        path, _ = self._server.client.infer(model, self._case.name, {**RESULT_FORMAT, **fields, **name, **params}, label_in=upload)
        return self.frames.from_volume(np.asarray(nib.load(path).dataobj) > 0)

    def annotate(self, t: int) -> dict:
        """Return the prompts of slice t."""
        if not self.reference[t].any():
            return {"absent": [t]}
        if self._paints:
            return {"painted": [t]}
        return simulated_annotator.clicks_on_slice(
            lambda prompts: self.infer("sam2_slice", prompts, slice=t)[t], self.frames, self.reference, t, 5
        )

    def _write_painting(self, slices: list[int]) -> str:
        """Write the reference on some slices to a file for upload and return its path."""
        painted = np.zeros(self._volume.shape, np.uint8)
        for t in slices:
            index = [slice(None)] * 3
            index[self.frames.axis] = t
            painted[tuple(index)] = self._structure[tuple(index)]
        path = str(self._server.client._tmpdir + "/painted.nii.gz")
        nib.save(nib.Nifti1Image(painted, self._volume.affine), path)
        return path


def run_rounds(server: Server, annotator: StructureAnnotator, case, label: str, count: int) -> dict:
    """Run the annotation rounds of one structure, with a kill of the server in the middle.

    Returns:
        The case and label; `dice` and `slices` of each round; `lost`, whether the kill changed what the server answers;
        `same_volume`, whether the server named this volume and structure after each round.
    """
    reference = annotator.reference
    t, prompts, dice, slices, lost, same_volume = simulated_annotator.largest_slice(reference), {}, [], [], False, []
    for n in range(count):
        slices.append(t)
        prompts = annotation_loop.merge_prompts(prompts, annotator.annotate(t))
        dice.append(round(metrics.dice(annotator.infer("sam2", prompts), reference), 4))
        sample = server.client.next_sample("worst_slice", {})
        if n == count // 2:
            server.kill_and_restart()
            sample_after_kill = server.client.next_sample("worst_slice", {})
            lost |= any(sample_after_kill.get(k) != sample.get(k) for k in ("id", "slice", "label", "expected_dice", "rounds"))
        same_volume.append(sample.get("id") == case.name and sample.get("label") == label)
        if not same_volume[-1] or sample.get("slice") is None:
            break  # The structure has reached its target, and the server goes on with another one.
        t = sample["slice"]
    return {"case": case.name, "label": label, "dice": dice, "slices": slices, "lost": lost, "same_volume": same_volume}


def format_table(rows: list[dict], kill_count: int) -> str:
    """Return one line for each structure and two lines that sum up all of them."""
    rises = [y > x for r in rows for x, y in zip(r["dice"], r["dice"][1:], strict=False)]
    lines = [f"{r['case']:16}{r['label']:20}" + " ".join(f"{d:.3f}" for d in r["dice"]) + f"   slices {r['slices']}" for r in rows]
    lines += [
        f"Dice rose in {np.mean(rises):.0%} of {len(rises)} rounds; first round {np.mean([r['dice'][0] for r in rows]):.3f}, "
        f"last {np.mean([r['dice'][-1] for r in rows]):.3f}.",
        f"next_sample named the volume and structure in work {sum(sum(r['same_volume']) for r in rows)} of "
        f"{sum(len(r['same_volume']) for r in rows)} times; {kill_count} kills, {sum(r['lost'] for r in rows)} with something lost.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Read the options, run the rounds of all structures of all cases and print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="folder with dataset.json (Medical Segmentation Decathlon layout)")
    p.add_argument("--rounds", type=int, default=4, help="annotated slices (default: %(default)s)")
    p.add_argument("--annotate", choices=("clicks", "paint"), default="clicks", help="up to five clicks, or the slice is painted")
    p.add_argument("--json", type=Path, help="file to which the rows are written")
    a = p.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rounds_"))
    studies = folder / "studies"
    studies.mkdir()
    cases = read_cases(a.data)
    for case in cases:
        shutil.copy(case.image, studies / f"{case.name}{''.join(case.image.suffixes[-2:])}")
    server, rows = Server(studies, folder), []
    try:
        for case in tqdm(cases, desc="cases"):
            volume = read_volume(case.image)
            labels = read_mask(case.label, volume)
            for value, label in tqdm(case.labels.items(), desc=case.name, leave=False):
                if (labels == value).sum() >= MIN_VOXELS:
                    annotator = StructureAnnotator(server, case, value, label, volume, labels, paints=a.annotate == "paint")
                    rows.append(run_rounds(server, annotator, case, label, a.rounds))
    finally:
        stop([server.process])
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1))
    sys.stdout.write(format_table(rows, server.kill_count) + "\n")


if __name__ == "__main__":
    main()
