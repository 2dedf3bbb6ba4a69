"""Measure how well the app's masks obey clicks and boxes on the slice that they are made on.

Every label of at least 50 voxels of every case is annotated on its largest slice, once with up to ten corrective clicks (Shen et al. 2024)
and once with the tight box. The table shows over all labels

  clicks obeyed   share of clicks whose neighbourhood of 3 x 3 pixels is wholly on the right side, after every click for all clicks so far
  worse by 0.05   share of further clicks that lower the Dice of the slice by more than 0.05
  box filled      share of boxes whose mask has a bounding box with an IoU of at least 0.7 with the box
  dice5, dice10   Dice of the slice after five and after ten clicks, or after the last one if there are fewer
  box dice        Dice of the slice with the box

with 95 % bootstrap intervals over the cases.

examples:
  python benchmarks/obedience.py --data sample-data
  python benchmarks/obedience.py --data DIR --json rows.json
  python benchmarks/obedience.py --data DIR --own-answers
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tqdm import tqdm  # noqa: E402

from lib.engine.options import Options  # noqa: E402
from lib.engine.segmenter import Segmenter  # noqa: E402
from lib.evaluation.intervals import Estimate, estimate_ratio, format_estimate  # noqa: E402
from lib.imaging.datasets import read_cases  # noqa: E402
from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.masks import bounding_box  # noqa: E402
from lib.imaging.metrics import dice  # noqa: E402
from lib.imaging.readers import read_mask, read_volume  # noqa: E402
from lib.prompts import simulated_annotator  # noqa: E402

MIN_VOXELS = 50
CLICKS = 10
WORSE_BY = 0.05
MIN_BOX_IOU = 0.7
FIGURES = {"obeyed": "clicks obeyed", "worse": "worse by 0.05", "box_filled": "box filled", "dice5": "dice5", "dice10": "dice10",
           "box_dice": "box dice"}  # fmt: skip


def is_obeyed(mask: np.ndarray, y: int, x: int, is_positive: bool) -> bool:
    """Return whether the 3 x 3 pixels round (y, x), as far as they are in the image, are all inside (or all outside) of bool (Y, X)."""
    neighbourhood = mask[max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
    return bool((neighbourhood == is_positive).all())


def box_iou(mask: np.ndarray, reference: np.ndarray) -> float:
    """Return the IoU of the bounding boxes of two masks bool (Y, X), 0 if the first is empty."""
    box, wanted = bounding_box(mask[None]), bounding_box(reference[None])
    if box is None:
        return 0.0
    filled, wanted_area = np.zeros(mask.shape, bool), np.zeros(mask.shape, bool)
    filled[box[1:]], wanted_area[wanted[1:]] = True, True
    return float((filled & wanted_area).sum() / (filled | wanted_area).sum())


def measure_structure(segmenter: Segmenter, options: Options, volume, frames: Frames, reference: np.ndarray) -> dict:
    """Return what happens on the largest slice of a structure: counts of clicks, and the figures of the box.

    Args:
        reference: bool (T, Y, X).
    """
    t = simulated_annotator.largest_slice(reference)

    def segment(prompts: dict) -> np.ndarray:
        return frames.from_volume(segmenter.segment(volume, segmenter.prompts(volume, options, **prompts), options).mask)[t]

    obeyed, dices = [], []

    def predict(prompts: dict) -> np.ndarray:
        mask = segment(prompts)
        for sign in ("positive", "negative"):
            for voxel in prompts[sign]:
                _, y, x = frames.to_pixel(voxel)
                obeyed.append(is_obeyed(mask, int(y), int(x), sign == "positive"))
        dices.append(dice(mask, reference[t]))
        return mask

    simulated_annotator.clicks_on_slice(predict, frames, reference, t, CLICKS + 1)
    box_mask = segment(simulated_annotator.box_on_slice(frames, reference, t))
    changes = np.diff(dices)
    return {
        "obeyed": sum(obeyed), "clicks": len(obeyed), "worse": int((changes < -WORSE_BY).sum()),
        "further_clicks": len(changes), "box_filled": box_iou(box_mask, reference[t]) >= MIN_BOX_IOU,
        "dice5": dices[:5][-1], "dice10": dices[-1], "box_dice": dice(box_mask, reference[t]), "dices": dices,
    }  # fmt: skip


def measure(options: Options, cases) -> Iterator[dict]:
    """Yield one row for each structure of the cases, see `measure_structure`."""
    segmenter = Segmenter()
    for case in tqdm(cases, desc="cases"):
        volume = read_volume(case.image)
        labels = read_mask(case.label, volume)
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        for value, name in case.labels.items():
            if (labels == value).sum() >= MIN_VOXELS:
                figures = measure_structure(segmenter, options, volume, frames, frames.from_volume(labels == value))
                yield {"case": case.name, "label": name, **figures}


def summarize(rows: list[dict]) -> dict[str, Estimate]:
    """Return the figures of `FIGURES` over the rows with their intervals; a share is that of all clicks, or of all boxes."""
    totals, cases = {"obeyed": "clicks", "worse": "further_clicks"}, [r["case"] for r in rows]
    return {
        name: estimate_ratio([r[name] for r in rows], [r[totals[name]] if name in totals else 1 for r in rows], cases) for name in FIGURES
    }


def format_table(rows: list[dict]) -> str:
    """Return the figures with their intervals as text."""
    figures = summarize(rows)
    lines = [f"{len(rows)} structures of {len({r['case'] for r in rows})} cases"]
    lines += [f"{title:16}{format_estimate(figures[name])}" for name, title in FIGURES.items()]
    return "\n".join(lines)


def main() -> None:
    """Read the options, measure all cases and print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="folder with dataset.json (Medical Segmentation Decathlon layout)")
    p.add_argument("--json", type=Path, help="file to which the rows are written")
    p.add_argument("--cases", help="names of cases, separated by commas (default: all)")
    p.add_argument("--checkpoint", default="embedded")
    p.add_argument("--device", default="auto")
    p.add_argument("--window", default="auto")
    p.add_argument("--own-answers", action="store_true", help="measure the network's own answers, with the option obey off")
    a = p.parse_args()
    options = Options(checkpoint=a.checkpoint, device=a.device, window=a.window, propagate=False, obey=not a.own_answers)
    cases = [c for c in read_cases(a.data) if not a.cases or c.name in a.cases.split(",")]
    rows = []
    for row in measure(options, cases):
        rows.append(row)
        if a.json:
            a.json.write_text(json.dumps(rows, indent=1))
    sys.stdout.write(format_table(rows) + "\n")


if __name__ == "__main__":
    main()
