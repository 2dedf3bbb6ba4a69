"""A bright ball in 12 slices of 64 x 64 voxels, and requests for masks of it."""

import numpy as np

from lib.engine.options import Options
from lib.engine.result import Result
from lib.engine.segmenter import Segmenter
from lib.imaging.volume import Volume

AFFINE = np.diag([1.0, 1.0, 3.0, 1.0])
CENTRE = (30, 34, 6)


def ball_volume() -> Volume:
    x, y, z = np.meshgrid(np.arange(64), np.arange(64), np.arange(12), indexing="ij")
    ball = ((x - 30) / 14) ** 2 + ((y - 34) / 14) ** 2 + ((z - 6) / 4.5) ** 2 < 1
    noise = np.random.default_rng(0).normal(0, 6, ball.shape)
    return Volume((60 + 110 * ball + noise).astype(np.float32), AFFINE, "ball")


def run(segmenter: Segmenter, volume: Volume, options: Options = Options(), **prompts) -> Result:
    """Return the answer of an engine to prompts in voxels."""
    return segmenter.segment(volume, segmenter.prompts(volume, options, **prompts), options)
