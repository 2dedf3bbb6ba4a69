"""Judge by intensities whether what lies under a mask still looks like what was annotated, compared with what lies around it.

The network's object score says little where a network is small. An annotated slice shows which intensities are inside the structure
and which are around it. A mask on another slice that holds the former and is surrounded by the latter is probably right; one that holds
what should be around it is not.
"""

import torch
import torch.nn.functional as F

from lib.model.features import THUMBNAIL_SIDE

_BINS = 32
_SMOOTHING = (0.05, 0.25, 0.4, 0.25, 0.05)  # Neighbouring bins share counts.
_UNIFORM_SHARE = 0.02  # Share of the counts that is spread over all bins.


def intensity_likelihood(image: torch.Tensor, mask: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return how probable it is for each of 32 bins of intensity to be inside a structure rather than around it.

    Args:
        image: uint8 (h, w).
        mask: The structure, bool (h, w).
        valid: Bool (h, w), False where the image is padding.

    Returns:
        Float (32,) in [0, 1]; 0.5 means that a bin is as frequent inside as around.
    """
    if not mask.any():
        return torch.full((_BINS,), 0.5, device=image.device)
    width = max(2, int(float(mask.sum()) ** 0.5 / 4))
    around = dilate(mask[None], width)[0] & ~dilate(mask[None], 1)[0] & valid
    bins = (image.long() * _BINS) >> 8
    kernel = torch.tensor(_SMOOTHING, device=image.device).view(1, 1, -1)
    frequencies = []
    for region in (mask & valid, around):
        counts = torch.bincount(bins[region], minlength=_BINS).float()
        counts = F.conv1d(counts.view(1, 1, -1), kernel, padding=len(_SMOOTHING) // 2).view(-1)
        uniform = _UNIFORM_SHARE * float(region.sum()) + 1e-3
        frequencies.append((counts + uniform / _BINS) / (counts.sum() + uniform))
    return frequencies[0] / (frequencies[0] + frequencies[1])


def inside_outside_contrast(likelihoods: torch.Tensor, images: torch.Tensor, masks: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
    """Return how much more the inside of each mask looks like the structure's inside than what surrounds it does.

    Args:
        likelihoods: Float (N, 32), see `intensity_likelihood`.
        images: uint8 (N, h, w).
        masks: Bool (N, h, w).
        valid: Bool (h, w), False where the images are padding.

    Returns:
        Difference of the mean likelihoods, float (N,) in [-1, 1]; 0 for empty masks.
    """
    bins = (images.long() * _BINS) >> 8
    likelihood = torch.gather(likelihoods, 1, bins.flatten(1))
    masks = masks & valid
    around = dilate(masks, 3) & ~dilate(masks, 1) & valid
    inside, outside = ((likelihood * r.flatten(1)).sum(1) / r.flatten(1).sum(1).clamp_min(1) for r in (masks, around))
    return torch.where(masks.flatten(1).any(1) & around.flatten(1).any(1), inside - outside, 0.0)


def image_correlation(a: torch.Tensor, b: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return Pearson's correlation of two images (N, h, w) within two pixels of masks bool (N, h, w): float (N,), 0 for empty masks."""
    near = dilate(masks, 2).flatten(1).float()
    count = near.sum(1, keepdim=True).clamp_min(1)
    x, y = (image.flatten(1).float() for image in (a, b))
    x, y = (near * (v - (v * near).sum(1, keepdim=True) / count) for v in (x, y))
    return (x * y).sum(1) / ((x * x).sum(1) * (y * y).sum(1) + 1e-3).sqrt()


def shrink_masks(logits: torch.Tensor) -> torch.Tensor:
    """Return the masks of logits (N, h, w) of any size at the size of thumbnails: bool (N, THUMBNAIL_SIDE, THUMBNAIL_SIDE)."""
    if logits.shape[-1] != THUMBNAIL_SIDE:
        size = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
        logits = F.interpolate(logits[:, None].float(), size, mode="bilinear", antialias=True, align_corners=False)[:, 0]
    return logits > 0


def dilate(masks: torch.Tensor, pixels: int) -> torch.Tensor:
    """Return masks bool (N, h, w) dilated by a square of side 2 * pixels + 1."""
    return F.max_pool2d(masks[:, None].float(), 2 * pixels + 1, stride=1, padding=pixels)[:, 0] > 0
