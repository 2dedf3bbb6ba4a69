"""When is a tracked object lost? Finds how far the object score may fall before tracking should stop, on generated volumes.

The score of a small network says little by itself: it is high for large objects, low for small ones. But where the object ends it
falls below what it was beside the annotation, and the mask takes up what looks different. `calibrate` finds how far the score may
fall, and how much further where the mask still looks alike (drop and gain of `lib.propagation.object_end`), so that masks are best, and
writes both into the checkpoint, from where the engine reads them.
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
from lib.imaging.volume import Volume
from lib.model import checkpoints
from lib.model.features import FeatureCache
from lib.prompts import simulated_annotator
from lib.training.clip_generator import ClipGenerator

logger = logging.getLogger(__name__)

LIMITS = tuple((drop, gain) for gain in (0.0, 2.0, 4.0, 6.0) for drop in (0.2, 0.4, 0.8, 1.2, 1.6, 2.0, 2.5))
_SEED = 5_000_000  # far from the seeds of training steps
_FIELD_MM = 300.0


def generated_volume(seed: int, slices: int = 36, size: int = 128) -> tuple[Volume, np.ndarray, list[int]]:
    """A whole generated volume, its label map (T, Y, X) and up to three structures that end within it."""
    volume, labels, structures, thickness = ClipGenerator(_SEED + seed).volume(slices, size)
    spans = {v: (labels == v).any((1, 2)).sum() for v in structures}
    ending = [v for v, n in spans.items() if 2 < n <= 0.8 * slices and (labels == v).sum() > 100]
    affine = np.diag([_FIELD_MM / size, _FIELD_MM / size, thickness * _FIELD_MM, 1.0])
    return Volume(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine, f"generated_{seed}"), labels, ending[:3]


def calibrate(path: Path, *, device: str = "cpu", volumes: int = 12, limits: Sequence[tuple] = LIMITS) -> dict[tuple, tuple]:
    """Writes the drop and gain that are best on generated volumes into the checkpoint at `path`; see `fit`."""
    options = Options(checkpoint=str(path), device=device, axis="2", window="0,255", components="all")
    return fit(path, [generated_volume(n) for n in range(volumes)], options, limits)


def fit(path: Path, made: Sequence[tuple[Volume, np.ndarray, list[int]]], options: Options, limits=LIMITS) -> dict[tuple, tuple]:
    """Writes the drop and gain that give the best mean volume Dice into the checkpoint at `path`.

    Each structure is painted on its largest slice and tracked through the volume.

    Args:
        made: volumes, their label maps (T, Y, X), the labels to track.
        limits: pairs (drop, gain) to try.

    Returns:
        {(drop, gain): (mean volume Dice, share of empty slices with a mask)}.
    """
    store, out = FeatureCache(), {}
    for drop, gain in tqdm(limits, desc="presence"):
        checkpoints.set_metadata(path, presence_drop=str(drop), presence_gain=str(gain))
        segmenter, dice, false = Segmenter(store), [], []
        for volume, labels, structures in made:
            frames = Frames.of(volume, window=options.window, axis=options.axis)
            for value in structures:
                t = simulated_annotator.largest_slice(labels == value)
                reference = frames.to_volume(labels == value)
                painted = np.take(reference, t, frames.axis)
                mask = segmenter.segment(volume, segmenter.prompts(volume, options, masks={t: painted}), options).mask
                dice.append(metrics.dice(mask, reference))
                false.append(metrics.empty_fp_share(mask, reference, frames.axis))
        figures = out[drop, gain] = float(np.mean(dice)), float(np.nanmean(false))
        logger.info("Drop %.1f, gain %.1f: volume Dice %.3f, empty slices with a mask %.2f.", drop, gain, *figures)
    drop, gain = max(out, key=lambda pair: out[pair][0])
    checkpoints.set_metadata(path, presence_drop=str(drop), presence_gain=str(gain))
    return out


def structures_of(cases: Sequence[Case], options: Options, most: int) -> list[tuple[Volume, np.ndarray, list[int]]]:
    """(volume, labels (T, Y, X), structures) of the cases, `most` structures in all, from as many cases as can be."""
    read = []
    for case in cases[:most]:
        volume = read_volume(case.image)
        labels = Frames.of(volume, window=options.window, axis=options.axis).from_volume(read_mask(case.label, volume))
        read.append((volume, labels, [v for v in case.labels if (labels == v).any()]))
    rounds = zip_longest(*([(n, v) for v in values] for n, (*_, values) in enumerate(read)))
    chosen = [pair for row in rounds for pair in row if pair][:most]
    return [(volume, labels, [v for m, v in chosen if m == n]) for n, (volume, labels, _) in enumerate(read)]
