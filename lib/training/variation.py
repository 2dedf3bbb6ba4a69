"""Make crops and clips of structures look different, and their masks wrong, for the training of the small networks."""

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage


def vary(
    images: np.ndarray, masks: np.ndarray, side: int, random: np.random.Generator | None
) -> tuple[torch.Tensor, np.ndarray]:
    """Return the middle of slices, with `random` turned, moved, scaled and made to look otherwise, all in the same way.

    Args:
        images, masks: uint8 and bool (T, Y, X) with Y = X.
        side: Of the middle.

    Returns:
        Pictures float (T, side, side), and masks bool (T, side, side) of which at least 16 pixels of some slice remain.
    """
    both = torch.cat([torch.from_numpy(images.astype(np.float32)) / 255, torch.from_numpy(masks.astype(np.float32))])
    count, scale = len(images), side / images.shape[-1]
    if random is None:
        both = _transformed(both, torch.tensor([[scale, 0, 0], [0, scale, 0]]), side)
        return both[:count], both[count:].numpy() > 0.5
    for _ in range(5):
        angle = random.uniform(-np.pi, np.pi) if random.random() < 0.6 else np.pi / 2 * random.integers(4)
        zoom, stretch = np.exp(random.uniform(-0.45, 0.4)) * scale, np.exp(random.uniform(-0.15, 0.15)) * random.choice([-1, 1])
        cosine, sine, (x, y) = np.cos(angle) * zoom, np.sin(angle) * zoom, random.uniform(-0.22, 0.22, 2) * scale
        transformed = _transformed(both, torch.tensor([[cosine * stretch, -sine, x], [sine * stretch, cosine, y]]), side)
        pictures, varied = transformed[:count], transformed[count:].numpy() > 0.5
        if varied.sum((1, 2)).max() >= 16:
            return _look_otherwise(pictures, random), varied
    return vary(images, masks, side, None)


def _transformed(slices: torch.Tensor, matrix: torch.Tensor, side: int) -> torch.Tensor:
    grid = F.affine_grid(matrix[None].float(), (1, 1, side, side), align_corners=False)
    return F.grid_sample(slices[None], grid, padding_mode="border", align_corners=False)[0]


def _look_otherwise(picture: torch.Tensor, random: np.random.Generator) -> torch.Tensor:
    """Return slices (T, Y, X) in [0, 1] with another window, gamma, resolution, bias field or noise, or inverted."""
    side = picture.shape[-1]
    if random.random() < 0.3:
        picture = 1 - picture
    low, high = np.quantile(picture.numpy()[:, ::4, ::4], [random.uniform(0, 0.05), random.uniform(0.93, 1)])
    picture = ((picture - float(low)) / max(float(high - low), 0.05)).clamp(0, 1) ** float(np.exp(random.uniform(-0.6, 0.6)))
    if random.random() < 0.35:
        width = random.uniform(0.3, 1.3)
        picture = torch.from_numpy(ndimage.gaussian_filter(picture.numpy(), (0, width, width)))
    if random.random() < 0.4:
        coarse = torch.from_numpy(random.normal(0, 1, (1, 1, 3, 3)).astype(np.float32))
        picture = picture * torch.exp(0.25 * random.random() * F.interpolate(coarse, (side, side), mode="bicubic", align_corners=True)[0, 0])
    if random.random() < 0.6:
        deviation = random.uniform(0.005, 0.1) * random.random()
        picture = picture + torch.from_numpy(random.normal(0, deviation, picture.shape).astype(np.float32))
    if random.random() < 0.2:
        picture = F.interpolate(F.avg_pool2d(picture[None], 2), (side, side), mode="bilinear", align_corners=False)[0]
    return picture.float()


def corrupt(reference: np.ndarray, random: np.random.Generator, strength: float = 1.0) -> np.ndarray:
    """Return a mask, bool (Y, X), with one or two errors as tracking makes them: moved, too small, too large, cut off, leaking or ragged.

    Args:
        reference: bool (Y, X), not empty.
        strength: Of the errors, above 0; 1 for those of a mask that needs a correction.
    """
    mask, length = reference.copy(), max(3, int(reference.sum() ** 0.5))
    size = length * strength
    inside = np.argwhere(reference)
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    for _ in range(random.integers(1, 3)):
        kind = random.integers(6)
        y, x = inside[random.integers(len(inside))]
        if kind == 0:
            mask = np.roll(mask, random.integers(-max(1, int(size / 4)), max(1, int(size / 4)) + 1, 2), (0, 1))
        elif kind == 1:
            mask = ndimage.binary_erosion(mask, iterations=int(random.integers(1, max(2, int(size / 8)))))
        elif kind == 2:
            mask = ndimage.binary_dilation(mask, iterations=int(random.integers(1, max(2, int(size / 6)))))
        elif kind == 3:
            angle = random.uniform(0, 2 * np.pi)
            mask &= (rows - y) * np.sin(angle) + (columns - x) * np.cos(angle) < length * (random.uniform(0, 0.3) + 0.5 * (1 - strength))
        elif kind == 4:
            radius = size * random.uniform(0.15, 0.6)
            ellipse = ((rows - y) / radius) ** 2 + ((columns - x) / (radius * random.uniform(0.4, 1.5))) ** 2 < 1
            mask = mask | ellipse if random.random() < 0.6 else mask & ~ellipse
        else:
            waves = ndimage.gaussian_filter(random.normal(size=mask.shape), random.uniform(2, 6))
            signed = ndimage.distance_transform_edt(mask) - ndimage.distance_transform_edt(~mask)
            mask = signed + waves / waves.std() * size * 0.12 > 0
    return mask
