"""A volume as a video: one intensity window for all slices, one axis as time, square frames of true aspect."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lib.common.errors import OptionError
from lib.imaging import geometry
from lib.imaging.volume import Volume

# Lower and upper bound in HU. "full" is the window of He et al. 2024 (section 2.2).
CT_WINDOWS = {
    "abdomen": (-160.0, 240.0),
    "lung": (-1350.0, 150.0),
    "bone": (-450.0, 1050.0),
    "brain": (0.0, 80.0),
    "mediastinum": (-125.0, 225.0),
    "full": (-1000.0, 1000.0),
}
WINDOWS = ("auto", *CT_WINDOWS)
AXES = ("auto", "0", "1", "2")


def looks_like_ct(array: np.ndarray) -> bool:
    """Whether values are Hounsfield units: a good share of air near -1000 and of soft tissue around 0-100."""
    sample = _sample(array)
    air = np.mean(sample < -700)
    tissue = np.mean((sample > -200) & (sample < 300))
    return bool(sample.min() >= -4096 and air > 0.005 and tissue > 0.02 and air + tissue > 0.4)


def window_bounds(volume: Volume, window: str = "auto") -> tuple[float, float]:
    """Intensities (low, high) that become 0 and 255.

    Args:
        window: "auto" (soft tissue for CT, else the 0.5 and 99.5 percentiles of what is not background), a name of
            CT_WINDOWS, or "low,high".

    Raises:
        OptionError: none of these.
    """
    window = str(window).strip().lower() or "auto"
    if window in CT_WINDOWS:
        return CT_WINDOWS[window]
    if window != "auto":
        try:
            low, high = (float(v) for v in window.split(","))
        except ValueError as e:
            raise OptionError(f"Unknown window {window!r}: use {', '.join(WINDOWS)} or 'low,high'.") from e
        if not (np.isfinite([low, high]).all() and low < high):
            raise OptionError(f"In the window {window!r} the lower bound must be below the upper one.")
        return low, high
    if looks_like_ct(volume.array):
        return CT_WINDOWS["abdomen"]
    sample = _sample(volume.array)
    low, high = float(sample.min()), float(sample.max())
    if low >= 0 and high <= 255 and high > 200 and np.issubdtype(volume.array.dtype, np.integer):
        return 0.0, 255.0  # somebody windowed it already
    # Background: the lowest value (air, padding) and what lies within 2 % of the range above it.
    tissue = sample[sample > low + 0.02 * (np.percentile(sample, 99.9) - low)]
    if tissue.size < 0.01 * sample.size or tissue.size < 16:
        tissue = sample
    p_low, p_high = np.percentile(tissue, [0.5, 99.5])
    if p_high <= p_low:
        p_low, p_high = low, high
    return (float(p_low), float(p_high)) if p_high > p_low else (float(low), float(low) + 1.0)


def resolve_axis(volume: Volume, axis: str | int = "auto") -> int:
    """Slicing axis 0, 1 or 2 from an option value.

    Raises:
        OptionError: unknown value.
    """
    axis = str(axis).strip().lower()
    if axis in ("", "auto"):
        return 2 if volume.planar else geometry.slicing_axis(volume.shape, volume.spacing_mm)
    if axis in ("0", "1", "2"):
        return int(axis)
    raise OptionError(f"Unknown axis {axis!r}: use {', '.join(AXES)} (the voxel axis to step along).")


@dataclass(frozen=True, eq=False)
class Frames:
    """The slices of a volume along one axis.

    In frame t the pixel (y, x) is the voxel whose index along `axis` is t, and whose other two indices are x (the
    first of them) and y (the second): for axis 2, voxel (i, j, k) is pixel x = i, y = j of frame t = k.

    Attributes:
        volume, axis: what is sliced.
        bounds: intensity window (low, high).
        part: rows and columns to which the frames are cut, None for all. Positions of voxels are always those of whole frames.
    """

    volume: Volume
    axis: int
    bounds: tuple[float, float]
    crop: tuple[slice, slice] | None = None

    @classmethod
    def of(cls, volume: Volume, *, window: str = "auto", axis: str | int = "auto") -> "Frames":
        return cls(volume, resolve_axis(volume, axis), window_bounds(volume, window))

    @property
    def in_plane(self) -> tuple[int, int]:
        """The voxel axes of (x, y)."""
        return tuple(a for a in range(3) if a != self.axis)

    @cached_property
    def stack(self) -> np.ndarray:
        """View (T, Y, X) of the voxels, not windowed."""
        stack = self.from_volume(self.volume.array)
        return stack if self.crop is None else stack[:, self.crop[0], self.crop[1]]

    def cropped(self, rows: slice, columns: slice) -> "Frames":
        """Whole frames cut to a part, with the same window."""
        return Frames(self.volume, self.axis, self.bounds, (rows, columns))

    def __len__(self) -> int:
        return self.volume.shape[self.axis]

    @property
    def size(self) -> tuple[int, int]:
        """(Y, X) pixels."""
        return self.stack.shape[1:]

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """(Y, X) pixel sizes."""
        x, y = self.in_plane
        return float(self.volume.spacing_mm[y]), float(self.volume.spacing_mm[x])

    @property
    def slice_mm(self) -> float:
        """Distance of neighbouring slices."""
        return float(self.volume.spacing_mm[self.axis])

    @property
    def key(self) -> tuple:
        """What the frames are a function of."""
        part = self.crop and tuple((s.start, s.stop) for s in self.crop)
        return self.volume.key, self.axis, self.bounds, part

    def windowed(self, indices) -> np.ndarray:
        """Frames uint8 (len(indices), Y, X)."""
        low, high = self.bounds
        frames = (self.stack[list(indices)].astype(np.float32) - low) * (255.0 / (high - low))
        return np.clip(np.rint(frames), 0, 255).astype(np.uint8)

    def thumbnails(self, side: int) -> np.ndarray:
        """All frames, small: uint8 (T, side, side), longer physical side filling the square, the rest 0."""
        height, width = fitted_size(self.size, self.pixel_mm, side)
        rows, columns = (((np.arange(2 * n) + 0.5) * size / (2 * n)).astype(int) for n, size in zip((height, width), self.size, strict=True))
        low, high = self.bounds
        out = np.zeros((len(self), side, side), np.uint8)
        for small, frame in zip(out, self.stack, strict=True):
            sampled = (frame[rows[:, None], columns].astype(np.float32) - low) * (255.0 / (high - low))
            small[:height, :width] = np.rint(np.clip(sampled, 0, 255).reshape(height, 2, width, 2).mean((1, 3)))
        return out

    def to_pixel(self, ijk) -> tuple[int, float, float]:
        """(t, y, x) of a voxel index."""
        x, y = self.in_plane
        return int(ijk[self.axis]), float(ijk[y]), float(ijk[x])

    def to_voxel(self, t: int, y: int, x: int) -> tuple[int, int, int]:
        """(i, j, k) of a pixel of frame t."""
        ijk = [0, 0, 0]
        (ax, ay) = self.in_plane
        ijk[self.axis], ijk[ay], ijk[ax] = int(t), int(y), int(x)
        return tuple(ijk)

    def to_volume(self, stack: np.ndarray) -> np.ndarray:
        """View (I, J, K) of an array (T, Y, X)."""
        x, y = self.in_plane
        return stack.transpose(np.argsort((self.axis, y, x)))

    def from_volume(self, array: np.ndarray) -> np.ndarray:
        """View (T, Y, X) of an array (I, J, K)."""
        x, y = self.in_plane
        return array.transpose(self.axis, y, x)


def fitted_size(size: tuple[int, int], pixel_mm: tuple[float, float], side: int) -> tuple[int, int]:
    """Height and width in a square of `side` pixels of a slice of `size` (Y, X), longer physical side filling it.

    >>> fitted_size((512, 512), (0.7, 0.7), 256), fitted_size((100, 200), (2.0, 1.0), 256), fitted_size((50, 200), (1.0, 1.0), 256)
    ((256, 256), (256, 256), (64, 256))
    """
    extent = np.array(size) * np.array(pixel_mm)
    height, width = np.maximum(1, np.rint(extent / extent.max() * side)).astype(int)
    return int(height), int(width)


def _sample(array: np.ndarray, about: int = 400_000) -> np.ndarray:
    """Voxels on a regular grid, float32, so that percentiles of large volumes are cheap."""
    step = max(1, int(round((array.size / about) ** (1 / 3))))
    steps = [min(step, max(1, n // 8)) for n in array.shape]
    return np.asarray(array[tuple(slice(s // 2, None, s) for s in steps)], np.float32).ravel()
