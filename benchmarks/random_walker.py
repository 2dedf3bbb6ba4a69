"""A classical segmentation method without a network that the app is compared with: scikit-image's random walker."""

import numpy as np
from scipy import ndimage
from skimage.segmentation import random_walker

BACKGROUND, FOREGROUND = 2, 1  # Labels of seeds for scikit-image.


class RandomWalker:
    """Segments a volume in 3D with the random walker, from seeds that it makes from the prompts.

    Small balls around the clicks are seeds, because a single voxel hardly spreads. The faces of the volume are background, except
    those across the slicing axis. A box makes the rest of its slice background and a small ball in its middle foreground.

    Attributes:
        max_voxels: Volumes of more voxels are shrunk before they are segmented.
    """

    name = "classical"
    max_voxels = 250_000

    def segment(self, case, volume, frames, prompts) -> np.ndarray:
        """Return the mask, bool (I, J, K), that the prompts give."""
        low, high = frames.bounds
        image = np.clip((volume.array.astype(np.float32) - low) / (high - low), 0, 1)
        small = ndimage.zoom(image, self._zoom_factors(volume), order=1)
        scale = (np.array(small.shape) - 1) / np.maximum(np.array(volume.shape) - 1, 1)
        seeds = self._make_seeds(small.shape, scale, frames.axis, prompts)
        spacing = volume.spacing_mm * np.array(volume.shape) / np.array(small.shape)
        probability = random_walker(small, seeds, beta=130, mode="cg_j", tol=1e-3, spacing=spacing / spacing.min(), return_full_prob=True)
        back = np.array(volume.shape) / np.array(small.shape)
        return ndimage.zoom(probability[0], back, order=1)[tuple(slice(n) for n in volume.shape)] > 0.5

    def _make_seeds(self, shape, scale, axis: int, prompts) -> np.ndarray:
        """Return seeds, int8, for an image of the given shape; `scale` turns voxels of the volume into those of the image."""
        seeds = np.zeros(shape, np.int8)
        for face_axis in range(3):
            if face_axis != axis:  # The first and the last slice often hold the structure.
                for end in (0, -1):
                    seeds[(slice(None),) * face_axis + (end,)] = BACKGROUND
        for corners in prompts.get("boxes", []):
            low, high = (np.rint(np.array(c) * scale).astype(int) for c in corners)
            seeds[(slice(None),) * axis + (low[axis],)] = BACKGROUND
            seeds[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = 0
            _mark_ball(seeds, (low + high) // 2, FOREGROUND)
        for label, voxels in ((BACKGROUND, prompts.get("negative", [])), (FOREGROUND, prompts.get("positive", []))):
            for voxel in voxels:
                _mark_ball(seeds, np.rint(np.array(voxel) * scale).astype(int), label)
        return seeds

    def _zoom_factors(self, volume) -> np.ndarray:
        """Return a factor for each axis that shrinks the volume to a practical size, the axes with the smallest voxels first."""
        shape, spacing_mm = np.array(volume.shape, float), volume.spacing_mm.astype(float)
        factors = np.ones(3)
        while (shape * factors).prod() > self.max_voxels:
            finest = np.argmin(spacing_mm / factors)
            factors[finest] *= 0.95
        return factors


def _mark_ball(seeds, centre, label, radius: int = 2) -> None:
    """Mark the voxels around `centre` in place; other seeds stay as they are, except at the centre itself."""
    low = np.maximum(centre - radius, 0)
    block = seeds[tuple(slice(a, c + radius + 1) for a, c in zip(low, centre, strict=True))]
    index = np.indices(block.shape).T + low - centre
    near = ((index**2).sum(-1) <= radius**2).T
    block[near & (block == 0)] = label
    seeds[tuple(centre)] = label
