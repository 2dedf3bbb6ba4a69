"""Measure how well strategies find the worst slice, and how fast the mask becomes right with their help.

For every label of at least 50 voxels of every volume, the annotation loop of He et al. 2024 is run with every strategy: annotate the
largest slice, propagate, ask the strategy for the next slice, annotate that slice, and so on. The figures have 95 % intervals from
bootstrapping over volumes:

  spearman          rank correlation of a strategy's score of the slices with their true Dice, within a volume, over the slices that
                    are not annotated
  regret            true Dice of the chosen slice minus that of the worst slice that is not annotated
  top3              how often the chosen slice is one of the three worst
  auc               mean volume Dice over the rounds
  rounds_to_target  annotated slices until the volume Dice reaches the target (the number of rounds plus one where it does not)

For spearman, regret and top3 all strategies are asked in all states that came up in any loop; auc and rounds_to_target are those of a
strategy's own loops. `helps` is the share of rounds in which the volume Dice rose. `gain` is the gain in auc over largest_gap, as a
share of the gain of the oracle, which knows the reference.

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
from lib.evaluation.intervals import Estimate, estimate_mean, format_estimate  # noqa: E402
from lib.imaging.datasets import read_cases  # noqa: E402
from lib.imaging.frames import Frames  # noqa: E402
from lib.imaging.readers import read_mask, read_volume  # noqa: E402
from lib.prompts import simulated_annotator  # noqa: E402
from lib.quality import annotation_loop  # noqa: E402
from lib.quality.next_slice import STRATEGIES, RoundState, random, slice_errors  # noqa: E402

MIN_VOXELS = 50
RANDOM_SEEDS = 3  # The random strategy is run with this many seeds.
ANNOTATORS = {
    "clicks": simulated_annotator.click_annotator(3),
    "clicks5": simulated_annotator.click_annotator(5),
    "box": simulated_annotator.box_annotator,
    "paint": simulated_annotator.painting_annotator,
}
FIRST_GENERATED_SEED = 9000  # No constant was fitted on volumes generated with this seed or a higher one.
SCORES = {  # What a strategy thinks of each slice, (T,); it chooses low scores.
    "oracle": lambda s: slice_errors(s.mask, s.reference)[0],
    "estimator": lambda s: s.expected_dice,
    "wrong_voxels": lambda s: -s.expected_wrong_pixels,
    "largest_gap": lambda s: -np.abs(np.arange(len(s.mask))[:, None] - sorted(s.annotated)).min(1),
    "largest_area": lambda s: -s.area,
}


def read_volumes(args) -> Iterator[tuple]:
    """Yield (name, volume, {label: reference mask, bool (T, Y, X)}, options) of each volume that the arguments ask for."""
    options = Options(checkpoint=args.checkpoint, device=args.device)
    if args.generated:
        from lib.training.generated_volumes import generate_volume

        for n in range(args.generated):
            volume, labels, structures = generate_volume(FIRST_GENERATED_SEED + n)
            yield volume.name, volume, {v: labels == v for v in structures}, replace(options, axis="2", window="0,255")
        return
    for case in read_cases(args.data):
        volume = read_volume(case.image)
        labels = Frames.of(volume, axis=options.axis).from_volume(read_mask(case.label, volume))
        yield case.name, volume, {name: labels == v for v, name in case.labels.items() if (labels == v).sum() >= MIN_VOXELS}, options


def run_loops(segmenter, volume, reference, options, args) -> Iterator[tuple[str, list]]:
    """Yield each strategy's name with the rounds of its annotation loop; the random strategy comes several times."""
    frames = Frames.of(volume, window=options.window, axis=options.axis)

    def segment(prompts, propagate):
        round_options = replace(options, propagate=propagate)
        return segmenter.segment(volume, segmenter.prompts(volume, round_options, **prompts), round_options)

    for name, choose in STRATEGIES.items():
        for seed in range(RANDOM_SEEDS if choose is random else 1):
            strategy = (lambda state, seed=seed: random(state, seed)) if choose is random else choose
            rounds = annotation_loop.annotation_rounds(segment, frames, reference, strategy, ANNOTATORS[args.annotate], count=args.rounds)
            yield name, list(rounds)


def judge_choices(state: RoundState) -> Iterator[dict]:
    """Yield {strategy, spearman, regret, top3} of what each strategy would choose in a state.

    Nothing is yielded when all slices are right.
    """
    dice, _ = slice_errors(state.mask, state.reference)
    not_annotated = np.setdiff1d(np.arange(len(dice)), sorted(state.annotated))
    if not len(not_annotated) or dice[not_annotated].min() == 1:
        return
    third_worst = np.sort(dice[not_annotated])[:3][-1]
    for name, choose in STRATEGIES.items():
        choices = [random(state, seed) for seed in range(RANDOM_SEEDS)] if choose is random else [choose(state)]
        score = SCORES[name](state)[not_annotated] if name in SCORES else None
        is_constant = score is None or np.ptp(score) == 0 or np.ptp(dice[not_annotated]) == 0  # There is no correlation then.
        for t in choices:
            if t is not None:
                yield {
                    "strategy": name, "spearman": np.nan if is_constant else float(stats.spearmanr(score, dice[not_annotated])[0]),
                    "regret": float(dice[t] - dice[not_annotated].min()), "top3": float(dice[t] <= third_worst),
                }  # fmt: skip


