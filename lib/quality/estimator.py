"""How good is the mask of a slice? From a reference, or expected from signals that the propagation leaves behind."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np

SIGNALS = (
    "predicted_iou", "presence", "distance", "near", "change", "area", "overlap", "worst_iou", "agreement", "two_directions",
    "alike", "worst_alike", "same", "beyond", "stop", "stop_beyond", "same_beyond", "alike_beyond", "reach", "reach_beyond",
)  # fmt: skip


# Where there is a mask: whether more of a signal can only be good (1) or only be bad (-1), whatever a sample of volumes says. This
# changes nothing on volumes like those fitted on, and helps on others (correlation on phantoms 0.52 -> 0.55, with a mask 0.59 -> 0.68).
_BETTER = {
    "predicted_iou": 1, "presence": 1, "distance": -1, "near": 1, "change": -1, "area": -1, "overlap": 1, "worst_iou": 1,
    "agreement": 1, "alike": 1, "worst_alike": 1, "same": 1,
}  # fmt: skip
_RATE = 0.07


def slice_iou(predicted: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """IoU (T,) of each slice of bool (T, Y, X); both empty = 1, one empty = 0."""
    both, either = (predicted & reference).sum((1, 2)), (predicted | reference).sum((1, 2))
    return np.where(either > 0, both / np.maximum(either, 1), 1.0)


def neighbours_outward(total: int, annotated) -> list[tuple[int, int]]:
    """(slice, its neighbour towards the nearest annotated slice) for all slices that are not annotated, nearest first."""
    t, annotated = np.arange(total), np.asarray(sorted(annotated))
    nearest = annotated[np.abs(t[:, None] - annotated).argmin(1)]
    order = np.argsort(np.abs(t - nearest), kind="stable")
    return [(int(k), int(k - np.sign(k - nearest[k]))) for k in order if k != nearest[k]]


def mask_source(filled: np.ndarray, annotated) -> np.ndarray:
    """Index (T,) of the slice whose mask each slice has, or would have had, had tracking not ended: its own if it is `filled`
    (bool (T,)), else the last one on the way from the nearest annotated slice."""
    source = np.arange(len(filled))
    for k, inner in neighbours_outward(len(filled), annotated):
        if not filled[k]:
            source[k] = source[inner]
    return source


def compute_signals(
    masks: np.ndarray, *, pixel_mm: float, slice_mm: float, annotated, predicted_iou: np.ndarray, present: np.ndarray,
    agreement: np.ndarray, alike: np.ndarray, same: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """What is known about each slice without a reference: float (T, len(SIGNALS)).

    Args:
        masks: bool (T, h, w) at any resolution. pixel_mm: side of its pixels. slice_mm: distance of the slices.
        annotated: indices of the prompted slices.
        predicted_iou: (T,) of the decoder's IoU head. present: (T,) probability that the object is there.
        agreement: (T,) Dice of the two directions between annotated slices, else NaN.
        alike: (T,) in [-1, 1], how much the mask in force (see `in_force`) holds what looks like the annotated structure.
        same: (T,) in [-1, 1], correlation of the image there with that of the slice where that mask comes from.

    Distances count in sizes of the structure (square root of its mean annotated area), so that a lesion and a liver compare.
    """
    t, annotated = np.arange(len(masks)), np.asarray(sorted(annotated))
    area = masks.sum((1, 2)) * pixel_mm**2
    drawn = area[annotated][area[annotated] > 0]
    size = float(np.sqrt(drawn.mean())) if len(drawn) else 10.0
    nearest = annotated[np.abs(t[:, None] - annotated).argmin(1)]
    distance = np.abs(t - nearest) * slice_mm / size
    source = mask_source(area > 0, annotated)
    overlap, change = np.ones(len(masks)), np.zeros(len(masks))
    worst_iou, worst_alike, least_same = np.clip(predicted_iou, 0, 1).astype(float), alike.astype(float), same.astype(float)
    for k, inner in neighbours_outward(len(masks), annotated):
        total = masks[k].sum() + masks[inner].sum()
        overlap[k] = 2 * (masks[k] & masks[inner]).sum() / total if total else 1.0
        change[k] = change[inner] + 1 - overlap[k]
        worst_iou[k], worst_alike[k] = min(worst_iou[k], worst_iou[inner]), min(worst_alike[k], worst_alike[inner])
        if area[k] == 0:
            least_same[k] = min(least_same[k], least_same[inner])
    beyond = np.exp(-2 * np.abs(t - source) * slice_mm / size)
    stop = area[source] / max(float(area[annotated].max()), 1e-6)
    reach = np.minimum(np.abs(source - nearest) * slice_mm / size, 3)
    ratio = np.abs(np.log((area + 1) / (area[nearest] + 1)))
    logit = np.clip(np.log(np.clip(present, 1e-6, 1) / np.clip(1 - present, 1e-6, 1)), -6, 6)
    two = ~np.isnan(agreement)
    return np.stack([
        np.clip(predicted_iou, 0, 1), logit / 6, np.minimum(distance, 4), np.exp(-2 * distance), np.minimum(change, 4),
        np.minimum(ratio, 4), overlap, worst_iou, np.where(two, np.nan_to_num(agreement), 0.7), two,
        alike, worst_alike, least_same, beyond, np.minimum(stop, 4), np.minimum(stop, 4) * beyond,
        np.maximum(least_same, 0) * beyond, np.maximum(worst_alike, 0) * beyond, reach, np.exp(-reach) * beyond,
    ], 1).astype(float)  # fmt: skip


def predicted_quality(predicted_iou: np.ndarray, present: np.ndarray, filled: np.ndarray, agreement: np.ndarray) -> np.ndarray:
    """IoU (T,) expected without anything fitted, from the network's own heads and what its two directions say.

    Where there is a mask, it is right if the object is there, and then as good as predicted, but no better than the directions
    agree (Dice, NaN where there are not two); where there is none, it is right if the object is not there.
    """
    mask = np.fmin(present * np.clip(predicted_iou, 0, 1), agreement / (2 - agreement))
    return np.where(filled, mask, 1 - present)


@dataclass(frozen=True)
class Boosting:
    """A sum of small regression trees, as plain numbers: fitted by scikit-learn, kept as JSON, evaluated by NumPy.

    Attributes:
        start: what the trees are added to.
        trees: of each tree the nodes' (signal, threshold, left, right, value); a leaf has signal -1.
    """

    start: float
    trees: tuple[tuple[tuple[float, ...], ...], ...]

    @cached_property
    def _columns(self) -> tuple[np.ndarray, ...]:
        """Signal, threshold, left, right, value of all nodes, tree after tree, children counted through; and each tree's first."""
        first = np.cumsum([0, *(len(tree) for tree in self.trees)])
        signal, threshold, left, right, value = np.concatenate([np.asarray(tree, float) for tree in self.trees] or [np.zeros((0, 5))]).T
        shift = np.repeat(first[:-1], np.diff(first))
        inner = signal >= 0
        here = np.arange(len(signal))  # where a leaf goes on
        left, right = (np.where(inner, side.astype(int) + shift, here) for side in (left, right))
        return np.maximum(signal, 0).astype(int), threshold, left, right, value, first[:-1]

    def __call__(self, x: np.ndarray) -> np.ndarray:
        signal, threshold, left, right, value, first = self._columns
        rows = np.arange(len(x))[:, None]
        node = np.broadcast_to(first, (len(x), len(first)))
        while True:
            below = np.where(x[rows, signal[node]] <= threshold[node], left[node], right[node])
            if (below == node).all():  # leaves
                return self.start + value[node].sum(1)
            node = below

    @classmethod
    def fit(cls, x: np.ndarray, y: np.ndarray, monotone: Sequence[int] | None = None, trees: int = 150, seed: int = 0) -> "Boosting":
        """Least squares; small leaves are not allowed, because slices of one volume are much alike.

        Args:
            monotone: for each signal 1 where more of it may not mean less, -1 where it may not mean more, 0 where it may be either.
        """
        from sklearn.tree import DecisionTreeRegressor

        x, total, rng = np.asarray(x, np.float32), np.full(len(x), np.mean(y)), np.random.RandomState(seed)  # as it will compare
        leaf = max(1, min(200, len(x) // 20))
        fitted = []
        for _ in range(trees):
            some = rng.permutation(len(x))[: max(1, round(0.7 * len(x)))]
            tree = DecisionTreeRegressor(
                max_depth=3, min_samples_leaf=leaf, max_features=0.5, monotonic_cst=monotone, random_state=rng
            )  # fmt: skip
            fitted.append(tree.fit(x[some], y[some] - total[some]).tree_)
            total += _RATE * tree.predict(x)

        def nodes(tree):
            columns = tree.feature, tree.threshold, tree.children_left, tree.children_right, _RATE * tree.value[:, 0, 0]
            return tuple(
                (int(f) if left >= 0 else -1, round(float(t), 6), int(left), int(right), round(float(v), 6))
                for f, t, left, right, v in zip(*columns, strict=True)
            )

        return cls(float(np.mean(y)), tuple(map(nodes, fitted)))


@dataclass(frozen=True)
class QualityEstimator:
    """Expected IoU from `signals`, fitted for one checkpoint: one model where there is a mask, one where there is none."""

    filled: Boosting
    empty: Boosting

    def __call__(self, x: np.ndarray, filled: np.ndarray) -> np.ndarray:
        """(T,) in [0, 1] from signals (T, len(SIGNALS)) and whether each slice has a mask."""
        return np.clip(np.where(filled, self.filled(x), self.empty(x)), 0, 1)

    @classmethod
    def fit(cls, x: np.ndarray, filled: np.ndarray, iou: np.ndarray) -> "QualityEstimator":
        """From slices whose true IoU is known."""
        return cls(Boosting.fit(x[filled], iou[filled], [_BETTER.get(s, 0) for s in SIGNALS]), Boosting.fit(x[~filled], iou[~filled]))

    def to_json(self) -> str:
        return json.dumps({"signals": SIGNALS, **asdict(self)}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> "QualityEstimator | None":
        """None if it was fitted on other signals, by another release."""
        content = json.loads(text)
        if tuple(content.get("signals", ())) != SIGNALS:
            return None
        return cls(Boosting(**content["filled"]), Boosting(**content["empty"]))
