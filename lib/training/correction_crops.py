"""Cut the surroundings of structures out of slices, for the training of the correction network.

The structures are labelled ones, generated ones, and regions of images without labels: segments that follow the edges of a slice
(Felzenszwalb and Huttenlocher 2004), some together with neighbours, and rings and arcs among segments and classes of intensities.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage.filters import threshold_multiotsu
from skimage.segmentation import felzenszwalb

from lib.imaging.datasets import Case
from lib.imaging.readers import read_mask, read_volume
from lib.model.u_net import SIDE
from lib.propagation.click_correction import MOST_ENLARGED
from lib.training.generated_volumes import generate_volume
from lib.training.structure_sources import Cutters, Named, collect, some, square_planes

CROP_SIDE = 144  # Pixels; more than the network's square, so that crops can be turned and moved.
_SHARES = 0.3, 0.62  # Of the length of a structure in the side of the network's square.
_SLICES_OF_LABEL, _SLICES_OF_IMAGE, _SLICES_OF_GENERATED = 8, 22, 4
_FINENESS = (20, 80), (80, 300), (300, 1500)  # Ranges of the scale of segments; one of each is drawn for a slice.
_SEGMENTS_OF_MAP, _RINGS_OF_MAP = 4, 4
_LEAST_DEPTH, _LEAST_FILLING = 0.085, 0.3  # Thinner segments are bands along an edge: greatest depth by length, area by bounding box.
_LEAST_CONTRAST = 0.03  # Standard deviation of a slice whose intensities go from 0 to 1.

Crop = tuple[np.ndarray, np.ndarray]  # Image uint8 and mask bool, both (CROP_SIDE, CROP_SIDE).


def collect_crops(labelled: Sequence[Path], unlabelled: Sequence[Path], generated: int, held_back: bool = False) -> dict[str, dict]:
    """Return crops by kind: "generated", "regions", "rings", and one kind for each name of a label; see `collect`.

    The N crops of a kind are "images", uint8 (N, CROP_SIDE, CROP_SIDE), and "masks", of which 8 pixels of a row are one byte.
    """
    crops = collect(Cutters(_labelled_crops, _region_crops, _generated_crops), labelled, unlabelled, generated, held_back)
    return {
        kind: {"images": np.stack([i for i, _ in c]), "masks": np.packbits(np.stack([m for _, m in c]), axis=-1)}
        for kind, c in crops.items()
    }


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


def _take(array: np.ndarray, axis: int, index: int, pixel_mm: np.ndarray) -> np.ndarray:
    """Return a slice, float32, enlarged to square pixels."""
    plane, enlarged = np.take(array, index, axis).astype(np.float32), pixel_mm / pixel_mm.min()
    return ndimage.zoom(plane, enlarged, order=1) if (enlarged > 1.01).any() else plane


def _labelled_crops(case: Case, random: np.random.Generator) -> Iterator[Named]:
    volume = read_volume(case.image)
    labels = read_mask(case.label, volume)
    for value, name in case.labels.items():
        mask = labels == value
        for axis, pixel_mm in square_planes(volume):
            filled = np.flatnonzero(mask.any(tuple(a for a in range(3) if a != axis)))
            for index in some(random, filled, _SLICES_OF_LABEL):
                if crop := cut_crop(_take(volume.array, axis, index, pixel_mm), _take(mask, axis, index, pixel_mm) > 0.5, random):
                    yield name, crop


def _generated_crops(seed: int, random: np.random.Generator) -> Iterator[Named]:
    volume, labels, structures = generate_volume(seed)
    for value in structures:
        for t in some(random, np.flatnonzero((labels == value).sum((1, 2)) > 12), _SLICES_OF_GENERATED):
            if crop := cut_crop(volume.array[:, :, t].T.astype(np.float32), labels[t] == value, random):
                yield "generated", crop


def _region_crops(image_path: Path, random: np.random.Generator) -> Iterator[Named]:
    volume = read_volume(image_path)
    for axis, pixel_mm in square_planes(volume):
        total = volume.shape[axis]
        for index in some(random, np.arange(total // 10, max(9 * total // 10, total // 10 + 1)), _SLICES_OF_IMAGE):
            image = _take(volume.array, axis, index, pixel_mm)
            low, high = np.percentile(image, [1, 99])
            scaled = np.clip((image - low) / max(high - low, 1e-6), 0, 1)
            if scaled.std() < _LEAST_CONTRAST:
                continue
            masks = [("regions", m) for fineness in _FINENESS for m in _segments(scaled, random.uniform(*fineness), random)]
            masks += [("rings", m) for m in _rings(scaled, random)]
            for kind, mask in masks:
                if crop := cut_crop(image, mask, random):
                    yield kind, crop


def _segments(scaled: np.ndarray, scale: float, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield some segments of a slice, float (Y, X) in [0, 1], a third of them with neighbours: bool (Y, X)."""
    segments = felzenszwalb(scaled, scale, sigma=random.uniform(0.6, 1.2), min_size=int(random.choice([12, 30, 80])))
    sizes = np.bincount(segments.ravel())
    for label in some(random, np.flatnonzero((sizes >= 20) & (sizes < 0.3 * segments.size)), _SEGMENTS_OF_MAP):
        mask = segments == label
        if scaled[mask].mean() < 0.02:  # Air.
            continue
        if random.random() < 0.35:
            neighbours = np.unique(segments[ndimage.binary_dilation(mask) & ~mask])
            fitting = neighbours[sizes[neighbours] < 2 * mask.sum() + 50]
            mask |= np.isin(segments, some(random, fitting, int(random.integers(1, 4))))
        if random.random() < 0.7:
            mask = ndimage.binary_fill_holes(mask)
        if _is_thick(mask):
            yield mask


