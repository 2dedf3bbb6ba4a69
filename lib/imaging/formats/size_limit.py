"""The limit of the number of voxels that are read from one file."""

import math
import os

from lib.common.errors import VolumeError

MAX_MEGAVOXELS = 1100  # enough for 1024 x 1024 x 1024 voxels; the environment variable SAM2_MAX_MEGAVOXELS sets another limit


def check_size(shape, name: str) -> None:
    """Raise VolumeError if the product of `shape`, as a header claims it, is above the limit.

    This must happen before anything is allocated for the image, because a file of a few bytes can claim terabytes.
    """
    setting = os.environ.get("SAM2_MAX_MEGAVOXELS") or str(MAX_MEGAVOXELS)
    try:
        limit = float(setting)
    except ValueError as e:
        raise VolumeError(f"SAM2_MAX_MEGAVOXELS must be a number of million voxels; it is {setting!r}.") from e
    megavoxels = math.prod(int(n) for n in shape) / 1e6
    if megavoxels > limit:
        raise VolumeError(
            f"{name} claims {megavoxels:,.0f} million voxels; up to {limit:,g} million are read (SAM2_MAX_MEGAVOXELS sets another limit)."
        )
