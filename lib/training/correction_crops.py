"""Cut the surroundings of structures out of slices, for the training of the correction network.

The structures are labelled ones, generated ones, and regions of images without labels: segments that follow the edges of a slice
(Felzenszwalb and Huttenlocher 2004), some together with neighbours. Clicks mean all kinds of things, so the network has to learn from
more than anatomy (idea: ScribblePrompt, arXiv 2312.07381).
"""

import json
import logging
import os
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy import ndimage
from skimage.segmentation import felzenszwalb
from tqdm import tqdm

from lib.common.errors import UserError
from lib.imaging.datasets import Case, read_cases
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume
from lib.model.u_net import SIDE
from lib.propagation.click_correction import MOST_ENLARGED
from lib.training.generated_volumes import generate_volume
from lib.training.volume_pack import is_held_back

logger = logging.getLogger(__name__)

CROP_SIDE = 144  # Pixels; more than the network's square, so that crops can be turned and moved.
_SHARES = 0.3, 0.62  # Of the length of a structure in the side of the network's square.
_MOST_ANISOTROPIC = 2.2  # Planes whose pixels are longer than this are left out.
_SLICES_OF_LABEL, _SLICES_OF_IMAGE, _SLICES_OF_GENERATED = 8, 22, 4
_FINENESS = (20, 80), (80, 300), (300, 1500)  # Ranges of the scale of segments; one of each is drawn for a slice.
_SEGMENTS_OF_MAP = 4
_LEAST_DEPTH, _LEAST_FILLING = 0.085, 0.3  # Thinner segments are bands along an edge: greatest depth by length, area by bounding box.
_FIRST_SEED, _FIRST_HELD_BACK_SEED = 20_000, 90_000  # Of generated volumes.

Crop = tuple[np.ndarray, np.ndarray]  # Image uint8 and mask bool, both (CROP_SIDE, CROP_SIDE).


class Crops(NamedTuple):
    """N crops of one kind: images uint8 (N, CROP_SIDE, CROP_SIDE), and masks of which 8 pixels of a row are one byte."""

    images: np.ndarray
    masks: np.ndarray


def collect_crops(labelled: Sequence[Path], unlabelled: Sequence[Path], generated: int, held_back: bool = False) -> dict[str, Crops]:
    """Return crops by kind: "generated", "regions", and one kind for each name of a label.

    Args:
        labelled, unlabelled: Folders in the layout of the Medical Segmentation Decathlon; images of the latter need no label.
        generated: Number of generated volumes.
        held_back: Whether to use the patients who are held back for validation (see `is_held_back`) instead of the others.

    Raises:
        UserError: A folder has no readable dataset.json, or there is no crop at all.
    """
    tasks: list[partial] = [partial(_generated_crops, (_FIRST_HELD_BACK_SEED if held_back else _FIRST_SEED) + n) for n in range(generated)]
    cases = [c for folder in labelled for c in read_cases(folder)]
    images = [image for folder in unlabelled for image in _images(folder)]
    tasks += [partial(_labelled_crops, case) for case in cases if is_held_back(case.image.name) == held_back]
    tasks += [partial(_region_crops, image) for image in images if is_held_back(image.name) == held_back]
    crops: dict[str, list[Crop]] = {}
    with get_context("spawn").Pool(os.cpu_count(), torch.set_num_threads, (1,)) as pool:
        for found in tqdm(pool.imap(_run, tasks), "crops", len(tasks)):
            for kind, crop in found:
                crops.setdefault(kind, []).append(crop)
    if not crops:
        raise UserError("There is nothing to cut crops from; give folders, or a number of generated volumes.")
    return {kind: Crops(np.stack([i for i, _ in c]), np.packbits(np.stack([m for _, m in c]), axis=-1)) for kind, c in crops.items()}


