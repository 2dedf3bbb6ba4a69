"""Estimate the IoU of a slice's mask, by boosted trees that were fitted to a checkpoint or by the network's own outputs."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import lightgbm
import numpy as np

from lib.quality.signals import SIGNALS

# Where there is a mask, a larger signal may only raise (1) or only lower (-1) the estimate, whatever the fitted volumes say. This
# changes nothing on volumes like those fitted on, and helps on others (correlation on phantoms 0.52 -> 0.55, with a mask 0.59 -> 0.68).
_MONOTONE = {
    "predicted_iou": 1, "presence": 1, "distance": -1, "nearness": 1, "change": -1, "area_ratio": -1, "overlap": 1, "worst_iou": 1,
    "agreement": 1, "likeness": 1, "worst_likeness": 1, "correlation": 1,
}  # fmt: skip
_TREES = 150


def predicted_quality(predicted_iou: np.ndarray, presence: np.ndarray, has_mask: np.ndarray, agreement: np.ndarray) -> np.ndarray:
    """Return the expected IoU (T,) without a fitted estimator: from the network's own outputs and the agreement of the two directions.

    Where there is a mask, it is right if the object is there, and then as good as predicted, but no better than the directions
    agree. Where there is none, it is right if the object is not there.

    Args:
        predicted_iou: The decoder's estimate (T,).
        presence: Probability (T,) that the object is on the slice.
        has_mask: Bool (T,).
        agreement: Dice (T,) of the two directions, NaN where there is only one.
    """
    with_mask = np.fmin(presence * np.clip(predicted_iou, 0, 1), agreement / (2 - agreement))
    return np.where(has_mask, with_mask, 1 - presence)


@dataclass(frozen=True)
class BoostedTrees:
    """A regression by gradient-boosted trees (LightGBM).

    Attributes:
        model: The trees in LightGBM's text format, which holds numbers only and is safe to load.
    """

    model: str

    @cached_property
    def _booster(self) -> lightgbm.Booster:
        return lightgbm.Booster(model_str=self.model)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the values (N,) for rows of signals (N, S)."""
        return self._booster.predict(x, num_threads=1) if len(x) else np.zeros(0)

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, monotone: Mapping[int, int] | None = None, seed: int = 0) -> "BoostedTrees":
        """Fit by least squares. Small leaves are not allowed, because slices of one volume are much alike.

        Args:
            x: Signals (N, S).
            y: Values (N,).
            monotone: For some columns, 1 if the value must not fall and -1 if it must not rise as the signal grows.
        """
        settings = {
            "objective": "regression", "learning_rate": 0.07, "max_depth": 3, "num_leaves": 8,
            "min_data_in_leaf": max(1, min(200, len(x) // 20)), "bagging_fraction": 0.7, "bagging_freq": 1, "feature_fraction_bynode": 0.5,
            "seed": seed, "deterministic": True, "force_col_wise": True, "num_threads": 1, "verbose": -1,
        }  # fmt: skip
        if monotone:
            settings |= {"monotone_constraints": [monotone.get(n, 0) for n in range(x.shape[1])]}
        return cls(lightgbm.train(settings, lightgbm.Dataset(x, y), _TREES).model_to_string())


@dataclass(frozen=True)
class QualityEstimator:
    """Expected IoU from signals (`lib.quality.signals`), fitted to one checkpoint.

    Attributes:
        with_mask, without_mask: The regressions for slices with and without a mask.
    """

    with_mask: BoostedTrees
    without_mask: BoostedTrees

    def predict(self, signals: np.ndarray, has_mask: np.ndarray) -> np.ndarray:
        """Return the expected IoU (T,) in [0, 1].

        Args:
            signals: Float (T, len(SIGNALS)).
            has_mask: Bool (T,).
        """
        expected = np.zeros(len(signals))
        expected[has_mask] = self.with_mask.predict(signals[has_mask])
        expected[~has_mask] = self.without_mask.predict(signals[~has_mask])
        return np.clip(expected, 0, 1)

    @classmethod
    def fit(cls, signals: np.ndarray, has_mask: np.ndarray, iou: np.ndarray) -> "QualityEstimator":
        """Fit to slices whose true IoU (T,) is known; some must have a mask and some none. See `predict` for the arguments."""
        monotone = {n: _MONOTONE[name] for n, name in enumerate(SIGNALS) if name in _MONOTONE}
        with_mask = BoostedTrees.fit(signals[has_mask], iou[has_mask], monotone)
        return cls(with_mask, BoostedTrees.fit(signals[~has_mask], iou[~has_mask]))

    def to_json(self) -> str:
        """Return the estimator as text for the metadata of its checkpoint."""
        return json.dumps({"signals": SIGNALS, "with_mask": self.with_mask.model, "without_mask": self.without_mask.model})

    @classmethod
    def from_json(cls, text: str) -> "QualityEstimator | None":
        """Return the estimator of a text from `to_json`, or None if it was fitted to other signals, as by another release."""
        content = json.loads(text)
        if tuple(content.get("signals", ())) != SIGNALS:
            return None
        return cls(BoostedTrees(content["with_mask"]), BoostedTrees(content["without_mask"]))
