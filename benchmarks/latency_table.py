"""Rows of `latency.py`: the median of several turns, Dice of the masks, and the table."""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from lib.imaging import metrics  # noqa: E402

ENGINES = ("app", "builtin", "official")
STEPS = ("open", "first_click_cold", "first_click", "second_click", "correction", "second_label", "undo")


def middle(turns: list[list[dict]]) -> list[dict]:
    """Of each step the turn with the median time, and the most memory of all."""
    rows = []
    for same in zip(*turns, strict=True):
        row = sorted(same, key=lambda r: r["seconds"])[len(same) // 2]
        rows.append(row | {peak: max(r[peak] for r in same) for peak in ("peak_host_mb", "peak_gpu_mb")})
    return rows


def read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    """Mask and slices that `run_one` left."""
    with np.load(file) as z:
        return np.unpackbits(z["mask"], count=int(np.prod(z["shape"]))).reshape(z["shape"]).astype(bool), z["slices"]


def dice_on(a: np.ndarray, b: np.ndarray, slices, axis: int) -> float:
    """Dice of two masks on some slices."""
    return round(metrics.dice(np.take(a, slices, axis), np.take(b, slices, axis)), 4)


def compare(out: Path, row: dict, reference: Path, axis: int) -> dict:
    """Dice of a row's mask with the official one on the slices of both, and with the reference."""
    own, official = (out / f"{e}_{row['step']}.npz" for e in (row["engine"], "official"))
    if not own.exists():
        return {}
    mask, slices = read(own)
    with np.load(reference) as z:
        found = {"dice": dice_on(mask, z["second" if row["step"] == "second_label" else "first"], slices, axis)}
    if official.exists():
        other, theirs = read(official)
        found["dice_vs_official"] = dice_on(mask, other, np.intersect1d(slices, theirs), axis)
    return found


def table(rows: list[dict]) -> str:
    """Per case and step: seconds, speed-up of the app, Dice against the official predictor, memory."""
    lines = []
    for case in dict.fromkeys(r["case"] for r in rows):
        lines += ["", f"{case}", f"{'step':18}" + "".join(f"{e + ' s':>12}{'ms/slice':>10}{'Dice':>7}{'vs off.':>8}" for e in ENGINES) + "   app faster than"]
        for step in STEPS:
            cells = {r["engine"]: r for r in rows if r["case"] == case and r["step"] == step}
            text = f"{step:18}"
            for e in ENGINES:
                r = cells.get(e)
                each = f"{1000 * r['seconds'] / r['slices']:.1f}" if r and r["slices"] else ""
                dice, same = (f"{r[k]:.3f}" if r and k in r else "" for k in ("dice", "dice_vs_official"))
                text += f"{r['seconds'] if r else '':>12}{each:>10}{dice:>7}{same:>8}"
            if "app" in cells and step != "open":
                text += "".join(f"   {e} {cells[e]['seconds'] / cells['app']['seconds']:.1f}x" for e in ENGINES[1:] if e in cells)
            lines.append(text)
        peaks = {e: max((r["peak_host_mb"] for r in rows if r["case"] == case and r["engine"] == e), default=0) for e in ENGINES}
        lines.append("peak host memory, MB: " + ", ".join(f"{e} {v}" for e, v in peaks.items() if v))
    return "\n".join(lines)
