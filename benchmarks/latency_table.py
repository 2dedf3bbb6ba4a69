"""Summarise the rows of `latency.py`: medians of repeated runs, Dice of the masks, and the table."""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from lib.imaging import metrics  # noqa: E402

ENGINES = ("app", "builtin", "official")
STEPS = ("open", "first_click_cold", "first_click", "second_click", "correction", "second_label", "undo")


def median_rows(repetitions: list[list[dict]]) -> list[dict]:
    """Return for each step the row with the median time, with the highest memory of all repetitions.

    Args:
        repetitions: The rows of each repetition, one for each step, in the same order.
    """
    rows = []
    for repeated in zip(*repetitions, strict=True):
        row = sorted(repeated, key=lambda r: r["seconds"])[len(repeated) // 2]
        rows.append(row | {field: max(r[field] for r in repeated) for field in ("peak_host_mb", "peak_gpu_mb")})
    return rows


def read_mask(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the mask, bool (I, J, K), and the slices in a file that `latency.run_steps` has written."""
    with np.load(file) as z:
        return np.unpackbits(z["mask"], count=int(np.prod(z["shape"]))).reshape(z["shape"]).astype(bool), z["slices"]


def dice_on_slices(a: np.ndarray, b: np.ndarray, slices, axis: int) -> float:
    """Return the Dice of two masks, counting only the given slices along an axis."""
    return round(metrics.dice(np.take(a, slices, axis), np.take(b, slices, axis)), 4)


def compare_masks(out: Path, row: dict, reference: Path, axis: int) -> dict:
    """Return the Dice of a row's mask with the reference, and with the official mask on the slices that both decide on.

    Args:
        out: The folder of the masks.
        reference: File with the masks of the `first` and the `second` structure.
        axis: The slicing axis.
    """
    own_file, official_file = (out / f"{engine}_{row['step']}.npz" for engine in (row["engine"], "official"))
    if not own_file.exists():
        return {}
    mask, slices = read_mask(own_file)
    with np.load(reference) as z:
        comparison = {"dice": dice_on_slices(mask, z["second" if row["step"] == "second_label" else "first"], slices, axis)}
    if official_file.exists():
        official_mask, official_slices = read_mask(official_file)
        comparison["dice_vs_official"] = dice_on_slices(mask, official_mask, np.intersect1d(slices, official_slices), axis)
    return comparison


def format_table(rows: list[dict]) -> str:
    """Return for each case and step: seconds, Dice against reference and official predictor, how much faster the app is; and memory."""
    lines = []
    for case in dict.fromkeys(r["case"] for r in rows):
        columns = "".join(f"{e + ' s':>12}{'ms/slice':>10}{'Dice':>7}{'vs off.':>8}" for e in ENGINES)
        lines += ["", f"{case}", f"{'step':18}{columns}   app faster than"]
        for step in STEPS:
            cells = {r["engine"]: r for r in rows if r["case"] == case and r["step"] == step}
            text = f"{step:18}"
            for e in ENGINES:
                r = cells.get(e)
                ms_per_slice = f"{1000 * r['seconds'] / r['slices']:.1f}" if r and r["slices"] else ""
                dice, dice_vs_official = (f"{r[k]:.3f}" if r and k in r else "" for k in ("dice", "dice_vs_official"))
                text += f"{r['seconds'] if r else '':>12}{ms_per_slice:>10}{dice:>7}{dice_vs_official:>8}"
            if "app" in cells and step != "open":
                text += "".join(f"   {e} {cells[e]['seconds'] / cells['app']['seconds']:.1f}x" for e in ENGINES[1:] if e in cells)
            lines.append(text)
        peaks = {e: max((r["peak_host_mb"] for r in rows if r["case"] == case and r["engine"] == e), default=0) for e in ENGINES}
        lines.append("peak host memory, MB: " + ", ".join(f"{e} {v}" for e, v in peaks.items() if v))
    return "\n".join(lines)
