"""What the page of the app shows: volumes by need, quality curves, thumbnails, and the slice in each viewer's own words.

Nothing here knows HTTP; `lib.serving.web.routes` serves it, `templates/` lay it out and escape it.
"""

import io
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from lib.imaging import geometry
from lib.imaging.frames import Frames, fitted_size
from lib.imaging.readers import NIFTI_ENDINGS, READ_ERRORS, nifti_header, read_mask
from lib.imaging.volume import Volume
from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.active_learning.strategies import MOST_ROUNDS, TARGET
from lib.serving.datastore.labels import label_names, label_path
from lib.serving.web.viewers import Grid, as_viewed

APART = 3  # slices: worst ones closer together look the same
ORANGE, RED = (255, 165, 0), (255, 60, 40)
CURVE = (640, 110)  # width and height of the plot, in its own units
ENDINGS = (".seg.nrrd", ".nii.gz")  # of two parts


@dataclass(frozen=True)
class Structure:
    """One structure of a volume.

    Attributes:
        key: as in the records, or the label's name. label: to show. axis: voxel axis of the slices.
        dice: expected, of each slice. measured: against a reference, of each slice, or (). annotated: slices.
        volume_dice: expected. measured_volume_dice: or None. proposal: of the records, or {}.
    """

    key: str
    label: str
    axis: int
    dice: tuple[float, ...]
    measured: tuple[float, ...]
    annotated: tuple[int, ...]
    volume_dice: float
    measured_volume_dice: float | None
    proposal: dict

    @property
    def rounds(self) -> int:
        return len(self.annotated)

    @property
    def title(self) -> str:
        """Its name; of one that came without, as OHIF sends them, where it was first clicked."""
        return self.label or (f"structure clicked at {self.key[1:]}" if self.key.startswith("@") else "structure without a name")

    def worst(self, count: int = 3) -> list[int]:
        """The proposed slice, then those expected to be worst that are neither annotated nor next to one in the list."""
        chosen = [self.proposal["slice"]] if self.proposal else []
        for t in sorted(set(range(len(self.dice))) - set(self.annotated), key=lambda t: self.dice[t]):
            if len(chosen) < count and all(abs(t - c) >= APART for c in chosen):
                chosen.append(t)
        return chosen

    def curve(self) -> dict:
        """Where things are in a plot of CURVE units, best at the top: lines as SVG points, marks as (slice, x, y)."""
        (width, height), last = CURVE, max(1, len(self.dice) - 1)

        def at(t, dice):
            return round(t / last * width, 1), round((1 - dice) * height, 1)

        def line(values):
            return " ".join("{},{}".format(*at(t, d)) for t, d in enumerate(values))

        marked = {"annotated": self.annotated, "worst": self.worst()[:1]}
        marks = {name: [(t, *at(t, self.dice[t])) for t in slices if 0 <= t < len(self.dice)] for name, slices in marked.items()}
        return {"width": width, "height": height, "line": line(self.dice), "measured": line(self.measured), **marks}


@dataclass(frozen=True)
class VolumeSummary:
    """One volume. name: to show."""

    image: str
    name: str
    labelled: bool
    structures: tuple[Structure, ...]
    scores: tuple[tuple[str, dict], ...]

    @property
    def expected(self) -> float | None:
        """Of the worst structure."""
        return min((s.volume_dice for s in self.structures), default=None)

    @property
    def status(self) -> str:
        if self.labelled:
            return "labelled"
        if not self.structures:
            return "untouched"
        open_ones = [s for s in self.structures if s.volume_dice < TARGET and s.rounds < MOST_ROUNDS]
        return "in work" if open_ones else "done"

    @property
    def order(self) -> tuple:
        """Sorts by need."""
        return ("in work", "untouched", "done", "labelled").index(self.status), self.expected or 0.0, self.name


