"""What is known about volumes in work: per structure the annotated slices, how good each slice is expected to be, what to do next.

Records are written before a request is answered, so that a server killed between two rounds loses nothing that it said; several
server processes on one folder see each other's. They hold numbers, names and the last mask, no image data.
"""

import hashlib
import io
import json
import logging
import threading
import time
import zipfile
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from lib.common.atomic_files import write_bytes, write_text
from lib.engine.result import Result
from lib.imaging import masks, metrics
from lib.imaging.frames import Frames
from lib.quality.next_slice import Proposal, RoundState, learned_dice_shift, propose_next_slice

MOST_STRUCTURES = 24  # of one volume
MOST_LEARNED = 20

logger = logging.getLogger(__name__)


class AnnotationRecords:
    """Records by image and structure.

    A record holds label, axis, slices, annotated, areas (pixels of the mask on each slice), expected_dice (of each slice),
    volume_dice (expected), proposal (fields of `lib.quality.next_slice.Proposal`, or None), learned (pairs of expected and true Dice of slices
    that were corrected), checkpoint, client, time (seconds since 1970).

    Args:
        folder: where records are written, one file for each image, masks beside it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._lock = threading.Lock()

    def note(self, image: str, request: dict, frames: Frames, result: Result, checkpoint: str, keep: bool = True) -> dict:
        """The record of an answer.

        Args:
            image: id of the image. request: with label, client_id and foreground, as clients send them.
            keep: False only computes it.
        """
        mask = frames.from_volume(result.mask)
        annotated = frozenset(result.annotated)
        structure = structure_of(request)
        with self._lock:
            known = self.of(image)
            before = known.get(structure) or {}
            learned = self._learned(before, image, structure, annotated, mask)
            shift = learned_dice_shift(*zip(*learned, strict=True)) if learned else 0.0
            scene = RoundState(frames, None, result, mask, annotated, shift)
            proposal = propose_next_slice(scene)
            record = {
                "label": _name(request), "axis": frames.axis, "slices": len(frames), "annotated": sorted(annotated),
                "areas": [int(n) for n in scene.area], "expected_dice": [round(float(d), 3) for d in scene.expected_dice],
                "volume_dice": round(scene.expected_volume_dice, 3), "proposal": proposal and _plain(proposal),
                "learned": learned, "checkpoint": checkpoint, "client": str(request.get("client_id") or ""), "time": _after(known),
            }  # fmt: skip
            if keep:
                known[structure] = record
                newest = sorted(known, key=lambda s: known[s]["time"])[-MOST_STRUCTURES:]
                try:
                    write_bytes(self._mask_file(image, structure), _packed(mask))
                    write_text(self._file(image), json.dumps({s: known[s] for s in newest}))
                except OSError as e:  # the annotator gets the mask all the same
                    logger.warning("Cannot write to %s: %s. The state of this volume will be lost.", self.folder, e)
                for structure in known.keys() - set(newest):
                    self._mask_file(image, structure).unlink(missing_ok=True)
        return record

    def of(self, image: str) -> dict[str, dict]:
        """{structure: record} of an image; nothing for one that was not worked on, or whose file cannot be read."""
        return _read(self._file(image))

    def all(self) -> dict[str, dict[str, dict]]:
        """The same of all images."""
        files = self.folder.glob("*.json") if self.folder.is_dir() else ()
        return {unquote(f.stem): records for f in files if (records := _read(f))}

    def forget(self, image: str) -> None:
        """Drops what is known of an image."""
        with self._lock:
            for structure in self.of(image):
                self._mask_file(image, structure).unlink(missing_ok=True)
            self._file(image).unlink(missing_ok=True)

    def mask(self, image: str, structure: str) -> np.ndarray | None:
        """The last answer, bool (T, Y, X), or None."""
        try:
            return _unpacked(self._mask_file(image, structure))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def _learned(self, before: dict, image: str, structure: str, annotated: frozenset[int], mask: np.ndarray) -> list:
        """Pairs (expected, true) of slices corrected in this and earlier rounds; none after a fresh start."""
        old = set(before.get("annotated", ()))
        if not old & annotated or before.get("slices") != len(mask):
            return []
        learned, shown = list(before.get("learned", ())), self.mask(image, structure)
        if shown is not None and old < annotated and shown.shape == mask.shape:
            learned += [
                [before["expected_dice"][t], round(metrics.dice(shown[t], mask[t]), 3)] for t in sorted(annotated - old)
            ]  # fmt: skip
        return learned[-MOST_LEARNED:]

    def _file(self, image: str) -> Path:
        return self.folder / f"{quote(image, safe='')}.json"

    def _mask_file(self, image: str, structure: str) -> Path:
        name = hashlib.blake2b(structure.encode(), digest_size=8).hexdigest()
        return self._file(image).with_suffix("") / f"{name}.npz"


def _packed(mask: np.ndarray) -> bytes:
    """A file of a bool (T, Y, X) mask: the bits within its bounding box."""
    box = masks.bounding_box(mask) or (slice(0, 0),) * 3
    out = io.BytesIO()
    corners = [[s.start, s.stop] for s in box]
    np.savez_compressed(out, shape=mask.shape, box=corners, bits=np.packbits(mask[box]))
    return out.getvalue()


def _unpacked(file: Path) -> np.ndarray:
    with np.load(file, allow_pickle=False) as content:
        out = np.zeros(content["shape"], bool)
        part = out[tuple(slice(*pair) for pair in content["box"])]
        part[:] = np.unpackbits(content["bits"], count=part.size).reshape(part.shape)
    return out


def _read(file: Path) -> dict[str, dict]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def structure_of(request: dict) -> str:
    """What tells structures of one image apart: the label's name; without one, as from OHIF, the first click.

    >>> structure_of({"label": "spleen"}), structure_of({"foreground": [[3, 4, 5], [1, 1, 1]]}), structure_of({})
    ('spleen', '@3,4,5', '')
    """
    first = request.get("foreground") or [None]
    if isinstance(first, str):
        first = json.loads(first) or [None]
    return _name(request) or ("" if first[0] is None else "@" + ",".join(str(round(float(v))) for v in first[0]))


def _name(request: dict) -> str:
    """Of the structure; with an uploaded painting, whose path "label" is, Slicer sends the name as "selected_label_name"."""
    names = (request.get("label"), request.get("selected_label_name"))
    return next((n for n in names if isinstance(n, str) and n and "/" not in n and "\\" not in n), "")


def _plain(proposal: Proposal) -> dict:
    return {**proposal.__dict__, "expected_dice": round(proposal.expected_dice, 3), "point": proposal.point and list(proposal.point)}


def _after(known: dict[str, dict]) -> float:
    """Now, but later than every record: the newest is the newest, also after the clock was set back."""
    return max([time.time(), *(r.get("time", 0) + 1e-3 for r in known.values())])
