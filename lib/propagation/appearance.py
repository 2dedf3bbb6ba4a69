"""Does what lies under a mask still look like what was annotated? By intensity alone, against what lies around it.

The network's object score says little where a network is small. An annotated slice shows which intensities are inside the structure
and which are around it; a mask on another slice that holds the one and is surrounded by the other is probably right, one that holds
what should be around it is not.
"""

import torch
import torch.nn.functional as F

SIDE = 64  # of the thumbnails that are compared
_BINS = 32
_SMOOTH = (0.05, 0.25, 0.4, 0.25, 0.05)  # neighbouring bins lend each other counts
_PRIOR = 0.02  # share of counts that are spread over all bins


def intensity_likelihood(image: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """For each of 32 bins of intensity, how probable it is inside rather than around: float (32,) in [0, 1], 0.5 = no idea.

    Args:
        image: uint8 (h, w). mask: bool (h, w). valid: bool (h, w), False where the square is padding.
    """
    if not mask.any():
        return torch.full((_BINS,), 0.5, device=image.device)
    width = max(2, int(float(mask.sum()) ** 0.5 / 4))
    around = _grown(mask[None], width)[0] & ~_grown(mask[None], 1)[0] & valid
    bins = (image.long() * _BINS) >> 8
    kernel = torch.tensor(_SMOOTH, device=image.device).view(1, 1, -1)
    shares = []
    for part in (mask & valid, around):
        counts = torch.bincount(bins[part], minlength=_BINS).float()
        counts = F.conv1d(counts.view(1, 1, -1), kernel, padding=len(_SMOOTH) // 2).view(-1)
        spread = _PRIOR * float(part.sum()) + 1e-3
        shares.append((counts + spread / _BINS) / (counts.sum() + spread))
    return shares[0] / (shares[0] + shares[1])


def inside_outside_contrast(tables: torch.Tensor, images: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """How much more the inside of each mask looks like the inside than its surroundings do: float (N,) in [-1, 1].

    Args:
        tables: (N, 32), see `table_of`. images: uint8 (N, h, w). masks: bool (N, h, w); 0 for empty ones.
        valid: bool (h, w).
    """
    bins = (images.long() * _BINS) >> 8
    alike = torch.gather(tables, 1, bins.flatten(1))
    masks = masks & valid
    around = _grown(masks, 3) & ~_grown(masks, 1) & valid
    inside, outside = (
        (alike * part.flatten(1)).sum(1) / part.flatten(1).sum(1).clamp_min(1) for part in (masks, around)
    )
    return torch.where(masks.flatten(1).any(1) & around.flatten(1).any(1), inside - outside, 0.0)


def image_correlation(a: torch.Tensor, b: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Pearson's, of two images each (N, h, w), within two pixels of the masks: float (N,), 0 where there is nothing."""
    near = _grown(masks, 2).flatten(1).float()
    count = near.sum(1, keepdim=True).clamp_min(1)
    x, y = (i.flatten(1).float() for i in (a, b))
    x, y = (near * (v - (v * near).sum(1, keepdim=True) / count) for v in (x, y))
    return (x * y).sum(1) / ((x * x).sum(1) * (y * y).sum(1) + 1e-3).sqrt()


def shrink_masks(logits: torch.Tensor) -> torch.Tensor:
    """Masks bool (N, SIDE, SIDE) of logits (N, h, w) of any size."""
    if logits.shape[-1] != SIDE:
        logits = F.interpolate(logits[:, None].float(), (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)[:, 0]
    return logits > 0


def _grown(masks: torch.Tensor, by: int) -> torch.Tensor:
    """Masks bool (N, h, w) dilated by a square of side 2 * by + 1: shifted copies, row by row and column by column."""
    for dim in (1, 2):
        n, grown = masks.shape[dim], masks.clone()
        for shift in range(1, by + 1):
            grown.narrow(dim, shift, n - shift).logical_or_(masks.narrow(dim, 0, n - shift))
            grown.narrow(dim, 0, n - shift).logical_or_(masks.narrow(dim, shift, n - shift))
        masks = grown
    return masks