def measure(name, volume, references, options, args) -> tuple[list[dict], list[dict]]:
    """Return the rows of all states and the rows of all loops of one volume."""
    segmenter = Segmenter()
    states, loops = [], []
    for label, reference in tqdm(references.items(), desc=name, leave=False):
        key = {"volume": name, "label": str(label)}
        judged: set[frozenset[int]] = set()
        for strategy, rounds in run_loops(segmenter, volume, reference, options, args):
            dice = [r.dice for r in rounds] + [rounds[-1].dice] * (args.rounds - len(rounds))
            rounds_to_target = next((n + 1 for n, d in enumerate(dice) if d >= args.target), args.rounds + 1)
            better = [y > x for x, y in zip(dice[: len(rounds)], dice[1 : len(rounds)], strict=False)]
            loops.append({**key, "strategy": strategy, "auc": float(np.mean(dice)), "rounds_to_target": rounds_to_target,
                          "dice": dice, "better": better})  # fmt: skip
            for r in rounds[:-1]:
                if r.state.annotated not in judged:
                    judged.add(r.state.annotated)
                    states += [{**key, **row} for row in judge_choices(r.state)]
    return states, loops


def estimate_field(rows: list[dict], field: str) -> Estimate:
    """Return the mean of a field over labels, where each label of each volume counts once, with its interval."""
    values: dict[tuple[str, str], list[float]] = {}
    for r in rows:
        if not np.isnan(r[field]):
            values.setdefault((r["volume"], r["label"]), []).append(r[field])
    return estimate_mean([float(np.mean(v)) for v in values.values()], [volume for volume, _ in values])


def summarize(states: list[dict], loops: list[dict]) -> list[dict]:
    """Return one row of figures for each strategy."""
    rows = []
    for name in STRATEGIES:
        own_states, own_loops = ([r for r in all_rows if r["strategy"] == name] for all_rows in (states, loops))
        row: dict = {
            "strategy": name, "volumes": len({r["volume"] for r in own_loops}),
            "labels": len({(r["volume"], r["label"]) for r in own_loops}),
        }  # fmt: skip
        sources = {"spearman": own_states, "regret": own_states, "top3": own_states, "auc": own_loops, "rounds_to_target": own_loops}
        for field, source in sources.items():
            mean, low, high = (round(x, 4) for x in estimate_field(source, field))
            row |= {field: mean, f"{field}_interval": [low, high]}
        better = [b for r in own_loops for b in r["better"]]
        rows.append({**row, "rounds_that_help": round(float(np.mean(better)), 3) if better else None})
    auc = {r["strategy"]: r["auc"] for r in rows}
    oracle_gain = auc["oracle"] - auc["largest_gap"]
    return [{**r, "gain": round((r["auc"] - auc["largest_gap"]) / oracle_gain, 3) if oracle_gain > 0 else None} for r in rows]


def format_table(rows: list[dict]) -> str:
    """Return the figures of all strategies as text."""
    fields = ("spearman", "regret", "top3", "auc", "rounds_to_target")
    lines = [f"{'strategy':14}" + "".join(f"{f:>24}" for f in fields) + f"{'helps':>8}{'gain':>8}"]
    for r in rows:
        cells = "".join(format_estimate(Estimate(r[f], *r[f"{f}_interval"])).rjust(24) for f in fields)
        lines.append(f"{r['strategy']:14}{cells}{r['rounds_that_help'] or 0:8.2f}{'' if r['gain'] is None else r['gain']:>8}")
    return "\n".join(lines) + f"\n{rows[0]['labels']} labels of {rows[0]['volumes']} volumes"


def draw_curves(loops: list[dict], path: Path) -> None:
    """Draw the mean volume Dice against the number of annotated slices into an image file."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.add_subplot()
    for name in STRATEGIES:
        curves = np.array([r["dice"] for r in loops if r["strategy"] == name])
        style = {"linewidth": 2.5} if name in ("oracle", "estimator") else {"linewidth": 1, "linestyle": "--"}
        axes.plot(np.arange(1, curves.shape[1] + 1), curves.mean(0), marker="o", markersize=3, label=name.replace("_", " "), **style)
    axes.set(xlabel="annotated slices", ylabel="mean volume Dice", xticks=range(1, curves.shape[1] + 1))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    """Read the options, measure all volumes, print the table and write the files that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with dataset.json (Medical Segmentation Decathlon layout)")
    parser.add_argument("--generated", type=int, default=0, help="number of generated volumes to use instead; nothing was fitted on them")
    parser.add_argument("--rounds", type=int, default=5, help="annotated slices (default: %(default)s)")
    parser.add_argument("--annotate", choices=ANNOTATORS, default="clicks", help="kind of prompts (default: %(default)s, up to 3)")
    parser.add_argument("--target", type=float, default=0.85, help="volume Dice to reach (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="file for the table's rows; those of states and loops go to .runs.json beside it")
    parser.add_argument("--png", type=Path, help="file to which the mean volume Dice is drawn")
    parser.add_argument("--checkpoint", default="embedded")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    if bool(args.data) == bool(args.generated):
        parser.error("give either --data or --generated")
    states, loops = [], []
    for name, volume, references, options in tqdm(read_volumes(args), desc="volumes"):
        volume_states, volume_loops = measure(name, volume, references, options, args)
        states += volume_states
        loops += volume_loops
    rows = summarize(states, loops)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))
        args.json.with_suffix(".runs.json").write_text(json.dumps({"states": states, "runs": loops}))
    if args.png:
        draw_curves(loops, args.png)
    sys.stdout.write(format_table(rows) + "\n")


if __name__ == "__main__":
    main()
