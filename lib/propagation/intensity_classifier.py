"""Tell the inside of a structure from its surroundings by the intensities of its annotated slices."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

_FILTERS = (0.0, 1.0, 2.0)  # Standard deviations in pixels of the Gaussian filters whose results are looked at.
_CENTRES = np.linspace(0, 1, 10)  # Of the bins of the soft histograms.
_RIDGE = 20.0
_MOST_WEIGHT = 400.0  # Of all pixels of a slice together, because neighbours are alike.
_NEWTON_STEPS = 8
_FEWEST_PIXELS = 5  # Inside and around the structure.


class IntensityClassifier:
    """Ridge logistic regression on soft histograms of the intensities at three scales.

    Args:
        images: Slices, float (h, w) of any intensities.
        masks: The structure on each of them, bool (h, w).

    Attributes:
        leak: Share of the structure's surroundings that looks like its inside; 1 where nothing could be learned.
        confusion: `leak` plus the share of the inside that looks like the surroundings.
    """

    def __init__(self, images: Sequence[np.ndarray], masks: Sequence[np.ndarray]):
        self.leak, self.confusion, self._low, self._range = 1.0, 2.0, 0.0, 1.0
        self._tables, self._bias = np.zeros((len(_FILTERS), len(_CENTRES))), 0.0
        pairs = [(image, mask, surroundings(mask)) for image, mask in zip(images, masks, strict=True)]
        pairs = [(i, mask, around) for i, mask, around in pairs if min(mask.sum(), around.sum()) >= _FEWEST_PIXELS]
        if not pairs:
            return
        low, high = np.percentile(np.concatenate([image[mask | around] for image, mask, around in pairs]), [2, 98])
        self._low, self._range = low - 0.2 * (high - low), 1.4 * (high - low) + 1e-6
        samples, labels, weights = (np.concatenate(x) for x in zip(*(self._samples(*pair) for pair in pairs), strict=True))
        coefficients, self._bias = _fit_logistic(samples, labels, weights)
        self._tables = coefficients.reshape(self._tables.shape)
        looks_inside = samples @ coefficients + self._bias > 0
        self.leak = float(looks_inside[~labels].mean())
        self.confusion = self.leak + float((~looks_inside)[labels].mean())

    def scale(self, image: np.ndarray) -> np.ndarray:
        """Return a slice with the range of intensities in and around the structure brought to [0, 1]."""
        return np.clip((image - self._low) / self._range, 0, 1)

    def logits(self, image: np.ndarray) -> np.ndarray:
        """Return the evidence for the inside, float (h, w), at the pixels of a slice, float (h, w) of any intensities."""
        filtered = zip(self._filter(image), self._tables, strict=True)
        return self._bias + sum(np.interp(x, _CENTRES, table) for x, table in filtered)

    def _filter(self, image: np.ndarray) -> list[np.ndarray]:
        scaled = self.scale(image)
        return [ndimage.gaussian_filter(scaled, s, mode="nearest", truncate=2.5) if s else scaled for s in _FILTERS]

    def _samples(self, image: np.ndarray, mask: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return soft histograms (N, filters * bins), whether each pixel is inside (N,), and its weight (N,)."""
        region = mask | around
        width = _CENTRES[1] - _CENTRES[0]
        histograms = [np.clip(1 - abs(x[region][:, None] - _CENTRES) / width, 0, None) for x in self._filter(image)]
        labels = mask[region]
        half = min(len(labels), _MOST_WEIGHT) / 2
        return np.concatenate(histograms, 1), labels, np.where(labels, half / labels.sum(), half / (~labels).sum())


def surroundings(mask: np.ndarray) -> np.ndarray:
    """Return the pixels around a mask bool (h, w), about as many as in it; the border between the two is left out."""
    if not mask.any():
        return mask
    distance = ndimage.distance_transform_edt(~mask)
    return (distance > 1) & (distance <= max(4.0, 0.6 * float(mask.sum()) ** 0.5))


def _fit_logistic(samples: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Return coefficients and bias of a ridge logistic regression on standardized samples (N, F), by Newton's method."""
    mean = weights @ samples / weights.sum()
    deviation = np.sqrt(weights @ (samples - mean) ** 2 / weights.sum()) + 1e-2
    x = np.concatenate([(samples - mean) / deviation, np.ones((len(samples), 1))], 1)
    ridge = np.append(np.full(samples.shape[1], _RIDGE), 1e-3)  # The bias is free.
    solution = np.zeros(x.shape[1])
    for _ in range(_NEWTON_STEPS):
        probability = 1 / (1 + np.exp(-x @ solution))
        gradient = x.T @ (weights * (probability - labels)) + ridge * solution
        curvature = weights * np.maximum(probability * (1 - probability), 1e-4)
        step = np.linalg.solve((x * curvature[:, None]).T @ x + np.diag(ridge), gradient)
        solution = solution - step
        if abs(step).max() < 1e-3:
            break
    coefficients = solution[:-1] / deviation
    return coefficients, float(solution[-1] - coefficients @ mean)
