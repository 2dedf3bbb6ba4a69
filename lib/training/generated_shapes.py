"""Label maps of generated clips: structures that drift, branch, change their shape and end, painted in batches on one device.

What they have in common is that the shape on one slice says little about the next one, so that a network must look at the image. Ideas
come from SynthSeg (arXiv 2107.09559), AnyStar (arXiv 2307.07044) and ScribblePrompt (arXiv 2312.07381).
"""

from dataclasses import dataclass
from itertools import accumulate

import torch

from lib.training.batch_random import BatchRandom

TISSUES = 6  # Labels 1 to TISSUES are the tissue between structures, 0 is air.
OUTLINE = TISSUES + 1  # The outer layer of the body.
STRUCTURES = 12
FIRST_STRUCTURE = OUTLINE + 1  # Structure n has the labels FIRST_STRUCTURE + 2 * n and, for its core, the next one.
LABELS = FIRST_STRUCTURE + 2 * STRUCTURES
# Kinds of structures and how often they occur.
KINDS = {"ellipsoid": 0.26, "tube": 0.22, "ring": 0.13, "crescent": 0.08, "two_parts": 0.06, "prism": 0.1, "cone": 0.07, "dot": 0.08}


@dataclass(frozen=True)
class _Place:
    """Centres (B, T, 2) as (y, x) and radius (B, 1) of a structure, from which the next one finds a place beside it."""

    centres: torch.Tensor
    radius: torch.Tensor


def paint_label_maps(random: BatchRandom, clips: int, slices: int, side: int) -> torch.Tensor:
    """Return label maps, uint8 (B, T, H, W), with labels below `LABELS`."""
    shape = slices, side, side
    axis = (torch.arange(side, device=random.device) + 0.5) / side - 0.5
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    warp = random.smooth(clips, 2, shape, (4, 8)) * (0.04 * random.uniform(clips, 1, 1, 1, 1) ** 2)
    y, x = y + warp[:, 0], x + warp[:, 1]
    fields = random.smooth(clips, TISSUES, shape, (2, 4, 8))
    fields = fields + 2 * random.normal(clips, TISSUES, 1, 1, 1) * random.uniform(clips, 1, 1, 1, 1)
    labels = (fields.argmax(1) + 1).to(torch.uint8)
    noise = random.smooth(clips, 3, shape, (5, 10, 20))
    place = None
    for n in range(STRUCTURES):
        labels, place = _paint_structure(random, labels, FIRST_STRUCTURE + 2 * n, (y, x), noise, place)
    radii = random.uniform(2, clips, 1, 1, 1, low=0.33, high=0.6)
    outline = torch.sqrt((y / radii[0]) ** 2 + (x / radii[1]) ** 2)
    has_outline, has_layer = random.chance(0.5, clips, 1, 1, 1), random.chance(0.6, clips, 1, 1, 1)
    layer = 1 - random.uniform(clips, 1, 1, 1, low=0.04, high=0.2)
    labels = torch.where(has_outline & has_layer & (outline > layer), OUTLINE, labels)
    return torch.where(has_outline & (outline > 1), 0, labels).to(torch.uint8)


def _paint_structure(random: BatchRandom, labels, label: int, grid, noise, earlier: _Place | None) -> tuple[torch.Tensor, _Place]:
    """Paint a structure of a random kind into each clip; return the labels and where it lies."""
    clips, slices = labels.shape[:2]
    is_kind = dict(zip(KINDS, _one_hot(random, clips), strict=True))
    radius = 2 ** random.uniform(clips, 1, low=-4.9, high=-1.8)
    radius = torch.where(is_kind["tube"], 2 ** random.uniform(clips, 1, low=-5.6, high=-3.0), radius)
    radius = torch.where(is_kind["dot"], 2 ** random.uniform(clips, 1, low=-6.6, high=-5.0), radius)
    place = _Place(_centres(random, clips, slices, radius, is_kind["tube"], earlier), radius)
    profile = _profile(random, clips, slices, is_kind)
    turn = random.uniform(clips, 1, high=6.28) + random.path(clips, 1, slices, 3)[:, 0] * random.uniform(clips, 1, high=0.6)
    aspect = 2 ** random.uniform(clips, 1, low=-0.6, high=0.6)
    coefficients = random.normal(clips, 3, 1, 1, 1) * (0.22 * random.uniform(clips, 1, 1, 1, 1))
    bumps = 1 + (noise.roll(label, dims=-1) * coefficients).sum(1)
    distance = _distance(grid, place.centres, radius, turn, aspect) * bumps
    # The distance from a second centre cuts a crescent out of the structure, or adds another part to it.
    angle = random.uniform(clips, 1, high=6.28) + random.path(clips, 1, slices, 3)[:, 0] * 0.3
    apart, overlapping = random.uniform(clips, 1, low=1.8, high=3.0), random.uniform(clips, 1, low=0.4, high=0.9)
    reach = radius * torch.where(is_kind["two_parts"], apart, overlapping)
    second = place.centres + torch.stack([angle.sin(), angle.cos()], 2) * reach[..., None]
    ratio = torch.where(is_kind["two_parts"], random.uniform(clips, 1, low=0.5, high=1.0), random.uniform(clips, 1, low=0.7, high=1.1))
    other = _distance(grid, second, radius * ratio, turn, aspect) * bumps
    size = profile[:, :, None, None]
    inside = distance < size
    two_parts, crescent, ring = (is_kind[k][:, :, None, None] for k in ("two_parts", "crescent", "ring"))
    inside = torch.where(two_parts, inside | (other < size), inside & ~(crescent & (other < size)))
    wall = 1 - random.uniform(clips, 1, 1, 1, low=0.1, high=0.5)
    has_core = ring | random.chance(0.2, clips, 1, 1, 1)
    core = inside & has_core & (distance < size * wall) & ~two_parts
    labels = torch.where(inside, label, labels)
    return torch.where(core, label + 1, labels).to(torch.uint8), place


