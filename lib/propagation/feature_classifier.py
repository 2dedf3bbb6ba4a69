"""Tell the inside of a structure from its surroundings by what the image encoder makes of its annotated slices.

The encoder's features know textures, borders and places that single intensities do not show, and they are there already: each slice is
encoded once. As with intensities, a linear classifier learns from the few annotated slices of this one structure.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from lib.model.features import SliceFeatures
from lib.propagation.intensity_classifier import (
    FEWEST_PIXELS,
    IntensityClassifier,
    balanced_weights,
    fit_logistic,
    surroundings,
)
from lib.propagation.mask_grid import grid_size

MOST_PIXELS = 800  # Of each annotated slice from which the classifier learns; twice as many bring nothing.
_NEWTON_STEPS = 4  # After so many, masks hardly change any more.


class FeatureClassifier:
    """Ridge logistic regression on the encoder's features and on soft histograms of the intensities.

    Args:
        features: Encoded slices.
        intensities: What has learned the intensities of the same annotated slices.
        annotated: Index, intensities float (h, w) and mask bool (h, w) of each annotated slice, all of one size, which is that of the
            network's masks without padding.
        side: Side of the square of these masks with its padding, in pixels.

    Attributes:
        has_learned: Whether any slice shows both the structure and its surroundings; if not, all evidence is 0.
    """

    def __init__(self, features: SliceFeatures, intensities: IntensityClassifier, annotated: Sequence[tuple], side: int):
        self._features, self._intensities, self._side = features, intensities, side
        self._size = grid_size(features, side)
        samples = [s for t, image, mask in annotated if (s := self._samples(t, image, mask)) is not None]
        self.has_learned = bool(samples)
        if self.has_learned:
            self._coefficients, self._bias = fit_logistic(*(np.concatenate(x) for x in zip(*samples, strict=True)), _NEWTON_STEPS)

    def logits(self, t: int, image: np.ndarray) -> np.ndarray:
        """Return the evidence for the inside, float (h, w), at the pixels of slice `t` with intensities `image` (h, w)."""
        if not self.has_learned:
            return np.zeros(image.shape)
        count = self._intensities.histogram_size
        total = self._bias + self._intensities.weigh_histograms(image, self._coefficients[:count])
        for level in self._levels(t):  # Features are weighed before they are enlarged, because both are linear.
            weights = torch.from_numpy(self._coefficients[count : count + len(level)]).to(level)
            count += len(level)
            total = total + self._enlarge(torch.einsum("c,chw->hw", weights, level)[None])[0].cpu().numpy()
        return total

    def _samples(self, t: int, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Return samples (N, F), whether each is inside (N,), and its weight (N,); None if the slice shows one side only."""
        pixels = np.flatnonzero(mask | surroundings(mask))
        count = len(pixels)
        if count > MOST_PIXELS:
            pixels = pixels[np.linspace(0, count - 1, MOST_PIXELS).astype(int)]
        labels = mask.ravel()[pixels]
        if min(labels.sum(), (~labels).sum()) < FEWEST_PIXELS:
            return None
        index = torch.from_numpy(pixels)
        learned = [self._enlarge(level).flatten(1)[:, index.to(level.device)].T.cpu().numpy() for level in self._levels(t)]
        samples = np.concatenate([self._intensities.histograms(image, pixels), *learned], 1)
        return samples, labels, balanced_weights(labels, count)

    def _levels(self, t: int) -> list[torch.Tensor]:
        """Return the encoder's maps of a slice, float (C, H, W), from fine to coarse."""
        maps, _, sizes = self._features.gather([t])
        return [x[:, 0].float().T.unflatten(1, size) for x, size in zip(maps, sizes, strict=True)]

    def _enlarge(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps (C, H, W) of the square at the pixels of masks, (C, h, w)."""
        enlarged = F.interpolate(maps[None], (self._side, self._side), mode="bilinear", align_corners=False)[0]
        return enlarged[:, : self._size[0], : self._size[1]]
