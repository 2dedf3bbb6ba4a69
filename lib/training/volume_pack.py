"""Pack volumes into a small folder of pictures from which a training cuts clips: one folder that travels to another machine.

Each volume becomes a mosaic of its slices as an 8-bit JPEG. Its labels, and regions of its image that serve as further targets (idea:
ScribblePrompt, arXiv 2312.07381), become PNG mosaics. Volumes of patients who are held back for validation are left out.
"""

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy import ndimage
from skimage import graph, segmentation
from tqdm import tqdm

from lib.common.errors import UserError
from lib.imaging.datasets import Case, image_name
from lib.imaging.frames import looks_like_ct
from lib.imaging.readers import read_mask, read_volume
from lib.training.packed_volumes import INDEX, make_mosaic

logger = logging.getLogger(__name__)

HELD_BACK_SHARE = 0.17
# Points (HU, 8-bit value) of the line that compresses CT: soft tissue gets most of the values.
_CT_KNOTS = (-1000, -200, 300, 1500), (0, 50, 220, 255)
_THRESHOLDS = 0.04, 0.09  # Difference of means below which neighbouring supervoxels become one region, in two maps.
_REGION_SIDE, _MOST_REGIONS = 112, 250  # Longest side in voxels of a region map, and number of its regions.
_MIN_MEGAVOXELS_FOR_REGIONS = 0.2


def patient_of(name: str) -> str:
    """Return the patient of a volume: its name without the modality in front.

    >>> patient_of("imagesTr/mr_sarcoma_045.nii.gz"), patient_of("patient7.nii")
    ('sarcoma_045', 'patient7')
    """
    modality, _, patient = image_name(name).partition("_")
    return patient or modality


def is_held_back(name: str) -> bool:
    """Return whether the patient of a volume is kept for validation. It depends on the patient's name alone."""
    return int(hashlib.sha256(patient_of(name).encode()).hexdigest(), 16) % 10_000 < HELD_BACK_SHARE * 10_000


def held_back_cases(cases: list[Case]) -> list[Case]:
    """Return the cases of patients who are kept for validation; raise UserError if there are none."""
    held_back = [c for c in cases if is_held_back(c.image.name)]
    if not held_back:
        raise UserError("No patient of these volumes is held back for validation; give more volumes.")
    return held_back


def pack(folders: list[Path], out: Path) -> int:
    """Pack the volumes of folders in the layout of the Medical Segmentation Decathlon, whose rows may lack a label, into `out`.

    Return the number of packed volumes. An interrupted pack is gone on with.

    Raises:
        UserError: A folder has no readable dataset.json, two volumes have the same name, or there is no volume to pack.
    """
    out.mkdir(parents=True, exist_ok=True)
    index, names = [], set()
    for folder in folders:
        try:
            rows = json.loads((folder / "dataset.json").read_text())["training"]
            rows = [r for r in rows if not ("label" in r and is_held_back(r["image"]))]
        except (OSError, ValueError, KeyError, TypeError) as e:
            raise UserError(f"{folder} has no readable dataset.json of the Medical Segmentation Decathlon's layout.") from e
        for row in tqdm(rows, desc=folder.name):
            if (name := image_name(row["image"])) in names:
                raise UserError(f"Two volumes have the name {name}: rename one of them.")
            names.add(name)
            index.append(_pack_volume(folder, row, out))
    if not index:
        raise UserError("There is no volume to pack in these folders.")
    (out / INDEX).write_text(json.dumps(index, indent=1))
    return len(index)


