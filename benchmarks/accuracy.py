"""How good are the masks? This engine, MONAI Label's built-in SAM 2 task, the official video predictor and a random walker, same
weights, same clicks.

For every label of at least 50 voxels of every case, these prompts:

  clicks5       a click at the deepest point of the label's largest slice, up to four corrective ones there (Shen et al. 2024)
  box           the tight box on that slice
  three_slices  up to three such clicks on each of the slices at 20, 50 and 80 % of the label's extent
  five_slices   the same at 10, 30, 50, 70 and 90 % (not by default)

The clicks are made on this engine's masks and given to all. Figures: Dice of the prompted slices (mean), Dice of the volume,
share of the slices without the label that got a mask nevertheless.

examples:
  python benchmarks/accuracy.py --data sample-data
  python benchmarks/accuracy.py --data DIR --engines app --prompts clicks5 --json rows.json
  python benchmarks/accuracy.py --data DIR --engines app,official --prompts three_slices,five_slices
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from peers import Builtin, Official, RandomWalker  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lib.engine.options import Options  # noqa: E402
from lib.engine.segmenter import Segmenter  # noqa: E402
from lib.imaging import metrics
from lib.imaging.datasets import read_cases  # noqa: E402
from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.readers import read_mask, read_volume  # noqa: E402
from lib.prompts import simulated_annotator  # noqa: E402

PROMPTS = ("clicks5", "box", "three_slices")
SHARES = {"three_slices": (0.2, 0.5, 0.8), "five_slices": (0.1, 0.3, 0.5, 0.7, 0.9)}
ENGINES = ("app", "builtin", "official", "classical")
DEFAULT = "app,builtin,classical"
MIN_VOXELS = 50


class App:
    """This engine."""

    name = "app"

    def __init__(self, options: Options):
        self.options, self.segmenter = options, Segmenter()

    def segment(self, case, volume, frames, prompts, propagate=True) -> np.ndarray:
        chosen = Options(**{**self.options.__dict__, "propagate": propagate})
        return self.segmenter.segment(volume, self.segmenter.prompts(volume, chosen, **prompts), chosen).mask


def prompts_for(kind: str, app: App, case, volume, frames, reference) -> tuple[dict, list[int]]:
    """Prompts, and the slices they are on. Clicks correct this engine's masks."""
    def clicks(t, count):
        def predict(prompts):
            return frames.from_volume(app.segment(case, volume, frames, prompts, propagate=False))[t]

        return simulated_annotator.clicks_on_slice(predict, frames, reference, t, count)

    largest = simulated_annotator.largest_slice(reference)
    if kind == "box":
        return simulated_annotator.box_on_slice(frames, reference, largest), [largest]
    if kind == "clicks5":
        return clicks(largest, 5), [largest]
    slices = simulated_annotator.slices_at_shares(reference, SHARES[kind])
    each = [clicks(t, 3) for t in slices]
    return {k: [v for p in each for v in p[k]] for k in ("positive", "negative")}, slices


def measure(engines, app, case, kinds):
    """Rows of one case."""
    volume = read_volume(case.image)
    labels = read_mask(case.label, volume)
    frames = Frames.of(volume, window=app.options.window, axis=app.options.axis)
    for value, name in case.labels.items():
        mask = labels == value
        if mask.sum() < MIN_VOXELS:
            continue
        reference = frames.from_volume(mask)
        for kind in kinds:
            prompts, slices = prompts_for(kind, app, case, volume, frames, reference)
            for engine in engines:
                start = time.perf_counter()
                out = engine.segment(case, volume, frames, prompts)
                seconds = time.perf_counter() - start
                per_slice = metrics.slice_dice(out, mask, frames.axis)
                yield {
                    "engine": engine.name, "case": case.name, "label": name, "prompt": kind,
                    "slice_dice": round(float(per_slice[slices].mean()), 4),
                    "volume_dice": round(metrics.dice(out, mask), 4),
                    "empty_fp_share": round(metrics.empty_fp_share(out, mask, frames.axis), 4),
                    "seconds": round(seconds, 2),
                }  # fmt: skip


def table(rows: list[dict]) -> str:
    """Means over all labels of all cases, then each label."""
    lines = ["", f"{'prompt':14}{'engine':11}{'slice Dice':>11}{'volume Dice':>12}{'empty FP':>10}{'seconds':>9}{'n':>5}"]
    kinds = dict.fromkeys(r["prompt"] for r in rows)
    for kind in kinds:
        for engine in ENGINES:
            chosen = [r for r in rows if r["prompt"] == kind and r["engine"] == engine]
            if chosen:
                means = [np.nanmean([r[k] for r in chosen]) for k in ("slice_dice", "volume_dice", "empty_fp_share", "seconds")]
                lines.append(f"{kind:14}{engine:11}{means[0]:11.3f}{means[1]:12.3f}{means[2]:10.2f}{means[3]:9.1f}{len(chosen):5}")
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
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="folder with dataset.json (Medical Segmentation Decathlon layout)")
    p.add_argument("--json", type=Path, help="write the rows here")
    p.add_argument("--engines", default=DEFAULT, help=f"of {', '.join(ENGINES)} (default: %(default)s)")
    p.add_argument("--prompts", default=",".join(PROMPTS), help="default: %(default)s; also five_slices")
    p.add_argument("--cases", help="names, comma-separated (default: all)")
    p.add_argument("--checkpoint", default="embedded")
    p.add_argument("--device", default="auto")
    p.add_argument("--window", default="auto")
    p.add_argument("--components", default="annotated")
    a = p.parse_args()
    options = Options(checkpoint=a.checkpoint, device=a.device, window=a.window, components=a.components)
    app = App(options)
    make = {"app": lambda: app, "builtin": lambda: Builtin(options), "official": lambda: Official(options), "classical": RandomWalker}
    engines = [make[e]() for e in a.engines.split(",")]
    cases = [c for c in read_cases(a.data) if not a.cases or c.name in a.cases.split(",")]
    rows = []
    for case in tqdm(cases, desc="cases"):
        for row in tqdm(measure(engines, app, case, a.prompts.split(",")), desc=case.name, leave=False):
            rows.append(row)
            if a.json:
                a.json.write_text(json.dumps(rows, indent=1))
    sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()
