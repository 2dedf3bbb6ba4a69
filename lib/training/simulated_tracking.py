"""Simulate passes through clips, for the training of the tracking network."""

from collections.abc import Iterator

import numpy as np
import torch

from lib.propagation.learned_tracking import STRUCTURE_SHARE, AnnotatedSlice, TrackingView, logits_in_slice
from lib.propagation.square import Square
from lib.training.tracking_clips import CLIP_SIDE
from lib.training.variation import corrupt, vary

_LARGEST_SHARE = 0.35  # Of the sessions that begin at the slice with the largest cross-section; the others begin anywhere.
_FAR_SHARE = 0.35  # Of the sessions that lead to another annotated slice.
_NOISY_SHARE, _NOISE = 0.5, 0.4  # Of the sessions whose annotated masks are not quite right, and the strength of their errors.
_MISLED_SHARE, _MISLED = 0.1, 0.6  # Of the steps after which the previous mask is replaced by a wrong one, and its strength.
_MOST_STEPS, _FIRST_PIXELS, _LEAST_PIXELS = 20, 12, 6
_STRUCTURE_SHARES = 0.35, 0.6  # Of the network's square that the annotated mask takes up.
_MOST_SHIFT = 3.0  # Pixels of the clip by which a square misses the middle of the mask.
_LOST_DICE, _MOST_LOST = 0.25, 2  # A session ends after so many masks of so low a Dice.
_WRONG_LOGIT = 4.0


class TrackingSession:
    """A pass through the slices of a clip, from an annotated slice on.

    Args:
        images, masks: float and bool (T, Y, X), first the annotated slice.
        ends: Masks, bool (Y, X), of the annotated slice, and of the last slice if that is annotated, too.
        random: Chooses the scale and where squares lie; None for the middle of the mask.
    """

    def __init__(self, images: np.ndarray, masks: np.ndarray, ends: list[np.ndarray], random: np.random.Generator | None):
        self._images, self._masks, self._random = images, masks, random
        annotated = [AnnotatedSlice(t, images[t], mask) for t, mask in zip((0, len(images) - 1), ends, strict=False)]
        share = STRUCTURE_SHARE if random is None else random.uniform(*_STRUCTURE_SHARES)
        self._view, self._previous = TrackingView(annotated, share), ends[0]
        self._t, self._last, self._lost = 0, len(images) - 1 - (len(ends) > 1), 0
        self.answered: np.ndarray | None = None  # The last mask, bool (Y, X).
        self._square: Square | None = None

    @classmethod
    def begin(cls, images: np.ndarray, masks: np.ndarray, random: np.random.Generator) -> "TrackingSession | None":
        """Return a session on a clip, uint8 and bool (T, Y, X), that is turned and made to look otherwise; None where it is too short."""
        pictures, masks = vary(images, masks, CLIP_SIDE, random)
        pictures, area = pictures.numpy(), masks.sum((1, 2))
        first = int(area.argmax()) if random.random() < _LARGEST_SHARE else int(random.choice(np.flatnonzero(area >= min(_FIRST_PIXELS, area.max()))))
        direction = int(random.choice([-1, 1]))
        order = np.arange(first, len(area) if direction > 0 else -1, direction)[: _MOST_STEPS + 1]
        filled = np.flatnonzero(area[order] >= _LEAST_PIXELS + 2)
        if area[first] < _FIRST_PIXELS or len(order) < 3:
            return None
        if random.random() < _FAR_SHARE and filled[-1] >= 3:
            order = order[: int(random.choice(filled[filled >= 3])) + 1]
            annotated = [masks[order[0]], masks[order[-1]]]
        else:
            order, annotated = order[: filled[-1] + 1 + int(random.integers(2, 5))], [masks[order[0]]]
        if random.random() < _NOISY_SHARE:
            noisy = [corrupt(mask, random, _NOISE) for mask in annotated]
            annotated = [n if n.sum() >= _LEAST_PIXELS else mask for n, mask in zip(noisy, annotated, strict=True)]
        return cls(pictures[order], masks[order], annotated, random)

    def network_input(self) -> torch.Tensor:
        """Return the network's input for the next slice, float (CHANNELS, SIDE, SIDE)."""
        self._t += 1
        shift = (0, 0) if self._random is None else self._random.uniform(-_MOST_SHIFT, _MOST_SHIFT, 2)
        inputs, self._square = self._view.next_slice(self._t, self._images[self._t], self._previous, shift)
        return inputs

    def target(self) -> torch.Tensor:
        """Return the true mask of that slice, float (SIDE, SIDE); beyond the edges of the clip there is nothing."""
        mask, is_within = self._square.cut(self._masks[self._t].astype(np.float32))
        return ((mask > 0.5) & is_within).float()

    def answer(self, logits: torch.Tensor, random: np.random.Generator | None) -> bool:
        """Go on from the network's answer (SIDE, SIDE) for that slice; return False where the pass ends."""
        in_slice, true = logits_in_slice(logits, self._square, self._masks.shape[1:]), self._masks[self._t]
        self.answered = in_slice > 0
        overlap = 2 * (self.answered & true).sum() / max(self.answered.sum() + true.sum(), 1)
        self._lost += bool(true.any() and overlap < _LOST_DICE)
        if self.answered.sum() >= _LEAST_PIXELS:
            self._go_on_from(self.answered, in_slice)
        if random is not None and true.sum() > 20 and random.random() < _MISLED_SHARE:
            wrong = corrupt(true, random, _MISLED)
            if wrong.any():
                self._go_on_from(wrong, np.where(wrong, _WRONG_LOGIT, -_WRONG_LOGIT))
                self._lost = 0
        return self._t < self._last and (random is None or self._lost < _MOST_LOST)

    def _go_on_from(self, mask: np.ndarray, logits: np.ndarray) -> None:
        self._previous = mask
        self._view.remember(self._images[self._t], logits)


def passes_from_largest(images: np.ndarray, masks: np.ndarray) -> Iterator[tuple[TrackingSession, np.ndarray]]:
    """Yield a session on a clip as it is, uint8 and bool (T, Y, X), from its largest cross-section in either direction, and its masks in order."""
    pictures, masks = vary(images, masks, CLIP_SIDE, None)
    first = int(masks.sum((1, 2)).argmax())
    for order in (range(first, len(masks)), range(first, -1, -1)):
        if len(order) > 1:
            yield TrackingSession(pictures.numpy()[order], masks[order], [masks[first]], None), masks[order]
