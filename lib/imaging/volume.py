"""Represent one 3D image: its voxels, their positions in space, and a key that identifies its content."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from lib.common.errors import VolumeError
from lib.imaging import geometry

LUMINANCE = np.float32([0.299, 0.587, 0.114])  # The shares of red, green and blue.


@dataclass(frozen=True)
class SourceFrame:
    """The frame of a DICOM object that a slice of a volume was read from.

    Attributes:
        path: DICOM file.
        sop_instance_uid: SOPInstanceUID of the object in that file.
        number: Number of the frame in the object, from 1; 1 for objects with a single frame.
    """

    path: Path
    sop_instance_uid: str
    number: int = 1


@dataclass(frozen=True, eq=False)
class Grid:
    """The voxel grid of an image, without its voxels.

    Attributes:
        shape: Number of voxels (I, J, K).
        affine: (4, 4), from voxel indices (i, j, k) to positions in mm RAS.
        planar: Whether the file contains a single 2D image; K is then 1.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    planar: bool = False


@dataclass(frozen=True, eq=False)
class Volume:
    """A grey-scale volume; `make_volume` creates one from other kinds of arrays.

    Attributes:
        array: Finite real numbers (I, J, K), in the index order of the file.
        affine: (4, 4), from voxel indices (i, j, k) to positions in mm RAS.
        name: Name for messages and titles.
        planar: Whether the file contained a single 2D image; K is then 1.
        source_frames: For a volume that was read from DICOM, the frame of each slice k, in this order; otherwise empty.
        warnings: Sentences about what the reader had to assume, for the user.
    """

    array: np.ndarray
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    name: str = "volume"
    planar: bool = False
    source_frames: tuple[SourceFrame, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self):
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise VolumeError(f"{self.name} has shape {self.array.shape}; a volume with three axes is needed.")
        check_affine(self.affine, self.name)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of voxels (I, J, K)."""
        return self.array.shape

    @property
    def grid(self) -> Grid:
        """The voxel grid without the voxels."""
        return Grid(self.shape, self.affine, self.planar)

    @cached_property
    def spacing_mm(self) -> np.ndarray:
        """Voxel sizes (3,) in mm."""
        return geometry.spacing(self.affine)

    @cached_property
    def key(self) -> str:
        """Hexadecimal digest of voxels and affine: copies of an image have the same key wherever they are stored."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(str((self.array.shape, self.array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(self.affine, "<f8").tobytes())
        for block in self.array:  # Going slab by slab avoids a second copy of a large volume.
            digest.update(np.ascontiguousarray(block))
        return digest.hexdigest()


def check_affine(affine: np.ndarray, name: str) -> None:
    """Raise VolumeError, which calls the image `name`, if an affine (4, 4) does not place the voxels in space."""
    if not geometry.is_valid_affine(affine):
        raise VolumeError(f"{name} has an unusable affine (not finite, or flat): repair its header.")


def make_volume(
    array, affine=None, *, name="volume", channel: int | None = None,
    source_frames: tuple[SourceFrame, ...] = (), warnings: tuple[str, ...] = (),
) -> Volume:  # fmt: skip
    """Return a `Volume` made from the content of any image file.

    A 2D image becomes one slice; trailing axes of length one are removed; RGB(A) becomes luminance; complex values become
    magnitudes; NaN and infinities become the lowest finite value.

    Args:
        array: (I, J), (I, J, K) or (I, J, K, C), with real, complex or RGB(A) values.
        channel: Index of the channel or time point to use; needed if C is greater than 1.
        source_frames, warnings: See `Volume`.

    Raises:
        VolumeError: There are no voxels, no finite value, too many axes, or several channels and none is chosen.
    """
    array = np.asarray(array)
    if array.dtype.names:  # RGB in NIfTI
        array = np.stack([array[n] for n in array.dtype.names[:3]], -1).astype(np.float32) @ LUMINANCE
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.ndim < 2 or array.size == 0:
        raise VolumeError(f"{name} has no voxels (shape {array.shape}).")
    if array.ndim == 4:
        if channel is None or not 0 <= channel < array.shape[3]:
            raise VolumeError(
                f"{name} has {array.shape[3]} channels or time points: choose one of 0 to {array.shape[3] - 1} with the "
                "option 'channel', or split the file."
            )
        array = array[..., channel]
    if array.ndim > 4:
        raise VolumeError(f"{name} has {array.ndim} axes; three (or four with a channel) are supported.")
    planar = array.ndim == 2
    if planar:
        array = array[:, :, None]
    if np.iscomplexobj(array):
        array = np.abs(array)
    if array.dtype == bool:
        array = array.astype(np.uint8)
    if array.dtype.kind not in "uif":
        raise VolumeError(f"{name} holds {array.dtype} values; numbers are needed.")
    if array.dtype.kind == "f":
        if array.dtype.itemsize != 4:
            with np.errstate(over="ignore"):  # Values beyond the range become infinite, and thus the lowest finite value.
                array = array.astype(np.float32)
        finite = np.isfinite(array)
        if not finite.any():
            raise VolumeError(f"{name} holds no finite value.")
        if not finite.all():
            array = np.where(finite, array, array[finite].min())
    affine = np.eye(4) if affine is None else np.asarray(affine, float)
    return Volume(array, affine, name, planar, source_frames, warnings)
