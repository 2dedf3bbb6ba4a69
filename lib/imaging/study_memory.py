"""Keep what was read from DICOM headers from one start of a program to the next: a folder with 20,000 slices takes 40 seconds to read."""

import hashlib
import json
import logging
from pathlib import Path

import numpy as np

from lib.common.atomic_files import write_text
from lib.common.errors import VolumeError
from lib.imaging.dicom import frames, stacks
from lib.imaging.dicom.stacks import Stack
from lib.imaging.volume import SourceFrame

STACKS = "stacks"  # Second part of the keys under which stacks are remembered; the first part is the version of their files.

logger = logging.getLogger(__name__)


def load_stacks(file: Path, root: Path) -> dict:
    """Return what `save_stacks` has written, or nothing if the file is missing, damaged or made by other rules than those of today.

    Args:
        root: Studies folder, to which the paths in the file are relative.
    """
    try:
        content = json.loads(file.read_text())
        if content["rules"] != _rules():
            return {}
        return {(version, STACKS): _parse(entry, root) for version, entry in content["stacks"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, LookupError, TypeError) as e:
        logger.warning("The DICOM headers are read again, because %s cannot be used: %s", file, e)
        return {}


def save_stacks(memory: dict, file: Path, root: Path) -> None:
    """Write the stacks, and the reasons why there are none, that a memory (see `FolderScan`) holds, to a file for this user alone."""
    entries = {key[0]: _to_json(value, root) for key, value in memory.items() if key[1] == STACKS}
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(file, json.dumps({"rules": _rules(), "stacks": entries}))
    except OSError as e:
        logger.warning("The DICOM headers will be read again at the next start, because %s cannot be written: %s", file, e)


def _rules() -> str:
    """Return a digest of the code that finds stacks: what it found must not outlive it."""
    code = b"".join(Path(module.__file__).read_bytes() for module in (frames, stacks))
    return hashlib.blake2b(code, digest_size=8).hexdigest()


def _to_json(value: list[Stack] | VolumeError, root: Path) -> str | list[dict]:
    if isinstance(value, VolumeError):
        return str(value)
    return [
        {
            "series_uid": s.series_uid, "description": s.description, "shape": s.shape, "problem": s.problem, "warnings": s.warnings,
            "affine": None if s.affine is None else s.affine.tolist(),
            "frames": [(f.path.relative_to(root).as_posix(), f.sop_instance_uid, f.number) for f in s.frames],
        }
        for s in value
    ]  # fmt: skip


def _parse(entry: str | list[dict], root: Path) -> list[Stack] | VolumeError:
    if isinstance(entry, str):
        return VolumeError(entry)
    return [
        Stack(
            s["series_uid"], s["description"], tuple(SourceFrame(root / path, uid, number) for path, uid, number in s["frames"]),
            tuple(s["shape"]), None if s["affine"] is None else np.array(s["affine"]), s["problem"], tuple(s["warnings"]),
        )
        for s in entry
    ]  # fmt: skip
