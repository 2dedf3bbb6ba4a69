"""Interpolation between painted slices without a network, as 3D Slicer's "fill between slices" does it."""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import groupby

import itk
import numpy as np

from lib.common.errors import PromptError
from lib.evaluation.methods.method import DEFAULT_MODE, Annotations, Prediction, PropagationMode, keep_annotated
from lib.imaging.frames import Frames
from lib.imaging.masks import bounding_box

SLICING_AXIS = 2  # ITK counts axes from the fastest one, so that the first axis of an array (T, Y, X) is its last one.


class FillMethod:
    """Morphological contour interpolation (Zukic et al. 2016) by ITK; see `lib.evaluation.methods.method.Method`.

    The mask does not depend on the image. It ends at the outermost painted slices, and at slices that are marked as empty. With one
    painted slice, there is nothing to interpolate. The direction of propagation has no effect.
    """

    name, takes_masks, takes_clicks = "fill", True, False

    def __init__(self, options=None):
        """Create the method; it has no options."""
        self._interpolate = itk.morphological_contour_interpolator
        self._frames: Frames | None = None
        self._fill(np.ones((3, 1, 1), bool))  # ITK loads the filter at its first use, which takes seconds.

    def open(self, frames: Frames) -> None:
        self._frames = frames

    def segment(self, annotations: Annotations, mode: PropagationMode = DEFAULT_MODE) -> Prediction:
        if any(p.mask is None for p in annotations.values()):
            raise PromptError("Fill between slices takes painted slices only, no clicks and no boxes.")
        mask = np.zeros((len(self._frames), *self._frames.size), bool)
        for t, prompt in annotations.items():
            mask[t] = prompt.mask
        for is_filled, run in groupby(sorted(annotations), key=lambda t: bool(mask[t].any())):
            slices = list(run)
            if is_filled and len(slices) > 1:
                part = slice(slices[0], slices[-1] + 1)
                mask[part] = self._fill(mask[part])
        for t, prompt in annotations.items():  # The filter may add to painted slices.
            mask[t] = prompt.mask
        return Prediction(keep_annotated(mask, annotations, mode))

    def _fill(self, mask: np.ndarray) -> np.ndarray:
        """Return bool (T, Y, X) with the slices between those that are not empty filled; the first and the last are not empty."""
        box = bounding_box(mask)
        # Contours must not touch the border of ITK's image.
        painted = np.pad(mask[box].astype(np.uint8), ((0, 0), (1, 1), (1, 1)))
        with _single_thread():
            filled = itk.array_from_image(self._interpolate(itk.image_from_array(painted), axis=SLICING_AXIS))
        result = mask.copy()
        result[box] = filled[:, 1:-1, 1:-1] > 0
        return result


@contextmanager
def _single_thread() -> Iterator[None]:
    """Limit ITK to one thread: with more, version 2.1.2 of the filter corrupts the heap, and the process dies sooner or later."""
    count = itk.MultiThreaderBase.GetGlobalDefaultNumberOfThreads()
    itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(1)
    try:
        yield
    finally:
        itk.MultiThreaderBase.SetGlobalDefaultNumberOfThreads(count)
