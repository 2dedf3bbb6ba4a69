"""Measure what *Train* brings: fine-tune through a real server on submitted labels and measure on volumes it has never seen.

The benchmark starts a server on generated phantoms and submits the labels of four of them through the Slicer plugin's client. It
measures the other phantoms (three simulated clicks on the largest slice of each structure, through /infer), posts /train/sam2, waits
until the training is done, and measures again.

examples:
  python benchmarks/finetune.py --minutes 13 --json finetune.json
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib.imaging import metrics  # noqa: E402
from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.readers import read_volume  # noqa: E402
from lib.prompts import simulated_annotator  # noqa: E402
from lib.samples import phantom  # noqa: E402
from lib.serving.launch import start_monailabel, stop, wait_for  # noqa: E402
from tests.serving.processes import free_port  # noqa: E402

TRAINING_SEEDS, TEST_SEEDS = (101, 102, 103, 104), (105, 106, 107, 108, 109, 110)  # Each seed gives another phantom.
RESULT_FORMAT = {"result_extension": ".nii.gz", "result_dtype": "uint8"}


def slicer_client(address: str, folder: Path):
    """Return the Slicer plugin's client, which runs without Slicer, for a server; it writes its files to the folder."""
    path = Path(sys.prefix, "monailabel/plugins/slicer/MONAILabel/MONAILabelLib/client.py")
    spec = importlib.util.spec_from_file_location("slicer_client", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MONAILabelClient(address, tmpdir=str(folder), client_id="bench")


def make_studies(folder: Path) -> None:
    """Write the images to `folder` and their labels to the folder reference beside it."""
    for target in (folder, folder.parent / "reference"):
        target.mkdir(parents=True)
    for seed in (*TRAINING_SEEDS, *TEST_SEEDS):
        volume, labels = phantom.abdomen(seed)
        nib.save(nib.Nifti1Image(volume.array, volume.affine), folder / f"phantom_{seed}.nii.gz")
        nib.save(nib.Nifti1Image(labels, volume.affine), folder.parent / "reference" / f"phantom_{seed}.nii.gz")


def submit_labels(client, studies: Path) -> None:
    """Submit the reference labels of the training phantoms as final labels."""
    label_info = [{"name": name, "idx": value} for name, value in phantom.LABELS.items()]
    for seed in TRAINING_SEEDS:
        client.save_label(f"phantom_{seed}", str(studies.parent / "reference" / f"phantom_{seed}.nii.gz"), "final", {"label_info": label_info})


def measure(client, studies: Path) -> list[dict]:
    """Return one row {case, label, volume_dice, checkpoint} for each structure of each test phantom."""
    rows = []
    for seed in TEST_SEEDS:
        name = f"phantom_{seed}"
        volume = read_volume(studies / f"{name}.nii.gz")
        labels = np.asarray(nib.load(studies.parent / "reference" / f"{name}.nii.gz").dataobj)
        frames = Frames.of(volume)
        for label, value in tqdm(phantom.LABELS.items(), desc=name):
            reference = frames.from_volume(labels == value)
            if not reference.any():
                continue
            t = simulated_annotator.largest_slice(reference)

            def infer(model, prompts, name=name, frames=frames, t=t):
                params = {"foreground": prompts["positive"], "background": prompts["negative"], **RESULT_FORMAT}
                path, answer = client.infer(model, name, {**params, "slice": t} if model == "sam2_slice" else params)
                return frames.from_volume(np.asarray(nib.load(path).dataobj) > 0), answer

            def predict_slice(prompts, infer=infer, t=t):
                return infer("sam2_slice", prompts)[0][t]

            mask, answer = infer("sam2", simulated_annotator.clicks_on_slice(predict_slice, frames, reference, t, 3))
            rows.append({"case": name, "label": label, "volume_dice": metrics.dice(mask, reference), "checkpoint": answer["checkpoint"]})
    return rows


def train(client, params: dict) -> tuple[str, float]:
    """Start a training, wait for its end and return its final status and its seconds."""
    start = time.monotonic()
    client.train_start("sam2", params)
    status = "SUBMITTED"
    with tqdm(desc="training", unit="s") as bar:
        while status in ("SUBMITTED", "RUNNING"):
            time.sleep(5)
            bar.update(5)
            status = client.train_status()["status"]
    return status, time.monotonic() - start


def main() -> None:
    """Read the options, measure before and after the training and print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--minutes", type=float, default=13, help="time limit of the training (default: %(default)s)")
    p.add_argument("--epochs", type=int, default=8, help="default: %(default)s")
    p.add_argument("--parts", default="decoder", help="parts of the network that are trained (default: %(default)s)")
    p.add_argument("--json", type=Path, help="file to which the rows are written")
    a = p.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="finetune_"))
    studies = folder / "studies"
    make_studies(studies)
    port = free_port()
    os.environ["MONAI_LABEL_DATASTORE_FILE_EXT"] = '["*.nii.gz"]'
    server = start_monailabel(str(studies), "127.0.0.1", port, [("versions", str(folder / "versions"))])
    try:
        address = f"http://127.0.0.1:{port}"
        wait_for(f"{address}/info/", server)
        client = slicer_client(address, folder)
        submit_labels(client, studies)
        before = measure(client, studies)
        status, seconds = train(client, {"max_epochs": a.epochs, "max_minutes": a.minutes, "parts": a.parts})
        stats = client.info()["train_stats"]["sam2"]
        after = measure(client, studies)
    finally:
        stop([server])
    means = [float(np.mean([r["volume_dice"] for r in rows])) for rows in (before, after)]
    lines = [f"{'case':14}{'label':16}{'before':>8}{'after':>8}"]
    lines += [
        f"{b['case']:14}{b['label']:16}{b['volume_dice']:8.3f}{r['volume_dice']:8.3f}" for b, r in zip(before, after, strict=True)
    ]
    lines += [
        f"{'mean':30}{means[0]:8.3f}{means[1]:8.3f}   ({after[0]['checkpoint']}, {seconds:.0f} s, task {status})",
        f"on the server: {stats.get('message')} epochs {stats.get('epoch')}, history {stats.get('history')}",
    ]
    if a.json:
        a.json.write_text(json.dumps({"before": before, "after": after, "seconds": seconds, "stats": stats}, indent=1))
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
