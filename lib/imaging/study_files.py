"""The files of a studies folder: which are images, which belong to DICOM, and why the others are left out."""

import hashlib
import os
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

from lib.common.errors import VolumeError
from lib.imaging.dicom.frames import DICOM_ENDINGS, is_dicom
from lib.imaging.formats.itk_files import data_file
from lib.imaging.formats.nifti import nifti_pair
from lib.imaging.readers import READ_ERRORS

# Those that end like another one come first.
IMAGE_ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", ".nhdr", ".mhd", ".hdr.gz", ".hdr")
LABEL_ENDINGS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha")  # .mhd is left out because it consists of two files.
MAX_DEPTH = 6  # Levels of subfolders, as in CENTRE/PATIENT/STUDY/SERIES.
_OWN_NAMES = ("sam2_rounds", "dataset.json", ".lock")  # Written by the server, or read by other commands.
_LABEL_FOLDERS = ("labels", "labelsTr", "labelsTs")  # Those of MONAI Label, the Medical Segmentation Decathlon and nnU-Net.
_HEADER_ENDINGS = (".hdr", ".hdr.gz", ".mhd", ".nhdr")
_VOXEL_ENDINGS = (".img", ".img.gz", ".raw", ".raw.gz", ".zraw")
_PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".gif", ".bmp", ".tif", ".tiff", ".svs", ".webp", ".pdf")


def split_ending(name: str, endings: Sequence[str] = (*IMAGE_ENDINGS, *DICOM_ENDINGS)) -> tuple[str, str]:
    """Return a file name without its last ending, and that ending; it is "" if it is none of `endings`, in any letter case.

    >>> split_ending("scan.2024.01.nii.gz"), split_ending("A.NII"), split_ending("a.nii.nii.gz"), split_ending("1.2.840.7")
    (('scan.2024.01', '.nii.gz'), ('A', '.NII'), ('a.nii', '.nii.gz'), ('1.2.840.7', ''))
    """
    ending = next((e for e in endings if name.lower().endswith(e) and len(name) > len(e)), "")
    return name[: len(name) - len(ending)], name[len(name) - len(ending) :]


