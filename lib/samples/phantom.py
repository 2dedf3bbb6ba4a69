"""Generate CT-like images of an abdomen with organ labels, as sample data free of licences and of patients."""

import numpy as np
from scipy import ndimage

from lib.imaging.volume import Volume

LABELS = {
    "liver": 1, "spleen": 2, "kidney_left": 3, "kidney_right": 4, "stomach": 5, "aorta": 6,
    "vertebra": 7, "gallbladder": 8, "lesion": 9,
}  # fmt: skip

# Ellipsoidal organs: name, intensity in HU, centre (x, y, z) and radii in mm, where x points to the patient's left, y to the back and
# z to the head. Later organs cover earlier ones.
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
    """Generate one patient.

    Args:
        seed: Every number gives another patient.
        shape, spacing_mm: Number of voxels (I, J, K) and their sizes; the axes point to the left, back and head (LPS).

    Returns:
        The volume, int16 in HU, and the organs' labels, uint8 (I, J, K), see `LABELS`.
    """
    rng = np.random.default_rng(seed)
    spacing_mm = np.asarray(spacing_mm, float)
    axes_mm = [(np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing_mm, strict=True)]
    x, y, z = np.meshgrid(*axes_mm, indexing="ij", sparse=True)
    shift_mm = [_smooth_noise(rng, shape, 45 / spacing_mm) * 9 for _ in range(3)]
    x, y, z = x + shift_mm[0], y + shift_mm[1], z + shift_mm[2]
    body = (x / rng.normal(160, 5)) ** 2 + (y / rng.normal(112, 4)) ** 2 < 1
    cavity = (x / 140) ** 2 + (y / 94) ** 2 < 1
    hu = np.where(body, np.where(cavity, 35.0, -95.0), -1000.0)  # soft tissue, surrounded by fat, surrounded by air
    fat = _smooth_noise(rng, shape, 22 / spacing_mm) > 0.35
    hu[cavity & fat] = -90.0
    bowel_gas = _smooth_noise(rng, shape, 14 / spacing_mm) > 1.0
    hu[cavity & bowel_gas & (z < 10)] = -600.0
    labels = np.zeros(shape, np.uint8)
    for name, organ_hu, centre_mm, radii_mm in _ORGANS:
        c, r = rng.normal(centre_mm, 4), np.array(radii_mm) * rng.normal(1, 0.06, 3)
        organ = ((x - c[0]) / r[0]) ** 2 + ((y - c[1]) / r[1]) ** 2 + ((z - c[2]) / r[2]) ** 2 < 1
        if name == "lesion":
            organ &= labels == LABELS["liver"]
        labels[organ & cavity] = LABELS[name]
        hu[organ & cavity] = organ_hu + rng.normal(0, 5)
    spine = (x + 3) ** 2 + (y - 62) ** 2 < 20**2
    discs = np.sin(z / 5.2) > 0.9
    hu[spine] = np.where(discs, 90.0, 320.0)[spine]
    labels[spine] = LABELS["vertebra"]
    hu[(x + 3) ** 2 + (y - 84) ** 2 < 8**2] = 30.0  # the spinal canal
    aorta = (x - 10) ** 2 + (y - 30) ** 2 < rng.normal(11, 0.7) ** 2
    hu[aorta], labels[aorta] = 180.0, LABELS["aorta"]
    tissue = hu > -500
    hu = ndimage.gaussian_filter(hu, 0.6) + tissue * _smooth_noise(rng, shape, 8 / spacing_mm) * 4
    hu += ndimage.gaussian_filter(rng.normal(0, 1, shape), (0.7, 0.7, 0)) * 22
    affine = np.diag([-spacing_mm[0], -spacing_mm[1], spacing_mm[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return Volume(np.clip(hu, -1024, 3071).astype(np.int16), affine, f"ct_phantom_{seed}"), labels


def _smooth_noise(rng, shape, sigma) -> np.ndarray:
    """Return noise of mean 0 and standard deviation 1 that is smooth over `sigma` voxels along each axis."""
    # The noise is computed on a coarse grid and interpolated, which is much faster than a wide Gaussian filter.
    coarse = [max(4, int(np.ceil(n / max(s / 1.5, 1)))) + 3 for n, s in zip(shape, sigma, strict=True)]
    coarse_noise = ndimage.gaussian_filter(rng.normal(0, 1, coarse), 1.0)
    factors = [n / c for n, c in zip(shape, coarse, strict=True)]
    noise = ndimage.zoom(coarse_noise, factors, order=1, grid_mode=True, mode="nearest")
    return (noise - noise.mean()) / noise.std()
