"""The images in the files of a studies folder, before they have ids: files with voxels, and stacks of DICOM frames.

An image is known by its content, of which a digest is made; its id is only a name.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from lib.common.errors import VolumeError
from lib.imaging.dicom.reading import read_stack
from lib.imaging.dicom.stacks import Stack, find_stacks
from lib.imaging.readers import READ_ERRORS, read_grid, read_volume
from lib.imaging.study_files import DICOM_ENDINGS, IMAGE_ENDINGS, FolderScan, split_ending
from lib.imaging.study_memory import STACKS
from lib.imaging.volume import Grid, Volume

MAX_READ_BYTES = 16 * 2**20  # Of larger images, evenly spread blocks of this total size are read for a digest.
MIN_FILE_BYTES = 64 * 2**10  # Read of each file at least.
_BLOCKS = 32  # For each file that is not read completely.


@dataclass(frozen=True, eq=False)
class StudyImage:
    """An image of a studies folder.

    Attributes:
        key: What identifies the image within the folder, whatever else lies there.
        path: Its file, or the folder of its DICOM files.
        files: All files that it consists of.
        version: Changes when one of its files does.
        stack: The DICOM frames that it consists of, or None for other formats.
    """

    key: str
    path: Path
    files: tuple[Path, ...]
    version: str
    stack: Stack | None = None

    def grid(self) -> Grid:
        """Return the voxel grid of the image; raise VolumeError if it cannot be read."""
        return read_grid(self.path) if self.stack is None else Grid(self.stack.shape, self.stack.affine)

    def digest(self) -> str:
        """Return the digest of the image's content, which does not depend on names and places; OSError if a file cannot be read."""
        return content_digest(self.files, "" if self.stack is None else repr(_frame_names(self.stack)))

    def read(self, name: str) -> Volume:
        """Return the volume, which messages call `name`; raise VolumeError if it cannot be read."""
        if self.stack is None:
            return read_volume(self.path)
        try:
            return read_stack(self.stack, name)
        except VolumeError:
            raise
        except READ_ERRORS as e:
            raise VolumeError(f"{name} could not be read: its DICOM files are damaged or compressed in an unknown way.") from e

    def reader_path(self) -> Path:
        """Return the path by which `read_volume` reads the image: its own, with "#n" behind if that holds several volumes.

        Raises:
            VolumeError: The folder has changed, or holds DICOM files that cannot be read.
        """
        if self.stack is None:
            return self.path
        frames = _frame_names(self.stack)
        stacks = [_frame_names(s) for s in find_stacks(self.path)]
        if frames not in stacks:
            raise VolumeError(f"{self.path.name} cannot be read together with its subfolders: move them elsewhere.")
        return self.path if len(stacks) == 1 else self.path.with_name(f"{self.path.name}#{stacks.index(frames) + 1}")


@dataclass
class Candidate:
    """An image that needs an id: the first one of `names` that is free.

    Attributes:
        problem: Sentence that says why it cannot be used, or "".
        container: Id of the folder or file of which it is one of several volumes, or "".
    """

    image: StudyImage
    names: tuple[str, ...]
    problem: str = ""
    container: str = ""


def find_candidates(scan: FolderScan) -> list[Candidate]:
    """Return all images that need an id, in the order in which they choose."""
    order = {ending: n for n, ending in enumerate(IMAGE_ENDINGS)}
    files = {scan.name(f): f for f in scan.images}
    keys = sorted(files, key=lambda k: (k.count("/"), order[split_ending(k)[1].lower()], k))
    images = (StudyImage(k, files[k], scan.images[files[k]], scan.version(scan.images[files[k]])) for k in keys)
    return [Candidate(i, (_flat(split_ending(i.key)[0]), _flat(i.key))) for i in images] + _dicom_candidates(scan)


def _dicom_candidates(scan: FolderScan) -> list[Candidate]:
    """Return the images in DICOM files.

    The files of a subfolder are read together. Those directly in the studies folder may have nothing to do with each other, so each
    series of slices is read by itself, and each file with several frames is an image of its own.
    """
    candidates: list[Candidate] = []
    stacks_by_folder: dict[Path, list[Stack]] = {}
    for folder, files in scan.dicom.items():
        if folder != scan.root:
            stacks_by_folder[folder] = _read_stacks(scan, folder, files, candidates)
            continue
        slices = defaultdict(list)
        for file in files:
            stacks = _read_stacks(scan, file, [file], candidates)
            if any(len(s.frames) > 1 for s in stacks):
                candidates += _number(scan, file, stacks)
            elif stacks:
                slices[stacks[0].series_uid].append(file)
        stacks_by_folder[folder] = []
        for series_files in slices.values():
            stacks = _read_stacks(scan, folder, series_files, candidates)
            if len(series_files) == 1:
                candidates += _number(scan, series_files[0], stacks)
            else:
                stacks_by_folder[folder] += stacks
    _join_split_series(scan, stacks_by_folder)
    for folder, stacks in stacks_by_folder.items():
        candidates += _number(scan, folder, stacks)
    return candidates


