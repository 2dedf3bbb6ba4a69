"""When is a tracked object lost? Finds how far the object score may fall before tracking should stop, on generated volumes.

The score of a small network says little by itself: it is high for large objects, low for small ones. But where the object ends it
falls below what it was beside the annotation. `calibrate` finds the drop that gives the best masks and writes it into the
checkpoint, from where the engine reads it.
"""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib import metrics, simulate
from lib.frames import Frames
from lib.model import checkpoints
from lib.model.features import FeatureStore
from lib.options import Options
from lib.segment import Segmenter
from lib.train.synthetic import ClipGenerator
from lib.volume import Volume

logger = logging.getLogger(__name__)

DROPS = (0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.5, 3.0)
_SEED = 5_000_000  # far from the seeds of training steps
_FIELD_MM = 300.0


def generated_volume(seed: int, slices: int = 36, size: int = 128) -> tuple[Volume, np.ndarray, list[int]]:
    """A whole generated volume, its label map (T, Y, X) and up to three structures that end within it."""
    volume, labels, structures, thickness = ClipGenerator(_SEED + seed).volume(slices, size)
    spans = {v: (labels == v).any((1, 2)).sum() for v in structures}
    ending = [v for v, n in spans.items() if 2 < n <= 0.8 * slices and (labels == v).sum() > 100]
    affine = np.diag([_FIELD_MM / size, _FIELD_MM / size, thickness * _FIELD_MM, 1.0])
    return Volume(np.ascontiguousarray(volume.transpose(2, 1, 0)), affine, f"generated_{seed}"), labels, ending[:3]


def calibrate(path: Path, *, device: str = "cpu", volumes: int = 12, drops: Sequence[float] = DROPS) -> dict[float, tuple]:
    """Writes the best drop into the checkpoint at `path`; {drop: (mean volume Dice, share of empty slices with a mask)}.

    Each structure is painted on its largest slice and tracked through the volume.
    """
    options = Options(checkpoint=str(path), device=device, axis="2", window="0,255", components="all")
    made = [generated_volume(n) for n in range(volumes)]
    store, out = FeatureStore(), {}
    for drop in tqdm(drops, desc="presence"):
        checkpoints.set_metadata(path, presence_drop=str(drop))
        segmenter, dice, false = Segmenter(store), [], []
        for volume, labels, structures in made:
            frames = Frames.of(volume, window=options.window, axis=options.axis)
            for value in structures:
                t = simulate.largest_slice(labels == value)
                truth = frames.to_volume(labels == value)
                prompts = segmenter.prompts(volume, options, masks={t: truth[:, :, t]})
                mask = segmenter.segment(volume, prompts, options).mask
                dice.append(metrics.dice(mask, truth))
                false.append(metrics.empty_fp_share(mask, truth, 2))
        out[drop] = float(np.mean(dice)), float(np.nanmean(false))
        logger.info("Drop %.1f: volume Dice %.3f, empty slices with a mask %.2f.", drop, *out[drop])
    best = max(out, key=lambda d: out[d][0])
    checkpoints.set_metadata(path, presence_drop=str(best))
    return out
