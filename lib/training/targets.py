"""Which structures of a label map become the targets of a clip."""

import numpy as np
import torch
from scipy import ndimage

from lib.training.random_source import Draw

MIN_SHARE, MAX_SHARE = 0.0012, 0.4  # of a slice's area; smaller than that is noise, larger is background
MIN_PIXELS = 12


def choose_targets(draw: Draw, labels: torch.Tensor, count: int, wholes: dict[int, set[int]], painted: int) -> torch.Tensor:
    """Masks bool (count, T, H, W) of `count` structures, all present on the first slice.

    Structures that end within the clip are preferred, because a model learns from them when to stop; several objects
    share one clip, because encoding the slices is what costs most.

    Args:
        wholes: {label: the labels that belong to it as a whole}.
        painted: labels above this number are structures, the others the tissue between them.
    """
    array = labels.cpu().numpy()
    pixels = array[0].size
    number = int(array.max()) + 1
    areas = np.stack([np.bincount(a.ravel(), minlength=number) for a in array])
    ok = (areas[0] >= max(MIN_PIXELS, MIN_SHARE * pixels)) & (areas[0] < MAX_SHARE * pixels)
    ok[0] = False
    candidates = np.flatnonzero(ok)
    if not len(candidates):
        candidates = np.array([int(np.argmax(areas[0]))])
    absent = (areas == 0).mean(0)[candidates]
    weights = areas[0][candidates] ** 0.1 * (1 + 8 * absent) * np.where(candidates > painted, 2.0, 1.0)
    out = []
    for _ in range(count):
        n = min(int(np.searchsorted(weights.cumsum(), draw.uniform() * weights.sum())), len(candidates) - 1)
        out.append(_target(draw, array, int(candidates[n]), wholes))
        if (weights > 0).sum() > 1:
            weights[n] = 0.0
    return torch.from_numpy(np.stack(out)).to(draw.device)


def _target(draw, array, label, wholes) -> np.ndarray:
    """The part of a structure that is largest on the first slice; sometimes all its parts, or the whole it belongs to."""
    whole = label in wholes and draw.chance(0.6)
    chosen = np.isin(array, list(wholes[label])) if whole else array == label
    if len(array) > 1 and draw.chance(0.1):
        return chosen
    parts, _ = ndimage.label(chosen)
    in_first = np.bincount(parts[0].ravel())
    in_first[0] = 0
    return parts == int(in_first.argmax())
