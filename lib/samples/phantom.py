"""A generated CT-like abdomen with organ labels: sample data that nobody has to license."""

import numpy as np
from scipy import ndimage

from lib.imaging.volume import Volume

LABELS = {
    "liver": 1, "spleen": 2, "kidney_left": 3, "kidney_right": 4, "stomach": 5, "aorta": 6,
    "vertebra": 7, "gallbladder": 8, "lesion": 9,
}  # fmt: skip

# Name, HU, centre (x, y, z) and radii in mm; x to the patient's left, y to the back, z to the head; in painting order.
_ORGANS = (
    ("liver", 105, (-70, -10, 45), (75, 65, 55)),
    ("stomach", 30, (55, -45, 45), (45, 35, 35)),
    ("spleen", 120, (95, 35, 50), (28, 40, 38)),
    ("kidney_left", 160, (60, 45, -25), (26, 28, 52)),
    ("kidney_right", 155, (-62, 48, -30), (27, 29, 54)),
    ("gallbladder", 10, (-45, -40, 5), (14, 18, 24)),
    ("lesion", 60, (-85, -20, 50), (14, 13, 15)),
)


def abdomen(seed: int = 0, shape=(160, 160, 80), spacing_mm=(2.2, 2.2, 3.0)) -> tuple[Volume, np.ndarray]:
    """One generated patient.

    Args:
        seed: another number is another patient.
        shape: voxels (I, J, K). spacing_mm: their sizes.

    Returns:
        The volume in HU, int16, axes to the left, back and head (LPS, as DICOM stores it); the labels, uint8 (I, J, K), see
        LABELS.
    """
    rng = np.random.default_rng(seed)
    sizes = np.asarray(spacing_mm, float)
    axes = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, sizes, strict=True)]
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    warp = [_smooth(rng, shape, 45 / sizes) * 9 for _ in range(3)]
    x, y, z = x + warp[0], y + warp[1], z + warp[2]
    body = (x / rng.normal(160, 5)) ** 2 + (y / rng.normal(112, 4)) ** 2 < 1
    inner = (x / 140) ** 2 + (y / 94) ** 2 < 1
    hu = np.where(body, np.where(inner, 35.0, -95.0), -1000.0)  # muscle and gut inside, fat outside
    fat = _smooth(rng, shape, 22 / sizes) > 0.35
    hu[inner & fat] = -90.0
    bowel = _smooth(rng, shape, 14 / sizes)
    hu[inner & (bowel > 1.0) & (z < 10)] = -600.0
    labels = np.zeros(shape, np.uint8)
    for name, value, centre, radii in _ORGANS:
        c, r = rng.normal(centre, 4), np.array(radii) * rng.normal(1, 0.06, 3)
        inside = ((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 + ((z - c[2]) / r[2]) ** 2 < 1
        if name == "lesion":
            inside &= labels == LABELS["liver"]
        labels[inside & inner] = LABELS[name]
        hu[inside & inner] = value + rng.normal(0, 5)
    spine = (x + 3) ** 2 + (y - 62) ** 2 < 20**2
    disc = np.sin(z / 5.2) > 0.9
    hu[spine] = np.where(disc, 90.0, 320.0)[spine] if disc.shape == spine.shape else 320.0
    labels[spine] = LABELS["vertebra"]
    hu[(x + 3) ** 2 + (y - 84) ** 2 < 8**2] = 30.0  # spinal canal
    aorta = (x - 10) ** 2 + (y - 30) ** 2 < rng.normal(11, 0.7) ** 2
    hu[aorta], labels[aorta] = 180.0, LABELS["aorta"]
    tissue = hu > -500
    hu = ndimage.gaussian_filter(hu, 0.6) + tissue * _smooth(rng, shape, 8 / sizes) * 4
    hu += ndimage.gaussian_filter(rng.normal(0, 1, shape), (0.7, 0.7, 0)) * 22
    affine = np.diag([-sizes[0], -sizes[1], sizes[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Volume(np.clip(hu, -1024, 3071).astype(np.int16), affine, f"ct_phantom_{seed}"), labels


def _smooth(rng, shape, sigma) -> np.ndarray:
    """Noise of unit deviation, smooth over `sigma` voxels; made on a coarse grid, which is much faster."""
    coarse = [max(4, int(np.ceil(n / max(s / 1.5, 1)))) + 3 for n, s in zip(shape, sigma, strict=True)]
    noise = ndimage.gaussian_filter(rng.normal(0, 1, coarse), 1.0)
    out = ndimage.zoom(noise, [n / c for n, c in zip(shape, coarse, strict=True)], order=1, grid_mode=True, mode="nearest")
    return (out - out.mean()) / out.std()
