"""Fits the estimate of slice quality to a checkpoint, on generated or labelled volumes, and writes it into the checkpoint."""

import logging
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.common.errors import UserError
from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume
from lib.model import checkpoints
from lib.prompts import simulated_annotator
from lib.quality import annotation_loop, next_slice
from lib.quality.estimator import QualityEstimator, slice_iou
from lib.training.object_end_calibration import generated_volume

logger = logging.getLogger(__name__)

_FIRST = 1000  # other volumes than those that `presence` was fitted on
_ROUNDS = 4  # slices that are annotated, one after the other
_FEWEST = 100  # slices of each kind


def calibrate(path: Path, *, device: str = "cpu", volumes: int = 104) -> float:
    """As `fit`, on generated volumes."""
    options = Options(checkpoint=str(path), device=device, axis="2", window="0,255")
    return fit(path, (generated_volume(_FIRST + n) for n in range(volumes)), options, volumes)


def fit(path: Path, made: Iterable[tuple[Volume, np.ndarray, list[int]]], options: Options, total: int) -> float:
    """Writes an estimate of slice quality into the checkpoint at `path`; correlation of expected and true slice IoU on the last
    quarter of the volumes, by an estimate that was fitted without them.

    For each structure an annotator is simulated who corrects up to four slices, half of the time the worst ones, else any: such
    states are what the estimate will be asked about.

    Args:
        made: volumes, their label maps (T, Y, X), the labels to segment. total: how many.

    Raises:
        UserError: too few volumes or slices to learn from.
    """
    segmenter, rows = Segmenter(), []
    for n, (volume, labels, structures) in enumerate(tqdm(made, desc="slice quality", total=total)):
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        for m, value in enumerate(structures):
            reference, clicks = labels == value, simulated_annotator.click_annotator(5 if m % 2 else 3)
            for choose in (next_slice.oracle, next_slice.random):
                for done in annotation_loop.annotation_rounds(_engine(segmenter, volume, options), frames, reference, choose, clicks, count=_ROUNDS):
                    mask, other = done.scene.mask, np.setdiff1d(np.arange(len(frames)), sorted(done.scene.annotated))
                    rows.append((n, done.scene.result.signals[other], mask.any((1, 2))[other], slice_iou(mask, reference)[other]))
    fitted, held = ([r[1:] for r in rows if (r[0] < 0.75 * total) == first] for first in (True, False))
    for part in (fitted, held):
        filled = np.concatenate([r[1] for r in part]) if part else np.zeros(0, bool)
        if not part or min(filled.sum(), (~filled).sum()) < (_FEWEST if part is fitted else 1):
            raise UserError("There are too few slices with and without a mask to learn from: give more labelled volumes.")
    x, filled, iou = (np.concatenate(c) for c in zip(*held, strict=True))
    said = QualityEstimator.fit(*(np.concatenate(c) for c in zip(*fitted, strict=True)))(x, filled)
    correlation = float(np.corrcoef(said, iou)[0, 1])
    estimator = QualityEstimator.fit(*(np.concatenate(c) for c in zip(*(r[1:] for r in rows), strict=True)))
    checkpoints.set_metadata(path, slice_quality=estimator.to_json())
    logger.info("Slice quality: correlation %.3f on volumes not fitted on.", correlation)
    return correlation


def _engine(segmenter, volume, options) -> simulated_annotator.Segment:
    def segment(prompts, propagate):
        chosen = replace(options, propagate=propagate)
        return segmenter.segment(volume, segmenter.prompts(volume, chosen, **prompts), chosen)

    return segment
