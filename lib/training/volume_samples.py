"""Make samples for the training of the volume network: masks of whole volumes and prompts, on the grid on which the network works.

Most are simulated (`lib.training.simulated_requests`); for some structures, the engine is also asked (`lib.training.recorded_requests`).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np

from lib.imaging.datasets import Case
from lib.imaging.frames import Frames
from lib.imaging.masks import bounding_box
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume
from lib.propagation.volume_correction import Cells, shrink_to_cells
from lib.training.generated_volumes import generate_volume
from lib.training.recorded_requests import recorded_requests
from lib.training.simulated_requests import simulate_request
from lib.training.structure_sources import Cutters, collect
from lib.training.tracking_clips import random_regions

_REQUESTS = 3  # Simulated ones for a structure.
_SURROUNDINGS, _LEAST_SURROUNDINGS = 1.2, 8  # On each side of a structure in simulated requests, as a share of its size, and in voxels.
_FEWEST_VOXELS, _MOST_VOXELS = 50, 6_000_000  # Of a structure, and of it with its surroundings.
_REGIONS_OF_IMAGE = 6
_RECORDED_SHARE = 0.15  # Of the structures.
_SHARES = "mask", "walk", "reference"  # Arrays of values from 0 to 1.


@dataclass(frozen=True, eq=False)
class VolumeSample:
    """What the network sees, and the share of each cell within the structure, float32 (d, h, w)."""

    cells: Cells
    reference: np.ndarray


def simulated_samples(frames: Frames, reference: np.ndarray, random: np.random.Generator) -> Iterator[VolumeSample]:
    """Yield samples with simulated masks and prompts of a structure, bool (T, Y, X); none if it is tiny or very large."""
    if reference.sum() < _FEWEST_VOXELS:
        return
    part = tuple(_with_surroundings(s) for s in bounding_box(reference))
    image, reference = (np.ascontiguousarray(a[part]) for a in (frames.stack, reference))
    if image.size > _MOST_VOXELS:
        return
    frames = Frames(Volume(np.ascontiguousarray(frames.to_volume(image)), frames.volume.affine, "part"), frames.axis, frames.bounds)
    image, spacing_mm = np.clip(image.astype(np.float32), *frames.bounds), np.array([frames.slice_mm, *frames.pixel_mm])
    for _ in range(_REQUESTS):
        request = simulate_request(reference, image, spacing_mm, random)
        if request.mask.any():  # The network is not asked about empty masks.
            grid, cells = shrink_to_cells(request.mask, frames, request.prompts, 0, len(frames) - 1)
            yield VolumeSample(cells, grid.shrink(reference, 0, 1))


def _with_surroundings(extent: slice) -> slice:
    margin = round(_SURROUNDINGS * (extent.stop - extent.start)) + _LEAST_SURROUNDINGS
    return slice(max(extent.start - margin, 0), extent.stop + margin)


def recorded_samples(frames: Frames, reference: np.ndarray, random: np.random.Generator) -> Iterator[VolumeSample]:
    """Yield samples of a structure, bool (T, Y, X), from a session of the engine."""
    for request in recorded_requests(frames, reference, random):
        grid, cells = shrink_to_cells(*request)
        yield VolumeSample(cells, grid.shrink(reference, 0, 1))


def collect_samples(labelled: Sequence[Path], unlabelled: Sequence[Path], generated: int, held_back: bool = False) -> dict[str, dict]:
    """Return samples by kind: "generated", "regions", and one kind for each name of a label; see `collect` and `unpack`."""
    samples = collect(Cutters(_labelled_samples, _region_samples, _generated_samples), labelled, unlabelled, generated, held_back)
    return {kind: {k: a for n, s in enumerate(found) for k, a in _pack(s, n).items()} for kind, found in samples.items()}


def _pack(sample: VolumeSample, number: int) -> dict[str, np.ndarray]:
    """Return the arrays of a sample, smaller, by number and name."""
    arrays = {f.name: getattr(sample.cells, f.name) for f in fields(Cells)} | {"reference": sample.reference}
    small = {name: np.rint(255 * arrays[name]).astype(np.uint8) for name in _SHARES}
    return {f"{number}.{name}": a for name, a in (arrays | small | {"image": arrays["image"].astype(np.float16)}).items()}


def unpack(packed: dict[str, np.ndarray]) -> list[VolumeSample]:
    """Return the samples of a kind."""
    samples = []
    for number in sorted({int(key.partition(".")[0]) for key in packed}):
        arrays = {f.name: packed[f"{number}.{f.name}"] for f in fields(Cells)}
        shares = {name: packed[f"{number}.{name}"].astype(np.float32) / 255 for name in _SHARES}
        reference = shares.pop("reference")
        samples.append(VolumeSample(Cells(**(arrays | shares | {"image": arrays["image"].astype(np.float32)})), reference))
    return samples


def _samples_of(frames: Frames, reference: np.ndarray, random: np.random.Generator) -> Iterator[VolumeSample]:
    """Yield all samples of a structure, bool (T, Y, X)."""
    reference = np.ascontiguousarray(reference)
    if reference.sum() >= _FEWEST_VOXELS:
        yield from simulated_samples(frames, reference, random)
        if random.random() < _RECORDED_SHARE:
            yield from recorded_samples(frames, reference, random)


def _labelled_samples(case: Case, random: np.random.Generator) -> Iterator[tuple[str, VolumeSample]]:
    volume = read_volume(case.image)
    labels, frames = read_mask(case.label, volume), Frames.of(volume)
    for value, name in case.labels.items():
        yield from ((name, s) for s in _samples_of(frames, frames.from_volume(labels == value), random))


def _generated_samples(seed: int, random: np.random.Generator) -> Iterator[tuple[str, VolumeSample]]:
    volume, labels, structures = generate_volume(seed)
    for value in structures[-1:]:
        yield from (("generated", s) for s in _samples_of(Frames.of(volume, axis=2), labels == value, random))


def _region_samples(image_path: Path, random: np.random.Generator) -> Iterator[tuple[str, VolumeSample]]:
    volume = read_volume(image_path)
    for mask in islice(random_regions(volume, random), _REGIONS_OF_IMAGE):
        frames = Frames.of(volume)
        yield from (("regions", s) for s in _samples_of(frames, frames.from_volume(mask), random))