def _read_stacks(scan: FolderScan, path: Path, files: list[Path], refused: list[Candidate]) -> list[Stack]:
    """Return the stacks in DICOM files. If a header cannot be read, return none and add a candidate with the problem to `refused`."""
    version = scan.version(files)
    stacks = scan.recall((version, STACKS), lambda: _stacks_or_error(files))
    if not isinstance(stacks, VolumeError):
        if not stacks:
            scan.left_out[path_name(scan, path)] = "Its DICOM files hold no images to annotate."
        return stacks
    image = StudyImage(f"{path_name(scan, path)}#", path, tuple(files), version)
    refused.append(Candidate(image, (_dicom_name(scan, path),), str(stacks)))
    return []


def _stacks_or_error(files: list[Path]) -> list[Stack] | VolumeError:
    """Return the stacks in DICOM files, or the reason why a header cannot be read, so that it is remembered, too."""
    try:
        return find_stacks(files)
    except VolumeError as e:
        return e
    except READ_ERRORS:
        return VolumeError("A DICOM header is damaged.")


def _join_split_series(scan: FolderScan, stacks_by_folder: dict[Path, list[Stack]]) -> None:
    """Give a series whose slices are spread over several folders to the folder that contains them, if together they are one volume."""
    folders_by_series = defaultdict(list)
    for folder, stacks in stacks_by_folder.items():
        for uid in {s.series_uid for s in stacks}:
            folders_by_series[uid].append(folder)
    for uid, folders in folders_by_series.items():
        spread = [s for f in folders for s in stacks_by_folder[f] if s.series_uid == uid]
        objects = [{frame.sop_instance_uid for frame in s.frames} for s in spread]
        if len(folders) == 1 or len(set().union(*objects)) < sum(map(len, objects)):
            continue  # Copies of a series are images of their own.
        files = sorted({frame.path for s in spread for frame in s.frames})
        joined = scan.recall((scan.version(files), STACKS), lambda files=files: _stacks_or_error(files))
        if isinstance(joined, VolumeError) or len(joined) != 1 or joined[0].problem:
            continue
        for folder in folders:
            stacks_by_folder[folder] = [s for s in stacks_by_folder[folder] if s.series_uid != uid]
        stacks_by_folder.setdefault(Path(os.path.commonpath(folders)), []).append(joined[0])


def _number(scan: FolderScan, path: Path, stacks: list[Stack]) -> list[Candidate]:
    """Return candidates for the stacks of a DICOM folder or file. Several ones are named by "#" and their number from 1."""
    base, ordinals = _dicom_name(scan, path), defaultdict(count)
    candidates = []
    for number, stack in enumerate(stacks, 1):
        files = tuple(dict.fromkeys(frame.path for frame in stack.frames))
        key = f"{path_name(scan, path)}#{stack.series_uid}/{next(ordinals[stack.series_uid])}"
        image = StudyImage(key, path, files, scan.version(files), stack)
        names, container = (f"{base}#{number}", base) if len(stacks) > 1 else (base, "")
        candidates.append(Candidate(image, (names,), stack.problem, container))
    return candidates


def _dicom_name(scan: FolderScan, path: Path) -> str:
    """Return the id that a DICOM folder or file should get."""
    return _flat(split_ending(path_name(scan, path), DICOM_ENDINGS)[0])


def path_name(scan: FolderScan, path: Path) -> str:
    """Return a path within the studies folder; for that folder itself, its name."""
    return scan.root.name if path == scan.root else scan.name(path)


def _flat(name: str) -> str:
    """Return a path within the folder as an id, which must not contain / and \\."""
    return name.replace("/", "_").replace("\\", "_")


def _frame_names(stack: Stack) -> list[tuple[str, int]]:
    return [(f.sop_instance_uid, f.number) for f in stack.frames]


def content_digest(files: Sequence[Path], volume: str = "") -> str:
    """Return a digest of the content of an image, 32 hexadecimal digits.

    Files of up to 16 MiB in total are read completely. Of larger ones, the size and 32 evenly spread blocks count, among them the first
    and the last, which in a compressed file holds a checksum of everything before it.

    Args:
        files: The files that the image consists of, in the order that they have in it.
        volume: Text that tells the image from others in the same files.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.blake2b(volume.encode(), digest_size=16)
    share = max(MIN_FILE_BYTES, MAX_READ_BYTES // max(1, len(files)))
    for path in files:
        size = os.path.getsize(path)
        digest.update(f"{size};".encode())
        with open(path, "rb") as file:
            if size <= share:
                digest.update(file.read())
                continue
            length = share // _BLOCKS
            for n in range(_BLOCKS):
                file.seek((size - length) * n // (_BLOCKS - 1))
                digest.update(file.read(length))
    return digest.hexdigest()


def file_stamp(files: Iterable[Path]) -> str:
    """Return a text that changes when one of the files is changed or exchanged: a digest of their sizes, times and inodes.

    Raises:
        OSError: A file is missing.
    """
    stats = [(s.st_size, s.st_mtime_ns, s.st_ino) for s in map(os.stat, files)]
    return hashlib.blake2b(repr(stats).encode(), digest_size=12).hexdigest()
