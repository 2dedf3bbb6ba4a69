"""Decide where a tracked object ends: where intensities tell it from its surroundings by these and by how its masks change (`presence_logit`),
elsewhere by the network's object score and the appearance of what is tracked (`ObjectEndDetector`)."""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from lib.model.features import SliceFeatures
from lib.propagation.appearance import inside_outside_contrast, intensity_likelihood, shrink_masks

SURE_STEPS = 2  # The object is surely there in the first steps from an annotated slice; later scores are compared with their mean.

SURELY_ENDED, SURELY_THERE = -0.5, 1.0  # Of `presence_logit`.
END_RATIO = 0.6  # Share of the first contrast below which the object has ended.
LEAST_CONTRAST = 0.15  # Smaller first contrasts count as this.
LEAST_AREA_SHARE, FARTHEST = 0.05, 1.5  # Smaller shares of the largest area, and larger distances, change nothing any more.


@dataclass(frozen=True)
class Step:
    """What is known about one step of a pass.

    Attributes:
        contrast: How much more the inside of the new mask looks like the structure than what lies around it does, in [-1, 1].
        contrast_before: The same at the place of the previous mask.
        first_contrast: Mean of `contrast_before` in the first steps of the pass.
        area_share: Area of the new mask as a share of the largest one so far, also on annotated slices; more than 1 counts as 1.
        growth: Factor by which the new mask is larger than the largest of several annotated ones; less than 1 counts as 1. Where only one
            slice is annotated, the structure may be larger elsewhere: always 1.
        distance_share: Distance from the annotated slice with the largest mask as a share of the diameter of the structure there.
        kept_share: Share of the previous mask that the new one covers, in [0, 1]. A mask that is only dragged along covers it all.
        is_only_slice: Whether only one slice is annotated.
    """

    contrast: float
    contrast_before: float
    first_contrast: float
    area_share: float
    growth: float
    distance_share: float
    kept_share: float
    is_only_slice: bool


def is_still_there(step: Step) -> bool:
    """Return whether the object is still there.

    It is not where `presence_logit` surely says so, and not where little of its contrast is left. From a single annotated slice, which may
    be a small one that says little about the structure's intensities, the pass goes on all the same where `presence_logit` is sure.
    """
    logit = presence_logit(step)
    if logit <= SURELY_ENDED or (step.is_only_slice and logit >= SURELY_THERE):
        return logit > 0
    return step.contrast_before >= END_RATIO * max(step.first_contrast, LEAST_CONTRAST)


def presence_logit(step: Step) -> float:
    """Return a number that is positive where the object is probably still there.

    It is a logistic regression, fitted on structures of the training data and generated ones; docs/architecture.md has the figures. The
    object counts as ended already where its probability is below 0.73, because a mask beyond the end often goes on to the end of the volume.
    """
    return float(
        3.87 + 0.56 * step.contrast + 2.48 * step.contrast_before + 1.6 * np.log(np.clip(step.area_share, LEAST_AREA_SHARE, 1))
        - 1.16 * np.log(max(step.growth, 1)) - 1.08 * min(step.distance_share, FARTHEST) - 3.07 * step.kept_share
    )  # fmt: skip


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
