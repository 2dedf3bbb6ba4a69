"""A classical segmentation method without a network: scikit-image's random walker."""

import numpy as np
from scipy import ndimage
from skimage.segmentation import random_walker

from lib.evaluation.methods.method import DEFAULT_MODE, Annotations, Prediction, PropagationMode, keep_annotated
from lib.imaging.frames import Frames
from lib.imaging.masks import deepest_pixel

BACKGROUND, FOREGROUND = 2, 1  # Labels of seeds for scikit-image.
MAX_VOXELS = 250_000
BALL_RADIUS = 2  # in voxels of the shrunk volume


class ClassicalMethod:
    """Segments a volume in 3D with the random walker; see `lib.evaluation.methods.method.Method`.

    The volume is shrunk to at most MAX_VOXELS voxels. Small balls around the clicks are seeds, because a single voxel hardly spreads.
    The faces of the volume are background, except the first and the last slice, which often hold the structure. A box makes the rest
    of its slice background and a small ball in its middle foreground. All pixels of a painted or empty slice are seeds, and the slice
    stays as it is. The direction of propagation has no effect.
    """

    name, takes_masks, takes_clicks = "classical", True, True

    def __init__(self, options=None):
        """Create the method; it has no options."""
        self._frames: Frames | None = None

    def open(self, frames: Frames) -> None:
        if frames is self._frames:
            return
        self._frames = frames
        shape, spacing_mm = np.array(frames.stack.shape), np.array([frames.slice_mm, *frames.pixel_mm])
        low, high = frames.bounds
        image = np.clip((frames.stack.astype(np.float32) - low) / (high - low), 0, 1)
        self._image = ndimage.zoom(image, _zoom_factors(shape, spacing_mm), order=1)
        self._scale = (np.array(self._image.shape) - 1) / np.maximum(shape - 1, 1)
        spacing = spacing_mm * shape / self._image.shape
        self._spacing = spacing / spacing.min()

    def segment(self, annotations: Annotations, mode: PropagationMode = DEFAULT_MODE) -> Prediction:
        seeds, shape = self._make_seeds(annotations), self._frames.stack.shape
        probability = random_walker(
            self._image, seeds, beta=130, mode="cg_j", tol=1e-3, spacing=self._spacing, return_full_prob=True, prob_tol=0.1,
        )  # fmt: skip
        enlarged = ndimage.zoom(probability[0], np.array(shape) / np.array(seeds.shape), order=1)
        mask = enlarged[tuple(slice(n) for n in shape)] > 0.5
        for t, prompt in annotations.items():
            if prompt.mask is not None:
                mask[t] = prompt.mask
        return Prediction(keep_annotated(mask, annotations, mode))

    def _make_seeds(self, annotations: Annotations) -> np.ndarray:
        """Return seeds, int8, in the shape of the shrunk volume."""
        seeds = np.zeros(self._image.shape, np.int8)
        seeds[:, [0, -1], :] = seeds[:, :, [0, -1]] = BACKGROUND
        clicks: dict[int, list] = {FOREGROUND: [], BACKGROUND: []}
        for t, prompt in annotations.items():
            if prompt.mask is not None:
                self._mark_slice(seeds, t, prompt.mask)
            corners_xy = prompt.points[prompt.labels > 1]
            if len(corners_xy):
                self._mark_box(seeds, t, corners_xy)
            for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
                if label < 2:
                    clicks[FOREGROUND if label else BACKGROUND].append(self._shrink(t, y, x))
        for label in (BACKGROUND, FOREGROUND):
            for centre in clicks[label]:
                _mark_ball(seeds, centre, label)
        return seeds

    def _mark_slice(self, seeds: np.ndarray, t: int, mask: np.ndarray) -> None:
        """Make a painted slice, bool (Y, X), foreground and background seeds, in place."""
        rows, columns = (np.rint(np.arange(n) / s).astype(int) if s else np.zeros(n, int)
                         for n, s in zip(seeds.shape[1:], self._scale[1:], strict=True))  # fmt: skip
        rows, columns = np.minimum(rows, mask.shape[0] - 1), np.minimum(columns, mask.shape[1] - 1)
        small_t = self._shrink(t, 0, 0)[0]
        seeds[small_t] = np.where(mask[np.ix_(rows, columns)], FOREGROUND, BACKGROUND)
        if mask.any():  # A small structure may lie between the pixels of the shrunk slice.
            seeds[tuple(self._shrink(t, *deepest_pixel(mask)))] = FOREGROUND

    def _mark_box(self, seeds: np.ndarray, t: int, corners_xy: np.ndarray) -> None:
        """Make a slice background around a box, with a ball of foreground in its middle, in place."""
        # A box ends at the edges of its pixels; half a pixel further in lie the pixels' centres.
        (x0, y0), (x1, y1) = corners_xy + np.array([[0.5], [-0.5]])
        low, high = self._shrink(t, y0, x0), self._shrink(t, y1, x1)
        seeds[low[0]] = BACKGROUND
        seeds[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = 0
        _mark_ball(seeds, (low + high) // 2, FOREGROUND)

    def _shrink(self, t: int, y: float, x: float) -> np.ndarray:
        """Return the voxel (t, y, x) of the shrunk volume, int (3,), that is nearest to a pixel of a slice."""
        return np.rint(np.array([t, y, x]) * self._scale).astype(int)


def _zoom_factors(shape: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Return a factor for each axis that shrinks a volume to a practical size, the axes with the smallest voxels first."""
    factors = np.ones(3)
    while (shape * factors).prod() > MAX_VOXELS:
        finest = np.argmin(spacing_mm / factors)
        factors[finest] *= 0.95
    return factors


def _mark_ball(seeds: np.ndarray, centre: np.ndarray, label: int) -> None:
    """Mark the voxels around `centre` in place; other seeds stay as they are, except at the centre itself."""
    low = np.maximum(centre - BALL_RADIUS, 0)
    block = seeds[tuple(slice(a, c + BALL_RADIUS + 1) for a, c in zip(low, centre, strict=True))]
    index = np.indices(block.shape).T + low - centre
    near = ((index**2).sum(-1) <= BALL_RADIUS**2).T
    block[near & (block == 0)] = label
    seeds[tuple(centre)] = label
