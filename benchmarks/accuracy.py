"""Measure how good the masks are of this app, MONAI Label's SAM 2 task, the official video predictor and a random walker.

All methods get the same clicks, and all networks the same weights. Every label of at least 50 voxels of every case is segmented
from these prompts:

  clicks5       one click at the deepest point of the label's largest slice and up to four corrective clicks on that slice
                (Shen et al. 2024)
  box           the tight box on that slice
  three_slices  up to three such clicks on each of the slices at 20, 50 and 80 % of the label's extent
  five_slices   the same at 10, 30, 50, 70 and 90 % (only if asked for)

The corrective clicks are simulated on the masks of this app and then given to all methods. The table shows the mean Dice of the
prompted slices, the Dice of the volume, and the share of the slices without the label that got a mask nevertheless (empty FP).

examples:
  python benchmarks/accuracy.py --data sample-data
  python benchmarks/accuracy.py --data DIR --engines app --prompts clicks5 --json rows.json
  python benchmarks/accuracy.py --data DIR --engines app,official --prompts three_slices,five_slices
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from peers import Builtin, Official  # noqa: E402
from random_walker import RandomWalker  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lib.engine.options import Options  # noqa: E402
from lib.engine.segmenter import Segmenter  # noqa: E402
from lib.imaging import metrics  # noqa: E402
from lib.imaging.datasets import read_cases  # noqa: E402
from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.readers import read_mask, read_volume  # noqa: E402
from lib.prompts import simulated_annotator  # noqa: E402

PROMPTS = ("clicks5", "box", "three_slices")
EXTENT_SHARES = {"three_slices": (0.2, 0.5, 0.8), "five_slices": (0.1, 0.3, 0.5, 0.7, 0.9)}
ENGINES = ("app", "builtin", "official", "classical")
DEFAULT_ENGINES = "app,builtin,classical"
MIN_VOXELS = 50


class App:
    """The engine of this app, with the same interface as the methods in `peers.py`."""

    name = "app"

    def __init__(self, options: Options):
        self.options, self.segmenter = options, Segmenter()

    def segment(self, case, volume, frames, prompts, propagate=True) -> np.ndarray:
        """Return the mask, bool (I, J, K), that the prompts give.

        Args:
            prompts: The keyword arguments of `lib.prompts.volume_prompts.make_prompts`.
            propagate: False segments the prompted slices only.
        """
        options = Options(**{**self.options.__dict__, "propagate": propagate})
        return self.segmenter.segment(volume, self.segmenter.prompts(volume, options, **prompts), options).mask


def simulate_prompts(kind: str, app: App, case, volume, frames, reference) -> tuple[dict, list[int]]:
    """Return simulated prompts for a structure and the indices of the slices that they are on.

    Args:
        kind: One of the kinds of prompts in this module's description.
        app: Its masks are those that the clicks correct.
        reference: The structure's reference mask, bool (T, Y, X).
    """
    def simulate_clicks(t, count):
        def predict(prompts):
            return frames.from_volume(app.segment(case, volume, frames, prompts, propagate=False))[t]

        return simulated_annotator.clicks_on_slice(predict, frames, reference, t, count)

    largest = simulated_annotator.largest_slice(reference)
    if kind == "box":
        return simulated_annotator.box_on_slice(frames, reference, largest), [largest]
    if kind == "clicks5":
        return simulate_clicks(largest, 5), [largest]
    slices = simulated_annotator.slices_at_shares(reference, EXTENT_SHARES[kind])
    clicks_by_slice = [simulate_clicks(t, 3) for t in slices]
    return {sign: [voxel for clicks in clicks_by_slice for voxel in clicks[sign]] for sign in ("positive", "negative")}, slices


def measure(engines, app, case, kinds) -> Iterator[dict]:
    """Yield one table row for each structure of a case, kind of prompts and engine."""
    volume = read_volume(case.image)
    labels = read_mask(case.label, volume)
    frames = Frames.of(volume, window=app.options.window, axis=app.options.axis)
    for value, name in case.labels.items():
        mask = labels == value
        if mask.sum() < MIN_VOXELS:
            continue
        reference = frames.from_volume(mask)
        for kind in kinds:
            prompts, slices = simulate_prompts(kind, app, case, volume, frames, reference)
            for engine in engines:
                start = time.perf_counter()
                predicted = engine.segment(case, volume, frames, prompts)
                seconds = time.perf_counter() - start
                dice_by_slice = metrics.slice_dice(predicted, mask, frames.axis)
                yield {
                    "engine": engine.name, "case": case.name, "label": name, "prompt": kind,
                    "slice_dice": round(float(dice_by_slice[slices].mean()), 4),
                    "volume_dice": round(metrics.dice(predicted, mask), 4),
                    "empty_fp_share": round(metrics.empty_fp_share(predicted, mask, frames.axis), 4),
                    "seconds": round(seconds, 2),
                }  # fmt: skip


def format_table(rows: list[dict]) -> str:
    """Return the rows as text: first the means over all labels of all cases, then one line for each label."""
    lines = ["", f"{'prompt':14}{'engine':11}{'slice Dice':>11}{'volume Dice':>12}{'empty FP':>10}{'seconds':>9}{'n':>5}"]
    kinds = dict.fromkeys(r["prompt"] for r in rows)
    for kind in kinds:
        for engine in ENGINES:
            selected = [r for r in rows if r["prompt"] == kind and r["engine"] == engine]
            if selected:
                means = [np.nanmean([r[k] for r in selected]) for k in ("slice_dice", "volume_dice", "empty_fp_share", "seconds")]
                lines.append(f"{kind:14}{engine:11}{means[0]:11.3f}{means[1]:12.3f}{means[2]:10.2f}{means[3]:9.1f}{len(selected):5}")
    engines = [e for e in ENGINES if any(r["engine"] == e for r in rows)]
    for kind in kinds:
        keys = list(dict.fromkeys((r["case"], r["label"]) for r in rows if r["prompt"] == kind))
        if keys:
            lines += ["", f"{kind}: slice / volume Dice", f"{'case':18}{'label':22}" + "".join(f"{e:>15}" for e in engines)]
        for key in keys:
            cells = {r["engine"]: r for r in rows if r["prompt"] == kind and (r["case"], r["label"]) == key}
            text = "".join(f"{cells[e]['slice_dice']:8.2f} / {cells[e]['volume_dice']:.2f}" if e in cells else " " * 15 for e in engines)
            lines.append(f"{key[0]:18}{key[1]:22}{text}")
    return "\n".join(lines)


def main() -> None:
    """Read the options, measure all cases and print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="folder with dataset.json (Medical Segmentation Decathlon layout)")
    p.add_argument("--json", type=Path, help="file to which the rows are written")
    p.add_argument("--engines", default=DEFAULT_ENGINES, help=f"any of {', '.join(ENGINES)} (default: %(default)s)")
    p.add_argument("--prompts", default=",".join(PROMPTS), help="kinds of prompts (default: %(default)s); five_slices is possible, too")
    p.add_argument("--cases", help="names of cases, separated by commas (default: all)")
    p.add_argument("--checkpoint", default="embedded")
    p.add_argument("--device", default="auto")
    p.add_argument("--window", default="auto")
    p.add_argument("--components", default="annotated")
    a = p.parse_args()
    options = Options(checkpoint=a.checkpoint, device=a.device, window=a.window, components=a.components)
    app = App(options)
    factories = {"app": lambda: app, "builtin": lambda: Builtin(options), "official": lambda: Official(options), "classical": RandomWalker}
    engines = [factories[e]() for e in a.engines.split(",")]
    cases = [c for c in read_cases(a.data) if not a.cases or c.name in a.cases.split(",")]
    rows = []
    for case in tqdm(cases, desc="cases"):
        for row in tqdm(measure(engines, app, case, a.prompts.split(",")), desc=case.name, leave=False):
            rows.append(row)
            if a.json:
                a.json.write_text(json.dumps(rows, indent=1))
    sys.stdout.write(format_table(rows) + "\n")


if __name__ == "__main__":
    main()
