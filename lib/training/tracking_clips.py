"""Cut the surroundings of structures out of consecutive slices, for the training of the tracking network.

The structures are labelled ones, generated ones, and regions of images without labels: merged supervoxels, and connected parts of classes of
intensities.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_multiotsu

from lib.imaging.datasets import Case
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume
from lib.model.u_net import SIDE
from lib.propagation.learned_tracking import MOST_ENLARGED
from lib.training.generated_volumes import generate_volume
from lib.training.structure_sources import Cutters, Named, collect, some, square_planes
from lib.training.volume_pack import find_regions, to_bytes

CLIP_SIDE = 144  # Pixels.
_MOST_SLICES = 26
_STRIDES = 1, 2, 3, 4
_FEWEST_FILLED, _MOST_FILLED = 5, 40  # Slices of a structure in a clip that leaves some out.
_EMPTY_SLICES = 5  # At most so many before and after the structure.
_SHARES = 0.35, 0.6  # Of the length of a structure in the side of the network's square.
_LEAST_PIXELS = 16  # In three slices of a clip.
_CLIPS_OF_LABEL, _REGIONS_OF_IMAGE = 2, 45
_MERGED = 0.04, 0.07, 0.1, 0.14  # See `find_regions`.
_LEAST_REGION, _MOST_REGION = 150, 0.12  # Voxels, and share of the volume.
_LEAST_RADIUS = 2.2  # Of the largest ball in a region, in its smallest voxel sides.
_MOST_BRANCHED = 240.0  # Volume of a region by the cube of that radius; more are sheets and nets.

Clip = tuple[np.ndarray, np.ndarray]  # Images uint8 and masks bool, both (T, CLIP_SIDE, CLIP_SIDE).


def collect_clips(labelled: Sequence[Path], unlabelled: Sequence[Path], generated: int, held_back: bool = False) -> dict[str, dict]:
    """Return clips by kind: "generated", "regions", and one kind for each name of a label; see `collect`.

    The clips of a kind lie one after the other in "images", uint8 (slices, CLIP_SIDE, CLIP_SIDE), and in "masks", of which 8 pixels of a row
    are one byte; "first" holds where each begins, and where the last one ends.
    """
    clips = collect(Cutters(_labelled_clips, _region_clips, _generated_clips), labelled, unlabelled, generated, held_back)
    return {
        kind: {
            "images": np.concatenate([i for i, _ in c]), "masks": np.packbits(np.concatenate([m for _, m in c]), axis=-1),
            "first": np.cumsum([0] + [len(i) for i, _ in c]),
        }
        for kind, c in clips.items()
    }  # fmt: skip


def cut_clip(array: np.ndarray, mask: np.ndarray, axis: int, spacing_mm: np.ndarray, random: np.random.Generator) -> Clip | None:
    """Return the surroundings of a structure in slices across an axis, perhaps only every second to fourth one of them.

    Args:
        array, mask: float and bool (I, J, K).
        axis: The slicing axis, 0, 1 or 2.
        spacing_mm: Sides of the voxels, float (3,).

    Returns:
        The clip, or None where the structure is too small or has too few slices.
    """
    array, mask = np.moveaxis(array, axis, 0), np.moveaxis(mask, axis, 0)
    chosen = _choose_slices(mask.any((1, 2)), random)
    if chosen is None:
        return None
    pixel_mm = np.delete(spacing_mm, axis)
    filled = [mask[t] for t in chosen if mask[t].any()]
    lengths = [max((np.ptp(places, axis=0) + 1) * pixel_mm) for places in map(np.argwhere, filled)]
    zoom = min(SIDE * random.uniform(*_SHARES) * pixel_mm.min() / np.percentile(lengths, 80), MOST_ENLARGED)
    step = pixel_mm.min() / pixel_mm / zoom  # Pixels of the slice for each of the clip.
    places = np.argwhere(np.any(filled, 0))
    centre, ahead = (places.min(0) + places.max(0)) / 2, np.arange(CLIP_SIDE) + 0.5 - CLIP_SIDE / 2
    grid = np.stack(np.meshgrid(*(c + ahead * s for c, s in zip(centre, step, strict=True)), indexing="ij"))
    is_within = ((grid >= 0) & (grid <= np.array(mask.shape[1:])[:, None, None] - 1)).all(0)
    smooth = [ndimage.gaussian_filter(array[t], 0.4 * step) if zoom < 0.8 else array[t] for t in chosen]
    images = np.stack([ndimage.map_coordinates(s, grid, order=1, mode="nearest") for s in smooth])
    masks = np.stack([ndimage.map_coordinates(mask[t].astype(np.float32), grid, order=1) > 0.5 for t in chosen])
    low, high = np.percentile(images[:, is_within], [0.3, 99.7])
    images = (np.clip((images - low) / max(high - low, 1e-6), 0, 1) * 255).astype(np.uint8)
    images[:, ~is_within] = 0
    return (images, masks) if (masks.sum((1, 2)) >= _LEAST_PIXELS).sum() >= 3 else None


def _choose_slices(is_filled: np.ndarray, random: np.random.Generator) -> np.ndarray | None:
    """Return the indices of the slices of a clip, or None where too few hold the structure; `is_filled` is bool (T,)."""
    filled = np.flatnonzero(is_filled)
    if len(filled) < 4:
        return None
    run = filled[-1] - filled[0] + 1
    strides = [s for s in _STRIDES if (s == 1 or run / s >= _FEWEST_FILLED) and run / s <= _MOST_FILLED]
    if not strides:
        return None
    stride = int(random.choice(strides))
    first, last = max(filled[0] - _EMPTY_SLICES * stride, 0), min(filled[-1] + _EMPTY_SLICES * stride, len(is_filled) - 1)
    chosen = np.arange(first + random.integers(stride), last + 1, stride)
    if len(chosen) > _MOST_SLICES:
        surplus = len(chosen) - _MOST_SLICES
        start = int(random.choice([0, surplus, random.integers(surplus + 1)]))
        chosen = chosen[start : start + _MOST_SLICES]
    return chosen if is_filled[chosen].sum() >= 3 else None


def _labelled_clips(case: Case, random: np.random.Generator) -> Iterator[Named]:
    volume = read_volume(case.image)
    labels, array = read_mask(case.label, volume), volume.array.astype(np.float32)
    for value, name in case.labels.items():
        for axis, _ in square_planes(volume):
            for _ in range(_CLIPS_OF_LABEL):
                if clip := cut_clip(array, labels == value, axis, np.array(volume.spacing_mm, float), random):
                    yield name, clip


def _generated_clips(seed: int, random: np.random.Generator) -> Iterator[Named]:
    volume, labels, structures = generate_volume(seed)
    for value in structures:
        mask = labels.transpose(2, 1, 0) == value
        if clip := cut_clip(volume.array.astype(np.float32), mask, 2, np.array(volume.spacing_mm, float), random):
            yield "generated", clip


def _region_clips(image_path: Path, random: np.random.Generator) -> Iterator[Named]:
    volume = read_volume(image_path)
    array, spacing = volume.array.astype(np.float32), np.array(volume.spacing_mm, float)
    axes = [axis for axis, _ in square_planes(volume)]
    found = 0
    for mask in random_regions(volume, random) if axes else ():
        if clip := cut_clip(array, mask, int(random.choice(axes)), spacing, random):
            yield "regions", clip
            found += 1
        if found == _REGIONS_OF_IMAGE:
            return


def random_regions(volume: Volume, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield compact regions of an image, bool (I, J, K): merged supervoxels, and connected parts of classes of intensities."""
    spacing = np.array(volume.spacing_mm, float)
    candidates = [(regions, n) for regions in _region_maps(volume, random) for n in some(random, np.unique(regions[regions > 0]), 12)]
    for index in random.permutation(len(candidates)):
        regions, n = candidates[index]
        mask = _solid(regions == n, spacing, random)
        if mask is not None:
            yield mask


