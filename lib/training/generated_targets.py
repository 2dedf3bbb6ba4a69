"""The choice of target structures from the label maps of generated clips."""

from functools import lru_cache

import torch

from lib.training.batch_random import BatchRandom
from lib.training.generated_shapes import FIRST_STRUCTURE, LABELS, STRUCTURES, TISSUES

MIN_PIXELS = 12  # Size of a target on the first slice. A network learns nothing from a smaller one.
_MAX_SHARE = 0.45  # Of the slice's area; larger regions are background.


def choose_targets(random: BatchRandom, labels: torch.Tensor, count: int) -> torch.Tensor:
    """Return masks, bool (B, count, T, H, W), of different structures that are present on the first slice of label maps (B, T, H, W).

    A structure is taken without its core, as a whole, or only its core is. Structures that end or change their size are preferred.
    """
    areas = torch.stack([(labels == n).sum((2, 3)) for n in range(LABELS)], 2).float()  # (B, T, LABELS)
    choices = _choices(labels.device)
    sizes = areas @ choices.T  # (B, T, C)
    pixels = labels.shape[2] * labels.shape[3]
    first, total = sizes[:, 0], sizes.sum(1)
    eligible = (first >= max(MIN_PIXELS, 0.0004 * pixels)) & (first < _MAX_SHARE * pixels)
    absent_share = (sizes == 0).float().mean(1)
    change = ((sizes[:, 1:] - sizes[:, :-1]).abs().sum(1) / total.clamp_min(1)).clamp_max(1) if labels.shape[1] > 1 else 0.0
    weights = first.clamp_min(1) ** 0.1 * (1 + 4 * absent_share + change) * eligible
    weights[:, :TISSUES] *= 0.05  # Tissue between structures may have many parts.
    weights[:, TISSUES + 2 :: 3] *= total[:, TISSUES + 1 :: 3] > 0  # Without a core, the whole is what is there without its core.
    chosen = random.choose(weights + 1e-9, count)
    table = choices[chosen].bool()  # (B, count, LABELS)
    index = labels.flatten(1)[:, None].expand(-1, count, -1).long()
    return table.gather(2, index).view(len(labels), count, *labels.shape[1:])


@lru_cache
def _choices(device: torch.device) -> torch.Tensor:
    """Return the sets of labels that may be targets, float32 (C, LABELS) of 0 and 1: tissues, then the parts and wholes of structures."""
    sets = [{n} for n in range(1, TISSUES + 1)]
    for n in range(STRUCTURES):
        label = FIRST_STRUCTURE + 2 * n
        sets += [{label}, {label + 1}, {label, label + 1}]
    table = torch.zeros(len(sets), LABELS)
    for row, members in enumerate(sets):
        table[row, list(members)] = 1
    return table.to(device)
