"""Simulated prompts for training, batched in PyTorch: where would a user click, and how would they draw a box?"""

import torch
import torch.nn.functional as F


def depth(masks: torch.Tensor, levels: int = 6) -> torch.Tensor:
    """How many 3x3 erosions each pixel survives, plus one inside: float32 like bool `masks` (B, H, W), 0 outside."""
    m = masks[:, None].float()
    total = m.clone()
    for _ in range(levels):
        m = -F.max_pool2d(-F.pad(m, (1, 1, 1, 1)), 3, stride=1)
        total += m
    return total[:, 0]


def sample_pixel(weights: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
    """One pixel (B, 2) as (x, y) for each of `weights` (B, H, W), drawn in proportion to them."""
    b, _, w = weights.shape
    flat = weights.reshape(b, -1)
    flat = torch.where(flat.sum(1, keepdim=True) > 0, flat, torch.ones_like(flat))
    index = torch.multinomial(flat, 1, generator=rng)[:, 0]
    return torch.stack([index % w, index // w], 1).float()


def first_click(masks: torch.Tensor, rng: torch.Generator) -> dict:
    """A positive click inside each of `masks` (B, H, W), deep pixels more likely."""
    return {"point_coords": sample_pixel(depth(masks) ** 2, rng)[:, None], "point_labels": _label(1, masks)}


def box(masks: torch.Tensor, rng: torch.Generator, jitter: float = 0.06) -> dict:
    """Tight boxes of `masks` (B, H, W), corners moved by up to `jitter` of the side, as SAM's corner points (2 and 3)."""
    b, h, w = masks.shape
    rows, columns = masks.any(2), masks.any(1)

    def ends(hit):
        first = hit.float().argmax(1)
        last = hit.shape[1] - hit.flip(1).float().argmax(1)
        return first.float(), last.float()

    (y0, y1), (x0, x1) = ends(rows), ends(columns)
    corners = torch.stack([torch.stack([x0, y0], 1), torch.stack([x1, y1], 1)], 1)
    side = (corners[:, 1] - corners[:, 0])[:, None]
    noise = torch.rand(b, 2, 2, generator=rng, device=masks.device) * 2 - 1
    corners = corners + noise * jitter * side
    limit = torch.tensor([w, h], device=masks.device, dtype=torch.float32)
    return {
        "point_coords": torch.minimum(corners.clamp_min(0), limit),
        "point_labels": torch.tensor([2, 3], device=masks.device, dtype=torch.int32).expand(b, 2),
    }


def corrective_click(prompt: dict | None, predicted: torch.Tensor, masks: torch.Tensor, rng: torch.Generator) -> dict:
    """`prompt` with one more click in the deeper of the missed and the falsely marked region.

    Args:
        predicted: bool (B, H, W).
        masks: bool (B, H, W), the reference. Where nothing is wrong the click falls inside (or, if empty, outside) of it.
    """
    missed, extra = depth(masks & ~predicted), depth(predicted & ~masks)
    positive = missed.amax((1, 2)) >= extra.amax((1, 2))
    weights = torch.where(positive[:, None, None], missed, extra) ** 3
    right = weights.sum((1, 2)) == 0
    present = masks.any(2).any(1)
    positive = torch.where(right, present, positive)
    inside = torch.where(present[:, None, None], masks, ~masks).float()
    weights = torch.where(right[:, None, None], inside, weights)
    coords, labels = sample_pixel(weights, rng)[:, None], positive.to(torch.int32)[:, None]
    if prompt is not None:
        coords = torch.cat([prompt["point_coords"], coords], 1)
        labels = torch.cat([prompt["point_labels"], labels], 1)
    return {"point_coords": coords, "point_labels": labels}


def _label(value: int, masks: torch.Tensor) -> torch.Tensor:
    return torch.full((len(masks), 1), value, dtype=torch.int32, device=masks.device)
