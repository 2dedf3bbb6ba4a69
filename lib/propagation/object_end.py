"""Where does a tracked object end? The network's object score, and whether what it follows still looks as it did, decide."""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial

import torch

from lib.propagation import appearance

BESIDE = 2  # slices beside an annotation, where the object is surely there


class ObjectEndDetector:
    """Judges a batch of runs, step by step.

    The object counts as lost where its score falls by more than `drop` below that of the slices beside the annotation, or by more
    than that plus `gain` times `appearance.contrast` where the mask still looks as it did.

    Args:
        features: of the volume. drop, gain: see `Tracker`.
        starts: of each run the annotated slice and its logits (h, w).
    """

    def __init__(self, features, drop: float, gain: float, starts: Sequence[tuple[int, torch.Tensor]]):
        self._features, self._drop, self._gain = features, drop, gain
        self._near = torch.zeros(len(starts), device=features.device)
        if gain:
            valid = features.thumbnail_valid
            tables = [appearance.intensity_likelihood(features.thumbnails[t], appearance.shrink_masks(x[None])[0], valid) for t, x in starts]
            self._tables = torch.stack(tables)

    def of(self, rows: list[int]) -> "ObjectEndDetector":
        """For these runs only."""
        some = copy(self)
        some._near = self._near[rows]
        if self._gain:
            some._tables = self._tables[rows]
        return some

    def note(self, step: int, scores: torch.Tensor) -> None:
        """Takes the scores (B,) of a step (1, 2, ...)."""
        if step <= BESIDE:
            self._near = self._near + scores / BESIDE

    def judge(self, step: int, slices: list[int]) -> Callable | None:
        """From scores (B,) and logits (B, h, w) to the scores that count, negative where the object is lost; None = as they are."""
        return partial(self._count, slices) if self._drop and step > BESIDE else None

    def _count(self, slices, scores, logits):
        allowed = self._near - self._drop
        if self._gain:
            f = self._features
            allowed = allowed - self._gain * appearance.inside_outside_contrast(self._tables, f.thumbnails[slices], appearance.shrink_masks(logits), f.thumbnail_valid)
        return torch.minimum(scores, scores - allowed.to(scores))
