"""Carry a mask from slice to slice by a small network that looks at the image, beside SAM 2's memory."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from lib.imaging.masks import bounding_box
from lib.model.tracking_network import TrackingNetwork
from lib.model.u_net import SIDE
from lib.propagation.square import Square

STRUCTURE_SHARE = 0.45  # Of the network's square that the annotated mask takes up.
MOST_ENLARGED = 6.0  # Times.
LOGIT_LIMIT = 6.0
_FIRST_LOGIT = 4.0  # Of annotated masks, as the previous ones of the first step.
_COUNTED_STEPS = 10  # Steps after these look all the same to the network.
_LEAST_DEVIATION = 0.02  # Of intensities from 0 to 1.


class AnnotatedSlice(NamedTuple):
    """A slice at an end of a pass: its index, its intensities (h, w) at the resolution of masks, and its mask, bool (h, w)."""

    t: int
    image: np.ndarray
    mask: np.ndarray


class TrackingView:
    """What the tracking network sees of one pass, one slice after the other.

    Args:
        ends: The annotated slices at the ends of the pass, first the one where it begins; its mask is not empty.
        share: Of the network's square that the annotated mask takes up.
    """

    def __init__(self, ends: Sequence[AnnotatedSlice], share: float = STRUCTURE_SHARE):
        self._near, self._far = ends[0], ends[1] if len(ends) > 1 and ends[1].mask.any() else None
        near_square = _square_around(ends[0].mask, share)
        self._zoom = near_square.zoom
        picture, _ = near_square.cut(ends[0].image)
        self._low, high = (float(v) for v in np.percentile(picture, [0.5, 99.5]))
        self._range = max(high - self._low, 1e-6)
        scaled = ((picture - self._low) / self._range).clamp(0, 1)
        self._mean, self._deviation = scaled.mean(), scaled.std().clamp_min(_LEAST_DEVIATION)
        self._near_channels = [(scaled - self._mean) / self._deviation, near_square.cut(_signs(ends[0].mask))[0]]
        self._previous_image, self._previous_logits = ends[0].image, _FIRST_LOGIT * _signs(ends[0].mask)
        self._step, self._previous_step = 0, 0

    def next_slice(self, t: int, image: np.ndarray, previous: np.ndarray, shift=(0.0, 0.0)) -> tuple[torch.Tensor, Square]:
        """Return the network's input for the next slice, float (CHANNELS, SIDE, SIDE), and where its square lies.

        Args:
            t: Index of the slice.
            image: Its intensities (h, w).
            previous: The mask before it, bool (h, w), which the square follows; not empty.
            shift: By how many pixels (y, x) the square misses the middle of that mask.
        """
        self._step += 1
        square = Square(_square_around(previous).centre + shift, self._zoom)
        far_channels, progress = [torch.zeros(SIDE, SIDE)] * 2, 0.0
        if self._far is not None:
            far_channels = [self._scaled(square, self._far.image), square.cut(_signs(self._far.mask))[0]]
            progress = abs(t - self._near.t) / abs(self._far.t - self._near.t)
        steps = 1 / (self._step - self._previous_step) + min(self._step, _COUNTED_STEPS) / _COUNTED_STEPS
        pictures = [self._scaled(square, image), self._scaled(square, self._previous_image)]
        mask = torch.tanh(square.cut(self._previous_logits)[0] / 3)
        constants = [torch.full((SIDE, SIDE), v) for v in (progress, steps)]
        return torch.stack([*pictures, mask, *self._near_channels, *far_channels, *constants]), square

    def remember(self, image: np.ndarray, logits: np.ndarray) -> None:
        """Take the mask that was made of the last result, logits (h, w), as the one before the next slice."""
        self._previous_image, self._previous_logits = image, np.clip(logits, -LOGIT_LIMIT, LOGIT_LIMIT)
        self._previous_step = self._step

    def _scaled(self, square: Square, image: np.ndarray) -> torch.Tensor:
        """Return an image (h, w) in a square, scaled as the annotated slice is."""
        return (((square.cut(image)[0] - self._low) / self._range).clamp(0, 1) - self._mean) / self._deviation


class LearnedTracker:
    """Finds the mask of each slice of one pass by the tracking network, one slice after the other.

    Args:
        network: The network.
        ends: See `TrackingView`.
    """

    def __init__(self, network: TrackingNetwork, ends: Sequence[AnnotatedSlice]):
        self._network, self._view = network, TrackingView(ends)

    @torch.inference_mode()
    def find(self, t: int, image: np.ndarray, previous: np.ndarray) -> np.ndarray:
        """Return logits float32 (h, w) of the mask of the next slice, at most `LOGIT_LIMIT` from 0; see `TrackingView.next_slice`."""
        inputs, square = self._view.next_slice(t, image, previous)
        return logits_in_slice(self._network(inputs[None])[0], square, image.shape)

    def remember(self, image: np.ndarray, logits: np.ndarray) -> None:
        """Take the mask that was made of the last result; see `TrackingView.remember`."""
        self._view.remember(image, logits)


def logits_in_slice(logits: torch.Tensor, square: Square, shape: tuple[int, int]) -> np.ndarray:
    """Return the network's logits (SIDE, SIDE) in a slice, float32 (h, w), at most `LOGIT_LIMIT` from 0."""
    return square.enlarge(logits.clamp(-LOGIT_LIMIT, LOGIT_LIMIT), shape, -LOGIT_LIMIT)


def _signs(mask: np.ndarray) -> np.ndarray:
    """Return 1 inside a mask, bool (h, w), and -1 outside."""
    return np.where(mask, 1.0, -1.0)


def _square_around(mask: np.ndarray, share: float = STRUCTURE_SHARE) -> Square:
    """Return the square in whose middle a mask, bool (h, w) and not empty, takes up a share of its side."""
    low, high = np.transpose([(s.start, s.stop - 1) for s in bounding_box(mask[None])[1:]])
    return Square((low + high) / 2, min(SIDE * share / ((high - low).max() + 1), MOST_ENLARGED))
