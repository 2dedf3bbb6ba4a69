"""Which volumes the DICOM files of a folder hold: stacks of parallel slices at even distances."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.imaging.volume import SourceFrame


@dataclass(frozen=True, eq=False)
class Stack:
    """A stack of slices, or the reason why some DICOM frames are none.

    Attributes:
        series_uid: SeriesInstanceUID of the frames.
        description: What the stack is, for a list to choose from.
        frames: The frame of each slice k, in this order.
        shape: Number of voxels (I, J, K): columns, rows and slices.
        affine: (4, 4), from voxel indices (i, j, k) to positions in mm RAS.
        problem: Sentence that says why the frames cannot be used as a volume; empty if they can.
    """

    series_uid: str
    description: str
    frames: tuple[SourceFrame, ...]
    shape: tuple[int, int, int] = (0, 0, 0)
    affine: np.ndarray | None = None
    problem: str = ""


def find_stacks(path: Path) -> list[Stack]:
    """Return the stacks in a DICOM file, or in the DICOM files of a folder and its subfolders, sorted by series and position."""
    raise NotImplementedError
