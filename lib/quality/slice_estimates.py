"""How good each slice of a segmentation probably is: gathers what the network and the image say, and asks the estimator."""

import numpy as np
import torch

from lib.model.features import SliceFeatures
from lib.model.worker_pool import share
from lib.propagation import appearance
from lib.propagation.tracks import Tracks
from lib.quality.estimator import QualityEstimator, compute_signals, mask_source, predicted_quality

_AT_ONCE = 32  # slices; the comparison takes many times their memory


def expected_quality(
    features: SliceFeatures, thumbnails: torch.Tensor, filled: np.ndarray, annotated, tracks: Tracks, estimator: QualityEstimator | None
) -> tuple[np.ndarray, np.ndarray]:
    """Signals (T, S) and expected IoU (T,) of neighbouring slices; see `lib.quality.estimator`.

    Args:
        features: of the frames that were tracked in. thumbnails: uint8 (T, h, w), see `FrameFeatures`.
        filled: bool (T,), slices whose final mask is not empty.
        annotated: prompted slices; their expected IoU is 1. tracks: what tracking gave.
        estimator: fitted to the network; None = by the network's own heads.
    """
    annotated = sorted(annotated)
    masks = appearance.shrink_masks(tracks.logits) & torch.from_numpy(filled).to(tracks.logits.device)[:, None, None]
    small = masks.cpu().numpy()
    iou, present = tracks.iou.float().cpu().numpy(), tracks.object_score.float().sigmoid().cpu().numpy()
    alike, same = _looks(thumbnails, features.thumbnail_valid, masks, small, annotated)
    frames = features.frames
    pixel_mm = frames.pixel_mm[1] * frames.size[1] / features.width * features.side / small.shape[-1]
    known = compute_signals(
        small, pixel_mm=pixel_mm, slice_mm=frames.slice_mm, annotated=annotated, predicted_iou=iou, present=present,
        agreement=tracks.agreement.cpu().numpy(), alike=alike, same=same,
    )  # fmt: skip
    expected = estimator(known, filled) if estimator else predicted_quality(iou, present, filled, tracks.agreement.cpu().numpy())
    expected[annotated] = 1.0
    return known, expected


def _looks(images: torch.Tensor, valid: torch.Tensor, masks: torch.Tensor, small: np.ndarray, annotated) -> tuple[np.ndarray, np.ndarray]:
    """`appearance.contrast` with the nearest annotated slice and `appearance.correlation` with the slice whose mask is in force."""
    tables = torch.stack([appearance.intensity_likelihood(images[t], masks[t], valid) for t in annotated])
    nearest = np.abs(np.arange(len(small))[:, None] - annotated).argmin(1)
    source = mask_source(small.any((1, 2)), annotated)

    def compare(t: slice) -> torch.Tensor:
        worn = masks[source[t]]
        alike = appearance.inside_outside_contrast(tables[nearest[t]], images[t], worn, valid)
        return torch.stack([alike, appearance.image_correlation(images[t], images[source[t]], worn)])

    parts = [slice(n, n + _AT_ONCE) for n in range(0, len(small), _AT_ONCE)]
    alike, same = torch.cat(share(compare, parts, images.device), 1).cpu().numpy().astype(float)
    return alike, same
