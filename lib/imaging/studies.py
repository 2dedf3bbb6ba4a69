"""Which images a studies folder holds, under which ids: files of all formats that can be read, DICOM folders, multi-frame DICOM files.

An image's id is made from its name. Once an id belongs to an image, it stays its own when further files are added.
"""

import json
import logging
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from lib.imaging.study_files import LABEL_ENDINGS, FolderScan, split_ending
from lib.imaging.study_images import Candidate, StudyImage, find_candidates, path_name
from lib.imaging.study_memory import STACKS, load_stacks, save_stacks

SOURCE = "source"  # Field of an image's info in datastore_v2.json with the key of the image, unless that is its id with its ending.
MAX_ID_LENGTH = 200

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listing:
    """What a studies folder holds.

    Attributes:
        images: The images by id.
        refused: Ids that name no image, with a sentence that says why: the image cannot be used, or it is open which one is meant.
        left_out: Paths within the folder that are not listed, with the reasons.
    """

    images: dict[str, StudyImage] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


class StudiesFolder:
    """The images of a folder. What was read from headers is kept in memory until the files change.

    Args:
        folder: The studies folder.
        excluded: Names in it that are not looked at.
        patterns: If not empty, patterns of which an image file's name must match one.
        memory_file: File that keeps what was read from DICOM headers for the next start, or None.
    """

    def __init__(
        self, folder: str | Path, excluded: Collection[str] = ("labels",), patterns: Sequence[str] = (), memory_file: Path | None = None
    ):  # fmt: skip
        self._folder, self._excluded, self._patterns = Path(os.path.realpath(folder)), excluded, patterns
        self._memory_file = memory_file
        self._memory = load_stacks(memory_file, self._folder) if memory_file else {}
        self._logged: set[tuple[str, str]] = set()

    def list_images(self, known: Mapping[str, str] | None = None) -> Listing:
        """Return what the folder holds now, and log what is newly left out.

        Args:
            known: Keys of images (see `StudyImage`) by the ids that they already have. None: those in the folder's datastore_v2.json.

        Raises:
            OSError: The folder cannot be read.
        """
        scan = FolderScan(self._folder, self._excluded, self._patterns, self._memory)
        listing = _assign_ids(scan, find_candidates(scan), _known_keys(self._folder) if known is None else known)
        if self._memory_file and {k for k in self._memory if k[1] == STACKS} != {k for k in scan.memory if k[1] == STACKS}:
            save_stacks(scan.memory, self._memory_file, self._folder)
        self._memory = scan.memory
        by_reason = defaultdict(list)
        for path, reason in listing.left_out.items():
            if (path, reason) not in self._logged:
                by_reason[reason].append(path)
        self._logged = set(listing.left_out.items())
        for reason, paths in by_reason.items():
            more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
            logger.warning("Left out %s%s: %s", ", ".join(map(repr, paths[:3])), more, reason)
        return listing


def image_of_label(name: str, images: Collection[str]) -> tuple[str, str]:
    """Return the id of the image to which a label file belongs by its name, and the label's ending; images are given by their ids.

    >>> image_of_label("a.nii.gz", {"a"}), image_of_label("a.seg.nrrd", {"a"}), image_of_label("a.seg.nrrd", {"a", "a.seg"})
    (('a', '.nii.gz'), ('a', '.seg.nrrd'), ('a.seg', '.nrrd'))
    """
    pairs = [split_ending(name, [e]) for e in sorted(LABEL_ENDINGS, key=len)]
    return next((pair for pair in pairs if pair[1] and pair[0] in images), split_ending(name, LABEL_ENDINGS))


def image_key(image: str, ending: str, info: Mapping) -> str:
    """Return the key of an image (see `StudyImage`) from its entry in datastore_v2.json."""
    return str(info.get(SOURCE) or image + ending)


def _known_keys(folder: Path) -> dict[str, str]:
    """Return the keys of images by id that a folder's datastore_v2.json lists; a missing or damaged one lists none."""
    try:
        entries = json.loads((folder / "datastore_v2.json").read_text())["objects"]
        return {i: image_key(i, e["image"].get("ext", ""), e["image"].get("info", {})) for i, e in entries.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def saved_names(folder: Path) -> dict[str, dict[int, str]]:
    """Return the names of the structures in final labels, by image and value, that a folder's datastore_v2.json lists."""
    names = {}
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        for image, entry in json.loads((folder / "datastore_v2.json").read_text())["objects"].items():
            rows = entry["labels"].get("final", {}).get("info", {}).get("label_info") or []
            names[image] = {int(row["idx"]): str(row["name"]) for row in rows if row.get("name") and "idx" in row}
    return names


def _assign_ids(scan: FolderScan, candidates: list[Candidate], known: Mapping[str, str]) -> Listing:
    """Return the listing in which every candidate has an id: the one that it already has, else the first free one of its names."""
    ids_by_key = {key: i for i, key in known.items()}
    listing = Listing(left_out=scan.left_out)
    taken = {ids_by_key[c.image.key] for c in candidates if c.image.key in ids_by_key}
    choices = defaultdict(list)
    for candidate in candidates:
        name = ids_by_key.get(candidate.image.key) or _first_free(candidate.names, taken)
        taken.add(name)
        unusable = candidate.problem
        if not _is_id(name):
            unusable = f"Its name is longer than {MAX_ID_LENGTH} characters or has characters that cannot be displayed: rename it."
        if unusable:
            volume = candidate.names[0][len(candidate.container) :] if candidate.container else ""
            listing.left_out[path_name(scan, candidate.image.path) + volume] = unusable
            listing.refused[name] = f"{name} cannot be used: {unusable}"
        else:
            listing.images[name] = candidate.image
        if candidate.container:
            description = candidate.image.stack.description
            choices[candidate.container].append(f"{name} ({description}{', unusable' if unusable else ''})")
    for container, options in choices.items():
        if container not in taken:
            listing.refused[container] = f"{container} holds {len(options)} volumes: choose one of {'; '.join(options)}."
    return listing


def _first_free(names: Iterable[str], taken: Collection[str]) -> str:
    """Return the first name that is not taken, or the first one of all with a number behind."""
    names = list(names)
    return next(n for n in (*names, *(f"{names[0]}~{number}" for number in range(2, len(taken) + 3))) if n not in taken)


def _is_id(text: str) -> bool:
    return 0 < len(text) <= MAX_ID_LENGTH and text.isprintable() and text.strip(". ") != ""
