"""The result of a segmentation."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np

from lib.imaging import masks
from lib.propagation.zoom import Crop
from lib.quality.slice_estimates import SliceEstimates


class TrackedRange(NamedTuple):
    """Slices in which a structure was tracked, as far as its next correction may need them.

    Attributes:
        low, high: First and last slice, both included.
        crop: Rows and columns, or None for whole frames.
    """

    low: int
    high: int
    crop: Crop | None


@dataclass(frozen=True, eq=False)
class Result:
    """The outcome of one request.

    Attributes:
        mask: Bool (I, J, K) on the volume's grid.
        axis: The slicing axis.
        annotated: Indices of the slices that were prompted.
        estimates: Estimated quality of each slice; None from engines that estimate nothing.
        seconds: Time in seconds of each stage (encode, prompt, propagate, finish, estimate).
        encoded_count: Number of slices that had to be encoded for this request.
        tracked: Where the structure was tracked; empty without propagation.
    """

    mask: np.ndarray
    axis: int
    annotated: tuple[int, ...]
    estimates: SliceEstimates | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    encoded_count: int = 0
    tracked: tuple[TrackedRange, ...] = ()

    @classmethod
    def empty(cls, shape: tuple[int, int, int], axis: int) -> "Result":
        """Return the outcome without any prompt, for a volume of this shape (I, J, K): an empty mask about whose slices nothing is known."""
        unknown = np.full(shape[axis], np.nan)
        return cls(np.zeros(shape, bool), axis, (), SliceEstimates(unknown, unknown, unknown, np.zeros((len(unknown), 0)), unknown))

    @cached_property
    def areas(self) -> np.ndarray:
        """Pixels (T,) of the mask on each slice."""
        return masks.slice_areas(np.moveaxis(self.mask, self.axis, 0))
