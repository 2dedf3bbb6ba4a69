"""One structure of one volume, as a protocol sees it."""

from dataclasses import dataclass

import numpy as np

from lib.imaging.frames import Frames
from lib.imaging.masks import filled_slices
from lib.imaging.volume import Volume


@dataclass(frozen=True, eq=False)
class Target:
    """The structure to be segmented.

    Attributes:
        frames: The slices of the volume.
        reference: The reference segmentation, bool (T, Y, X).
        source_slices: For each slice, its index in the case's own volume, int (T,). A protocol may leave out slices of it.
    """

    frames: Frames
    reference: np.ndarray
    source_slices: np.ndarray

    @classmethod
    def with_all_slices(cls, frames: Frames, reference: np.ndarray) -> "Target":
        """Return the target on all slices of a volume."""
        return cls(frames, reference, np.arange(len(frames)))

    @property
    def foreground_slices(self) -> np.ndarray:
        """The indices of the slices on which the reference is not empty."""
        return filled_slices(self.reference)

    def keep_slices(self, slices: np.ndarray) -> "Target":
        """Return the target on these slices only, as if they were neighbours; intensity window and spacing stay."""
        volume, axis = self.frames.volume, self.frames.axis
        kept = Volume(np.ascontiguousarray(volume.array.take(slices, axis)), volume.affine, volume.name)
        return Target(Frames(kept, axis, self.frames.bounds), self.reference[slices], self.source_slices[slices])

    def scale_each_slice(self) -> "Target":
        """Return the target with every slice scaled on its own, its lowest value to 0 and its highest to 255."""
        stack = self.frames.stack.astype(np.float32)
        low, high = stack.min((1, 2), keepdims=True), stack.max((1, 2), keepdims=True)
        scaled = np.rint((stack - low) * (255 / np.maximum(high - low, 1e-6))).astype(np.uint8)
        volume = Volume(self.frames.to_volume(scaled), self.frames.volume.affine, self.frames.volume.name)
        return Target(Frames(volume, self.frames.axis, (0.0, 255.0)), self.reference, self.source_slices)
