"""Validation of a network during training: on generated clips that it is not trained on, and on labelled volumes."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
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
from lib.model.feature_cache import FeatureCache
from lib.prompts import simulated_annotator
from lib.training.clip_generator import Clip, ClipGenerator
from lib.training.clip_training import ClipTrainer
from lib.training.loop import Training

logger = logging.getLogger(__name__)

_SEED = 987_654_321  # Far from the seeds of training steps.


@torch.no_grad()
def validate_on_generated_clips(training: Training, batches: int = 4) -> dict[str, float]:
    """Return the mean of each metric of `clip_training.StepLosses` for the averaged weights of a training on generated clips."""
    phase, device = training.phases[min(training.phase, len(training.phases) - 1)], training.workers.device
    model = build(training.settings.config, image_size=phase.size, training=True).eval()
    model.load_state_dict({k: v.cpu() for k, v in training.average.items()})
    model.to(device)
    values_by_name: dict[str, list[float]] = {}
    for n in range(batches):
        for kind, slices in (("single_slices", 1), ("clips", 5)):
            clip = ClipGenerator(_SEED + n).generate_batch(2, slices, phase.size, 3)
            trainer = ClipTrainer(model, torch.Generator(device).manual_seed(n), phase.balance)
            step = getattr(trainer, kind)(Clip(clip.frames.to(device), clip.masks.to(device)))
            for name, values in step.metrics.items():
                values_by_name.setdefault(name, []).extend(values)
    return {name: float(np.mean(values)) for name, values in values_by_name.items()}


def validate_on_volumes(
    segmenter: Segmenter, options: Options, cases: Sequence[Case], *, clicks: int = 3, max_structures: int = 0, seed: int = 0,
    progress: Callable = lambda x: x,
) -> list[dict]:  # fmt: skip
    """Segment structures from simulated clicks on their largest slices; return {case, label, slice_dice, volume_dice} for each.

    Args:
        options: Options of the engine, with the checkpoint to validate.
        clicks: Largest number of clicks per structure.
        max_structures: Number of structures, which are chosen at random by `seed` if there are more; 0 uses all.
        progress: Wrapper of the iteration, for example `tqdm`.
    """
    structures = [(case, value) for case in cases for value in case.labels]
    if max_structures and len(structures) > max_structures:
        chosen = np.random.default_rng(seed).permutation(len(structures))[:max_structures]
        structures = [structures[i] for i in sorted(chosen)]
    rows, read = [], {}
    for case, value in progress(structures):
        if case.image not in read:
            volume = read_volume(case.image)
            read = {case.image: (volume, read_mask(case.label, volume))}
        volume, labels = read[case.image]
        reference = labels == value
        if not reference.any():
            continue
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        stack = frames.from_volume(reference)
        t = simulated_annotator.largest_slice(stack)

        def segment(prompts, propagate, volume=volume):
            request = replace(options, propagate=propagate)
            return segmenter.segment(volume, segmenter.prompts(volume, request, **prompts), request).mask

        prompts = simulated_annotator.clicks_on_slice(
            lambda p, t=t, frames=frames, segment=segment: frames.from_volume(segment(p, False))[t], frames, stack, t, clicks
        )
        mask = segment(prompts, True)
        rows.append({
            "case": case.name, "label": case.labels[value],
            "slice_dice": float(metrics.slice_dice(mask, reference, frames.axis)[t]), "volume_dice": metrics.dice(mask, reference),
        })  # fmt: skip
    return rows


class VolumeCheck:
    """A validation that measures checkpoints on the same structures each time.

    Cached features are kept between calls, so they are reused while the encoder stays the same.

    Args:
        options: Options of the engine; the checkpoint is replaced.
        clicks, max_structures, seed: See `validate_on_volumes`.
    """

    def __init__(self, cases: Sequence[Case], options: Options, *, clicks: int = 3, max_structures: int = 0, seed: int = 0):
        self.cases, self.options = cases, options
        self._settings = {"clicks": clicks, "max_structures": max_structures, "seed": seed}
        self._features = FeatureCache()

    def __call__(self, checkpoint: str | Path) -> dict[str, float]:
        """Return {slice_dice, dice}: the mean Dice of the clicked slices and of the volumes, 0 if there is no structure."""
        options = replace(self.options, checkpoint=str(checkpoint))
        rows = validate_on_volumes(Segmenter(self._features), options, self.cases, **self._settings)
        names = {"slice_dice": "slice_dice", "dice": "volume_dice"}
        return {name: float(np.mean([r[column] for r in rows])) if rows else 0.0 for name, column in names.items()}
