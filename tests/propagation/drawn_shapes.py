"""Draw slices with shapes that networks find hard, for tests of masks that must obey prompts."""

import numpy as np
from scipy import ndimage

from lib.prompts.volume_prompts import SlicePrompt

SIDE = 96
NOISE = 20.0
CLEAR, WEAK = 70.0, 26.0  # Difference of the shape's mean intensity from its surroundings.
SHAPES = ("ring", "two_parts", "thin_wall", "dot", "crescent")


def draw_shape(name: str) -> np.ndarray:
    """Return a shape as a mask bool (SIDE, SIDE)."""
    y, x = np.mgrid[:SIDE, :SIDE] - 48.0
    radius = np.hypot(y, x)
    return {
        "ring": (radius < 22) & (radius > 14), "two_parts": (np.hypot(y, x - 20) < 12) | (np.hypot(y - 4, x + 20) < 10),
        "thin_wall": (abs(y + 8 * np.sin(x / 14)) < 2.2) & (abs(x) < 34), "dot": radius < 3.5,
        "crescent": (radius < 22) & (np.hypot(y, x - 10) > 18),
    }[name]  # fmt: skip


def draw_slice(mask: np.ndarray, difference: float, seed: int = 0) -> np.ndarray:
    """Return an image float32 (Y, X) of a mask, brighter by `difference` than its surroundings, with noise."""
    random = np.random.default_rng(seed)
    smooth, fine = (ndimage.gaussian_filter(random.normal(size=mask.shape), sigma) for sigma in (14, 0.7))
    image = 110 + difference * ndimage.gaussian_filter(mask.astype(float), 0.8) + 6 * smooth / smooth.std() + NOISE * fine
    return image.astype(np.float32)


def clicks_at(*clicks: tuple[int, int, bool]) -> SlicePrompt:
    """Return a prompt of clicks (y, x, whether inside)."""
    return SlicePrompt(np.array([(x, y) for y, x, _ in clicks], float), np.array([int(inside) for *_, inside in clicks], np.int32))


def box_round(mask: np.ndarray) -> SlicePrompt:
    """Return the tight box of a mask bool (Y, X) as a prompt."""
    y, x = np.nonzero(mask)
    return SlicePrompt(np.array([(x.min() - 0.5, y.min() - 0.5), (x.max() + 0.5, y.max() + 0.5)]), np.array([2, 3], np.int32))
