"""Look at each tracked slice afresh: a weak memory drags its mask along where the slice itself shows something else."""

from collections.abc import Sequence

import numpy as np
import torch

from lib.imaging.masks import deepest_pixel
from lib.model.features import SliceFeatures
from lib.model.sam2_network import Sam2Network

# Chosen on generated volumes and patients of the training data; docs/experiments.md has the figures.
FRESH_WEIGHT = 0.25  # Of the slice decoded without memory beside what tracking gives.


def look_afresh(network: Sam2Network, features: SliceFeatures, slices: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
    """Return logits (B, h, w) of tracked slices, mixed with those of the slices decoded without memory.

    The only prompt is a click where the tracked mask is deepest. Where tracking gives no mask, nothing changes.

    Args:
        slices: Index of each of the B slices.
        logits: What tracking gives, (B, h, w).
    """
    masks = (logits > 0).cpu().numpy()
    rows = [row for row, mask in enumerate(masks) if mask.any()]
    if not rows:
        return logits
    scale = network.model.image_size / logits.shape[-1]
    deepest_yx = np.array([deepest_pixel(masks[row]) for row in rows], np.float32)
    clicks_xy = torch.from_numpy((deepest_yx[:, ::-1] + 0.5) * scale - 0.5).to(logits.device)
    fresh = network.decode(features, [slices[row] for row in rows], clicks_xy=clicks_xy)["pred_masks"][:, 0]
    mixed = logits.float().clone()
    mixed[rows] = mixed[rows].lerp(fresh.float(), FRESH_WEIGHT)
    return mixed
