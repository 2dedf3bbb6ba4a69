"""Calibration of the limits by which the engine decides that a tracked object has ended.

The object score of a small network depends on the object's size, so its value alone says little. But beyond the end of an object the
score falls below its value beside the annotated slice, and the mask covers voxels of a different appearance. Calibration finds how far
the score may fall, and how much further where the appearance is unchanged (`score_drop` and `appearance_gain` of
`lib.propagation.object_end`), such that masks are best. Both are written into the checkpoint, where the engine reads them.
"""

import logging
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging import metrics
from lib.imaging.datasets import Case
from lib.imaging.frames import Frames
from lib.imaging.readers import read_mask, read_volume
from lib.model import checkpoints
from lib.model.feature_cache import FeatureCache
from lib.prompts import simulated_annotator
from lib.training.generated_volumes import LabelledVolume, generate_volume

logger = logging.getLogger(__name__)

# Pairs of score drop and appearance gain to try.
LIMITS = tuple((drop_limit, gain_limit) for gain_limit in (0.0, 2.0, 4.0, 6.0) for drop_limit in (0.2, 0.4, 0.8, 1.2, 1.6, 2.0, 2.5))


def calibrate(path: Path, *, device: str = "cpu", volumes: int = 12, limits: Sequence[tuple] = LIMITS) -> dict[tuple, tuple]:
    """Calibrate the checkpoint at `path` on generated volumes; see `fit`."""
    options = Options(checkpoint=str(path), device=device, axis="2", window="0,255", components="all")
    return fit(path, [generate_volume(n) for n in range(volumes)], options, limits)


def fit(path: Path, volumes: Sequence[LabelledVolume], options: Options, limits: Sequence[tuple] = LIMITS) -> dict[tuple, tuple]:
    """Write the score drop and appearance gain among `limits` with the best mean volume Dice into the checkpoint at `path`.

    Each structure is painted on its largest slice and tracked through the volume. Return
    {(score drop, appearance gain): (mean volume Dice, mean fraction of empty slices that got a mask)}.
    """
    features, outcomes = FeatureCache(), {}
    for score_drop, appearance_gain in tqdm(limits, desc="presence"):
        checkpoints.set_metadata(path, presence_drop=str(score_drop), presence_gain=str(appearance_gain))
        segmenter, dice, false_positive_shares = Segmenter(features), [], []
        for volume, labels, structures in volumes:
            frames = Frames.of(volume, window=options.window, axis=options.axis)
            for value in structures:
                t = simulated_annotator.largest_slice(labels == value)
                prompts = segmenter.prompts(volume, options, masks={t: (labels[t] == value).T})
                reference = frames.to_volume(labels == value)
                mask = segmenter.segment(volume, prompts, options).mask
                dice.append(metrics.dice(mask, reference))
                false_positive_shares.append(metrics.empty_fp_share(mask, reference, frames.axis))
        outcome = outcomes[score_drop, appearance_gain] = float(np.mean(dice)), float(np.nanmean(false_positive_shares))
        logger.info("Drop %.1f, gain %.1f: volume Dice %.3f, empty slices with a mask %.2f.", score_drop, appearance_gain, *outcome)
    score_drop, appearance_gain = max(outcomes, key=lambda pair: outcomes[pair][0])
    checkpoints.set_metadata(path, presence_drop=str(score_drop), presence_gain=str(appearance_gain))
    return outcomes


def read_structures(cases: Sequence[Case], options: Options, max_structures: int) -> list[LabelledVolume]:
    """Read labelled volumes with at most `max_structures` structures in all, spread over as many volumes as possible."""
    volumes = []
    for case in cases[:max_structures]:
        volume = read_volume(case.image)
        labels = Frames.of(volume, window=options.window, axis=options.axis).from_volume(read_mask(case.label, volume))
        volumes.append((volume, labels, [v for v in case.labels if (labels == v).any()]))
    # The first structure of each volume, then the second one of each, and so on.
    rounds = zip_longest(*([(n, v) for v in values] for n, (*_, values) in enumerate(volumes)))
    chosen = [pair for pairs in rounds for pair in pairs if pair][:max_structures]
    return [(volume, labels, [v for m, v in chosen if m == n]) for n, (volume, labels, _) in enumerate(volumes)]
