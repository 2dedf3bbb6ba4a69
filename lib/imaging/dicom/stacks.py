"""Which volumes the DICOM files of a folder hold: stacks of parallel slices at even distances.

Where the voxels lie comes from ImagePositionPatient of every slice, so the shear of a series with a tilted gantry is kept exactly.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lib.imaging import geometry
from lib.imaging.dicom.frames import FrameHeader, read_headers
from lib.imaging.volume import SourceFrame

MAX_DEVIATION = 0.2  # How far a slice may lie from its place in an even stack, as a share of the smallest voxel side.
_SAME_PLACE = 0.05  # Slices that are closer than this share of the usual distance lie at the same place.
_SAME_DIRECTION = 2e-3  # Largest difference of the components of directions that count as equal.
_SAME_PIXELS = 1e-3  # Largest relative difference of pixel spacings that count as equal.
# These change within one volume, too, so they tell volumes apart only where each has the same slices.
_TIMES = ("AcquisitionTime", "ContentTime", "TriggerTime", "SOPInstanceUID", "ImageType", "FrameType")


@dataclass(frozen=True, eq=False)
class Stack:
    """A stack of slices, or the reason why some DICOM frames are none.

    Attributes:
        series_uid: SeriesInstanceUID of the frames.
        description: What the stack is, for a list to choose from.
        frames: The frame of each slice k, in this order.
        shape: Number of voxels (I, J, K): columns, rows and slices; (0, 0, 0) if there is a problem.
        affine: (4, 4), from voxel indices (i, j, k) to positions in mm RAS; None if there is a problem.
        problem: Sentence that says why the frames cannot be used as a volume; empty if they can.
        warnings: Sentences about what had to be assumed.
    """

    series_uid: str
    description: str
    frames: tuple[SourceFrame, ...]
    shape: tuple[int, int, int] = (0, 0, 0)
    affine: np.ndarray | None = None
    problem: str = ""
    warnings: tuple[str, ...] = ()


class _Uneven(Exception):
    """Frames are no stack; the message is a sentence for the user. `repeated`: several of them lie at the same place."""

    def __init__(self, message: str, repeated: bool = False):
        super().__init__(message)
        self.repeated = repeated


def find_stacks(path: Path | Sequence[Path], spacing_mm: Sequence[float] | None = None) -> list[Stack]:
    """Return the stacks in a DICOM file, in several, or in the DICOM files of a folder and its subfolders, sorted by the
    number of their series.

    A series becomes several stacks where its slices have several orientations, or where the same slices exist for several time points,
    echoes, phases and the like.

    Args:
        spacing_mm: Distances (3,) of voxels along i, j and k for frames whose files do not state them; what files state counts.

    Raises:
        VolumeError, DICOM_ERRORS: A file is incomplete or damaged, see `read_headers`.
    """
    series = defaultdict(list)
    for frame in read_headers(path):
        series[frame.series[1]].append(frame)
    stacks = []
    for _, frames in sorted(series.items(), key=lambda item: (min(f.series[0] for f in item[1]), item[0])):
        faulty = [f for f in frames if f.problem]
        if faulty:
            _, uid, description = faulty[0].series
            stacks.append(Stack(uid, description, tuple(f.source for f in frames), problem=faulty[0].problem))
            continue
        for group in _by_orientation(frames):
            stacks += _stacks_of(group, spacing_mm)
    return stacks


def _by_orientation(frames: list[FrameHeader]) -> list[list[FrameHeader]]:
    """Return frames in groups of equal orientation, the largest group first; frames without one belong to the first group."""
    groups: list[list[FrameHeader]] = []
    without = [f for f in frames if f.directions is None]
    for frame in (f for f in frames if f.directions is not None):
        for group in groups:
            if np.abs(group[0].directions - frame.directions).max() <= _SAME_DIRECTION:
                group.append(frame)
                break
        else:
            groups.append([frame])
    groups.sort(key=len, reverse=True)
    if without:
        groups[:1] = [[*(groups[0] if groups else []), *without]]
    return groups


def _stacks_of(group: list[FrameHeader], spacing_mm) -> list[Stack]:
    """Return the stacks in frames of one series and one orientation."""
    try:
        return [_stack(group, spacing_mm)]
    except _Uneven as e:
        problem, repeated = str(e), e.repeated
    for mark, parts in _divisions(group, repeated):
        try:
            return [_stack(part, spacing_mm, mark) for part in parts]
        except _Uneven:
            continue
    return [Stack(group[0].series[1], _describe(group), tuple(f.source for f in group), problem=problem)]


def _divisions(group: list[FrameHeader], repeated: bool):
    """Yield the ways (attribute, parts) to divide frames that are no stack; every part has at least two frames."""
    for mark in dict.fromkeys(m for f in group for m in f.marks):
        if mark in _TIMES and not repeated:
            continue
        parts = defaultdict(list)
        for frame in group:
            parts[frame.marks.get(mark, "")].append(frame)
        sizes = {len(p) for p in parts.values()}
        if len(parts) > 1 and min(sizes) > 1 and (mark not in _TIMES or len(sizes) == 1):
            yield mark, list(parts.values())
    if repeated and all(f.position_mm is not None and f.directions is not None for f in group):  # By the order of files and frames.
        places = defaultdict(list)
        for frame in sorted(group, key=lambda f: f.order):
            places[tuple(np.round(frame.position_mm, 2))].append(frame)
        counts = {len(p) for p in places.values()}
        if len(counts) == 1 and len(places) > 1 and len({f.order[0] for f in group}) in (1, len(group)):
            yield "", [[p[n] for p in places.values()] for n in range(counts.pop())]


def _stack(group: list[FrameHeader], spacing_mm, mark: str = "") -> Stack:
    """Return the stack that frames of one orientation form, or raise _Uneven."""
    for frame in group:
        if frame.size != group[0].size:
            raise _Uneven(f"The slices differ in size: {group[0].name} has {_pixels(group[0])} pixels, {frame.name} {_pixels(frame)}.")
    sized = [f for f in group if f.pixel_mm is not None]
    for frame in sized:
        if np.abs(frame.pixel_mm / sized[0].pixel_mm - 1).max() > _SAME_PIXELS:
            raise _Uneven(
                f"The slices differ in pixel size: {sized[0].name} has {_mm(sized[0].pixel_mm)} mm, {frame.name} {_mm(frame.pixel_mm)} mm."
            )
    if spacing_mm is not None and not sized:
        group = [replace(f, pixel_mm=np.asarray(spacing_mm[:2], float)) for f in group]
    if all(f.position_mm is None for f in group):
        frames, affine, warnings = _without_positions(group, spacing_mm)
    else:
        frames, affine, warnings = _with_positions(group)
    sources, shape = tuple(f.source for f in frames), (*group[0].size, len(frames))
    return Stack(group[0].series[1], _describe(frames, mark), sources, shape, geometry.LPS_FROM_RAS @ affine, warnings=warnings)


def _with_positions(group: list[FrameHeader]) -> tuple[list[FrameHeader], np.ndarray, tuple[str, ...]]:
    """Return frames in the order of their positions, the affine (4, 4) in mm LPS, and warnings, or raise _Uneven."""
    for frame in group:
        for value, keyword in ((frame.position_mm, "ImagePositionPatient"), (frame.directions, "ImageOrientationPatient")):
            if value is None:
                raise _Uneven(f"{frame.name} does not say where it lies ({keyword} is missing): repair or remove it.")
        if frame.pixel_mm is None:
            raise _Uneven(f"{frame.name} does not say how large its pixels are (PixelSpacing is missing): repair it, or state the voxel "
                          "size, for example --spacing 1,1,2.5.")  # fmt: skip
    directions, pixel_mm = group[0].directions, group[0].pixel_mm
    normal = np.cross(*directions)
    frames = sorted(group, key=lambda f: (float(f.position_mm @ normal), f.order))
    positions = np.array([f.position_mm for f in frames])
    affine = np.eye(4)
    affine[:3, :2] = (directions * pixel_mm[:, None]).T
    affine[:3, 3] = positions[0]
    warnings: tuple[str, ...] = ()
    if len(frames) == 1:
        affine[:3, 2] = normal * (frames[0].thickness_mm or 1.0)
        if frames[0].thickness_mm is None:
            warnings = (f"The thickness of {frames[0].name} is unknown; 1 mm was assumed.",)
    else:
        _check_distances(frames, positions @ normal)
        affine[:3, 2] = (positions[-1] - positions[0]) / (len(frames) - 1)
        ideal = positions[0] + np.arange(len(frames))[:, None] * affine[:3, 2]
        deviations_mm = np.linalg.norm(positions - ideal, axis=1)
        worst = int(deviations_mm.argmax())
        if deviations_mm[worst] > MAX_DEVIATION * geometry.spacing(affine).min():
            raise _Uneven(
                f"The slices do not lie on one line at even distances: {frames[worst].name} lies {deviations_mm[worst]:.2f} mm beside its "
                "place. Resample the series, or remove the slices that do not belong to it."
            )
    if not geometry.is_valid_affine(affine):
        raise _Uneven(f"The slices of {frames[0].name} and the others lie within one plane.")
    return frames, affine, warnings


def _check_distances(frames: list[FrameHeader], depths_mm: np.ndarray) -> None:
    """Raise _Uneven if slices are missing or repeated; `depths_mm` are the positions (K,) along the normal in ascending order."""
    distances = np.diff(depths_mm)
    apart = distances[distances > _SAME_PLACE * distances.max()]
    if not len(apart) or distances.max() < 1e-6:
        raise _Uneven(
            f"{frames[0].name} and {frames[1].name} lie at the same position: frames of one slice at several times are no volume.", repeated=True
        )
    usual, smallest = float(np.median(apart)), int(distances.argmin())
    if distances[smallest] < _SAME_PLACE * usual:
        raise _Uneven(
            f"{frames[smallest].name} and {frames[smallest + 1].name} lie at the same position: a slice is there twice. Remove the copy.",
            repeated=True,
        )
    largest = int(distances.argmax())
    if distances[largest] > 1.5 * usual:
        raise _Uneven(
            f"The slices are not evenly spaced: between {frames[largest].name} and {frames[largest + 1].name} there are "
            f"{distances[largest]:.2f} mm, elsewhere {usual:.2f} mm. Probably slices are missing: add them, or resample the series."
        )


def _without_positions(group: list[FrameHeader], spacing_mm) -> tuple[list[FrameHeader], np.ndarray, tuple[str, ...]]:
    """Return frames whose files do not state positions, an affine (4, 4) in mm LPS, and a warning; or raise _Uneven.

    A single image needs no distance of slices. Several ones are accepted only with the stated `spacing_mm`.
    """
    frames = sorted(group, key=lambda f: f.order)
    first, affine = frames[0], np.eye(4)
    pixel_mm = np.ones(2) if first.pixel_mm is None else first.pixel_mm
    if spacing_mm is None and len(frames) > 1:
        raise _Uneven(
            f"{first.name} and {len(frames) - 1} more do not say where they lie (no ImagePositionPatient for each slice), so the distance of "
            f"the slices is unknown: state the voxel size, for example --spacing {pixel_mm[0]:g},{pixel_mm[1]:g},2.5."
        )
    sizes = np.array([*pixel_mm, (first.thickness_mm or 1.0) if spacing_mm is None else spacing_mm[2]])
    if first.directions is not None:
        affine[:3, :3] = np.stack([*first.directions, np.cross(*first.directions)], axis=1)
    affine[:3, :3] *= sizes
    affine[:3, 3] = 0 if first.origin_mm is None else first.origin_mm
    return frames, affine, (f"The position of {first.name} is unknown; a voxel size of {_mm(sizes)} mm was assumed.",)


def _describe(frames: list[FrameHeader], mark: str = "") -> str:
    """Return the description of frames for a list: series, number of slices, size, and what tells them from others of the series."""
    text = f"{len(frames)} {'slice' if len(frames) == 1 else 'slices'} of {_pixels(frames[0])} pixels"
    if frames[0].series[2]:
        text = f"{frames[0].series[2]}, {text}"
    return f"{text}, {mark} {frames[0].marks.get(mark, '')}" if mark and mark != "SOPInstanceUID" else text


def _pixels(frame: FrameHeader) -> str:
    return f"{frame.size[0]} x {frame.size[1]}"


def _mm(sizes) -> str:
    return " x ".join(f"{s:g}" for s in sizes)
