"""Calibration of the estimate of slice quality: it is fitted to one checkpoint and written into that checkpoint's file."""

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from lib.common.errors import UserError
from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging.frames import Frames
from lib.imaging.metrics import slice_iou
from lib.model import checkpoints
from lib.prompts import simulated_annotator
from lib.quality import annotation_loop, next_slice
from lib.quality.estimator import QualityEstimator
from lib.training.generated_volumes import LabelledVolume, generate_volume

logger = logging.getLogger(__name__)

_FIRST_SEED = 1000  # Volumes that `object_end_calibration` does not use.
_ANNOTATED_SLICES = 4
_FITTED_SHARE = 0.75  # Share of the volumes to fit on. The correlation is measured on the others.
_MIN_SLICES = 100  # Slices with a mask, and slices without, that are needed for fitting.

# Signals (N, len(SIGNALS)), whether there is a mask, bool (N,), and true IoU (N,) of some slices of a volume.
Samples = tuple[np.ndarray, np.ndarray, np.ndarray]


def calibrate(path: Path, *, device: str = "cpu", volumes: int = 104) -> float:
    """Calibrate the checkpoint at `path` on generated volumes; see `fit`."""
    options = Options(checkpoint=str(path), device=device, axis="2", window="0,255")
    return fit(path, (generate_volume(_FIRST_SEED + n) for n in range(volumes)), options, volumes)


def fit(path: Path, volumes: Iterable[LabelledVolume], options: Options, total: int) -> float:
    """Fit the estimate of slice quality on `total` volumes and write it into the checkpoint at `path`.

    For each structure an annotator is simulated who annotates up to four slices, once the worst ones and once random ones: the estimate
    will be used in such states. Return the correlation of estimated and true IoU on the last quarter of the volumes, for an estimate
    that was fitted without them. Too few volumes or slices raise UserError.
    """
    segmenter, fitting, held_out = Segmenter(), [], []
    for n, labelled_volume in enumerate(tqdm(volumes, desc="slice quality", total=total)):
        (fitting if n < _FITTED_SHARE * total else held_out).extend(_annotate(segmenter, labelled_volume, options))
    for samples, min_slices in ((fitting, _MIN_SLICES), (held_out, 1)):
        with_mask = sum(int(has_mask.sum()) for _, has_mask, _ in samples)
        without_mask = sum(len(has_mask) for _, has_mask, _ in samples) - with_mask
        if min(with_mask, without_mask) < min_slices:
            raise UserError("There are too few slices with and without a mask to learn from: give more labelled volumes.")
    signals, has_mask, true_iou = _concatenate(held_out)
    estimated_iou = QualityEstimator.fit(*_concatenate(fitting)).predict(signals, has_mask)
    correlation = float(np.corrcoef(estimated_iou, true_iou)[0, 1])
    checkpoints.set_metadata(path, slice_quality=QualityEstimator.fit(*_concatenate([*fitting, *held_out])).to_json())
    logger.info("Slice quality: correlation %.3f on volumes not fitted on.", correlation)
    return correlation


def _annotate(segmenter: Segmenter, labelled_volume: LabelledVolume, options: Options) -> Iterator[Samples]:
    """Simulate the annotation of each structure; yield samples of the slices that are not annotated after each round."""
    volume, labels, structures = labelled_volume
    frames = Frames.of(volume, window=options.window, axis=options.axis)

    def segment(prompts, propagate):
        request = replace(options, propagate=propagate)
        return segmenter.segment(volume, segmenter.prompts(volume, request, **prompts), request)

    for n, value in enumerate(structures):
        reference, annotate = labels == value, simulated_annotator.click_annotator(5 if n % 2 else 3)
        for choose in (next_slice.oracle, next_slice.random):
            rounds = annotation_loop.annotation_rounds(segment, frames, reference, choose, annotate, count=_ANNOTATED_SLICES)
            for state in (r.state for r in rounds):
                others = np.setdiff1d(np.arange(len(frames)), sorted(state.annotated))
                yield state.estimates.signals[others], state.mask.any((1, 2))[others], slice_iou(state.mask, reference)[others]


def _concatenate(samples: list[Samples]) -> Samples:
    return tuple(np.concatenate(arrays) for arrays in zip(*samples, strict=True))
