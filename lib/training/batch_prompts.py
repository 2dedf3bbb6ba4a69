"""Simulated prompts for training: where a user would click, draw a box or paint, for a batch of masks at once.

Nothing is copied from the device, so that a GPU is not interrupted. Prompts are dictionaries in the form of SAM 2: point_coords, float32
(R, P, 2) as (x, y) in pixels, and point_labels, int32 (R, P).
"""

import torch
import torch.nn.functional as F

from lib.training.batch_random import BatchRandom

_EROSIONS = 6


def erosion_depth(masks: torch.Tensor) -> torch.Tensor:
    """Return how many of six 3x3 erosions each pixel survives, plus one: float32 (R, H, W), 0 outside `masks`, bool (R, H, W)."""
    eroded = masks[:, None].float()
    depth = eroded.clone()
    for _ in range(_EROSIONS):
        eroded = -F.max_pool2d(-F.pad(eroded, (1, 1, 1, 1)), 3, stride=1)
        depth += eroded
    return depth[:, 0]


def sample_pixels(random: BatchRandom, weights: torch.Tensor) -> torch.Tensor:
    """Return one pixel (x, y) of each image, float32 (R, 2), chosen with a probability proportional to `weights` (R, H, W)."""
    index, width = random.choose(weights.flatten(1) + 1e-12)[:, 0], weights.shape[2]
    return torch.stack([index % width, torch.div(index, width, rounding_mode="floor")], 1).float()


def sample_first_click(random: BatchRandom, masks: torch.Tensor) -> dict:
    """Return a positive click inside each of `masks`, bool (R, H, W); pixels far from the border are more likely."""
    labels = torch.ones(len(masks), 1, dtype=torch.int32, device=masks.device)
    return {"point_coords": sample_pixels(random, erosion_depth(masks) ** 2)[:, None], "point_labels": labels}


def bounding_boxes(masks: torch.Tensor) -> torch.Tensor:
    """Return the corners (R, 2, 2) as (x, y) of the boxes round `masks`, bool (R, H, W); the second one is the last pixel's far edge."""
    corners = []
    for axis in (1, 2):  # Columns first: whether any row of a column is filled.
        filled = masks.any(axis).float()
        size = filled.shape[1]
        corners.append(torch.stack([filled.argmax(1), size - filled.flip(1).argmax(1)], 1))
    return torch.stack(corners, 2).float()


def sample_box(random: BatchRandom, masks: torch.Tensor, jitter: float = 0.05) -> dict:
    """Return the bounding box of each of `masks`, bool (R, H, W), as two corners, which have the labels 2 and 3.

    The corners are shifted by up to `jitter` times the side of the box.
    """
    corners, size = bounding_boxes(masks), masks.shape[-1]
    side = corners[:, 1:] - corners[:, :1]
    corners = corners + random.uniform(len(masks), 2, 2, low=-jitter, high=jitter) * side * random.uniform(len(masks), 1, 1)
    labels = torch.ones(len(masks), 2, dtype=torch.int32, device=masks.device) * 2
    labels[:, 1] = 3
    return {"point_coords": corners.clamp(0, size), "point_labels": labels}


def add_corrective_click(random: BatchRandom, prompt: dict | None, predicted: torch.Tensor, masks: torch.Tensor) -> dict:
    """Return `prompt` with another click where `predicted` differs from the reference `masks`, both bool (R, H, W).

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
    coords, labels = sample_pixels(random, weights)[:, None], positive.to(torch.int32)[:, None]
    if prompt is not None:
        coords = torch.cat([prompt["point_coords"], coords], 1)
        labels = torch.cat([prompt["point_labels"], labels], 1)
    return {"point_coords": coords, "point_labels": labels}


def paint(random: BatchRandom, masks: torch.Tensor) -> torch.Tensor:
    """Return `masks`, bool (R, H, W), as an annotator would paint them: some a little too large or too small, some with holes."""
    rows = len(masks)
    image = masks[:, None].float()
    larger = F.max_pool2d(image, 3, stride=1, padding=1)
    smaller = -F.max_pool2d(-image, 3, stride=1, padding=1)
    u = random.uniform(rows, 1, 1, 1)
    painted = torch.where(u < 0.15, larger, torch.where(u < 0.25, smaller, image))
    holes = F.interpolate(random.normal(rows, 1, 32, 32), size=masks.shape[-2:], mode="bilinear") > 1.6
    painted = torch.where(random.chance(0.12, rows, 1, 1, 1) & holes, 0.0, painted)[:, 0] > 0.5
    return torch.where(painted.flatten(1).any(1)[:, None, None], painted, masks)
