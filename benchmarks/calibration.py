"""Measure whether the network's own estimates can be trusted: expected against true IoU, presence against the reference.

Every label of at least 50 voxels is segmented from the prompts of `accuracy.py`: five clicks on one slice, a box, and three slices
with three clicks each. All slices that were not annotated count, also those without the label. The benchmark prints the correlation
and draws reliability diagrams.

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

from accuracy import MIN_VOXELS, simulate_annotations  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lib.engine.options import Options  # noqa: E402
from lib.evaluation.methods.app import AppMethod  # noqa: E402
from lib.imaging.datasets import read_cases  # noqa: E402
from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.metrics import slice_iou  # noqa: E402
from lib.imaging.readers import read_mask, read_volume  # noqa: E402

PROMPTS = ("clicks5", "box", "three_slices")
BIN_EDGES = np.linspace(0, 1, 11)


def measure_case(app: AppMethod, case) -> list[dict]:
    """Return one row for each slice of each label that was not annotated."""
    volume = read_volume(case.image)
    labels = read_mask(case.label, volume)
    frames = Frames.of(volume, window=app.options.window, axis=app.options.axis)
    app.open(frames)
    rows = []
    for value, name in case.labels.items():
        reference = frames.from_volume(labels == value)
        if reference.sum() < MIN_VOXELS:
            continue
        for kind in PROMPTS:
            annotations = simulate_annotations(kind, app, frames, reference)
            prediction = app.segment(annotations)
            mask, result = prediction.mask, prediction.result
            has_mask = mask.any((1, 2))
            expected, true = result.estimates.expected_iou, slice_iou(mask, reference)
            rows += [
                {"case": case.name, "label": name, "prompt": kind, "slice": t, "expected": float(expected[t]), "true": float(true[t]),
                 "presence": float(result.estimates.presence[t]), "there": bool(reference[t].any()), "filled": bool(has_mask[t])}
                for t in range(len(frames)) if t not in annotations
            ]  # fmt: skip
    return rows


def correlation(rows: list[dict]) -> float:
    """Return Pearson's correlation of expected and true slice IoU."""
    return float(np.corrcoef([r["expected"] for r in rows], [r["true"] for r in rows])[0, 1])


def reliability(predicted, true) -> list[tuple[float, float, int]]:
    """Return (mean prediction, mean true value, count) of each bin of the predictions that is not empty.

    Args:
        predicted: Numbers in [0, 1].
        true: As many true values in [0, 1], or booleans.
    """
    predicted, true = np.asarray(predicted, float), np.asarray(true, float)
    bins = np.clip(np.digitize(predicted, BIN_EDGES) - 1, 0, len(BIN_EDGES) - 2)
    return [
        (predicted[bins == b].mean(), true[bins == b].mean(), int((bins == b).sum()))
        for b in range(len(BIN_EDGES) - 1) if (bins == b).any()
    ]  # fmt: skip


def draw_diagrams(rows: list[dict], path: Path) -> None:
    """Draw the two reliability diagrams into an image file; the area of a dot is proportional to the number of its slices."""
    figure = Figure(figsize=(9, 4.2))
    fields = (("expected", "true", "slice IoU"), ("presence", "there", "the object is there"))
    for axes, (predicted, true, title) in zip(figure.subplots(1, 2), fields, strict=True):
        points = reliability([r[predicted] for r in rows], [r[true] for r in rows])
        axes.plot([0, 1], [0, 1], color="grey", linewidth=0.8)
        x, y, n = zip(*points, strict=True)
        axes.plot(x, y)
        axes.scatter(x, y, s=10 + 300 * np.array(n) / len(rows))
        axes.set(xlabel=f"predicted: {title}", ylabel="measured", xlim=(0, 1), ylim=(0, 1), title=f"{title} ({len(rows)} slices)")
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=80)


def main() -> None:
    """Read the options, measure all cases, print the summary and write the files that were asked for."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="folder with dataset.json (Medical Segmentation Decathlon layout)")
    p.add_argument("--json", type=Path, help="file to which the summary and the rows are written")
    p.add_argument("--png", type=Path, help="file to which the reliability diagrams are drawn")
    p.add_argument("--checkpoint", default="embedded")
    p.add_argument("--device", default="auto")
    a = p.parse_args()
    app = AppMethod(Options(checkpoint=a.checkpoint, device=a.device))
    rows = [row for case in tqdm(read_cases(a.data), desc="cases") for row in measure_case(app, case)]
    rows_with_mask = [r for r in rows if r["filled"]]
    points = reliability([r["expected"] for r in rows], [r["true"] for r in rows])
    error = np.average([abs(predicted - true) for predicted, true, _ in points], weights=[count for *_, count in points])
    summary = {
        "slices": len(rows), "correlation": round(correlation(rows), 3),
        **{f"correlation_{k}": round(correlation([r for r in rows if r["prompt"] == k]), 3) for k in PROMPTS},
        "correlation_where_there_is_a_mask": round(correlation(rows_with_mask), 3), "expected_calibration_error": round(float(error), 3),
        "presence_right": round(float(np.mean([(r["presence"] > 0.5) == r["there"] for r in rows])), 3),
    }  # fmt: skip
    if a.json:
        a.json.write_text(json.dumps({"summary": summary, "rows": rows}))
    if a.png:
        draw_diagrams(rows, a.png)
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
