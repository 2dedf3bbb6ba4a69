"""Pseudo-labels on real images that nobody has annotated: regions bounded by the image's own edges.

A crop is cut into supervoxels (SLIC), neighbours of nearly one intensity are merged. The regions are no organs, but their
borders and the texture are real (idea: ScribblePrompt, arXiv 2312.07381).
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
from lib.training.random_source import Draw

logger = logging.getLogger(__name__)

_SIDE = 88  # pixels; supervoxels are found on crops shrunk to this


@dataclass(frozen=True)
class RealImages:
    """Volumes scaled to [0, 1] (float16, by their 0.5 and 99.5 percentiles) with isotropic voxels."""

    volumes: tuple[np.ndarray, ...]
    side = _SIDE

    @classmethod
    def read(cls, folder: str | Path) -> "RealImages":
        """All NIfTI images of a folder.

        Raises:
            UserError: there is none.
        """
        files = sorted(Path(folder).glob("*.nii*"))
        if not files:
            raise UserError(f"{folder} holds no NIfTI image (.nii, .nii.gz).")
        return cls(tuple(_prepare(f) for f in files))

    def clip(self, draw: Draw, slices: int, size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A random crop along a random axis: image (T, H, W) in [0, 1], regions int64 (T, H, W) numbered from 1."""
        crop, stride = self._crop(draw, slices)
        scale = _SIDE / crop.shape[1]
        small = ndimage.zoom(crop, (1, scale, scale), order=1)
        smooth = ndimage.gaussian_filter(small, (0.4, draw.uniform(0.5, 1.2), draw.uniform(0.5, 1.2)))
        parts = segmentation.slic(
            smooth, n_segments=int(slices * 2 ** draw.uniform(4.5, 6.5)), compactness=10 ** draw.uniform(-2.5, -1.2),
            spacing=(stride * scale, 1, 1), channel_axis=None, max_num_iter=5, start_label=1,
        )  # fmt: skip
        regions = graph.rag_mean_color(smooth[..., None].repeat(3, -1), parts)
        labels = graph.cut_threshold(parts, regions, draw.uniform(0.03, 0.16)) + 1
        air = smooth.mean() * 0.15
        labels[smooth < air] = 0
        zoom = size / _SIDE
        fine = ndimage.zoom(labels.astype(np.int32), (1, zoom, zoom), order=0)
        image = ndimage.zoom(crop, (1, size / crop.shape[1], size / crop.shape[1]), order=1)
        return torch.from_numpy(image).float().to(draw.device), torch.from_numpy(fine).long().to(draw.device)

    def _crop(self, draw, slices) -> tuple[np.ndarray, int]:
        volume = self.volumes[draw.integer(0, len(self.volumes) - 1)]
        volume = np.moveaxis(volume, draw.integer(0, 2), 0)
        if draw.chance(0.5):
            volume = volume[::-1]
        stride = max(1, min(draw.integer(1, 4), len(volume) // slices))
        start = draw.integer(0, max(0, len(volume) - slices * stride))
        volume = volume[start : start + slices * stride : stride]
        volume = np.pad(volume, ((0, slices - len(volume)), (0, 0), (0, 0)), mode="edge")
        side = min(int(min(volume.shape[1:])), int(draw.uniform(56, 190)))
        y, x = (draw.integer(0, n - side) for n in volume.shape[1:])
        return volume[:, y : y + side, x : x + side].astype(np.float32), stride


def _prepare(path: Path) -> np.ndarray:
    volume = read_volume(path)
    array = volume.array.astype(np.float32)
    step = np.maximum(volume.spacing_mm.max(), 1.0)
    array = ndimage.zoom(array, volume.spacing_mm / step, order=1)
    low, high = np.percentile(array, (0.5, 99.5))
    if low < -500:  # CT: soft tissue would be a sliver of the range
        low, high = max(low, -250.0), min(high, 500.0)
    logger.info("Image without labels: %s, %s voxels of %.2f mm.", path.name, array.shape, step)
    return ((array - low) / max(high - low, 1e-6)).clip(0, 1).astype(np.float16)
