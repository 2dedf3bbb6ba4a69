"""How good is a network in the making? On generated clips it never learned from, and on labelled volumes through the engine."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging import metrics
from lib.imaging.datasets import Case
from lib.imaging.frames import Frames
from lib.imaging.readers import read_mask, read_volume
from lib.model.build import build
from lib.model.features import FeatureCache
from lib.prompts import simulated_annotator
from lib.training.clip_generator import ClipGenerator
from lib.training.clip_training import ClipTrainer
from lib.training.loop import Training

logger = logging.getLogger(__name__)

_SEED = 987_654_321  # far from the seeds of training steps


@torch.no_grad()
def on_generated(training: Training, batches: int = 4) -> dict[str, float]:
    """Mean Dice after a click, a box, a correction and while tracking, and share of right object scores."""
    phase = training.phases[min(training.phase, len(training.phases) - 1)]
    model = build(training.settings.config, image_size=phase.size, training=True).eval()
    model.load_state_dict({k: v.cpu() for k, v in training.average.items()})
    model.to(training.workers.device)
    figures: dict[str, list[float]] = {}
    for n in range(batches):
        for kind in ("single_slices", "clips"):
            clip = ClipGenerator(_SEED + n).batch(2, 5 if kind == "clips" else 1, phase.size, 3)
            clip = type(clip)(clip.frames.to(training.workers.device), clip.masks.to(training.workers.device))
            rng = torch.Generator(training.workers.device).manual_seed(n)
            for name, values in getattr(ClipTrainer(model, rng, phase.balance), kind)(clip).figures.items():
                figures.setdefault(name, []).extend(values)
    return {k: float(np.mean(v)) for k, v in figures.items()}


def on_volumes(
    segmenter: Segmenter, options: Options, cases: Sequence[Case], *, clicks: int = 3, most: int = 0, seed: int = 0,
    progress: Callable = lambda x: x,
) -> list[dict]:  # fmt: skip
    """Rows {case, label, slice_dice, volume_dice}: up to `clicks` simulated clicks on the largest slice of each structure.

    Args:
        most: only so many structures, drawn by `seed`; 0 = all.
    """
    pairs = [(c, value) for c in cases for value in c.labels]
    if most and len(pairs) > most:
        chosen = np.random.default_rng(seed).permutation(len(pairs))[:most]
        pairs = [pairs[i] for i in sorted(chosen)]
    rows, read = [], {}
    for case, value in progress(pairs):
        if case.image not in read:
            volume = read_volume(case.image)
            read = {case.image: (volume, read_mask(case.label, volume))}
        volume, labels = read[case.image]
        mask = labels == value
        if not mask.any():
            continue
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        reference = frames.from_volume(mask)
        t = simulated_annotator.largest_slice(reference)

        def segment(prompts, propagate, volume=volume):
            chosen = Options(**{**options.__dict__, "propagate": propagate})
            return segmenter.segment(volume, segmenter.prompts(volume, chosen, **prompts), chosen).mask

        prompts = simulated_annotator.clicks_on_slice(
            lambda p, t=t, frames=frames, segment=segment: frames.from_volume(segment(p, False))[t], frames, reference, t, clicks
        )
        out = segment(prompts, True)
        rows.append({
            "case": case.name, "label": case.labels[value],
            "slice_dice": float(metrics.slice_dice(out, mask, frames.axis)[t]), "volume_dice": metrics.dice(out, mask),
        })  # fmt: skip
    return rows


class VolumeCheck:
    """Mean volume Dice of a checkpoint on the same structures each time; features are shared while the encoder stays as it is."""

    def __init__(self, cases: Sequence[Case], options: Options, *, clicks: int = 3, most: int = 0, seed: int = 0):
        self.cases, self.options, self._how = cases, options, {"clicks": clicks, "most": most, "seed": seed}
        self._store = FeatureCache()

    def __call__(self, checkpoint: str | Path) -> dict[str, float]:
        options = Options(**{**self.options.__dict__, "checkpoint": str(checkpoint)})
        rows = on_volumes(Segmenter(self._store), options, self.cases, **self._how)
        return {
            "slice_dice": float(np.mean([r["slice_dice"] for r in rows])) if rows else 0.0,
            "dice": float(np.mean([r["volume_dice"] for r in rows])) if rows else 0.0,
        }
