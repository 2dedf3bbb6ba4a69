"""Appearance of generated clips: the intensities of their structures, and the effects of a scanner and of a viewer's window."""

import numpy as np
import torch
import torch.nn.functional as F

from lib.training.random_source import RandomSource


def paint_labels(random: RandomSource, labels: torch.Tensor, last_tissue_label: int, depth: float) -> torch.Tensor:
    """Return an image (T, H, W), approximately in [0, 1], where each label has its own mean intensity and texture.

    Args:
        labels: Label map (T, H, W): 0 is air, up to `last_tissue_label` the tissue between structures, above it the structures.
        depth: Thickness of the clip as a fraction of the field of view.
    """
    count = int(labels.max()) + 1
    means = random.uniforms(count)
    style = random.uniform()
    if style < 0.3:  # Soft tissue: most structures have similar intensities.
        means = random.uniform(0.3, 0.6) + (means - 0.5) * random.uniform(0.25, 0.8)
    elif style < 0.65:  # Like CT: organs of nearly one density in darker fat and muscle, some bone, some gas.
        organs = random.uniform(0.5, 0.65)
        material = random.uniforms(count)
        means = organs + (means - 0.5) * random.uniform(0.1, 0.4)
        means[material < 0.1] = random.uniform(0.85, 1.0)
        means[material > 0.94] = random.uniform(0.0, 0.1)
        tissue = random.uniforms(last_tissue_label + 1)
        means[: last_tissue_label + 1] = torch.where(tissue < 0.6, random.uniform(0.2, 0.35), organs - 0.08) + 0.05 * tissue
    if count > 3 and random.chance(0.5):  # Hard negatives: two structures get the same mean intensity.
        means[random.integer(1, count - 1)] = means[random.integer(1, count - 1)]
    means[0] = 0.0 if random.chance(0.8) else means[0]
    image = means[labels]
    texture = random.smooth_noise(2, tuple(labels.shape), random.uniform(6, 40), depth * 20)
    image = image + texture[0] * (random.uniforms(count) * random.uniform(0.0, 0.12))[labels]
    if random.chance(0.4):
        image = image + (texture[1] > 0.6) * (random.normals(count) * random.uniform(0.02, 0.1))[labels]
    return image


def simulate_acquisition(random: RandomSource, image: torch.Tensor, depth: float, *, real: bool = False) -> torch.Tensor:
    """Apply the effects of a scanner (partial volume, blur, bias field, noise, streaks) and a viewer (window, gamma, inversion).

    Args:
        image: Intensities (T, H, W), approximately in [0, 1]; the result has the range [0, 255].
        depth: Thickness of the clip as a fraction of the field of view.
        real: Whether a scanner acquired the image; scanner effects are then weak or left out.
    """
    slices, size, _ = shape = tuple(image.shape)
    if slices > 1 and not real and random.chance(0.4):  # Thick slices overlap.
        weight = random.uniform(0.05, 0.3)
        padded = torch.cat([image[:1], image, image[-1:]])
        image = weight * padded[:-2] + (1 - 2 * weight) * padded[1:-1] + weight * padded[2:]
    image = blur_in_plane(image, random.uniform(0.3, 0.7 if real else 1.4) * size / 128)
    if random.chance(0.5):
        image = image * torch.exp(random.uniform(0.0, 0.4) * random.smooth_noise(1, shape, 2, depth * 2)[0])
    noise = random.normals(*shape)
    if random.chance(0.5):
        noise = blur_in_plane(noise, random.uniform(0.4, 1.2)) * 2
    image = image + noise * random.uniform(0.0, 0.03 if real else 0.08)
    if random.chance(0.1):  # Streaks as from metal.
        angle = random.uniform(0, np.pi)
        axis = torch.linspace(-1, 1, size, device=random.device)
        line = axis[:, None] * np.cos(angle) + axis[None] * np.sin(angle)
        image = image + random.uniform(0.02, 0.1) * torch.sin(line * random.uniform(20, 60)) * random.uniforms(slices, 1, 1)
    window = torch.tensor([random.uniform(0, 0.05), random.uniform(0.95, 1.0)], device=random.device)
    low, high = torch.quantile(image.flatten()[:: max(1, image.numel() // 4096)], window)
    image = ((image - low) / (high - low).clamp_min(1e-3)).clamp(0, 1) ** (2 ** random.uniform(-0.7, 0.7))
    return (1 - image if random.chance(0.5) else image) * 255.0


def blur_in_plane(image: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return the image (T, H, W) after a Gaussian filter of `sigma` pixels within each slice."""
    radius = max(1, int(2.5 * sigma + 0.5))
    x = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / max(sigma, 1e-3)) ** 2)
    kernel /= kernel.sum()
    image = F.conv2d(F.pad(image[:, None], (radius, radius, 0, 0), mode="replicate"), kernel.view(1, 1, 1, -1))
    return F.conv2d(F.pad(image, (0, 0, radius, radius), mode="replicate"), kernel.view(1, 1, -1, 1))[:, 0]
