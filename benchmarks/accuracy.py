"""Measure how good the masks are of this app, MONAI Label's SAM 2 task, the official video predictor and methods without a network.

All methods get the same prompts, and all networks the same weights. Every label of at least 50 voxels of every case is segmented
from these prompts:

  clicks5       one click at the deepest point of the label's largest slice and up to four corrective clicks on that slice
                (Shen et al. 2024)
  box           the tight box on that slice
  painted       that slice, painted
  three_slices  up to three such clicks on each of the slices at 20, 50 and 80 % of the label's extent
  three_painted these three slices, painted
  five_slices   up to three clicks on each of the slices at 10, 30, 50, 70 and 90 %

The corrective clicks are simulated on the masks of this app and then given to all methods. MONAI Label's task takes no painted slices,
and the interpolation between painted slices (fill) takes nothing else. The table shows means with 95 % bootstrap intervals over
volumes:

  slice Dice    of the prompted slices
  volume Dice   of all slices
  NSD           surface Dice at 2 mm
  recall        share of the slices with the label that got a mask
  empty FP      share of the slices without the label that got a mask nevertheless
  seconds       for the prompts all at once

Below it stands on how many structures the random walker (classical) has a higher volume Dice than this app.

examples:
  python benchmarks/accuracy.py --data sample-data
  python benchmarks/accuracy.py --data DIR OTHER_DIR --engines app,classical --json rows.json
  python benchmarks/accuracy.py --data DIR --engines app,fill --prompts painted,three_painted --json rows.json --resume
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

from peers import BuiltinMethod, OfficialMethod  # noqa: E402
from tqdm import tqdm  # noqa: E402

from lib.common.atomic_files import write_text  # noqa: E402
from lib.engine.options import Options  # noqa: E402
from lib.evaluation.intervals import estimate_mean, format_estimate  # noqa: E402
from lib.evaluation.methods.app import AppMethod  # noqa: E402
from lib.evaluation.methods.classical import ClassicalMethod  # noqa: E402
from lib.evaluation.methods.fill import FillMethod  # noqa: E402
from lib.evaluation.methods.method import Annotations, Method, PropagationMode, can_take, mask_prompt  # noqa: E402
from lib.evaluation.metrics import surface_dice  # noqa: E402
from lib.imaging import metrics  # noqa: E402
from lib.imaging.datasets import Case, read_cases  # noqa: E402
from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.readers import read_mask, read_volume  # noqa: E402
from lib.prompts import simulated_annotator  # noqa: E402
from lib.prompts.volume_prompts import group_by_slice, make_prompts  # noqa: E402

PROMPTS = ("clicks5", "box", "painted", "three_slices", "three_painted", "five_slices")
EXTENT_SHARES = {"three_slices": (0.2, 0.5, 0.8), "three_painted": (0.2, 0.5, 0.8), "five_slices": (0.1, 0.3, 0.5, 0.7, 0.9)}
CLICKS_ON_SLICE = {"clicks5": 5, "three_slices": 3, "five_slices": 3}
METHODS = {"app": AppMethod, "builtin": BuiltinMethod, "official": OfficialMethod, "classical": ClassicalMethod, "fill": FillMethod}
DEFAULT_ENGINES = "app,builtin,classical,fill"
MIN_VOXELS = 50
FIGURES = {
    "slice Dice": "slice_dice", "volume Dice": "volume_dice", "NSD": "nsd", "recall": "slice_recall", "empty FP": "empty_fp_share",
}  # fmt: skip
ROW_KEYS = ("data", "case", "label", "prompt", "engine")  # What identifies a row.


def simulate_annotations(kind: str, app: AppMethod, frames: Frames, reference: np.ndarray) -> Annotations:
    """Return the simulated prompts of a structure by slice.

    Args:
        kind: One of PROMPTS.
        app: The masks that the clicks correct are its masks; it has opened `frames`.
        reference: The structure's reference mask, bool (T, Y, X).
    """
    def annotate(prompts: dict) -> Annotations:
        return group_by_slice(make_prompts(frames.volume, axis=frames.axis, **prompts), frames)

    if kind in EXTENT_SHARES:
        slices = simulated_annotator.slices_at_shares(reference, EXTENT_SHARES[kind])
    else:
        slices = [simulated_annotator.largest_slice(reference)]
    if kind == "box":
        return annotate(simulated_annotator.box_on_slice(frames, reference, slices[0]))
    if kind in ("painted", "three_painted"):
        return {t: mask_prompt(reference[t]) for t in slices}
    annotations: Annotations = {}
    for t in slices:
        def predict(prompts: dict, t: int = t) -> np.ndarray:
            return app.segment(annotate(prompts), PropagationMode(propagate=False)).mask[t]

        annotations |= annotate(simulated_annotator.clicks_on_slice(predict, frames, reference, t, CLICKS_ON_SLICE[kind]))
    return annotations


def measure(case: Case, data: str, app: AppMethod, methods: list[Method], kinds: list[str], done: set[tuple]) -> Iterator[dict]:
    """Yield one table row for each structure of a case, kind of prompts and method, but for those whose ROW_KEYS are in `done`."""
    volume = read_volume(case.image)
    labels = read_mask(case.label, volume)
    frames = Frames.of(volume, window=app.options.window, axis=app.options.axis)
    spacing_mm = frames.slice_mm, *frames.pixel_mm
    for value, name in case.labels.items():
        reference = np.ascontiguousarray(frames.from_volume(labels == value))
        if reference.sum() < MIN_VOXELS:
            continue
        for kind in kinds:
            todo = [m for m in methods if (data, case.name, name, kind, m.name) not in done]
            if not todo:
                continue
            app.open(frames)
            annotations = simulate_annotations(kind, app, frames, reference)
            for method in (m for m in todo if can_take(m, annotations)):
                method.open(frames)
                start = time.perf_counter()
                mask = method.segment(annotations).mask
                seconds = time.perf_counter() - start
                yield dict(zip(ROW_KEYS, (data, case.name, name, kind, method.name), strict=True)) | {
                    "slice_dice": round(float(metrics.slice_dice(mask, reference, 0)[list(annotations)].mean()), 4),
                    "volume_dice": round(metrics.dice(mask, reference), 4),
                    "nsd": round(surface_dice(mask, reference, spacing_mm), 4),
                    "slice_recall": round(metrics.slice_recall(mask, reference, 0), 4),
                    "empty_fp_share": round(metrics.empty_fp_share(mask, reference, 0), 4),
                    "seconds": round(seconds, 2),
                }


def format_table(rows: list[dict]) -> str:
    """Return the rows as text: the means of each data set and of all, where the random walker is ahead, and a line for each label."""
    data_sets = list(dict.fromkeys(r["data"] for r in rows))
    lines = []
    for names in [[d] for d in data_sets] + ([data_sets] if len(data_sets) > 1 else []):
        lines += ["", " and ".join(names), *_format_means([r for r in rows if r["data"] in names])]
    return "\n".join([*lines, *_format_structures(rows)])


def count_classical_ahead(rows: list[dict]) -> tuple[int, int]:
    """Return on how many structures the random walker has a higher volume Dice than the app, and how many both have segmented."""
    dice: dict[tuple, dict[str, float]] = {}
    for r in rows:
        dice.setdefault(_structure(r), {})[r["engine"]] = r["volume_dice"]
    pairs = [d for d in dice.values() if {"app", "classical"} <= set(d)]
    return sum(d["classical"] > d["app"] for d in pairs), len(pairs)


def _format_means(rows: list[dict]) -> list[str]:
    """Return lines with the means over structures for each kind of prompts and method, and with `count_classical_ahead`."""
    lines = [f"{'prompt':14}{'engine':11}" + "".join(f"{name:>23}" for name in FIGURES) + f"{'seconds':>9}{'n':>5}"]
    ahead = []
    for kind in dict.fromkeys(r["prompt"] for r in rows):
        for engine in METHODS:
            selected = [r for r in rows if r["prompt"] == kind and r["engine"] == engine]
            if selected:
                volumes = [(r["data"], r["case"]) for r in selected]
                cells = [format_estimate(estimate_mean([r[k] for r in selected], volumes)) for k in FIGURES.values()]
                seconds = np.mean([r["seconds"] for r in selected])
                lines.append(f"{kind:14}{engine:11}" + "".join(f"{c:>23}" for c in cells) + f"{seconds:9.1f}{len(selected):5}")
        count, total = count_classical_ahead([r for r in rows if r["prompt"] == kind])
        if total:
            ahead.append(f"{kind} {100 * count / total:.0f} % ({count} of {total})")
    return lines + ([f"classical ahead of app in volume Dice: {', '.join(ahead)}"] if ahead else [])


def _format_structures(rows: list[dict]) -> list[str]:
    """Return lines with the figures of each structure, a block for each kind of prompts."""
    engines = [e for e in METHODS if any(r["engine"] == e for r in rows)]
    lines = []
    for kind in dict.fromkeys(r["prompt"] for r in rows):
        head = f"{'data':12}{'case':28}{'label':30}" + "".join(f"{e:>21}" for e in engines)
        lines += ["", f"{kind}: slice Dice / volume Dice / NSD", head]
        for structure in dict.fromkeys(_structure(r) for r in rows if r["prompt"] == kind):
            cells = {r["engine"]: r for r in rows if r["prompt"] == kind and _structure(r) == structure}
            figures = {e: " / ".join(f"{r[k]:.2f}" for k in ("slice_dice", "volume_dice", "nsd")) for e, r in cells.items()}
            data, case, label = structure
            lines.append(f"{data:12}{case:28}{label:30}" + "".join(f"{figures.get(e, ''):>21}" for e in engines))
    return lines


def _structure(row: dict) -> tuple[str, str, str]:
    """Return what identifies the structure of a row."""
    return row["data"], row["case"], row["label"]


def _choose(text: str, allowed, option: str, parser: argparse.ArgumentParser) -> list[str]:
    """Return the names in a comma-separated option; an unknown one ends the program with a message."""
    names = [n.strip() for n in text.split(",") if n.strip()]
    unknown = [n for n in names if n not in allowed]
    if unknown or not names:
        parser.error(f"{option}: {', '.join(unknown) or 'nothing'} is not known; use {', '.join(allowed)}.")
    return names


def main() -> None:
    """Read the options, measure all cases and print the table."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, nargs="+", help="folders with dataset.json (Medical Segmentation Decathlon layout)")
    p.add_argument("--json", type=Path, help="file to which the rows are written after each structure")
    p.add_argument("--resume", action="store_true", help="keep the rows that are in the file of --json, and measure only the others")
    p.add_argument("--engines", default=DEFAULT_ENGINES, help=f"any of {', '.join(METHODS)} (default: %(default)s)")
    p.add_argument("--prompts", default=",".join(PROMPTS), help="kinds of prompts (default: all)")
    p.add_argument("--cases", help="names of cases, separated by commas (default: all)")
    p.add_argument("--checkpoint", default="embedded")
    p.add_argument("--device", default="auto")
    p.add_argument("--window", default="auto")
    p.add_argument("--components", default="annotated")
    a = p.parse_args()
    engines, kinds = _choose(a.engines, METHODS, "--engines", p), _choose(a.prompts, PROMPTS, "--prompts", p)
    if a.resume and not a.json:
        p.error("--resume needs --json with the file of the earlier rows.")
    options = Options(checkpoint=a.checkpoint, device=a.device, window=a.window, components=a.components)
    app = AppMethod(options)
    methods = [app if e == "app" else METHODS[e](options) for e in engines]
    rows = json.loads(a.json.read_text()) if a.resume and a.json.is_file() else []
    done = {tuple(r[k] for k in ROW_KEYS) for r in rows}
    cases = [(Path(d).resolve().name, c) for d in a.data for c in read_cases(d) if not a.cases or c.name in a.cases.split(",")]
    for data, case in tqdm(cases, desc="cases"):
        for row in tqdm(measure(case, data, app, methods, kinds, done), desc=case.name, leave=False):
            rows.append(row)
            if a.json:
                write_text(a.json, json.dumps(rows, indent=1))
    sys.stdout.write(format_table(rows) + "\n")


if __name__ == "__main__":
    main()
