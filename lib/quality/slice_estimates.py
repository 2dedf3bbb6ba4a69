"""Estimate how good each slice of a segmentation is, from the outputs of the network and from the image."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from lib.model.features import SliceFeatures
from lib.model.worker_pool import run_all
from lib.propagation import appearance
from lib.propagation.tracks import Tracks
from lib.quality.estimator import QualityEstimator, predicted_quality
from lib.quality.signals import compute_signals, mask_source, nearest_annotated

_SLICES_AT_ONCE = 32  # Comparing slices takes many times the memory of the slices.


@dataclass(frozen=True, eq=False)
class SliceEstimates:
    """Estimates for T slices.

    Attributes:
        predicted_iou: The network's own estimate (T,) in [0, 1].
        presence: The network's probability (T,) that the object is on the slice.
        agreement: Dice (T,) of the two passes between annotated slices, else NaN.
        signals: Float (T, S), see `lib.quality.signals`.
        expected_iou: IoU (T,) that is expected of the slice's mask; 1 on annotated slices.
    """

    predicted_iou: np.ndarray
    presence: np.ndarray
    agreement: np.ndarray
    signals: np.ndarray
    expected_iou: np.ndarray

    def select(self, slices: slice) -> "SliceEstimates":
        """Return the estimates for some of the slices."""
        return SliceEstimates(*(getattr(self, name)[slices] for name in self.__dataclass_fields__))

    @classmethod
    def concatenate(cls, estimates: Sequence["SliceEstimates"]) -> "SliceEstimates":
        """Return the estimates for consecutive ranges of slices as one."""
        return cls(*(np.concatenate([getattr(e, name) for e in estimates]) for name in cls.__dataclass_fields__))


def estimate_slices(
    features: SliceFeatures, thumbnails: torch.Tensor, has_mask: np.ndarray, annotated: Sequence[int], tracks: Tracks,
    estimator: QualityEstimator | None,
) -> SliceEstimates:  # fmt: skip
    """Return the estimates for T consecutive slices of a volume.

    Args:
        features: Encoded slices of the frames in which the structure was tracked.
        thumbnails: uint8 (T, h, w) of the T slices, see `SliceFeatures.thumbnails`.
        has_mask: Bool (T,), whether the final mask of a slice is not empty.
        annotated: Indices of the prompted slices among the T, from 0 to T - 1; at least one.
        tracks: Outputs for the T slices.
        estimator: The estimator of the network's checkpoint; None estimates by the network's own outputs.
    """
    annotated = sorted(annotated)
    masks = appearance.shrink_masks(tracks.logits) & torch.from_numpy(has_mask).to(tracks.logits.device)[:, None, None]
    small = masks.cpu().numpy()
    iou, presence = tracks.iou.float().cpu().numpy(), tracks.object_score.float().sigmoid().cpu().numpy()
    agreement = tracks.agreement.cpu().numpy()
    likeness, correlation = _compare_images(features, thumbnails, masks, small, annotated)
    frames = features.frames
    pixel_mm = frames.pixel_mm[1] * frames.size[1] / features.width * features.side / small.shape[-1]
    signals = compute_signals(
        small, pixel_mm=pixel_mm, slice_mm=frames.slice_mm, annotated=annotated, predicted_iou=iou, presence=presence,
        agreement=agreement, likeness=likeness, correlation=correlation,
    )  # fmt: skip
    expected = estimator.predict(signals, has_mask) if estimator else predicted_quality(iou, presence, has_mask, agreement)
    expected[annotated] = 1.0
    return SliceEstimates(iou, presence, agreement, signals, expected)


def _compare_images(
    features: SliceFeatures, images: torch.Tensor, masks: torch.Tensor, small: np.ndarray, annotated: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Compare what lies under each slice's mask with its nearest annotated slice, and with the slice that the mask comes from.

    Returns:
        `appearance.inside_outside_contrast` (T,) and `appearance.image_correlation` (T,).
    """
    valid = features.thumbnail_valid
    likelihoods = torch.stack([appearance.intensity_likelihood(images[t], masks[t], valid) for t in annotated])
    nearest = np.searchsorted(annotated, nearest_annotated(len(small), annotated))
    source = mask_source(small.any((1, 2)), annotated)

    def compare(slices: slice) -> torch.Tensor:
        source_masks = masks[source[slices]]
        likeness = appearance.inside_outside_contrast(likelihoods[nearest[slices]], images[slices], source_masks, valid)
        return torch.stack([likeness, appearance.image_correlation(images[slices], images[source[slices]], source_masks)])

    ranges = [slice(n, n + _SLICES_AT_ONCE) for n in range(0, len(small), _SLICES_AT_ONCE)]
    likeness, correlation = torch.cat(run_all(compare, ranges, images.device, features.threads_each), 1).cpu().numpy().astype(float)
    return likeness, correlation
