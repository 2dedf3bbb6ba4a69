"""Generated volumes with labels, on which a checkpoint is calibrated."""

import numpy as np
import torch

from lib.imaging.volume import Volume
from lib.training.batch_random import BatchRandom
from lib.training.clip_appearance import paint_intensities, simulate_acquisition
from lib.training.generated_shapes import FIRST_STRUCTURE, STRUCTURES, paint_label_maps

LabelledVolume = tuple[Volume, np.ndarray, list[int]]  # Its label map is (T, Y, X); the list holds the labels to segment.

_SEED = 3_000_000_000  # Far from the seeds of training steps.
_FIELD_MM = 300.0  # Side of the field of view.
_MIN_VOXELS = 100


def generate_volume(seed: int, slices: int = 36, size: int = 128) -> LabelledVolume:
    """Return a volume of `slices` slices of `size` x `size` pixels with up to three structures that end within it.

    The same seed gives the same volume. A structure and its core count as one.
    """
    random = BatchRandom("cpu", torch.Generator().manual_seed(_SEED + seed))
    label_maps = paint_label_maps(random, 1, slices, size)
    image = simulate_acquisition(random, paint_intensities(random, label_maps), torch.ones(1, 1, 1, 1))[0].numpy()
    spacing_mm = _FIELD_MM / size, _FIELD_MM / size, _FIELD_MM * float(2 ** random.uniform(1, low=-7.2, high=-5.5))
    labels = label_maps[0].numpy()
    cores = labels >= FIRST_STRUCTURE
    labels[cores] -= (labels[cores] - FIRST_STRUCTURE) % 2
    structures = []
    for value in range(FIRST_STRUCTURE, FIRST_STRUCTURE + 2 * STRUCTURES, 2):
        present = (labels == value).any((1, 2))
        if 2 < present.sum() <= 0.8 * slices and (labels == value).sum() > _MIN_VOXELS:
            structures.append(value)
    volume = Volume(np.ascontiguousarray(image.transpose(2, 1, 0)), np.diag([*spacing_mm, 1.0]), f"generated_{seed}")
    return volume, labels, structures[-3:]
