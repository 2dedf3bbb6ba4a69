"""Appearance of clips: intensities of generated structures, changes of real images, and the effects of a scanner and of a viewer's window.

Everything works on whole batches, each clip with parameters of its own, without leaving the device.
"""

import torch
import torch.nn.functional as F

from lib.training.batch_random import BatchRandom
from lib.training.generated_shapes import FIRST_STRUCTURE, LABELS, STRUCTURES, TISSUES

_BLUR_RADIUS = 9  # Pixels.


def paint_intensities(random: BatchRandom, labels: torch.Tensor) -> torch.Tensor:
    """Return images (B, T, H, W), approximately in [0, 1], of label maps: each label has its own mean intensity and texture."""
    clips, shape = len(labels), tuple(labels.shape[1:])
    means = _mean_intensities(random, clips)
    texture = random.smooth(clips, 2, shape, (16, 32, 64))
    index = labels.flatten(1).long()

    def by_label(values: torch.Tensor) -> torch.Tensor:
        return values.gather(1, index).view(labels.shape)

    image = by_label(means) + texture[:, 0] * by_label(random.uniform(clips, LABELS) * random.uniform(clips, 1) * 0.1)
    spots = by_label(random.normal(clips, LABELS) * 0.08 * random.chance(0.3, clips, 1))
    return image + (texture[:, 1] > 0.8) * spots


def _mean_intensities(random: BatchRandom, clips: int) -> torch.Tensor:
    """Return the mean intensity of each label (B, LABELS) in the style of soft tissue, CT, PET or of nothing in particular."""
    u = random.uniform(clips, LABELS)
    is_tissue = torch.arange(LABELS, device=random.device) <= TISSUES + 1
    soft = random.uniform(clips, 1, low=0.3, high=0.6) + (u - 0.5) * random.uniform(clips, 1, low=0.2, high=0.8)
    organs, material = random.uniform(clips, 1, low=0.5, high=0.65), random.uniform(clips, LABELS)
    ct = organs + (u - 0.5) * random.uniform(clips, 1, low=0.1, high=0.4)
    ct = torch.where(material < 0.14, 0.85 + 0.15 * u, torch.where(material > 0.94, 0.1 * u, ct))  # Bone or contrast medium, and gas.
    ct = torch.where(is_tissue, torch.where(material < 0.6, random.uniform(clips, 1, low=0.2, high=0.35), organs - 0.08) + 0.05 * u, ct)
    pet = torch.where(is_tissue, random.uniform(clips, 1, low=0.05, high=0.2) * (0.5 + u), 0.25 + 0.75 * u)
    style = random.uniform(clips, 1)
    means = torch.where(style < 0.25, u, torch.where(style < 0.5, soft, torch.where(style < 0.88, ct, pet)))
    # Look-alikes: a structure has the intensity of the one before it, which is often its neighbour, or nearly that of some tissue.
    steps = []
    for n in range(FIRST_STRUCTURE, LABELS):
        mean = means[:, n : n + 1]
        if n >= FIRST_STRUCTURE + 2:
            mean = torch.where(random.chance(0.2, clips, 1), steps[-2] + 0.02 * random.normal(clips, 1), mean)
        near = means[:, 1 + n % TISSUES : 2 + n % TISSUES] + random.sign(clips, 1) * random.uniform(clips, 1, low=0.04, high=0.14)
        steps.append(torch.where(random.chance(0.18, clips, 1), near, mean))
    assert len(steps) == 2 * STRUCTURES
    air = torch.where(random.chance(0.8, clips, 1), torch.zeros(clips, 1, device=random.device), means[:, :1])
    return torch.cat([air, means[:, 1:FIRST_STRUCTURE], *steps], 1)


