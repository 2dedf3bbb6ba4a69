"""Validation of a network during training on labelled volumes."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import numpy as np

from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging import metrics
from lib.imaging.datasets import Case
from lib.imaging.frames import Frames
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume
from lib.model.feature_cache import FeatureCache
from lib.prompts import simulated_annotator


class VolumeCheck:
    """A validation that measures checkpoints on the same structures each time, by simulated clicks on their largest slices.

    Cached features are kept between calls, so they are reused while the encoder stays the same.

    Args:
        options: Options of the engine; the checkpoint is replaced.
        clicks: Largest number of clicks per structure.
        max_structures: Number of structures, which are chosen at random if there are more; 0 uses all.
    """

    def __init__(self, cases: Sequence[Case], options: Options, *, clicks: int = 3, max_structures: int = 0):
        self.options, self._clicks, self._features = options, clicks, FeatureCache()
        self._structures = [(case, value) for case in cases for value in case.labels]
        if 0 < max_structures < len(self._structures):
            chosen = np.random.default_rng(0).permutation(len(self._structures))[:max_structures]
            self._structures = [self._structures[i] for i in sorted(chosen)]

    def __call__(self, checkpoint: str | Path) -> dict[str, float]:
        """Return {slice_dice, dice} of a checkpoint (name or path): mean Dice of clicked slices and of volumes; 0 without structures."""
        options, segmenter = replace(self.options, checkpoint=str(checkpoint)), Segmenter(self._features)
        results = []
        for case, structures in groupby(self._structures, key=itemgetter(0)):
            volume = read_volume(case.image)
            labels = read_mask(case.label, volume)
            for reference in (labels == value for _, value in structures):
                if reference.any():
                    results.append(self._segment_and_measure(segmenter, options, volume, reference))
        slice_dice, dice = zip(*results, strict=True) if results else ((0.0,), (0.0,))
        return {"slice_dice": float(np.mean(slice_dice)), "dice": float(np.mean(dice))}

    def _segment_and_measure(self, segmenter: Segmenter, options: Options, volume: Volume, reference: np.ndarray) -> tuple[float, float]:
        """Segment a structure and return the Dice of its clicked slice and of the volume."""
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        stack = frames.from_volume(reference)
        t = simulated_annotator.largest_slice(stack)

        def segment(prompts, propagate):
            request = replace(options, propagate=propagate)
            return segmenter.segment(volume, segmenter.prompts(volume, request, **prompts), request).mask

        prompts = simulated_annotator.clicks_on_slice(lambda p: frames.from_volume(segment(p, False))[t], frames, stack, t, self._clicks)
        mask = segment(prompts, True)
        return float(metrics.slice_dice(mask, reference, frames.axis)[t]), metrics.dice(mask, reference)
