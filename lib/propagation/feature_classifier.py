"""Tell the inside of a structure from its surroundings by what the image encoder sees on its annotated slices.

Features know textures, borders and places that single intensities do not show, and they are there already: each slice is encoded once. As
with intensities, a linear classifier learns from the few annotated slices of this one structure.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F

from lib.model.features import SliceFeatures
from lib.propagation.intensity_classifier import (
    FEWEST_PIXELS,
    balanced_weights,
    fit_logistic,
    surroundings,
)
from lib.propagation.mask_grid import grid_size

MOST_PIXELS = 800  # Of each annotated slice from which the classifier learns; twice as many bring nothing.
_NEWTON_STEPS = 4  # After so many, masks hardly change any more.


class FeatureClassifier:
    """Ridge logistic regression on the encoder's features of pixels, from all of its levels.

    Args:
        features: Encoded slices.
        masks: The structure on each annotated slice, by its index: bool (h, w), the size of the network's masks without padding.
        side: Side of the square of these masks with its padding, in pixels.

    Attributes:
        has_learned: Whether any slice shows both the structure and its surroundings; if not, all evidence is 0.
    """

    def __init__(self, features: SliceFeatures, masks: Mapping[int, np.ndarray], side: int):
        self._features, self._side, self._size = features, side, grid_size(features, side)
        samples = [s for t, mask in masks.items() if (s := self._samples(t, mask)) is not None]
        self.has_learned = bool(samples)
        if self.has_learned:
            self._coefficients, self._bias = fit_logistic(*(np.concatenate(x) for x in zip(*samples, strict=True)), _NEWTON_STEPS)

    def logits(self, t: int) -> np.ndarray:
        """Return the evidence for the inside, float (h, w), at the pixels of slice `t`."""
        total, count = np.zeros(self._size), 0
        if not self.has_learned:
            return total
        for level in self._levels(t):  # Features are weighed before they are enlarged, because both are linear.
            weights = torch.from_numpy(self._coefficients[count : count + len(level)]).to(level)
            count += len(level)
            total += self._enlarge(torch.einsum("c,chw->hw", weights, level)[None])[0].cpu().numpy()
        return total + self._bias

    def _samples(self, t: int, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return samples (N, F), whether each is inside (N,), and its weight (N,); None if the slice shows one side only."""
        pixels = np.flatnonzero(mask | surroundings(mask))
        count = len(pixels)
        if count > MOST_PIXELS:
            pixels = pixels[np.linspace(0, count - 1, MOST_PIXELS).astype(int)]
        labels = mask.ravel()[pixels]
        if min(labels.sum(), (~labels).sum()) < FEWEST_PIXELS:
            return None
        index = torch.from_numpy(pixels)
        samples = [self._enlarge(level).flatten(1)[:, index.to(level.device)].T.cpu().numpy() for level in self._levels(t)]
        return np.concatenate(samples, 1), labels, balanced_weights(labels, count)

    def _levels(self, t: int) -> list[torch.Tensor]:
        """Return the encoder's maps of a slice, float (C, H, W), from fine to coarse."""
        maps, _, sizes = self._features.gather([t])
        return [x[:, 0].float().T.unflatten(1, size) for x, size in zip(maps, sizes, strict=True)]

    def _enlarge(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps (C, H, W) of the square at the pixels of masks, (C, h, w)."""
        enlarged = F.interpolate(maps[None], (self._side, self._side), mode="bilinear", align_corners=False)[0]
        return enlarged[:, : self._size[0], : self._size[1]]
