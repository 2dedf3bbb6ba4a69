"""The choice of target structures for a clip from its label map."""

import numpy as np
import torch
from scipy import ndimage

from lib.training.random_source import RandomSource

MIN_SHARE, MAX_SHARE = 0.0012, 0.4  # Share of the slice's area. Smaller regions are noise, larger ones are background.
MIN_PIXELS = 12  # Size of a target on the first slice. A model learns nothing from a smaller one.


def choose_targets(random: RandomSource, labels: torch.Tensor, count: int, composites: dict, last_tissue_label: int) -> torch.Tensor:
    """Return masks, bool (count, T, H, W), of target structures that are present on the first slice.

    Structures that end within the clip are preferred, because they teach a model when to stop. Several targets share one clip,
    because encoding the slices is the most expensive part of a training step.

    Args:
        labels: Label map (T, H, W). Labels above `last_tissue_label` are structures, which are preferred to the tissue between them.
        count: Number of targets. A structure is chosen more than once only if there are too few.
        composites: {label: set of the labels of the whole structure that it belongs to}, for some labels.
    """
    array, pixels = labels.cpu().numpy(), labels[0].numel()
    areas = np.stack([np.bincount(frame.ravel(), minlength=array.max() + 1) for frame in array])
    eligible = (areas[0] >= max(MIN_PIXELS, MIN_SHARE * pixels)) & (areas[0] < MAX_SHARE * pixels)
    eligible[0] = False
    candidates = np.flatnonzero(eligible) if eligible.any() else areas[:1].argmax(1)
    absent_share = (areas == 0).mean(0)[candidates]
    weights = areas[0][candidates] ** 0.1 * (1 + 8 * absent_share) * np.where(candidates > last_tissue_label, 2.0, 1.0)
    masks = []
    for _ in range(count):
        n = min(int(np.searchsorted(weights.cumsum(), random.uniform() * weights.sum())), len(candidates) - 1)
        masks.append(_target_mask(random, array, int(candidates[n]), composites))
        if (weights > 0).sum() > 1:
            weights[n] = 0.0
    return torch.from_numpy(np.stack(masks)).to(random.device)


def _target_mask(random: RandomSource, labels: np.ndarray, label: int, composites: dict[int, set[int]]) -> np.ndarray:
    """Return the mask (T, H, W) of a structure, or sometimes of the composite one that it belongs to.

    It is the component that is largest on the first slice, or sometimes all components.
    """
    use_whole = label in composites and random.chance(0.6)
    mask = np.isin(labels, list(composites[label])) if use_whole else labels == label
    if len(labels) > 1 and random.chance(0.1):
        return mask
    components, _ = ndimage.label(mask)
    areas = np.bincount(components[0].ravel())
    areas[0] = 0
    return components == int(areas.argmax())
