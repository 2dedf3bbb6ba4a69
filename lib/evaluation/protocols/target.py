"""One structure of one volume, as a protocol sees it."""

from dataclasses import dataclass

import numpy as np

from lib.imaging.frames import Frames
from lib.imaging.volume import Volume


@dataclass(frozen=True, eq=False)
class Target:
    """What is to be segmented.

    Attributes:
        frames: the slices. reference: bool (T, Y, X), the reference.
        index: (T,) of each slice in the case's own volume, of which a protocol may leave out slices.
    """

    frames: Frames
    reference: np.ndarray
    index: np.ndarray

    @classmethod
    def of(cls, frames: Frames, reference: np.ndarray) -> "Target":
        return cls(frames, reference, np.arange(len(frames)))

    @property
    def filled(self) -> np.ndarray:
        """Indices of the slices with foreground."""
        return np.flatnonzero(self.reference.any((1, 2)))

    def keep(self, slices: np.ndarray) -> "Target":
        """Only those slices, as if they were neighbours; intensity window and spacing stay."""
        volume, axis = self.frames.volume, self.frames.axis
        kept = Volume(np.ascontiguousarray(volume.array.take(slices, axis)), volume.affine, volume.name)
        return Target(Frames(kept, axis, self.frames.bounds), self.reference[slices], self.index[slices])

    def scaled(self) -> "Target":
        """Every slice scaled on its own, its lowest value to 0 and its highest to 255."""
        stack = self.frames.stack.astype(np.float32)
        low, high = stack.min((1, 2), keepdims=True), stack.max((1, 2), keepdims=True)
        grey = np.rint((stack - low) * (255 / np.maximum(high - low, 1e-6))).astype(np.uint8)
        volume = Volume(self.frames.to_volume(grey), self.frames.volume.affine, self.frames.volume.name)
        return Target(Frames(volume, self.frames.axis, (0.0, 255.0)), self.reference, self.index)
