"""One 3D image: voxels, where they lie, and a name by content."""

import hashlib
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from lib.common.errors import VolumeError
from lib.imaging import geometry


@dataclass(frozen=True, eq=False)
class Volume:
    """A grey-scale volume.

    Attributes:
        array: (I, J, K), any real dtype, finite; indices are the file's own (i, j, k).
        affine: (4, 4), voxel indices to mm RAS.
        name: for messages and titles.
        planar: the file held one 2D image (then K = 1).
    """

    array: np.ndarray
    affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    name: str = "volume"
    planar: bool = False

    def __post_init__(self):
        if self.array.ndim != 3 or 0 in self.array.shape:
            raise VolumeError(f"{self.name} has shape {self.array.shape}; a volume with three axes is needed.")
        if not geometry.is_valid_affine(self.affine):
            raise VolumeError(f"{self.name} has an unusable affine (not finite, or flat): repair its header.")

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.array.shape

    @cached_property
    def spacing_mm(self) -> np.ndarray:
        """Voxel sizes (3,) in mm."""
        return geometry.spacing(self.affine)

    @cached_property
    def key(self) -> str:
        """Hex digest of voxels and affine: the same image under two paths has one key."""
        digest = hashlib.blake2b(digest_size=16)
        digest.update(str((self.array.shape, self.array.dtype.str)).encode())
        digest.update(np.ascontiguousarray(self.affine, "<f8").tobytes())
        for block in self.array:  # slab by slab: no second copy of a large volume
            digest.update(np.ascontiguousarray(block))
        return digest.hexdigest()


def make_volume(array, affine=None, *, name="volume", channel: int | None = None) -> Volume:
    """A `Volume` from whatever an image file held.

    2D images become one slice; trailing axes of length one are dropped; RGB(A) becomes luminance; NaN and infinities
    become the lowest finite value; complex values become magnitudes.

    Args:
        array: (I, J), (I, J, K), or (I, J, K, C) with `channel` given or C = 1; real, complex, or of an RGB(A) dtype.
        channel: which of several channels or time points to use.

    Raises:
        VolumeError: no voxels, several channels and none chosen, nothing finite.
    """
    array = np.asarray(array)
    if array.dtype.names:  # NIfTI's RGB dtype
        array = np.stack([array[n] for n in array.dtype.names[:3]], -1).astype(np.float32) @ [0.299, 0.587, 0.114]
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
            array = array.astype(np.float32)
        finite = np.isfinite(array)
        if not finite.any():
            raise VolumeError(f"{name} holds no finite value.")
        if not finite.all():
            array = np.where(finite, array, array[finite].min())
    return Volume(array, np.eye(4) if affine is None else np.asarray(affine, float), name, planar)
