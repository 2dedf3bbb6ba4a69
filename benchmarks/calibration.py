"""Can one believe what the network says of its own masks? Predicted against true slice IoU, and presence against reference.

For every label of at least 50 voxels the prompts of `accuracy.py`: five clicks on one slice, a box, three slices of three clicks. All
slices that were not annotated count, those without the label too. Prints the correlation, draws reliability diagrams.

examples:
  python benchmarks/calibration.py --data sample-data --png calibration.png
  python benchmarks/calibration.py --data DIR --json calibration.json --png apps/sam2/model/reliability.png
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from accuracy import MIN_VOXELS, PROMPTS, App, prompts_for  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lib.engine.options import Options  # noqa: E402
from lib.imaging.datasets import read_cases  # noqa: E402
from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.readers import read_mask, read_volume  # noqa: E402
from lib.quality.estimator import slice_iou  # noqa: E402

BINS = np.linspace(0, 1, 11)


def rows_of(app: App, case) -> list[dict]:
    """One row for each slice of each label that was not annotated."""
    volume = read_volume(case.image)
    labels = read_mask(case.label, volume)
    frames = Frames.of(volume, window=app.options.window, axis=app.options.axis)
    rows = []
    for value, name in case.labels.items():
        reference = frames.from_volume(labels == value)
        if reference.sum() < MIN_VOXELS:
            continue
        for kind in PROMPTS:
            prompts, slices = prompts_for(kind, app, case, volume, frames, reference)
            result = app.segmenter.segment(volume, app.segmenter.prompts(volume, app.options, **prompts), app.options)
            mask = frames.from_volume(result.mask)
            filled = mask.any((1, 2))
            expected, true = result.expected_iou, slice_iou(mask, reference)
            rows += [
                {"case": case.name, "label": name, "prompt": kind, "slice": t, "expected": float(expected[t]), "true": float(true[t]),
                 "presence": float(result.present[t]), "there": bool(reference[t].any()), "filled": bool(filled[t])}
                for t in range(len(frames)) if t not in slices
            ]  # fmt: skip
    return rows


def correlation(rows: list[dict]) -> float:
    """Pearson's, of expected and true slice IoU."""
    return float(np.corrcoef([r["expected"] for r in rows], [r["true"] for r in rows])[0, 1])


def reliability(said, is_so) -> list[tuple[float, float, int]]:
    """(mean said, mean true, count) of the bins of `said`."""
    said, is_so = np.asarray(said, float), np.asarray(is_so, float)
    which = np.clip(np.digitize(said, BINS) - 1, 0, len(BINS) - 2)
    return [(said[which == b].mean(), is_so[which == b].mean(), int((which == b).sum())) for b in range(len(BINS) - 1) if (which == b).any()]


def draw(rows: list[dict], path: Path) -> None:
    """Two reliability diagrams; the area of a dot is the number of slices."""
    figure = Figure(figsize=(9, 4.2))
    pairs = (("expected", "true", "slice IoU"), ("presence", "there", "the object is there"))
    for axes, (said, true, title) in zip(figure.subplots(1, 2), pairs, strict=True):
        points = reliability([r[said] for r in rows], [r[true] for r in rows])
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        x, y, n = zip(*points, strict=True)
        axes.plot(x, y)
        axes.scatter(x, y, s=10 + 300 * np.array(n) / len(rows))
        axes.set(xlabel=f"said: {title}", ylabel="measured", xlim=(0, 1), ylim=(0, 1), title=f"{title} ({len(rows)} slices)")
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="folder with dataset.json (Medical Segmentation Decathlon layout)")
    p.add_argument("--json", type=Path)
    p.add_argument("--png", type=Path)
    p.add_argument("--checkpoint", default="embedded")
    p.add_argument("--device", default="auto")
    a = p.parse_args()
    app = App(Options(checkpoint=a.checkpoint, device=a.device))
    rows = [row for case in tqdm(read_cases(a.data), desc="cases") for row in rows_of(app, case)]
    filled = [r for r in rows if r["filled"]]
    error = np.average([abs(s - t) for s, t, _ in reliability([r["expected"] for r in rows], [r["true"] for r in rows])],
                       weights=[n for *_, n in reliability([r["expected"] for r in rows], [r["true"] for r in rows])])  # fmt: skip
    summary = {
        "slices": len(rows), "correlation": round(correlation(rows), 3),
        **{f"correlation_{k}": round(correlation([r for r in rows if r["prompt"] == k]), 3) for k in PROMPTS},
        "correlation_where_there_is_a_mask": round(correlation(filled), 3), "expected_calibration_error": round(float(error), 3),
        "presence_right": round(float(np.mean([(r["presence"] > 0.5) == r["there"] for r in rows])), 3),
    }  # fmt: skip
    if a.json:
        a.json.write_text(json.dumps({"summary": summary, "rows": rows}))
    if a.png:
        draw(rows, a.png)
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