def _is_thick(mask: np.ndarray) -> bool:
    rows, columns = ndimage.find_objects(mask.astype(np.uint8))[0]
    part = np.pad(mask[rows, columns], 1)
    depth = ndimage.distance_transform_edt(part).max()
    return depth > _LEAST_DEPTH * max(part.shape) and part.mean() > _LEAST_FILLING


def _rings(scaled: np.ndarray, random: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield some rings and arcs of a slice, float (Y, X) in [0, 1]: bool (Y, X)."""
    smooth = ndimage.gaussian_filter(scaled, random.uniform(0.6, 1.2))
    try:
        classes = np.digitize(smooth, threshold_multiotsu(smooth, int(random.choice([3, 4])), nbins=96))
    except ValueError:  # There are too few different intensities.
        return
    maps = [ndimage.label(classes == value)[0] for value in range(classes.max() + 1)]
    maps.append(felzenszwalb(scaled, random.uniform(20, 500), sigma=random.uniform(0.6, 1.0), min_size=20) + 1)
    for labels in maps:
        boxes = [(n, box) for n, box in enumerate(ndimage.find_objects(labels), 1) if box is not None and _lies_within(box, scaled.shape)]
        found = 0
        for n in random.permutation(len(boxes)):
            label, box = boxes[n]
            if _is_thin_and_curved(labels[box] == label):
                mask = np.zeros(scaled.shape, bool)
                mask[box] = labels[box] == label
                yield mask
                found += 1
            if found == _RINGS_OF_MAP:
                break


def _lies_within(box: tuple[slice, slice], shape: tuple[int, int]) -> bool:
    """Return whether a box is neither tiny nor large nor at the edge of the slice."""
    sides = [s.stop - s.start for s in box]
    is_at_edge = any(s.start == 0 or s.stop == n for s, n in zip(box, shape, strict=True))
    return not is_at_edge and np.prod(sides) >= 60 and max(sides) <= 0.6 * max(shape)


def _is_thin_and_curved(part: np.ndarray) -> bool:
    """Return whether a mask, bool (Y, X) that fills its bounding box, is a ring or a thin arc, and not a ragged one."""
    area, filled = part.sum(), ndimage.binary_fill_holes(part)
    if not 40 <= area <= 0.7 * part.size:
        return False
    padded = np.pad(part, 2)
    if ndimage.binary_opening(padded, np.ones((2, 2))).sum() < 0.9 * area:
        return False
    holes = np.bincount(ndimage.label(filled & ~part)[0].ravel())[1:]
    is_ring = holes.max(initial=0) >= 0.3 * filled.sum()
    depth = ndimage.distance_transform_edt(padded).max()
    return is_ring or (filled.sum() < 0.45 * part.size and 2 * depth < 0.3 * max(part.shape))
