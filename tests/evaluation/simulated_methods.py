"""Masks from text, targets from masks, and a method whose predictions are given."""

import numpy as np

from lib.evaluation.methods.method import DEFAULT_MODE, Prediction
from lib.evaluation.protocols.target import Target
from lib.imaging.frames import Frames
from lib.imaging.volume import Volume


def mask_from_text(*rows: str) -> np.ndarray:
    """Return bool (Y, X), True where the text has "#"."""
    return np.array([[c == "#" for c in row] for row in rows])


def make_target(reference: np.ndarray) -> Target:
    """Return a target with this reference (T, Y, X) on a volume in which the value of each voxel is the index of its slice."""
    stack = np.broadcast_to(np.arange(len(reference), dtype=np.float32)[:, None, None], reference.shape)
    frames = Frames(Volume(np.ascontiguousarray(stack.transpose(2, 1, 0))), 2, (0.0, 10.0))
    return Target.with_all_slices(frames, reference)


class ScriptedMethod:
    """Predicts the given masks (T, Y, X) one after the other, then the last one again and again.

    Attributes:
        requests: The annotations and modes of all calls of `segment`.
    """

    name, takes_masks, takes_clicks = "scripted", True, True

    def __init__(self, *masks):
        self.masks, self.requests, self.frames = list(masks), [], None

    def open(self, frames):
        self.frames = frames

    def segment(self, annotations, mode=DEFAULT_MODE):
        self.requests.append((annotations, mode))
        return Prediction(self.masks[min(len(self.requests), len(self.masks)) - 1])