def cut_crop(image: np.ndarray, mask: np.ndarray, random: np.random.Generator) -> Crop | None:
    """Return the surroundings of a mask, bool (Y, X), in an image (Y, X) with square pixels; None where the mask is too small."""
    ys, xs = np.nonzero(mask)
    if len(ys) < 9:
        return None
    length = max(np.ptp(ys), np.ptp(xs)) + 1
    zoom = min(SIDE * random.uniform(*_SHARES) / length, MOST_ENLARGED)
    steps = (np.arange(CROP_SIDE) + 0.5 - CROP_SIDE / 2) / zoom
    places = np.stack(np.meshgrid((ys.min() + ys.max()) / 2 + steps, (xs.min() + xs.max()) / 2 + steps, indexing="ij"))
    smooth = ndimage.gaussian_filter(image, 0.4 / zoom) if zoom < 0.8 else image
    values = ndimage.map_coordinates(smooth, places, order=1, mode="constant", cval=float(image.min()))
    cut = ndimage.map_coordinates(mask.astype(np.float32), places, order=1) > 0.5
    last = np.array(image.shape)[:, None, None] - 1
    is_within = ((places >= 0) & (places <= last)).all(0)
    low, high = np.percentile(values[is_within], [0.5, 99.5])
    scaled = (np.clip((values - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    return (scaled, cut) if cut.sum() >= 12 else None


def _run(task: partial) -> list[tuple[str, Crop]]:
    """Cut the crops of one task; what comes of it depends on the task alone."""
    source = task.args[0]
    name = source.name if isinstance(source, (Case, Path)) else str(source)
    return list(task(np.random.default_rng(zlib.crc32(name.encode()))))


def _images(folder: Path) -> list[Path]:
    """Return the images of a folder, whether they are labelled or not."""
    try:
        return [folder / row["image"] for row in json.loads((folder / "dataset.json").read_text())["training"]]
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder} has no readable dataset.json of the Medical Segmentation Decathlon's layout.") from e


def _planes(volume: Volume) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the axes across which slices have nearly square pixels, and the sides of these in mm."""
    for axis in range(3):
        pixel_mm = np.delete(np.array(volume.spacing_mm, float), axis)
        if pixel_mm.max() < _MOST_ANISOTROPIC * pixel_mm.min():
            yield axis, pixel_mm


def _take(array: np.ndarray, axis: int, index: int, pixel_mm: np.ndarray) -> np.ndarray:
    """Return a slice, float32, enlarged to square pixels."""
    plane, enlarged = np.take(array, index, axis).astype(np.float32), pixel_mm / pixel_mm.min()
    return ndimage.zoom(plane, enlarged, order=1) if (enlarged > 1.01).any() else plane


def _some(random: np.random.Generator, values: np.ndarray, count: int) -> np.ndarray:
    return random.choice(values, min(count, len(values)), replace=False)


def _labelled_crops(case: Case, random: np.random.Generator) -> Iterator[tuple[str, Crop]]:
    volume = read_volume(case.image)
    labels = read_mask(case.label, volume)
    for value, name in case.labels.items():
        mask = labels == value
        for axis, pixel_mm in _planes(volume):
            filled = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
            for index in _some(random, filled, _SLICES_OF_LABEL):
                if crop := cut_crop(_take(volume.array, axis, index, pixel_mm), _take(mask, axis, index, pixel_mm) > 0.5, random):
                    yield name, crop


def _generated_crops(seed: int, random: np.random.Generator) -> Iterator[tuple[str, Crop]]:
    volume, labels, structures = generate_volume(seed)
    for value in structures:
        for t in _some(random, np.flatnonzero((labels == value).sum((1, 2)) > 12), _SLICES_OF_GENERATED):
            if crop := cut_crop(volume.array[:, :, t].T.astype(np.float32), labels[t] == value, random):
                yield "generated", crop


def _region_crops(image_path: Path, random: np.random.Generator) -> Iterator[tuple[str, Crop]]:
    volume = read_volume(image_path)
    for axis, pixel_mm in _planes(volume):
        total = volume.shape[axis]
        for index in _some(random, np.arange(total // 10, max(9 * total // 10, total // 10 + 1)), _SLICES_OF_IMAGE):
            image = _take(volume.array, axis, index, pixel_mm)
            low, high = np.percentile(image, [1, 99])
            scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
            if scaled.std() < 0.03:
                continue
            for mask in (m for fineness in _FINENESS for m in _segments(scaled, random.uniform(*fineness), random)):
                if crop := cut_crop(image, mask, random):
                    yield "regions", crop


def _segments(scaled: np.ndarray, scale: float, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield some segments of a slice, float (Y, X) in [0, 1], a third of them with neighbours: bool (Y, X)."""
    segments = felzenszwalb(scaled, scale, sigma=random.uniform(0.6, 1.2), min_size=int(random.choice([12, 30, 80])))
    sizes = np.bincount(segments.ravel())
    for label in _some(random, np.flatnonzero((sizes >= 20) & (sizes < 0.3 * segments.size)), _SEGMENTS_OF_MAP):
        mask = segments == label
        if scaled[mask].mean() < 0.02:  # Air.
            continue
        if random.random() < 0.35:
            neighbours = np.unique(segments[ndimage.binary_dilation(mask) & ~mask])
            fitting = neighbours[sizes[neighbours] < 2 * mask.sum() + 50]
            mask |= np.isin(segments, _some(random, fitting, int(random.integers(1, 4))))
        if random.random() < 0.7:
            mask = ndimage.binary_fill_holes(mask)
        if _is_thick(mask):
            yield mask


def _is_thick(mask: np.ndarray) -> bool:
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    part = np.pad(mask[rows, columns], 1)
    depth = ndimage.distance_transform_edt(part).max()
    return depth > _LEAST_DEPTH * max(part.shape) and part.mean() > _LEAST_FILLING