def _pack_volume(folder: Path, row: dict, out: Path) -> dict:
    """Write the pictures of one volume and return its row of the index."""
    name = image_name(row["image"])
    volume = read_volume(folder / row["image"])
    image = to_bytes(volume.array).transpose(2, 1, 0)  # (K, J, I)
    entry = {
        "name": name, "modality": row.get("modality", ""), "licence": row.get("licence", ""), "shape": image.shape,
        "spacing_mm": [float(x) for x in volume.spacing_mm[::-1]], "maps": [],
    }  # fmt: skip
    small = image.size < _MIN_MEGAVOXELS_FOR_REGIONS * 1e6
    make_mosaic(image).save(out / f"{name}.jpg", quality=95 if small else 90)
    if "label" in row:
        labels = read_mask(folder / row["label"], volume).transpose(2, 1, 0)
        if labels.min() < 0 or labels.max() > 255:
            raise UserError(f"The label of {name} holds values beyond 0 to 255, which cannot be packed: number its structures anew.")
        entry["maps"].append(_write_map(labels.astype(np.uint8), f"{name}_labels.png", out, "labels"))
    if not small:
        paths = [out / f"{name}_regions{n}.png" for n in range(len(_THRESHOLDS))]
        maps = [np.zeros(0)] * len(paths) if all(p.exists() for p in paths) else find_regions(image, entry["spacing_mm"], _THRESHOLDS)
        entry["maps"] += [_write_map(regions, path.name, out, "regions") for path, regions in zip(paths, maps, strict=True)]
    return entry


def to_bytes(array: np.ndarray) -> np.ndarray:
    """Return intensities as uint8: CT along a line with a knee at either end of soft tissue, others between robust percentiles."""
    array = array.astype(np.float32)
    if looks_like_ct(array):
        return np.interp(array, *_CT_KNOTS).round().astype(np.uint8)
    low, high = np.percentile(array, (0.1, 99.8))
    return (((array - low) / max(high - low, 1e-6)).clip(0, 1) * 255).round().astype(np.uint8)


def find_regions(image: np.ndarray, spacing_mm, thresholds: Sequence[float]) -> list[np.ndarray]:
    """Divide an image, uint8 (K, J, I), into supervoxels and merge neighbours whose means differ by less than a threshold.

    Args:
        spacing_mm: Distances of the voxels along K, J and I.
        thresholds: Shares of the range of intensities, 0 to 1.

    Returns:
        For each threshold a map of the largest regions, uint8, with a longest side of at most `_REGION_SIDE` voxels; 0 is everything else.
    """
    spacing = np.array(spacing_mm)
    voxel_mm = max((np.array(image.shape) * spacing).max() / _REGION_SIDE, spacing.min())
    small = ndimage.zoom(image.astype(np.float32) / 255, np.minimum(1, spacing / voxel_mm), order=1)
    spacing = spacing * np.array(image.shape) / np.array(small.shape)
    smooth = ndimage.gaussian_filter(small, 0.8 * spacing.min() / spacing)
    supervoxels = segmentation.slic(
        smooth, n_segments=int(min(3000, small.size / 120)), compactness=0.02, spacing=spacing / spacing.min(), channel_axis=None,
        max_num_iter=5, start_label=1,
    )  # fmt: skip
    neighbours = graph.rag_mean_color(smooth[..., None].repeat(3, -1), supervoxels)
    merged = (graph.cut_threshold(supervoxels, neighbours, threshold, in_place=False) + 1 for threshold in thresholds)
    return [_largest_regions(np.where(smooth < 0.03, 0, regions)) for regions in merged]


def _largest_regions(regions: np.ndarray) -> np.ndarray:
    """Return the largest regions of a map, numbered anew by size, uint8; those that cover more than a quarter of it are left out."""
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    sizes[sizes > 0.25 * regions.size] = 0
    kept = [v for v in np.argsort(sizes)[::-1][:_MOST_REGIONS] if sizes[v] >= 40]
    table = np.zeros(len(sizes), np.uint8)
    table[kept] = np.arange(1, len(kept) + 1)
    return table[regions]


def _write_map(labels: np.ndarray, name: str, out: Path, kind: str) -> dict:
    """Write a label map as a PNG, unless it is empty because it exists, and return its row of the index."""
    if labels.size:
        make_mosaic(labels).save(out / name, optimize=True)
        (out / f"{name}.shape").write_text(json.dumps(labels.shape))
    return {"file": name, "kind": kind, "shape": json.loads((out / f"{name}.shape").read_text())}
