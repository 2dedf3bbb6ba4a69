"""Content of the app's pages: the volumes sorted by need, their quality curves and thumbnails, and the fields of *Next Sample*.

Nothing here knows HTTP: `lib.serving.web.routes` serves the content, and the templates lay it out and escape it.
"""

import io
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from lib.common.errors import VolumeError
from lib.imaging.frames import Frames, fitted_size
from lib.imaging.readers import read_grid, read_mask
from lib.imaging.volume import Grid, Volume
from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.active_learning.strategies import MAX_ROUNDS, TARGET_DICE
from lib.serving.datastore.labels import label_names, label_path
from lib.serving.web.viewers import viewer_orientation

MIN_DISTANCE_SLICES = 3  # Between the worst slices that are displayed, because neighbours look the same.
ORANGE, RED = (255, 165, 0), (255, 60, 40)
CURVE_SIZE = (640, 110)  # Width and height of the plot, in SVG units.
STATUSES = ("in work", "untouched", "done", "labelled")  # States of a volume, in the order in which volumes are listed.
TWO_PART_ENDINGS = (".seg.nrrd", ".nii.gz")


@dataclass(frozen=True)
class StructureSummary:
    """One structure of a volume.

    Attributes:
        key: Its key in the records, or the label's name.
        label: Name to display, "" if it has none.
        axis: Voxel axis along which slices are counted.
        dice: Expected Dice of each slice.
        measured: Dice of each slice against a reference, or ().
        annotated: Indices of the annotated slices.
        volume_dice, measured_volume_dice: Expected Dice of the whole structure, and the one against a reference, or None.
        proposal: The record's proposal, or {}.
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
        """The name, with the client if several have begun the structure, or where it was first clicked if it has none."""
        if self.label and self.key.startswith(f"{self.label} by "):
            return self.key
        return self.label or (f"structure clicked at {self.key[1:]}" if self.key.startswith("@") else "structure without a name")

    def worst_slices(self, count: int = 3) -> list[int]:
        """Return the proposed slice, then those of lowest expected Dice that are not annotated and not next to another of the list."""
        slices = [self.proposal["slice"]] if self.proposal else []
        for t in sorted(set(range(len(self.dice))) - set(self.annotated), key=lambda t: self.dice[t]):
            if len(slices) < count and all(abs(t - other) >= MIN_DISTANCE_SLICES for other in slices):
                slices.append(t)
        return slices

    def plot(self) -> dict:
        """Return a plot of the Dice by slice, with 1 at the top, of CURVE_SIZE.

        Its fields are width, height, line and measured (SVG points of the two curves), annotated and worst (lists of (slice, x, y)).
        """
        (width, height), last = CURVE_SIZE, max(1, len(self.dice) - 1)

        def position(t, dice):
            return round(t / last * width, 1), round((1 - dice) * height, 1)

        def svg_points(values):
            return " ".join("{},{}".format(*position(t, d)) for t, d in enumerate(values))

        marked = {"annotated": self.annotated, "worst": self.worst_slices()[:1]}
        marks = {name: [(t, *position(t, self.dice[t])) for t in slices if 0 <= t < len(self.dice)] for name, slices in marked.items()}
        return {"width": width, "height": height, "line": svg_points(self.dice), "measured": svg_points(self.measured), **marks}


@dataclass(frozen=True)
class VolumeSummary:
    """One volume of the datastore.

    Attributes:
        image, name: Its id, and the name to display.
        labelled: Whether it has a final label.
        structures: Its structures, the worst one first.
        scores: Pairs of a scoring method's name and its result.
    """

    image: str
    name: str
    labelled: bool
    structures: tuple[StructureSummary, ...]
    scores: tuple[tuple[str, dict], ...]

    @property
    def expected_dice(self) -> float | None:
        """The expected Dice of the worst structure, or None."""
        return min((s.volume_dice for s in self.structures), default=None)

    @property
    def status(self) -> str:
        """One of STATUSES."""
        if self.labelled:
            return "labelled"
        if not self.structures:
            return "untouched"
        unfinished = [s for s in self.structures if s.volume_dice < TARGET_DICE and s.rounds < MAX_ROUNDS]
        return "in work" if unfinished else "done"


def summarize_volumes(datastore, records: AnnotationRecords) -> list[VolumeSummary]:
    """Return all volumes of a datastore: those being annotated with the worst first, then untouched ones, then those that are done."""
    by_image, labelled = records.by_image(), set(datastore.get_labeled_images())
    summaries = (summarize_volume(datastore, i, by_image.get(i, {}), i in labelled) for i in datastore.list_images())
    return sorted(summaries, key=lambda s: (STATUSES.index(s.status), s.expected_dice or 0.0, s.name))


def summarize_volume(datastore, image: str, records: dict[str, dict], labelled: bool) -> VolumeSummary:
    """Return the summary of an image from its records by structure and from its info in the datastore."""
    info = datastore.get_image_info(image) or {}
    scores = tuple((name, info[name]) for name in ("slice_quality", "slice_dice") if isinstance(info.get(name), dict))
    return VolumeSummary(image, str(info.get("PatientID") or image), labelled, summarize_structures(records, dict(scores)), scores)


def summarize_structures(records: dict[str, dict], scores: dict[str, dict]) -> tuple[StructureSummary, ...]:
    """Return the structures of a volume from its records, or without records from the scores that `slice_quality` gave a saved label."""
    measured = scores.get("slice_dice", {}).get("structures", {})

    def make_summary(key, label, axis, dice, annotated, volume_dice, proposal):
        scores_measured = measured.get(label or key, {})
        measured_dice = tuple(scores_measured.get("dice", ()))
        has_equal_slices = len(measured_dice) == len(dice)
        return StructureSummary(
            key, label, axis, tuple(dice), measured_dice if has_equal_slices else (), tuple(annotated), volume_dice,
            scores_measured.get("volume_dice") if has_equal_slices else None, proposal or {},
        )  # fmt: skip

    fields = ("label", "axis", "expected_dice", "annotated", "volume_dice", "proposal")
    structures = [make_summary(key, *(record[f] for f in fields)) for key, record in records.items()]
    if not structures and "slice_quality" in scores:
        axis = scores["slice_quality"].get("axis", 2)
        for key, s in scores["slice_quality"].get("structures", {}).items():
            structures.append(make_summary(key, key, axis, s["dice"], (), s.get("volume_dice", s["mean"]), None))
    return tuple(sorted(structures, key=lambda s: s.volume_dice))


def choose_structure(structures: tuple[StructureSummary, ...], t: int | None, key: str | None = None) -> StructureSummary | None:
    """Return the structure that a link means: the one with this key, else one whose proposed slice is `t`, else the worst."""
    if key is not None:
        return next((s for s in structures if s.key == key), None)
    proposed = [s for s in structures if t is not None and s.proposal.get("slice") == t]
    return next(iter(proposed or structures), None)


def describe_slice(answer: dict, location: dict | None, link: str | None) -> dict:
    """Return an answer of *Next Sample* in which the fields that OHIF's form and Slicer's volume node display name the slice.

    Args:
        answer: Fields with id, name, slice and expected_dice; from a DICOM store also with PatientID and Modality.
        location: Result of `lib.serving.web.viewers.locate_in_viewers`, or None.
        link: Address that replaces RetrieveURL, to which OHIF's form links; None keeps that.
    """
    described = answer | ({"viewer": location} if location else {}) | ({"RetrieveURL": link} if link else {})
    if answer.get("slice") is None:
        return described
    dice = answer.get("expected_dice")
    words = f"slice {answer['slice']}" + ("" if dice is None else f" Dice {dice:.2f}")
    described["name"] = insert_before_ending(str(answer.get("name") or answer["id"]), words)
    if "PatientID" in answer:
        expected = "nothing annotated yet" if dice is None else f"expected Dice {dice:.2f}"
        where = f"slice {answer['slice']}"
        if location:
            where = "{plane} slice {ohif[number]} of {ohif[count]} (voxel slice {voxel_slice})".format(**location)
        described["PatientID"] = f"{answer['PatientID']} {words}"
        described["Modality"] = f"{answer.get('Modality', '')}. Next: {where}, {expected}. The link below opens it."
    return described


def insert_before_ending(name: str, words: str) -> str:
    """Return a valid file name with words inserted before its ending.

    >>> insert_before_ending("a.b.nii.gz", "slice 3 Dice 0.61"), insert_before_ending("x/../y.nrrd", "slice 3")
    ('a.b slice 3 Dice 0.61.nii.gz', 'x_.._y slice 3.nrrd')
    >>> insert_before_ending("", "slice 3")
    'image slice 3'
    """
    ending = next((e for e in TWO_PART_ENDINGS if name.lower().endswith(e)), None)
    ending = name[-len(ending) :] if ending else Path(name).suffix
    stem = re.sub(r'[\x00-\x1f/\\:*?"<>|]', "_", name[: len(name) - len(ending)])[:120] or "image"
    return f"{stem} {words}{ending}"


def find_grid(path: str) -> Grid | None:
    """Return the voxel grid of an image file, or None if it cannot be read. Headers are read once until their files change."""
    try:
        stat = os.stat(path)
        return _remembered_grid(path, (stat.st_size, stat.st_mtime_ns, stat.st_ino))
    except (OSError, VolumeError):
        return None


@lru_cache(1024)
def _remembered_grid(path: str, file_version: tuple[int, int, int]) -> Grid:
    return read_grid(path)


def read_saved_mask(datastore, image: str, structure: str, volume: Volume) -> np.ndarray | None:
    """Return the mask, bool (I, J, K), of a structure in the saved labels of an image, or None if no label has it.

    Raises:
        VolumeError: The label cannot be read, or does not fit the image.
    """
    tags = datastore.get_labels_by_image_id(image)
    for tag in sorted(tags, key=lambda t: ("original", "final").index(t) if t in ("original", "final") else 2):
        names = label_names(datastore, tags[tag], tag)
        number = re.fullmatch(r"label_(\d+)", structure)
        value = next((v for v, name in names.items() if name == structure), int(number[1]) if number else None)
        if value is not None:
            return read_mask(label_path(datastore, image, tag), volume) == value
    return None


def render_thumbnail(frames: Frames, mask: np.ndarray | None, t: int, point_ijk=None, side: int = 336) -> bytes:
    """Return a PNG of slice `t`, turned as viewers display it, with the contour of its mask.

    Args:
        mask: Mask, bool (T, Y, X), or None.
        point_ijk: Voxel to mark with a cross, or None.
        side: Length of the longer side in pixels.
    """
    orientation = viewer_orientation(frames.volume.grid, frames.axis)
    image = _orient(frames.windowed([t])[0], orientation)
    height, width = fitted_size(image.shape, frames.pixel_mm[::-1] if orientation[0] else frames.pixel_mm, side)

    def resize(pixels: np.ndarray) -> np.ndarray:
        return np.array(Image.fromarray(np.ascontiguousarray(pixels)).resize((width, height), Image.Resampling.BILINEAR))

    picture = np.repeat(resize(image)[:, :, None], 3, 2)
    if mask is not None and mask[t].any():
        inside = resize(_orient(mask[t], orientation).astype(np.uint8) * 255) > 127
        picture[inside & ~ndimage.binary_erosion(inside, iterations=3)] = ORANGE
    if point_ijk is not None and all(0 <= v < n for v, n in zip(point_ijk, frames.volume.shape, strict=True)):
        marked = np.zeros(frames.size, bool)
        _, y, x = frames.to_pixel(point_ijk)
        marked[int(y), int(x)] = True
        row, column = np.argwhere(_orient(marked, orientation))[0]
        y, x = int((row + 0.5) * height / image.shape[0]), int((column + 0.5) * width / image.shape[1])
        for dy, dx in ((1, 9), (9, 1)):
            picture[max(0, y - dy) : y + dy + 1, max(0, x - dx) : x + dx + 1] = RED
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    return buffer.getvalue()


def _orient(image: np.ndarray, orientation: tuple[bool, bool, bool]) -> np.ndarray:
    """Return a slice (Y, X) as viewers display it, see `lib.serving.web.viewers.viewer_orientation`."""
    transpose, flip_rows, flip_columns = orientation
    image = image.T if transpose else image
    return image[:: -1 if flip_rows else 1, :: -1 if flip_columns else 1]
