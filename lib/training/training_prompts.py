"""Simulated prompts for training: where a user would click and how they would draw a box, for a batch of masks at once.

Prompts are dictionaries in the form of SAM 2: point_coords, float32 (B, P, 2) as (x, y) in pixels, and point_labels, int32 (B, P).
"""

import torch
import torch.nn.functional as F
from torchvision.ops import masks_to_boxes


def erosion_depth(masks: torch.Tensor, levels: int = 6) -> torch.Tensor:
    """Return how many of `levels` 3x3 erosions each pixel survives, plus one: float32 (B, H, W), 0 outside `masks`, bool (B, H, W)."""
    eroded = masks[:, None].float()
    depth = eroded.clone()
    for _ in range(levels):
        eroded = -F.max_pool2d(-F.pad(eroded, (1, 1, 1, 1)), 3, stride=1)
        depth += eroded
    return depth[:, 0]


def sample_pixels(weights: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """Return one pixel (x, y) per image, float32 (B, 2), chosen with a probability proportional to `weights` (B, H, W)."""
    flat = weights.flatten(1)
    flat = torch.where(flat.sum(1, keepdim=True) > 0, flat, 1.0)
    index, width = torch.multinomial(flat, 1, generator=rng)[:, 0], weights.shape[2]
    return torch.stack([index % width, index // width], 1).float()


def sample_first_click(masks: torch.Tensor, rng: torch.Generator) -> dict:
    """Return a positive click inside each mask of `masks`, bool (B, H, W); pixels far from the border are more likely."""
    labels = torch.ones(len(masks), 1, dtype=torch.int32, device=masks.device)
    return {"point_coords": sample_pixels(erosion_depth(masks) ** 2, rng)[:, None], "point_labels": labels}


def sample_box(masks: torch.Tensor, rng: torch.Generator, jitter: float = 0.06) -> dict:
    """Return the bounding box of each mask of `masks`, bool (B, H, W) and not empty, as two corners, which have the labels 2 and 3.

    The corners are shifted by up to `jitter` times the side of the box.
    """
    b, h, w = masks.shape
    corners = masks_to_boxes(masks).view(b, 2, 2)
    corners[:, 1] += 1  # The far edges of the last pixels.
    side = corners[:, 1:] - corners[:, :1]
    noise = torch.rand(b, 2, 2, generator=rng, device=masks.device) * 2 - 1
    corners = corners + noise * jitter * side
    limit = torch.tensor([w, h], device=masks.device, dtype=torch.float32)
    labels = torch.tensor([2, 3], device=masks.device, dtype=torch.int32).expand(b, 2)
    return {"point_coords": torch.minimum(corners.clamp_min(0), limit), "point_labels": labels}


def add_corrective_click(prompt: dict | None, predicted: torch.Tensor, masks: torch.Tensor, rng: torch.Generator) -> dict:
    """Return `prompt` with another click where `predicted` differs from the reference `masks`, both bool (B, H, W).

    It lies in the deeper of the missed and the wrongly included region. Where nothing is wrong, it lies inside the mask, or anywhere
    with a negative label if the mask is empty.
    """
    missed, excess = erosion_depth(masks & ~predicted), erosion_depth(predicted & ~masks)
    positive = missed.amax((1, 2)) >= excess.amax((1, 2))
    weights = torch.where(positive[:, None, None], missed, excess) ** 3
    is_right = weights.sum((1, 2)) == 0
    present = masks.flatten(1).any(1)
    positive = torch.where(is_right, present, positive)
    weights = torch.where(is_right[:, None, None], torch.where(present[:, None, None], masks, ~masks).float(), weights)
    coords, labels = sample_pixels(weights, rng)[:, None], positive.to(torch.int32)[:, None]
    if prompt is not None:
        coords = torch.cat([prompt["point_coords"], coords], 1)
        labels = torch.cat([prompt["point_labels"], labels], 1)
    return {"point_coords": coords, "point_labels": labels}
