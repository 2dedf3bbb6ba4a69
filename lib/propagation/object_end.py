"""Decide where a tracked object ends, by the network's object score and the appearance of what is tracked."""

from collections.abc import Callable, Sequence
from copy import copy
from functools import partial

import torch

from lib.model.features import SliceFeatures
from lib.propagation.appearance import inside_outside_contrast, intensity_likelihood, shrink_masks

SURE_STEPS = 2  # The object is surely there in the first steps from an annotated slice; later scores are compared with their mean.


class ObjectEndDetector:
    """Judges the steps of a batch of passes.

    The object counts as lost where its score is not positive, or lies at least `score_drop` + `appearance_gain` * contrast below the mean
    of the first steps. The contrast (`appearance.inside_outside_contrast`) is high where the mask looks as the annotated slice does.

    Args:
        features: Encoded slices of the frames in which the object is tracked.
        score_drop: How far the object score may fall; 0 leaves the decision to the sign of the score, as in SAM 2.
        appearance_gain: How much further it may fall where the appearance is unchanged.
        starts: For each pass the index of the annotated slice where it begins, and that slice's logits (h, w).
    """

    def __init__(self, features: SliceFeatures, score_drop: float, appearance_gain: float, starts: Sequence[tuple[int, torch.Tensor]]):
        self._features, self._score_drop, self._appearance_gain = features, score_drop, appearance_gain
        self._first_scores = torch.zeros(len(starts), device=features.device)
        if appearance_gain:
            valid, thumbnails = features.thumbnail_valid, features.thumbnails
            likelihoods = [intensity_likelihood(thumbnails[t], shrink_masks(x[None])[0], valid) for t, x in starts]
            self._likelihoods = torch.stack(likelihoods)

    def select(self, rows: list[int]) -> "ObjectEndDetector":
        """Return a detector for some of the passes."""
        selection = copy(self)
        selection._first_scores = self._first_scores[rows]
        if self._appearance_gain:
            selection._likelihoods = self._likelihoods[rows]
        return selection

    def observe(self, step: int, scores: torch.Tensor) -> None:
        """Take note of the object scores (B,) of a step (1, 2, ...) of the passes."""
        if step <= SURE_STEPS:
            self._first_scores = self._first_scores + scores / SURE_STEPS

    def score_adjustment(self, step: int, slices: list[int]) -> Callable | None:
        """Return a function that maps scores (B,) and logits (B, h, w) of a step to the scores that count, or None if they stay."""
        return partial(self._adjust, slices) if self._score_drop and step > SURE_STEPS else None

    def _adjust(self, slices: list[int], scores: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        lowest = self._first_scores - self._score_drop
        if self._appearance_gain:
            thumbnails, valid = self._features.thumbnails[slices], self._features.thumbnail_valid
            contrast_now = inside_outside_contrast(self._likelihoods, thumbnails, shrink_masks(logits), valid)
            lowest = lowest - self._appearance_gain * contrast_now
        return torch.minimum(scores, scores - lowest.to(scores))
