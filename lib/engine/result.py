"""What a segmentation gives back."""

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lib.imaging import masks

Followed = tuple[int, int, tuple[slice, slice] | None]  # first and last slice, rows and columns


@dataclass(frozen=True, eq=False)
class Result:
    """Outcome of one request.

    Attributes:
        mask: bool (I, J, K) on the volume's grid.
        axis: slicing axis. annotated: the slices that were prompted.
        predicted_iou: (T,) the model's own estimate for each slice. present: (T,) its probability that the object is
            there. agreement: (T,) Dice of the two directions between annotated slices, else NaN.
        signals: (T, S), see `lib.quality.estimator.signals`. expected_iou: (T,) estimated from them, or from the network's heads
            where the checkpoint has no fitted estimate; 1 on annotated slices.
        seconds: time of each stage (encode, prompt, propagate, finish).
        encoded: slices that had to be encoded for this request. followed: where tracking looked, and a little further; None = at whole
            frames.
    """

    mask: np.ndarray
    axis: int
    annotated: tuple[int, ...]
    predicted_iou: np.ndarray
    present: np.ndarray
    agreement: np.ndarray
    signals: np.ndarray
    expected_iou: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    encoded: int = 0
    followed: tuple[Followed, ...] = ()

    @cached_property
    def areas(self) -> np.ndarray:
        """Pixels (T,) of the mask on each slice."""
        return masks.slice_areas(np.moveaxis(self.mask, self.axis, 0))
