"""Present a volume as a video: one voxel axis becomes time, and one intensity window applies to all slices."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lib.common.errors import OptionError
from lib.imaging import geometry
from lib.imaging.volume import Volume

# The lower and upper bound of each window in HU. "full" is the window of He et al. 2024 (section 2.2).
CT_WINDOWS = {
    "abdomen": (-160.0, 240.0), "lung": (-1350.0, 150.0), "bone": (-450.0, 1050.0), "brain": (0.0, 80.0),
    "mediastinum": (-125.0, 225.0), "full": (-1000.0, 1000.0),
}  # fmt: skip
WINDOWS = ("auto", *CT_WINDOWS)
AXES = ("auto", "0", "1", "2")


def looks_like_ct(array: np.ndarray) -> bool:
    """Return whether the intensities of a volume are Hounsfield units: some air, some soft tissue and little else."""
    sample = _sample(array)
    air = np.mean(sample < -700)
    tissue = np.mean((sample > -200) & (sample < 300))
    return bool(sample.min() >= -4096 and air > 0.005 and tissue > 0.02 and air + tissue > 0.4)


def window_bounds(volume: Volume, window: str = "auto") -> tuple[float, float]:
    """Return the intensities (low, high) that become 0 and 255.

    Args:
        window: "auto" (soft tissue for CT, otherwise the 0.5th and 99.5th percentile of the foreground), a name in `CT_WINDOWS`,
            or "low,high".

    Raises:
        OptionError: The window is none of these.
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
        return 0.0, 255.0  # The image has already been windowed.
    # The background is the lowest value (air, padding) and everything up to 2 % of the range above it.
    foreground = sample[sample > low + 0.02 * (np.percentile(sample, 99.9) - low)]
    if foreground.size < 0.01 * sample.size or foreground.size < 16:
        foreground = sample
    p_low, p_high = np.percentile(foreground, [0.5, 99.5])
    if p_high <= p_low:
        p_low, p_high = low, high
    return (float(p_low), float(p_high)) if p_high > p_low else (float(low), float(low) + 1.0)


def resolve_axis(volume: Volume, axis: str | int = "auto") -> int:
    """Return the slicing axis (0, 1 or 2) that an option value stands for; "auto" chooses it by the volume's grid.

    Raises:
        OptionError: The value is unknown.
    """
    axis = str(axis).strip().lower()
    if axis in ("", "auto"):
        return 2 if volume.planar else geometry.slicing_axis(volume.shape, volume.spacing_mm)
    if axis in ("0", "1", "2"):
        return int(axis)
    raise OptionError(f"Unknown axis {axis!r}: use {', '.join(AXES)} (the voxel axis to step along).")