def _region_maps(volume: Volume, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield label maps, int (I, J, K), of merged supervoxels and of connected parts of classes of intensities."""
    bytes_, spacing = to_bytes(volume.array), np.array(volume.spacing_mm, float)
    for regions in find_regions(bytes_.transpose(2, 1, 0), spacing[::-1], _MERGED):
        regions = regions.transpose(2, 1, 0)
        places = (((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(volume.shape, regions.shape, strict=True))
        yield regions[np.ix_(*places)]
    for width in (0.7, 1.5):
        smooth = ndimage.gaussian_filter(bytes_.astype(np.float32), width * spacing.min() / spacing)
        for count in (3, 4):
            try:
                classes = np.digitize(smooth, threshold_multiotsu(smooth, count))
            except ValueError:  # There are too few different intensities.
                continue
            for value in range(count):
                mask = classes == value
                if random.random() < 0.5:
                    mask = ndimage.binary_opening(mask, iterations=int(random.integers(1, 3)))
                yield _of_fitting_size(ndimage.label(mask)[0])


def _of_fitting_size(labels: np.ndarray) -> np.ndarray:
    """Return a label map without the parts that are too small or too large."""
    sizes = np.bincount(labels.ravel())
    is_kept = (sizes >= _LEAST_REGION) & (sizes <= _MOST_REGION * labels.size)
    is_kept[0] = False
    return np.where(is_kept[labels], labels, 0)


def _solid(mask: np.ndarray, spacing: np.ndarray, random: np.random.Generator) -> np.ndarray | None:
    """Return a region, bool (I, J, K), sometimes filled and smoothed; None where it is small, large, thin or branched."""
    if not _LEAST_REGION <= mask.sum() <= _MOST_REGION * mask.size:
        return None
    box = tuple(slice(max(s.start - 2, 0), s.stop + 2) for s in ndimage.find_objects(mask.astype(np.uint8))[0])
    part, sides = mask[box], spacing / spacing.min()
    if random.random() < 0.7:
        part = ndimage.binary_fill_holes(part)
    radius = ndimage.distance_transform_edt(part, sampling=sides).max()
    if radius < _LEAST_RADIUS or part.sum() * sides.prod() > _MOST_BRANCHED * radius**3:
        return None
    solid = np.zeros_like(mask)
    solid[box] = ndimage.uniform_filter(part.astype(np.float32), 3) > 0.5 if random.random() < 0.7 else part
    return solid
