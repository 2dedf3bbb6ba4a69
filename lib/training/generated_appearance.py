"""What generated structures look like: intensities of labels, and what a scanner and a viewer make of an image."""

import numpy as np
import torch
import torch.nn.functional as F

from lib.training.random_source import Draw


def paint(draw: Draw, labels: torch.Tensor, background: int, depth: float) -> torch.Tensor:
    """Image (T, H, W) in about [0, 1] of a label map (T, H, W): a mean per label, sub-clusters and texture inside.

    Args:
        background: labels up to this number are tissue between the structures.
        depth: thickness of the clip as a share of the field of view.
    """
    count = int(labels.max()) + 1
    means = draw.uniforms(count)
    style = draw.uniform()
    if style < 0.3:  # soft tissue: most structures lie close together
        means = draw.uniform(0.3, 0.6) + (means - 0.5) * draw.uniform(0.25, 0.8)
    elif style < 0.65:  # like CT: organs of nearly one density in darker fat and muscle, some bone, some gas
        organs = draw.uniform(0.5, 0.65)
        kind = draw.uniforms(count)
        means = organs + (means - 0.5) * draw.uniform(0.1, 0.4)
        means[kind < 0.1] = draw.uniform(0.85, 1.0)
        means[kind > 0.94] = draw.uniform(0.0, 0.1)
        between = draw.uniforms(background + 1)
        means[: background + 1] = torch.where(between < 0.6, draw.uniform(0.2, 0.35), organs - 0.08) + 0.05 * between
    if count > 3 and draw.chance(0.5):  # hard negatives: some structures look alike
        means[draw.integer(1, count - 1)] = means[draw.integer(1, count - 1)]
    means[0] = 0.0 if draw.chance(0.8) else means[0]
    shape = tuple(labels.shape)
    image = means[labels]
    texture = draw.field(2, shape, draw.uniform(6, 40), depth * 20)
    amount = draw.uniforms(count) * draw.uniform(0.0, 0.12)
    image = image + texture[0] * amount[labels]
    if draw.chance(0.4):
        image = image + (texture[1] > 0.6) * (draw.normals(count) * draw.uniform(0.02, 0.1))[labels]
    return image


def acquire(draw: Draw, image: torch.Tensor, depth: float, *, real: bool = False) -> torch.Tensor:
    """Partial volume, blur, bias field, noise, streaks, window, gamma, inversion: (T, H, W) to [0, 255].

    Args:
        real: a scanner has done the first steps already; they are done weakly.
    """
    slices, size = image.shape[0], image.shape[1]
    shape = tuple(image.shape)
    if slices > 1 and not real and draw.chance(0.4):  # thick slices overlap
        w = draw.uniform(0.05, 0.3)
        padded = torch.cat([image[:1], image, image[-1:]])
        image = w * padded[:-2] + (1 - 2 * w) * padded[1:-1] + w * padded[2:]
    image = blur(image, draw.uniform(0.3, 0.7 if real else 1.4) * size / 128)
    if draw.chance(0.5):
        image = image * torch.exp(draw.uniform(0.0, 0.4) * draw.field(1, shape, 2, depth * 2)[0])
    noise = draw.normals(*shape)
    if draw.chance(0.5):
        noise = blur(noise, draw.uniform(0.4, 1.2)) * 2
    image = image + noise * draw.uniform(0.0, 0.03 if real else 0.08)
    if draw.chance(0.1):  # metal streaks
        angle = draw.uniform(0, np.pi)
        axis = torch.linspace(-1, 1, size, device=draw.device)
        line = axis[:, None] * np.cos(angle) + axis[None] * np.sin(angle)
        image = image + draw.uniform(0.02, 0.1) * torch.sin(line * draw.uniform(20, 60)) * draw.uniforms(slices, 1, 1)
    sample = image.flatten()[:: max(1, image.numel() // 4096)]
    ends = torch.tensor([draw.uniform(0, 0.05), draw.uniform(0.95, 1.0)], device=draw.device)
    low, high = torch.quantile(sample, ends)
    image = ((image - low) / (high - low).clamp_min(1e-3)).clamp(0, 1)
    image = image ** (2 ** draw.uniform(-0.7, 0.7))
    if draw.chance(0.5):
        image = 1 - image
    return image * 255.0


def blur(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """In-plane Gaussian of `sigma` pixels on (T, H, W)."""
    radius = max(1, int(2.5 * sigma + 0.5))
    x = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    k = torch.exp(-0.5 * (x / max(sigma, 1e-3)) ** 2)
    k = k / k.sum()
    image = F.conv2d(F.pad(image[:, None], (radius, radius, 0, 0), mode="replicate"), k.view(1, 1, 1, -1))
    return F.conv2d(F.pad(image, (0, 0, radius, radius), mode="replicate"), k.view(1, 1, -1, 1))[:, 0]