def vary_real_images(random: BatchRandom, image: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Change real images (B, T, H, W) in [0, 1] such that neither place nor intensity of the structure is predictable.

    The structure gets darker or brighter, or a copy of it appears somewhere else. `mask`, float32 in [0, 1], has the same shape.
    """
    clips, shift = len(image), 0.2
    strength = random.uniform(clips, 1, 1, 1, low=-0.3, high=0.3) * random.chance(0.35, clips, 1, 1, 1)
    image = image + strength * mask
    theta = torch.zeros(clips, 2, 3, device=image.device)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0
    theta[:, :, 2] = random.sign(clips, 2) * random.uniform(clips, 2, low=shift, high=4 * shift)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    moved, moved_mask = (F.grid_sample(x, grid, align_corners=False) for x in (image, mask))
    opacity = moved_mask * (1 - mask) * random.chance(0.2, clips, 1, 1, 1)
    return image + opacity * (moved - image)


def window_real_images(random: BatchRandom, image: torch.Tensor) -> torch.Tensor:
    """Return images in [0, 1] within a random window, which leaves out little of what lies between its own 2nd and 98th percentile."""
    low, high = _random_bounds(random, image, 0.08, 0.04)
    is_full = random.chance(0.3, len(image), 1)[..., None, None]
    low, high = torch.where(is_full, 0.0, low), torch.where(is_full, 1.0, high)
    return (image - low) / (high - low).clamp_min(0.05)


def _random_bounds(random: BatchRandom, image: torch.Tensor, low_share: float, high_share: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return intensities (B, 1, 1, 1) with random shares of the pixels, up to the given ones, below and above them."""
    sample = image.flatten(1)[:, :: max(1, image[0].numel() // 4096)].sort(1).values
    below = random.uniform(len(image), 1, high=low_share)
    above = 1 - random.uniform(len(image), 1, high=high_share)
    return tuple(sample.gather(1, (share * (sample.shape[1] - 1)).long())[..., None, None] for share in (below, above))


def simulate_acquisition(random: BatchRandom, image: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
    """Apply the effects of a scanner (partial volume, blur, bias field, noise, speckle) and of a viewer (window, gamma, inversion).

    Args:
        image: Intensities (B, T, H, W), approximately in [0, 1]; the result has the range [0, 255].
        strength: Strength (B, 1, 1, 1) of the effects of the scanner; 1 for generated images, less for real ones.
    """
    clips, slices, side = len(image), image.shape[1], image.shape[2]
    shape = tuple(image.shape[1:])
    if slices > 1:  # Thick slices overlap.
        weight = 0.3 * random.uniform(clips, 1, 1, 1) * random.chance(0.35, clips, 1, 1, 1) * strength
        padded = torch.cat([image[:, :1], image, image[:, -1:]], 1)
        image = weight * padded[:, :-2] + (1 - 2 * weight) * padded[:, 1:-1] + weight * padded[:, 2:]
    sigma = torch.where(random.chance(0.12, clips), random.uniform(clips, low=1.5, high=4.5), random.uniform(clips, low=0.3, high=1.6))
    image = blur_in_plane(image, sigma * strength.flatten().clamp_min(0.4) * (side / 256))
    bias = random.smooth(clips, 1, shape, (2, 3), knots=2)[:, 0]
    image = image * torch.exp(bias * (0.3 * random.uniform(clips, 1, 1, 1) ** 2))
    speckle = blur_in_plane(random.normal(*image.shape), random.uniform(clips, low=0.8, high=2.0) * (side / 256)).abs() * 3
    is_ultrasound = random.chance(0.06, clips, 1, 1, 1) & (strength > 0.9)
    image = torch.where(is_ultrasound, image.clamp_min(0) * speckle, image)
    noise = random.normal(*image.shape)
    noise = torch.where(random.chance(0.5, clips, 1, 1, 1), blur_in_plane(noise, random.uniform(clips, low=0.4, high=1.5)) * 2.5, noise)
    image = image + noise * (0.08 * random.uniform(clips, 1, 1, 1) ** 1.5) * strength
    brightness = 1 + 0.06 * random.normal(clips, slices, 1, 1) * random.chance(0.25, clips, 1, 1, 1)
    image = image * brightness
    low, high = _random_bounds(random, image, 0.04, 0.03)
    image = ((image - low) / (high - low).clamp_min(1e-3)).clamp(0, 1)
    image = (image + 1e-6) ** (2 ** random.uniform(clips, 1, 1, 1, low=-0.7, high=0.7))
    return torch.where(random.chance(0.3, clips, 1, 1, 1), 1 - image, image).clamp(0, 1) * 255


def blur_in_plane(image: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Return images (B, T, H, W) after a Gaussian filter of `sigma` (B,) pixels within each slice."""
    clips, radius = len(image), _BLUR_RADIUS
    x = torch.arange(-radius, radius + 1, device=image.device, dtype=torch.float32)
    kernel = torch.exp(-0.5 * (x / sigma.clamp_min(0.05)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True))[:, None]
    rows = F.pad(image.transpose(0, 1), (radius, radius, 0, 0), mode="replicate")
    image = F.conv2d(rows, kernel[:, :, None, :], groups=clips)
    columns = F.pad(image, (0, 0, radius, radius), mode="replicate")
    return F.conv2d(columns, kernel[:, :, :, None], groups=clips).transpose(0, 1)
