"""Which slice next? How well strategies find the worst slice, and how fast the mask becomes right with their help.

For every label of at least 50 voxels of every volume, the loop of He et al. 2024 is run with every strategy: annotate the largest
slice, propagate, ask the strategy for the next slice, annotate it, and so on. Figures, with 95 % intervals by bootstrap over volumes:

  spearman  correlation of what a strategy says of the slices with their true Dice, within a volume, slices without annotation
  regret    true Dice of the chosen slice minus that of the worst slice without annotation
  top3      how often the chosen slice is one of the three worst
  auc       mean volume Dice over the rounds
  rounds    annotated slices until the volume Dice reaches the target (one more than all where it does not)

All strategies are asked in all states that came up in any loop; auc and rounds are of their own loops. `gain` in the summary is the
share of the oracle's gain in auc over largest_gap that a strategy keeps.

examples:
  python benchmarks/next_slice.py --data sample-data --json rows.json --png next_slice.png
  python benchmarks/next_slice.py --generated 12
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from scipy import stats
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from lib.engine.options import Options  # noqa: E402
from lib.engine.segmenter import Segmenter  # noqa: E402
from lib.imaging.datasets import read_cases  # noqa: E402
from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.readers import read_mask, read_volume  # noqa: E402
from lib.prompts import simulated_annotator  # noqa: E402
from lib.quality import annotation_loop
from lib.quality.next_slice import STRATEGIES, RoundState, random, slice_errors  # noqa: E402

MIN_VOXELS = 50
SEEDS = 3  # of the random strategy
ANNOTATORS = {"clicks": simulated_annotator.click_annotator(3), "clicks5": simulated_annotator.click_annotator(5), "box": simulated_annotator.box_annotator, "paint": simulated_annotator.painting_annotator}
GENERATED_FROM = 9000  # seeds of generated volumes that nothing was fitted on
SCORES = {
    "oracle": lambda s: slice_errors(s.mask, s.reference)[0],
    "estimator": lambda s: s.expected_dice,
    "wrong_voxels": lambda s: -s.expected_wrong,
    "largest_gap": lambda s: -np.abs(np.arange(len(s.mask))[:, None] - sorted(s.annotated)).min(1),
    "largest_area": lambda s: -s.area,
}


def volumes_of(a) -> Iterator[tuple]:
    """(name, volume, {label: bool (T, Y, X)}, options) of the wanted volumes."""
    options = Options(checkpoint=a.checkpoint, device=a.device)
    if a.generated:
        from lib.training.object_end_calibration import generated_volume

        for n in range(a.generated):
            volume, labels, structures = generated_volume(GENERATED_FROM + n)
            yield volume.name, volume, {v: labels == v for v in structures}, replace(options, axis="2", window="0,255")
        return
    for case in read_cases(a.data):
        volume = read_volume(case.image)
        labels = Frames.of(volume, axis=options.axis).from_volume(read_mask(case.label, volume))
        yield case.name, volume, {name: labels == v for v, name in case.labels.items() if (labels == v).sum() >= MIN_VOXELS}, options


def loops(segmenter, volume, reference, options, a) -> Iterator[tuple[str, list]]:
    """(strategy, its rounds); the random one several times."""
    frames = Frames.of(volume, window=options.window, axis=options.axis)

    def segment(prompts, propagate):
        chosen = replace(options, propagate=propagate)
        return segmenter.segment(volume, segmenter.prompts(volume, chosen, **prompts), chosen)

    for name, choose in STRATEGIES.items():
        for seed in range(SEEDS if choose is random else 1):
            pick = (lambda scene, seed=seed: random(scene, seed)) if choose is random else choose
            yield name, list(annotation_loop.annotation_rounds(segment, frames, reference, pick, ANNOTATORS[a.annotate], count=a.rounds))


def judged(scene: RoundState) -> Iterator[dict]:
    """What each strategy would choose in a state, and how good that is."""
    dice, _ = slice_errors(scene.mask, scene.reference)
    rest = np.setdiff1d(np.arange(len(dice)), sorted(scene.annotated))
    if not len(rest) or dice[rest].min() == 1:
        return
    third = np.sort(dice[rest])[: 3][-1]
    for name, choose in STRATEGIES.items():
        picks = [t for s in range(SEEDS) if (t := random(scene, s)) is not None] if choose is random else [choose(scene)]
        score = SCORES[name](scene)[rest] if name in SCORES else None
        flat = score is None or np.ptp(score) == 0 or np.ptp(dice[rest]) == 0
        for t in picks:
            if t is not None:
                yield {
                    "strategy": name, "spearman": np.nan if flat else float(stats.spearmanr(score, dice[rest])[0]),
                    "regret": float(dice[t] - dice[rest].min()), "top3": float(dice[t] <= third),
                }  # fmt: skip


def measure(name, volume, references, options, a) -> tuple[list[dict], list[dict]]:
    """Rows of the states and rows of the loops of one volume."""
    segmenter = Segmenter()
    states, runs = [], []
    for label, reference in tqdm(references.items(), desc=name, leave=False):
        key = {"volume": name, "label": str(label)}
        seen: set[frozenset[int]] = set()
        for strategy, done in loops(segmenter, volume, reference, options, a):
            dice = [r.dice for r in done] + [done[-1].dice] * (a.rounds - len(done))
            reached = next((n + 1 for n, d in enumerate(dice) if d >= a.target), a.rounds + 1)
            better = [y > x for x, y in zip(dice[: len(done)], dice[1 : len(done)], strict=False)]
            runs.append({**key, "strategy": strategy, "auc": float(np.mean(dice)), "rounds_to_target": reached, "dice": dice, "better": better})
            for r in done[:-1]:
                if r.scene.annotated not in seen:
                    seen.add(r.scene.annotated)
                    states += [{**key, **row} for row in judged(r.scene)]
    return states, runs


def mean_with_interval(rows: list[dict], field: str, draws: int = 1000) -> tuple[float, float, float]:
    """Mean over volumes of the means over a volume's labels; 95 % interval by drawing volumes."""
    by: dict[str, dict[str, list]] = {}
    for r in rows:
        if not np.isnan(r[field]):
            by.setdefault(r["volume"], {}).setdefault(r["label"], []).append(r[field])
    means = np.array([x for labels in by.values() for x in (np.mean(v) for v in labels.values())])
    owner = np.array([n for n, labels in enumerate(by.values()) for _ in labels])
    if not len(means):
        return np.nan, np.nan, np.nan
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(draws):
        weight = np.bincount(rng.integers(0, len(by), len(by)), minlength=len(by))[owner]
        drawn.append(np.average(means, weights=weight))
    return float(means.mean()), *(float(x) for x in np.percentile(drawn, [2.5, 97.5]))


