"""How good is the mask of a slice? From a reference, or expected from signals that the propagation leaves behind."""

import json
from dataclasses import asdict, dataclass

import numpy as np

SIGNALS = (
    "predicted_iou", "presence", "distance", "near", "change", "area", "overlap", "worst_iou", "agreement", "two_directions",
    "beyond",
)  # fmt: skip


def slice_iou(predicted: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """IoU (T,) of each slice of bool (T, Y, X); both empty = 1, one empty = 0."""
    both, either = (predicted & truth).sum((1, 2)), (predicted | truth).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def signals(
    masks: np.ndarray, *, pixel_mm: float, slice_mm: float, annotated, predicted_iou: np.ndarray, present: np.ndarray,
    agreement: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """What is known about each slice without a reference: float (T, len(SIGNALS)).

    Args:
        masks: bool (T, h, w) at any resolution. pixel_mm: side of its pixels. slice_mm: distance of the slices.
        annotated: indices of the prompted slices.
        predicted_iou: (T,) of the decoder's IoU head. present: (T,) probability that the object is there.
        agreement: (T,) Dice of the two directions between annotated slices, else NaN.

    Distances count in sizes of the structure (square root of its mean annotated area), so that a lesion and a liver compare.
    """
    t, annotated = np.arange(len(masks)), np.asarray(sorted(annotated))
    area = masks.sum((1, 2)) * pixel_mm**2
    drawn = area[annotated][area[annotated] > 0]
    size = float(np.sqrt(drawn.mean())) if len(drawn) else 10.0
    nearest = annotated[np.abs(t[:, None] - annotated).argmin(1)]
    distance = np.abs(t - nearest) * slice_mm / size
    overlap = np.ones(len(masks))
    change, worst = np.zeros(len(masks)), np.clip(predicted_iou, 0, 1).astype(float)
    order = np.argsort(np.abs(t - nearest), kind="stable")
    for k in order:  # outward from the annotations
        if k == nearest[k]:
            continue
        inner = k - np.sign(k - nearest[k])
        total = masks[k].sum() + masks[inner].sum()
        overlap[k] = 2 * (masks[k] & masks[inner]).sum() / total if total else 1.0
        change[k], worst[k] = change[inner] + 1 - overlap[k], min(worst[k], worst[inner])
    filled = np.flatnonzero(area > 0)
    beyond = np.abs(t[:, None] - filled).min(1) * slice_mm / size if len(filled) else np.zeros(len(masks))
    ratio = np.abs(np.log((area + 1) / (area[nearest] + 1)))
    logit = np.clip(np.log(np.clip(present, 1e-6, 1) / np.clip(1 - present, 1e-6, 1)), -6, 6)
    two = ~np.isnan(agreement)
    return np.stack([
        np.clip(predicted_iou, 0, 1), logit / 6, np.minimum(distance, 4), np.exp(-2 * distance), np.minimum(change, 4),
        np.minimum(ratio, 4), overlap, worst, np.where(two, np.nan_to_num(agreement), 0.7), two, np.exp(-4 * beyond),
    ], 1).astype(float)  # fmt: skip


def heads(predicted_iou: np.ndarray, present: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """IoU (T,) expected from the network's own heads alone.

    Where there is a mask, it is right if the object is there, and then as good as predicted; where there is none, it is
    right if the object is not there.
    """
    return np.where(filled, present * np.clip(predicted_iou, 0, 1), 1 - present)


@dataclass(frozen=True)
class Linear:
    """Standardise, weigh, add up."""

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return (x - np.array(self.mean)) / np.array(self.scale) @ np.array(self.weights) + self.bias

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, ridge: float = 1.0) -> "Linear":
        """Least squares with a penalty on the weights."""
        from sklearn.linear_model import Ridge
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(x)
        model = Ridge(alpha=ridge).fit(scaler.transform(x), y)
        return cls(*(tuple(float(v) for v in a) for a in (scaler.mean_, scaler.scale_, model.coef_)), float(model.intercept_))


@dataclass(frozen=True)
class Estimator:
    """Expected IoU from `signals`, fitted for one checkpoint: one model where there is a mask, one where there is none."""

    filled: Linear
    empty: Linear

    def __call__(self, x: np.ndarray, filled: np.ndarray) -> np.ndarray:
        """(T,) in [0, 1] from signals (T, len(SIGNALS)) and whether each slice has a mask."""
        return np.clip(np.where(filled, self.filled(x), self.empty(x)), 0, 1)

    @classmethod
    def fit(cls, x: np.ndarray, filled: np.ndarray, iou: np.ndarray) -> "Estimator":
        """From slices whose true IoU is known."""
        return cls(Linear.fit(x[filled], iou[filled]), Linear.fit(x[~filled], iou[~filled]))

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Estimator":
        content = json.loads(text)
        return cls(Linear(**content["filled"]), Linear(**content["empty"]))