def _one_hot(random: BatchRandom, clips: int) -> list[torch.Tensor]:
    """Return for each kind of structure which clips get it, bool (B, 1)."""
    limits = [0.0, *accumulate(KINDS.values())]
    u = random.uniform(clips, 1)
    return [(u >= low) & (u < high) for low, high in zip(limits[:-1], [*limits[1:-1], 2.0], strict=True)]


def _centres(random: BatchRandom, clips: int, slices: int, radius, is_tube, earlier: _Place | None) -> torch.Tensor:
    """Return centres (B, T, 2): anywhere, or beside the earlier structure; they drift, and those of tubes drift far."""
    start = random.uniform(clips, 1, 2, low=-0.4, high=0.4)
    walk = random.path(clips, 2, slices, 3).transpose(1, 2)
    walk = walk - walk[:, :1]
    slope = random.normal(clips, 1, 2) * torch.linspace(0, 1, slices, device=random.device).view(1, -1, 1)
    far = random.uniform(clips, 1, 1) ** 1.5 * torch.where(is_tube, 0.2, 0.06)[..., None]
    jitter = random.normal(clips, slices, 2) * radius[..., None] * torch.where(random.chance(0.15, clips, 1, 1), 0.2, 0.0)
    drift = (walk + slope) * far + jitter
    if earlier is None:
        return start + drift
    angle = random.uniform(clips, 1, high=6.28)
    direction = torch.stack([angle.sin(), angle.cos()], 2)
    beside = (radius + earlier.radius)[..., None] * random.uniform(clips, 1, 1, low=0.75, high=1.1) * direction
    follow = torch.where(random.chance(0.5, clips, 1, 1), earlier.centres, earlier.centres[:, :1])
    return torch.where(random.chance(0.4, clips, 1, 1), follow + beside, start) + drift


def _profile(random: BatchRandom, clips: int, slices: int, is_kind) -> torch.Tensor:
    """Return the size of a structure on each slice relative to its radius, (B, T), 0 beyond its ends."""
    time = torch.linspace(0, 1, slices, device=random.device)[None]
    middle, half = random.uniform(clips, 1, low=-0.35, high=1.1), 2 ** random.uniform(clips, 1, low=-2.4, high=1.0)
    offset = (time - middle) / half
    ellipsoid = (1 - offset**2).clamp_min(0).sqrt()
    prism = (offset.abs() < 1).float()
    cone = (1 - offset.abs()).clamp_min(0)
    has_end = random.chance(0.4, clips, 1)
    tube = torch.where(has_end, prism, 1.0)
    profile = torch.where(is_kind["tube"] | is_kind["dot"], tube, ellipsoid)
    profile = torch.where(is_kind["prism"], prism, torch.where(is_kind["cone"], cone, profile))
    sharp = random.chance(0.15, clips, 1)
    profile = torch.where(sharp, profile * prism, profile)
    change = random.path(clips, 1, slices, 5)[:, 0] * torch.where(random.chance(0.4, clips, 1), 0.35, 0.08)
    return profile * torch.exp(change)


def _distance(grid, centres, radius, turn, aspect) -> torch.Tensor:
    """Return the distance (B, T, H, W) from centres (B, T, 2) in radii (B, 1) of an ellipse with a turn (B, T) and an aspect (B, 1)."""
    dy, dx = (g - centres[:, :, n, None, None] for n, g in enumerate(grid))
    c, s = (turn.cos() / radius)[:, :, None, None], (turn.sin() / radius)[:, :, None, None]
    aspect = aspect[:, :, None, None]
    return torch.sqrt(((c * dy + s * dx) * aspect) ** 2 + ((c * dx - s * dy) / aspect) ** 2 + 1e-12)