def volume_summaries(datastore, rounds: AnnotationRecords) -> list[VolumeSummary]:
    """All volumes of a datastore: those in work, the worst first, then untouched ones, then what is done."""
    known, labelled = rounds.all(), set(datastore.get_labeled_images())
    return sorted((volume_summary(datastore, i, known.get(i, {}), i in labelled) for i in datastore.list_images()), key=lambda c: c.order)


def volume_summary(datastore, image: str, records: dict[str, dict], labelled: bool) -> VolumeSummary:
    info = datastore.get_image_info(image) or {}
    scores = tuple((name, info[name]) for name in ("slice_quality", "slice_dice") if isinstance(info.get(name), dict))
    return VolumeSummary(image, str(info.get("PatientID") or image), labelled, structures_of(records, dict(scores)), scores)


def structures_of(records: dict[str, dict], scores: dict[str, dict]) -> tuple[Structure, ...]:
    """From the records of a volume; without any, from what the scoring method `slice_quality` said of a saved label."""
    measured = scores.get("slice_dice", {}).get("structures", {})

    def make(key, label, axis, dice, annotated, volume_dice, proposal):
        other = measured.get(label or key, {})
        reference = tuple(other.get("dice", ()))
        fits = len(reference) == len(dice)
        return Structure(
            key, label, axis, tuple(dice), reference if fits else (), tuple(annotated), volume_dice,
            other.get("volume_dice") if fits else None, proposal or {},
        )  # fmt: skip

    found = [
        make(key, r["label"], r["axis"], r["expected_dice"], r["annotated"], r["volume_dice"], r["proposal"])
        for key, r in records.items()
    ]
    if not found and "slice_quality" in scores:
        axis = scores["slice_quality"].get("axis", 2)
        for key, s in scores["slice_quality"].get("structures", {}).items():
            found.append(make(key, key, axis, s["dice"], (), s.get("volume_dice", s["mean"]), None))
    return tuple(sorted(found, key=lambda s: s.volume_dice))


def chosen(structures: tuple[Structure, ...], t: int | None, key: str | None = None) -> Structure | None:
    """The structure meant by a link: by key, else one whose proposed slice is `t`, else the worst."""
    if key is not None:
        return next((s for s in structures if s.key == key), None)
    proposed = [s for s in structures if t is not None and s.proposal.get("slice") == t]
    return next(iter(proposed or structures), None)


def as_shown(answer: dict, numbers: dict | None, link: str | None) -> dict:
    """An answer of *Next Sample* with what OHIF's form and Slicer's volume node show saying which slice, and how good.

    Args:
        numbers: of `lib.serving.web.viewers.viewer_numbers`. link: replaces RetrieveURL, which OHIF's form links to.
    """
    out = dict(answer)
    if numbers:
        out["viewer"] = numbers
    if link:
        out["RetrieveURL"] = link
    if answer.get("slice") is None:
        return out
    dice = answer.get("expected_dice")
    brief = f"slice {answer['slice']}" + ("" if dice is None else f" Dice {dice:.2f}")
    out["name"] = file_name(str(answer.get("name") or answer["id"]), brief)
    if "PatientID" in answer:  # DICOM
        expected = "nothing annotated yet" if dice is None else f"expected Dice {dice:.2f}"
        where = f"slice {answer['slice']}"
        if numbers:
            where = "{plane} slice {ohif[number]} of {ohif[count]} (voxel slice {voxel_slice})".format(**numbers)
        out["PatientID"] = f"{answer['PatientID']} {brief}"
        out["Modality"] = f"{answer.get('Modality', '')}. Next: {where}, {expected}. The link below opens it."
    return out


def file_name(name: str, more: str) -> str:
    """A file name with words added before its ending.

    >>> file_name("a.b.nii.gz", "slice 3 Dice 0.61"), file_name("x/../y.nrrd", "slice 3"), file_name("", "slice 3")
    ('a.b slice 3 Dice 0.61.nii.gz', 'x_.._y slice 3.nrrd', 'image slice 3')
    """
    ending = next((e for e in ENDINGS if name.lower().endswith(e)), None)
    ending = name[-len(ending) :] if ending else Path(name).suffix
    stem = re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", name[: len(name) - len(ending)])[:120] or "image"
    return f"{stem} {more}{ending}"


