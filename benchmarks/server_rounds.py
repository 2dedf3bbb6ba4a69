"""Does *Next Sample* lead to better masks? Rounds through a real server with the Slicer plugin's client, which is killed in between.

For every label of at least 50 voxels: annotate the largest slice, ask /infer, then again and again ask next_sample("worst_slice"),
correct the slice that it names and ask /infer with all prompts. In the middle of each loop the server gets a kill -9; the one that is
started anew must name the same slice. Prints the volume Dice of each round and the share of rounds in which it rose.

examples:
  python benchmarks/server_rounds.py --data sample-data --rounds 4
  python benchmarks/server_rounds.py --data DIR --annotate paint --json rounds.json
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from finetune import slicer_client  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lib.imaging import metrics
from lib.imaging.datasets import read_cases  # noqa: E402
from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.readers import read_mask, read_volume  # noqa: E402
from lib.prompts import simulated_annotator  # noqa: E402
from lib.quality import annotation_loop
from lib.serving.launch import free_port, start_monailabel, stop, wait_for  # noqa: E402

MIN_VOXELS = 50


class Server:
    """A server process on a folder, and a client of it."""

    def __init__(self, studies: Path, folder: Path):
        self._studies, self._folder = studies, folder
        self._port = free_port()
        self.kills = 0
        self._start()

    def _start(self) -> None:
        self.process = start_monailabel(str(self._studies), "127.0.0.1", self._port)
        address = f"http://127.0.0.1:{self._port}"
        wait_for(f"{address}/info/", self.process)
        self.client = slicer_client(address, self._folder)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.kills += 1
        self._start()


def rounds_of(server: Server, case, value: int, label: str, volume, labels, a) -> dict:
    """{case, label, dice of each round, slices, lost: whether a kill changed what the server says}."""
    frames = Frames.of(volume)
    reference = frames.from_volume(labels == value)
    fixed = {"result_extension": ".nii.gz", "result_dtype": "uint8"}

    def ask(model, prompts, **more):
        upload = None
        if prompts.get("painted"):
            painted = np.zeros(volume.shape, np.uint8)
            for t in prompts["painted"]:
                index = [slice(None)] * 3
                index[frames.axis] = t
                painted[tuple(index)] = (labels == value)[tuple(index)]
            upload = str(server.client._tmpdir + "/painted.nii.gz")
            nib.save(nib.Nifti1Image(painted, volume.affine), upload)
        fields = {"foreground": prompts.get("positive", []), "background": prompts.get("negative", []), "absent": prompts.get("absent", [])}
        name = {"selected_label_name" if upload else "label": label}  # as Slicer names the structure of an uploaded painting
        path, answer = server.client.infer(model, case.name, {**fixed, **fields, **name, **more}, label_in=upload)
        return frames.from_volume(np.asarray(nib.load(path).dataobj) > 0), answer

    def annotate(t):
        if not reference[t].any():
            return {"absent": [t]}
        if a.annotate == "paint":
            return {"painted": [t]}
        return simulated_annotator.clicks_on_slice(lambda p: ask("sam2_slice", p, slice=t)[0][t], frames, reference, t, 5)

    t, prompts, dice, slices, lost, proposals = simulated_annotator.largest_slice(reference), {}, [], [], False, []
    for n in range(a.rounds):
        slices.append(t)
        prompts = annotation_loop.merge_prompts(prompts, annotate(t))
        mask, answer = ask("sam2", prompts)
        dice.append(round(metrics.dice(mask, reference), 4))
        sample = server.client.next_sample("worst_slice", {})
        if n == a.rounds // 2:
            server.kill()
            again = server.client.next_sample("worst_slice", {})
            lost |= any(again.get(k) != sample.get(k) for k in ("id", "slice", "label", "expected_dice", "rounds"))
        proposals.append(sample.get("id") == case.name and sample.get("label") == label)
        if not proposals[-1] or sample.get("slice") is None:
            break  # at its target: the server goes on with something else
        t = sample["slice"]
    return {"case": case.name, "label": label, "dice": dice, "slices": slices, "lost": lost, "same_volume": proposals}


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="folder with dataset.json (Medical Segmentation Decathlon layout)")
    p.add_argument("--rounds", type=int, default=4, help="annotated slices (default: %(default)s)")
    p.add_argument("--annotate", choices=("clicks", "paint"), default="clicks", help="up to five clicks, or the slice painted")
    p.add_argument("--json", type=Path)
    a = p.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="rounds_"))
    studies = folder / "studies"
    studies.mkdir()
    cases = read_cases(a.data)
    for case in cases:
        (studies / f"{case.name}{''.join(case.image.suffixes[-2:])}").symlink_to(case.image.resolve())
    os.environ["MONAI_LABEL_DATASTORE_FILE_EXT"] = '["*.nii.gz"]'
    server, rows = Server(studies, folder), []
    try:
        for case in tqdm(cases, desc="cases"):
            volume = read_volume(case.image)
            labels = read_mask(case.label, volume)
            for value, label in tqdm(case.labels.items(), desc=case.name, leave=False):
                if (labels == value).sum() >= MIN_VOXELS:
                    rows.append(rounds_of(server, case, value, label, volume, labels, a))
    finally:
        stop([server.process])
    steps = [y > x for r in rows for x, y in zip(r["dice"], r["dice"][1:], strict=False)]
    lines = [f"{r['case']:16}{r['label']:20}" + " ".join(f"{d:.3f}" for d in r["dice"]) + f"   slices {r['slices']}" for r in rows]
    lines += [
        f"Dice rose in {np.mean(steps):.0%} of {len(steps)} rounds; first round {np.mean([r['dice'][0] for r in rows]):.3f}, "
        f"last {np.mean([r['dice'][-1] for r in rows]):.3f}.",
        f"next_sample named the volume and structure in work {sum(sum(r['same_volume']) for r in rows)} of "
        f"{sum(len(r['same_volume']) for r in rows)} times; {server.kills} kills, {sum(r['lost'] for r in rows)} with something lost.",
    ]
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
