"""Pseudo-labels for real images without annotations: regions bounded by edges of the image (idea: ScribblePrompt, arXiv 2312.07381).

A crop is divided into supervoxels (SLIC), and neighbours of nearly the same intensity are merged. The regions are not organs, but their
borders and their texture are real.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy import ndimage
from skimage import graph, segmentation

from lib.common.errors import UserError
from lib.imaging.readers import read_volume
from lib.training.random_source import RandomSource

logger = logging.getLogger(__name__)

SUPERVOXEL_SIDE = 88  # Pixels. Crops are resized to this side before supervoxels are computed, which limits the time.


@dataclass(frozen=True)
class RealImages:
    """Real images from which clips are cut: isotropic, float16 (I, J, K), scaled to [0, 1] by their 0.5 and 99.5 percentiles."""

    volumes: tuple[np.ndarray, ...]

    @classmethod
    def read(cls, folder: str | Path) -> "RealImages":
        """Read all NIfTI images of a folder; raise UserError if it holds none."""
        files = sorted(Path(folder).glob("*.nii*"))
        if not files:
            raise UserError(f"{folder} holds no NIfTI image (.nii, .nii.gz).")
        return cls(tuple(_read_normalized(f) for f in files))

    def sample_clip(self, random: RandomSource, slices: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut a random clip of `slices` slices of `size` x `size` pixels along a random axis.

        Return the image, float32 (T, H, W) in [0, 1], and its regions, int64 (T, H, W): numbered from 1, with 0 for dark background.
        """
        crop, stride = self._sample_crop(random, slices)
        scale = SUPERVOXEL_SIDE / crop.shape[1]
        small = ndimage.zoom(crop, (1, scale, scale), order=1)
        smooth = ndimage.gaussian_filter(small, (0.4, random.uniform(0.5, 1.2), random.uniform(0.5, 1.2)))
        supervoxels = segmentation.slic(
            smooth, n_segments=int(slices * 2 ** random.uniform(4.5, 6.5)), compactness=10 ** random.uniform(-2.5, -1.2),
            spacing=(stride * scale, 1, 1), channel_axis=None, max_num_iter=5, start_label=1,
        )  # fmt: skip
        neighbours = graph.rag_mean_color(smooth[..., None].repeat(3, -1), supervoxels)
        regions = graph.cut_threshold(supervoxels, neighbours, random.uniform(0.03, 0.16)) + 1
        regions[smooth < smooth.mean() * 0.15] = 0
        regions = ndimage.zoom(regions.astype(np.int32), (1, size / SUPERVOXEL_SIDE, size / SUPERVOXEL_SIDE), order=0)
        image = ndimage.zoom(crop, (1, size / crop.shape[1], size / crop.shape[1]), order=1)
        return torch.from_numpy(image).float().to(random.device), torch.from_numpy(regions).long().to(random.device)

    def _sample_crop(self, random: RandomSource, slices: int) -> tuple[np.ndarray, int]:
        """Return a random crop, float32 (T, side, side), and the distance of its slices in voxels."""
        volume = np.moveaxis(self.volumes[random.integer(0, len(self.volumes) - 1)], random.integer(0, 2), 0)
        if random.chance(0.5):
            volume = volume[::-1]
        stride = max(1, min(random.integer(1, 4), len(volume) // slices))
        start = random.integer(0, max(0, len(volume) - slices * stride))
        volume = volume[start : start + slices * stride : stride]
        volume = np.pad(volume, ((0, slices - len(volume)), (0, 0), (0, 0)), mode="edge")
        side = min(*volume.shape[1:], int(random.uniform(56, 190)))
        y, x = (random.integer(0, n - side) for n in volume.shape[1:])
        return volume[:, y : y + side, x : x + side].astype(np.float32), stride


def _read_normalized(path: Path) -> np.ndarray:
    """Read an image with isotropic voxels of at least 1 mm, float16 (I, J, K) in [0, 1]."""
    volume = read_volume(path)
    voxel_mm = max(volume.spacing_mm.max(), 1.0)
    array = ndimage.zoom(volume.array.astype(np.float32), volume.spacing_mm / voxel_mm, order=1)
    low, high = np.percentile(array, (0.5, 99.5))
    if low < -500:  # CT, where soft tissue would be only a small part of the range.
        low, high = max(low, -250.0), min(high, 500.0)
    logger.info("Image without labels: %s, %s voxels of %.2f mm.", path.name, array.shape, voxel_mm)
    return ((array - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float16)