def summarize(states: list[dict], runs: list[dict]) -> list[dict]:
    """One row for each strategy."""
    out = []
    for name in STRATEGIES:
        mine = [r for r in states if r["strategy"] == name], [r for r in runs if r["strategy"] == name]
        row: dict = {"strategy": name, "volumes": len({r["volume"] for r in mine[1]}), "labels": len({(r["volume"], r["label"]) for r in mine[1]})}
        for field, rows in (("spearman", mine[0]), ("regret", mine[0]), ("top3", mine[0]), ("auc", mine[1]), ("rounds_to_target", mine[1])):
            mean, low, high = (round(x, 4) for x in mean_with_interval(rows, field))
            row |= {field: mean, f"{field}_interval": [low, high]}
        better = [b for r in mine[1] for b in r["better"]]
        out.append({**row, "rounds_that_help": round(float(np.mean(better)), 3) if better else None})
    auc = {r["strategy"]: r["auc"] for r in out}
    span = auc["oracle"] - auc["largest_gap"]
    return [{**r, "gain": round((r["auc"] - auc["largest_gap"]) / span, 3) if span > 0 else None} for r in out]


def table(rows: list[dict]) -> str:
    fields = ("spearman", "regret", "top3", "auc", "rounds_to_target")
    lines = [f"{'strategy':14}" + "".join(f"{f:>24}" for f in fields) + f"{'helps':>8}{'gain':>8}"]
    for r in rows:
        cells = "".join(f"{r[f]:10.3f} [{r[f + '_interval'][0]:.2f}, {r[f + '_interval'][1]:.2f}]".rjust(24) for f in fields)
        lines.append(f"{r['strategy']:14}{cells}{r['rounds_that_help'] or 0:8.2f}{'' if r['gain'] is None else r['gain']:>8}")
    return "\n".join(lines) + f"\n{rows[0]['labels']} labels of {rows[0]['volumes']} volumes"


def draw(runs: list[dict], path: Path) -> None:
    """Mean volume Dice against annotated slices."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    for name in STRATEGIES:
        curves = np.array([r["dice"] for r in runs if r["strategy"] == name])
        style = {"linewidth": 2.5} if name in ("oracle", "estimator") else {"linewidth": 1, "linestyle": "--"}
        axes.plot(np.arange(1, curves.shape[1] + 1), curves.mean(0), marker="o", markersize=3, label=name.replace("_", " "), **style)
    axes.set(xlabel="annotated slices", ylabel="mean volume Dice", xticks=range(1, curves.shape[1] + 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", help="folder with dataset.json (Medical Segmentation Decathlon layout)")
    p.add_argument("--generated", type=int, default=0, help="so many generated volumes instead, none of them fitted on")
    p.add_argument("--rounds", type=int, default=5, help="annotated slices (default: %(default)s)")
    p.add_argument("--annotate", choices=ANNOTATORS, default="clicks", help="how a slice is annotated (default: %(default)s: three)")
    p.add_argument("--target", type=float, default=0.85, help="volume Dice to reach (default: %(default)s)")
    p.add_argument("--json", type=Path)
    p.add_argument("--png", type=Path)
    p.add_argument("--checkpoint", default="embedded")
    p.add_argument("--device", default="auto")
    a = p.parse_args()
    if bool(a.data) == bool(a.generated):
        p.error("give either --data or --generated")
    states, runs = [], []
    for name, volume, references, options in tqdm(volumes_of(a), desc="volumes"):
        more = measure(name, volume, references, options, a)
        states += more[0]
        runs += more[1]
    rows = summarize(states, runs)
    if a.json:
        a.json.write_text(json.dumps(rows, indent=1))
        a.json.with_suffix(".runs.json").write_text(json.dumps({"states": states, "runs": runs}))
    if a.png:
        draw(runs, a.png)
    sys.stdout.write(table(rows) + "\n")


if __name__ == "__main__":
    main()