@dataclass(frozen=True, eq=False)
class Frames:
    """The slices of a volume along one voxel axis, as a video of T frames with Y rows and X columns.

    The index along `axis` is the frame t; the first of the other two indices is the column x, the second is the row y. For axis 2,
    voxel (i, j, k) is therefore pixel x = i, y = j of frame t = k.

    Attributes:
        volume, axis: The volume and the voxel axis (0, 1 or 2) along which it is sliced.
        bounds: The intensities (low, high) that become 0 and 255.
        crop: Rows and columns to which frames are cut, or None. `to_pixel` and `to_voxel` ignore it: they refer to whole frames.
    """

    volume: Volume
    axis: int
    bounds: tuple[float, float]
    crop: tuple[slice, slice] | None = None

    @classmethod
    def of(cls, volume: Volume, *, window: str = "auto", axis: str | int = "auto") -> "Frames":
        """Return the frames of a volume for the options `window` (see `window_bounds`) and `axis` (see `resolve_axis`)."""
        return cls(volume, resolve_axis(volume, axis), window_bounds(volume, window))

    @property
    def in_plane(self) -> tuple[int, int]:
        """The voxel axes that become x and y."""
        return tuple(a for a in range(3) if a != self.axis)

    @cached_property
    def stack(self) -> np.ndarray:
        """View (T, Y, X) of the voxels with their original intensities, cut to `crop`."""
        stack = self.from_volume(self.volume.array)
        return stack if self.crop is None else stack[:, self.crop[0], self.crop[1]]

    def cropped(self, rows: slice, columns: slice) -> "Frames":
        """Return the frames cut to these rows and columns of the whole frames, with the same window."""
        return Frames(self.volume, self.axis, self.bounds, (rows, columns))

    def __len__(self) -> int:
        return self.volume.shape[self.axis]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width (Y, X) of a frame in pixels, after cropping."""
        return self.stack.shape[1:]

    @property
    def pixel_mm(self) -> tuple[float, float]:
        """Height and width of a pixel in mm."""
        x_axis, y_axis = self.in_plane
        return float(self.volume.spacing_mm[y_axis]), float(self.volume.spacing_mm[x_axis])

    @property
    def slice_mm(self) -> float:
        """Distance between neighbouring slices in mm."""
        return float(self.volume.spacing_mm[self.axis])

    @property
    def key(self) -> tuple:
        """A hashable key for caches: frames with equal keys have equal content."""
        crop = self.crop and tuple((s.start, s.stop) for s in self.crop)
        return self.volume.key, self.axis, self.bounds, crop

    def windowed(self, indices) -> np.ndarray:
        """Return the frames with these indices, windowed to uint8 (len(indices), Y, X)."""
        low, high = self.bounds
        frames = (self.stack[list(indices)].astype(np.float32) - low) * (255.0 / (high - low))
        return np.clip(np.rint(frames), 0, 255).astype(np.uint8)

    def thumbnails(self, side: int) -> np.ndarray:
        """Return all frames, windowed and scaled to fit a square of `side` pixels (see `fitted_size`): uint8 (T, side, side).

        A frame fills the upper left of its square, the rest is 0. Each thumbnail pixel is the mean of a grid of 2 x 2 samples.
        """
        height, width = fitted_size(self.size, self.pixel_mm, side)
        sizes = zip((height, width), self.size, strict=True)
        rows, columns = (((np.arange(2 * n) + 0.5) * size / (2 * n)).astype(int) for n, size in sizes)
        low, high = self.bounds
        thumbnails = np.zeros((len(self), side, side), np.uint8)
        for thumbnail, frame in zip(thumbnails, self.stack, strict=True):
            samples = (frame[rows[:, None], columns].astype(np.float32) - low) * (255.0 / (high - low))
            thumbnail[:height, :width] = np.rint(np.clip(samples, 0, 255).reshape(height, 2, width, 2).mean((1, 3)))
        return thumbnails

    def to_pixel(self, ijk) -> tuple[int, float, float]:
        """Return the position (t, y, x) of a voxel index (i, j, k)."""
        x_axis, y_axis = self.in_plane
        return int(ijk[self.axis]), float(ijk[y_axis]), float(ijk[x_axis])

    def to_voxel(self, t: int, y: int, x: int) -> tuple[int, int, int]:
        """Return the voxel index (i, j, k) of pixel (y, x) of frame t."""
        ijk = [0, 0, 0]
        x_axis, y_axis = self.in_plane
        ijk[self.axis], ijk[y_axis], ijk[x_axis] = int(t), int(y), int(x)
        return tuple(ijk)

    def to_volume(self, stack: np.ndarray) -> np.ndarray:
        """Return an array (T, Y, X) of whole frames as a view (I, J, K)."""
        x_axis, y_axis = self.in_plane
        return stack.transpose(np.argsort((self.axis, y_axis, x_axis)))

    def from_volume(self, array: np.ndarray) -> np.ndarray:
        """Return an array (I, J, K) as a view (T, Y, X) of whole frames."""
        x_axis, y_axis = self.in_plane
        return array.transpose(self.axis, y_axis, x_axis)


def fitted_size(size: tuple[int, int], pixel_mm: tuple[float, float], side: int) -> tuple[int, int]:
    """Return the height and width in pixels at which a slice of `size` (Y, X) fits a square of `side` pixels.

    The slice keeps its physical proportions, and its physically longer side fills the square.

    >>> fitted_size((512, 512), (0.7, 0.7), 256), fitted_size((100, 200), (2.0, 1.0), 256), fitted_size((50, 200), (1.0, 1.0), 256)
    ((256, 256), (256, 256), (64, 256))
    """
    extent_mm = np.array(size) * np.array(pixel_mm)
    height, width = np.maximum(1, np.rint(extent_mm / extent_mm.max() * side)).astype(int)
    return int(height), int(width)


def _sample(array: np.ndarray) -> np.ndarray:
    """Return roughly 400,000 voxels of a regular grid, float32 (N,), so that percentiles of large volumes are cheap."""
    step = max(1, int(round((array.size / 400_000) ** (1 / 3))))
    steps = [min(step, max(1, n // 8)) for n in array.shape]
    return np.asarray(array[tuple(slice(s // 2, None, s) for s in steps)], np.float32).ravel()