def grid_of(path: str) -> Grid | None:
    """Where the voxels of a NIfTI file lie, from its header; None for other files."""
    file = Path(path)
    if not file.name.lower().endswith(NIFTI_ENDINGS) or not file.is_file():
        return None
    stat = file.stat()
    return _nifti_grid(str(file), stat.st_size, stat.st_mtime_ns)


@lru_cache(1024)
def _nifti_grid(path: str, size: int, mtime_ns: int) -> Grid | None:
    try:
        header = nifti_header(path)
        shape, affine = (*header.get_data_shape(), 1)[:3], header.get_best_affine()
    except READ_ERRORS:
        return None
    return None if len(shape) < 3 or 0 in shape else Grid(tuple(int(n) for n in shape), affine)


def slicing_axis(grid: Grid) -> int:
    """The axis along which slices are counted by default, see `lib.imaging.geometry.slicing_axis`."""
    return geometry.slicing_axis(grid.shape, geometry.spacing(grid.affine))


def saved_mask(datastore, image: str, structure: str, volume: Volume) -> np.ndarray | None:
    """The mask, bool (I, J, K), of a structure in the saved labels of an image; None if none has it.

    Raises:
        VolumeError: the label cannot be read, or does not fit the image.
    """
    tags = datastore.get_labels_by_image_id(image)
    for tag in sorted(tags, key=lambda t: ("original", "final").index(t) if t in ("original", "final") else 2):
        names = label_names(datastore, tags[tag], tag)
        number = re.fullmatch(r"label_(\d+)", structure)
        value = next((v for v, name in names.items() if name == structure), int(number[1]) if number else None)
        if value is not None:
            return read_mask(label_path(datastore, image, tag), volume) == value
    return None


def thumbnail(frames: Frames, mask: np.ndarray | None, t: int, point=None, side: int = 336) -> bytes:
    """PNG of slice `t` as viewers turn it, with the contour of its mask.

    Args:
        mask: bool (T, Y, X), or None. point: voxel (i, j, k) to mark with a cross, or None. side: pixels of the longer side.
    """
    turn = as_viewed(Grid(frames.volume.shape, frames.volume.affine), frames.axis)
    image = _turned(frames.windowed([t])[0], turn)
    height, width = fitted_size(image.shape, frames.pixel_mm[::-1] if turn[0] else frames.pixel_mm, side)

    def scaled(a: np.ndarray) -> np.ndarray:
        return np.array(Image.fromarray(np.ascontiguousarray(a)).resize((width, height), Image.Resampling.BILINEAR))

    picture = np.repeat(scaled(image)[:, :, None], 3, 2)
    if mask is not None and mask[t].any():
        inside = scaled(_turned(mask[t], turn).astype(np.uint8) * 255) > 127
        picture[inside & ~ndimage.binary_erosion(inside, iterations=3)] = ORANGE
    if point is not None and all(0 <= v < n for v, n in zip(point, frames.volume.shape, strict=True)):
        spot = np.zeros(frames.size, bool)
        _, y, x = frames.to_pixel(point)
        spot[int(y), int(x)] = True
        row, column = np.argwhere(_turned(spot, turn))[0]
        y, x = int((row + 0.5) * height / image.shape[0]), int((column + 0.5) * width / image.shape[1])
        for dy, dx in ((1, 9), (9, 1)):
            picture[max(0, y - dy) : y + dy + 1, max(0, x - dx) : x + dx + 1] = RED
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG")
    return out.getvalue()


def _turned(image: np.ndarray, turn: tuple[bool, bool, bool]) -> np.ndarray:
    """A slice (Y, X) as viewers show it, see `lib.serving.web.viewers.as_viewed`."""
    transpose, flip_rows, flip_columns = turn
    image = image.T if transpose else image
    return image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