class FolderScan:
    """One look at the files of a folder and its subfolders.

    Args:
        root: The folder, without links in its path.
        excluded: Names in it that are not looked at, besides those of the server's own files.
        patterns: If not empty, patterns of which an image file's name must match one.
        memory: What an earlier scan has read (its attribute `memory`).

    Attributes:
        images: Image files in the order of folders and names, each with all the files that it consists of (itself first).
        dicom: DICOM files by folder.
        left_out: Paths within the folder that are no images, with the reasons.
        memory: What was read from files, by their versions.
    """

    def __init__(self, root: Path, excluded: Collection[str], patterns: Sequence[str], memory: dict):
        self.root, self._patterns, self._earlier = root, patterns, memory
        self._versions: dict[Path, tuple[int, int, int]] = {}  # Size, time and inode of each file.
        self.images: dict[Path, tuple[Path, ...]] = {}
        self.dicom: dict[Path, list[Path]] = {}
        self.left_out: dict[str, str] = {}
        self.memory: dict = {}
        self._visit(root, 0, {*excluded, *_OWN_NAMES})

    def name(self, path: Path) -> str:
        """Return a path relative to the folder, with / between names."""
        return path.relative_to(self.root).as_posix()

    def version(self, files: Iterable[Path]) -> str:
        """Return a digest of the names, sizes, times and inodes of files."""
        text = repr([(self.name(f), self._versions.get(f)) for f in sorted(files)])
        return hashlib.blake2b(text.encode(errors="replace"), digest_size=12).hexdigest()

    def leave_out(self, path: Path, reason: str) -> None:
        """Note why a path is left out."""
        self.left_out[self.name(path).encode(errors="replace").decode()] = reason

    def recall(self, key: Hashable, make: Callable):
        """Return `make()`, from memory if it was made for this key before. The key holds the versions of the files that are read."""
        self.memory[key] = self._earlier[key] if key in self._earlier else make()
        return self.memory[key]

    def _visit(self, folder: Path, depth: int, excluded: Collection[str] = ()) -> None:
        """Sort the files of a folder and its subfolders."""
        files, subfolders = [], []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if entry.name in excluded or entry.name.endswith(".tmp") or entry.name.startswith("datastore_v2.json"):
                    continue
                path = folder / entry.name
                try:
                    if reason := self._reason_to_leave_out(entry):
                        self.leave_out(path, reason)
                    elif entry.is_dir():
                        subfolders.append(path)
                    else:
                        stat = entry.stat()
                        self._versions[path] = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
                        files.append(path)
                except OSError as e:  # It may have been deleted meanwhile.
                    self.leave_out(path, f"It cannot be read ({e.strerror}).")
        self._sort(files)
        for subfolder in subfolders:
            if depth == MAX_DEPTH:
                self.leave_out(subfolder, f"Folders more than {MAX_DEPTH} levels deep are not looked at.")
                continue
            try:
                self._visit(subfolder, depth + 1)
            except OSError as e:
                self.leave_out(subfolder, f"It cannot be read ({e.strerror}).")

    def _reason_to_leave_out(self, entry: os.DirEntry) -> str:
        """Return why an entry of a folder is left out because of its kind, or ""."""
        if entry.name.startswith("."):
            return "Hidden files are not offered."
        if entry.is_symlink():
            target = Path(os.path.realpath(entry.path))
            if not target.exists():
                return "The link leads nowhere."
            if self.root not in target.parents:
                return "The link leads out of the studies folder: copy the images into it."
            if target.is_dir():
                return "The link leads to another folder of the studies."
        if entry.is_dir():
            return "Folders of label maps are not offered as images." if entry.name in _LABEL_FOLDERS else ""
        if not entry.is_file():
            return "This is no file."
        if entry.stat().st_size == 0 and not entry.name.lower().endswith(DICOM_ENDINGS):  # A series must not lose its slices silently.
            return "The file is empty."
        return "" if os.access(entry.path, os.R_OK) else "The server has no right to read it."

    def _sort(self, files: list[Path]) -> None:
        """Sort the files of one folder into images, DICOM files, and those that are left out."""
        names = tuple(f.name for f in files)
        voxel_files, others = set(), []
        for file in files:
            if file.name.lower().endswith(".seg.nrrd"):
                self.leave_out(file, "This is a label map: labels belong in the folder labels/final.")
            elif not split_ending(file.name, IMAGE_ENDINGS)[1]:
                others.append(file)
            else:
                image_files, reason = (file,), ""
                if file.name.lower().endswith(_HEADER_ENDINGS):
                    image_files, reason = self.recall((file, self._versions[file], names), lambda file=file: _files_of_image(file))
                voxel_files.update(image_files[1:])
                reason = reason or self._reason_of_pattern(file)
                if reason:
                    self.leave_out(file, reason)
                else:
                    self.images[file] = image_files
        for file in others:
            name = file.name.lower()
            if file in voxel_files or name == "dicomdir":
                continue
            if name.endswith(_VOXEL_ENDINGS):
                self.leave_out(file, "The voxels have no header beside them (.hdr, .mhd or .nhdr).")
            elif name.endswith(_PICTURE_ENDINGS):
                self.leave_out(file, "Pictures and documents are no volumes.")
            elif not name.endswith(DICOM_ENDINGS) and not self.recall((file, self._versions[file]), lambda file=file: is_dicom(file)):
                self.leave_out(file, "This is no image in a format that can be read.")
            elif reason := self._reason_of_pattern(file):
                self.leave_out(file, reason)
            else:
                self.dicom.setdefault(file.parent, []).append(file)

    def _reason_of_pattern(self, file: Path) -> str:
        """Return why the patterns leave out an image file, or ""."""
        if not self._patterns or any(fnmatch(file.name.lower(), p.lower()) for p in self._patterns):
            return ""
        return f"MONAI_LABEL_DATASTORE_FILE_EXT asks for {', '.join(self._patterns)} only."


def _files_of_image(file: Path) -> tuple[tuple[Path, ...], str]:
    """Return all files of an image whose header is `file`, and why it cannot be read, or ""."""
    try:
        pair = nifti_pair(file)
        voxels = pair[1] if pair else None
        if file.suffix.lower() in (".mhd", ".nhdr"):
            voxels = data_file(file)
    except VolumeError as e:
        return (file,), str(e)
    except READ_ERRORS:
        return (file,), "Its header is damaged."
    if voxels is None:
        return (file,), ""
    if not voxels.is_file():
        return (file,), f"Its voxels, {voxels.name}, are missing."
    if voxels.is_symlink():
        return (file,), f"Its voxels, {voxels.name}, are a link: copy the file."
    return (file, voxels), ""
