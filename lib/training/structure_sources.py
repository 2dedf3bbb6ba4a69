"""Where the trainings of the small networks find structures: labelled volumes, images without labels, and generated volumes.

Prompts mean all kinds of things, so the networks have to learn from more than anatomy (idea: ScribblePrompt, arXiv 2312.07381).
"""

import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from lib.common.errors import UserError
from lib.imaging.datasets import Case, read_cases
from lib.imaging.volume import Volume
from lib.training.volume_pack import is_held_back

_MOST_ANISOTROPIC = 2.2  # Planes whose pixels are longer than this are left out.
_FIRST_SEED, _FIRST_HELD_BACK_SEED = 20_000, 90_000  # Of generated volumes.

Named = tuple[str, tuple[np.ndarray, np.ndarray]]  # The kind of a sample, its image or images, and its mask or masks.


class Cutters(NamedTuple):
    """How samples are cut out of a case, out of an image without labels (its path), and out of the generated volume of a seed.

    Each is called with the source and a random generator, and yields samples; they have to be functions of a module.
    """

    labelled: Callable[[Case, np.random.Generator], Iterable[Named]]
    unlabelled: Callable[[Path, np.random.Generator], Iterable[Named]]
    generated: Callable[[int, np.random.Generator], Iterable[Named]]


def collect(
    cutters: Cutters, labelled: Sequence[Path], unlabelled: Sequence[Path], generated: int, held_back: bool
) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """Return samples by kind, cut on all cores.

    Args:
        cutters: What cuts them.
        labelled, unlabelled: Folders in the layout of the Medical Segmentation Decathlon; images of the latter need no label.
        generated: Number of generated volumes.
        held_back: Whether to use the patients who are held back for validation (see `is_held_back`) instead of the others.

    Raises:
        UserError: A folder has no readable dataset.json, or there is no sample at all.
    """
    first = _FIRST_HELD_BACK_SEED if held_back else _FIRST_SEED
    tasks: list[partial] = [partial(cutters.generated, first + n) for n in range(generated)]
    cases = [c for folder in labelled for c in read_cases(folder)]
    images = [image for folder in unlabelled for image in _images(folder)]
    tasks += [partial(cutters.labelled, case) for case in cases if is_held_back(case.image.name) == held_back]
    tasks += [partial(cutters.unlabelled, image) for image in images if is_held_back(image.name) == held_back]
    samples: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {}
    with get_context("spawn").Pool(os.cpu_count(), torch.set_num_threads, (1,)) as pool:
        for found in tqdm(pool.imap(_run, tasks), "samples", len(tasks)):
            for kind, sample in found:
                samples.setdefault(kind, []).append(sample)
    if not samples:
        raise UserError("There is nothing to cut samples from; give folders, or a number of generated volumes.")
    return samples


def square_planes(volume: Volume) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the axes across which slices have nearly square pixels, and the sides of these in mm."""
    for axis in range(3):
        pixel_mm = np.delete(np.array(volume.spacing_mm, float), axis)
        if pixel_mm.max() < _MOST_ANISOTROPIC * pixel_mm.min():
            yield axis, pixel_mm


def some(random: np.random.Generator, values: np.ndarray, count: int) -> np.ndarray:
    """Return at most `count` of some values, drawn at random."""
    return random.choice(values, min(count, len(values)), replace=False)


def _run(task: partial) -> list[Named]:
    """Cut the samples of one task; what comes of it depends on the task alone."""
    source = task.args[0]
    name = source.name if isinstance(source, (Case, Path)) else str(source)
    return list(task(np.random.default_rng(zlib.crc32(name.encode()))))


def _images(folder: Path) -> list[Path]:
    """Return the images of a folder, whether they are labelled or not."""
    try:
        return [folder / row["image"] for row in json.loads((folder / "dataset.json").read_text())["training"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder} has no readable dataset.json of the Medical Segmentation Decathlon's layout.") from e
