"""Pseudo-labels for real images without annotations: regions that are bounded by edges of the image.

A crop is divided into supervoxels (SLIC), and neighbours of nearly the same intensity are merged. The regions are not organs, but their
borders and their texture are real. The idea is from ScribblePrompt (arXiv 2312.07381).
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

_SUPERVOXEL_SIDE = 88  # Pixels. Crops are resized to this side before supervoxels are computed, which limits the time.


@dataclass(frozen=True)
class RealImages:
    """Real images from which clips are cut.

    Attributes:
        volumes: Images with isotropic voxels, float16 (I, J, K), scaled to [0, 1] by their 0.5 and 99.5 percentiles.
        supervoxel_side: Side in pixels of the crops on which supervoxels are computed.
    """

    volumes: tuple[np.ndarray, ...]
    supervoxel_side = _SUPERVOXEL_SIDE

    @classmethod
    def read(cls, folder: str | Path) -> "RealImages":
        """Read all NIfTI images of a folder.

        Raises:
            UserError: The folder holds no NIfTI image.
        """
        files = sorted(Path(folder).glob("*.nii*"))
        if not files:
            raise UserError(f"{folder} holds no NIfTI image (.nii, .nii.gz).")
        return cls(tuple(_read_normalized(f) for f in files))

    def sample_clip(self, random: RandomSource, slices: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Cut a random clip of `slices` slices of `size` x `size` pixels along a random axis.

        Returns:
            The image, float32 (T, H, W) in [0, 1], and a map of its regions, int64 (T, H, W): they are numbered from 1, and dark
            background is 0.
        """
        crop, stride = self._sample_crop(random, slices)
        scale = _SUPERVOXEL_SIDE / crop.shape[1]
        small = ndimage.zoom(crop, (1, scale, scale), order=1)
        smooth = ndimage.gaussian_filter(small, (0.4, random.uniform(0.5, 1.2), random.uniform(0.5, 1.2)))
        supervoxels = segmentation.slic(
            smooth, n_segments=int(slices * 2 ** random.uniform(4.5, 6.5)), compactness=10 ** random.uniform(-2.5, -1.2),
            spacing=(stride * scale, 1, 1), channel_axis=None, max_num_iter=5, start_label=1,
        )  # fmt: skip
        neighbours = graph.rag_mean_color(smooth[..., None].repeat(3, -1), supervoxels)
        regions = graph.cut_threshold(supervoxels, neighbours, random.uniform(0.03, 0.16)) + 1
        regions[smooth < smooth.mean() * 0.15] = 0
        scale = size / _SUPERVOXEL_SIDE
        regions = ndimage.zoom(regions.astype(np.int32), (1, scale, scale), order=0)
        image = ndimage.zoom(crop, (1, size / crop.shape[1], size / crop.shape[1]), order=1)
        return torch.from_numpy(image).float().to(random.device), torch.from_numpy(regions).long().to(random.device)

    def _sample_crop(self, random: RandomSource, slices: int) -> tuple[np.ndarray, int]:
        """Return a random crop, float32 (T, side, side), and the distance of its slices in voxels."""
        volume = self.volumes[random.integer(0, len(self.volumes) - 1)]
        volume = np.moveaxis(volume, random.integer(0, 2), 0)
        if random.chance(0.5):
            volume = volume[::-1]
        stride = max(1, min(random.integer(1, 4), len(volume) // slices))
        start = random.integer(0, max(0, len(volume) - slices * stride))
        volume = volume[start : start + slices * stride : stride]
        volume = np.pad(volume, ((0, slices - len(volume)), (0, 0), (0, 0)), mode="edge")
        side = min(int(min(volume.shape[1:])), int(random.uniform(56, 190)))
        y, x = (random.integer(0, n - side) for n in volume.shape[1:])
        return volume[:, y : y + side, x : x + side].astype(np.float32), stride


def _read_normalized(path: Path) -> np.ndarray:
    """Read an image with isotropic voxels of at least 1 mm, float16 (I, J, K) in [0, 1]."""
    volume = read_volume(path)
    array = volume.array.astype(np.float32)
    voxel_mm = np.maximum(volume.spacing_mm.max(), 1.0)
    array = ndimage.zoom(array, volume.spacing_mm / voxel_mm, order=1)
    low, high = np.percentile(array, (0.5, 99.5))
    if low < -500:  # CT, where soft tissue would be only a small part of the range.
        low, high = max(low, -250.0), min(high, 500.0)
    logger.info("Image without labels: %s, %s voxels of %.2f mm.", path.name, array.shape, voxel_mm)
    return ((array - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float16)
