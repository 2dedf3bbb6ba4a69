"""Records of the volumes being annotated: per structure the annotated slices, the expected quality of each slice, and the next step.

A record is written before its request is answered, so a server that is killed loses nothing that it has told a client. Several server
processes on one folder see each other's records. Records hold numbers, names and the last mask, but no image data.
"""

import hashlib
import io
import json
import logging
import os
import threading
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from lib.common.atomic_files import write_bytes, write_text
from lib.engine.result import Result
from lib.imaging import masks, metrics
from lib.imaging.frames import Frames
from lib.quality.next_slice import Proposal, RoundState, learned_dice_shift, propose_next_slice
from lib.serving.datastore.labels import structure_name

MAX_STRUCTURES = 24  # Records kept per volume.
DIGEST_MARK, DIGEST_LENGTH = "@", 16  # In the names of files, between the image's id, in which @ is quoted, and the start of its digest.
MAX_CORRECTIONS = 20  # Corrected slices that a record remembers.

logger = logging.getLogger(__name__)


class AnnotationRecords:
    """Records by image and structure, kept in a folder.

    A record is a dict with these fields: label, axis, slices (their number), annotated (indices of slices), areas (pixels of the mask on
    each slice), expected_dice (of each slice), volume_dice (expected), proposal (fields of `lib.quality.next_slice.Proposal`, or None),
    learned (pairs of expected and measured Dice of slices that were corrected), checkpoint, client, time (seconds since 1970).

    Args:
        folder: Where the records are written: one JSON file for each image content, and a folder of masks beside it.
        digest_of: Returns the digest of the present content of an image by its id; "" for what is known by its id alone, as sessions are.
    """

    def __init__(self, folder: str | Path, digest_of: Callable[[str], str] = lambda image: ""):
        self.folder, self.digest_of = Path(folder), digest_of
        self._lock = threading.Lock()

    def add_round(self, image: str, request: dict, frames: Frames, result: Result, checkpoint: str, keep: bool = True) -> dict:
        """Make a record of the engine's answer, store it and return it; with `keep` False, return it without storing it.

        A folder that cannot be written to is only logged, because the annotator must get the mask all the same.

        Args:
            image: Id of the image.
            request: What the client sent, with label, client_id and foreground.
            checkpoint: Name of the checkpoint that was used.
        """
        mask = frames.from_volume(result.mask)
        annotated = frozenset(result.annotated)
        with self._lock:
            records = self.for_image(image)
            structure = record_key(records, request)
            corrections = self._corrections(records.get(structure) or {}, image, structure, annotated, mask)
            shift = learned_dice_shift(*zip(*corrections, strict=True)) if corrections else 0.0
            state = RoundState(frames, None, result.estimates, mask, annotated, shift)
            proposal = propose_next_slice(state)
            record = {
                "label": structure_name(request), "axis": frames.axis, "slices": len(frames), "annotated": sorted(annotated),
                "areas": [int(n) for n in state.area], "expected_dice": [round(float(d), 3) for d in state.expected_dice],
                "volume_dice": round(state.expected_volume_dice, 3), "proposal": proposal and _to_json(proposal),
                "learned": corrections, "checkpoint": checkpoint, "client": str(request.get("client_id") or ""),
                # Later than all records, so that the newest one stays the newest if the clock is set back.
                "time": max([time.time(), *(r.get("time", 0) + 1e-3 for r in records.values())]),
            }  # fmt: skip
            if keep:
                records[structure] = record
                newest = sorted(records, key=lambda s: records[s]["time"])[-MAX_STRUCTURES:]
                try:
                    write_bytes(self._mask_file(image, structure), _pack_mask(mask))
                    write_text(self._file(image), json.dumps({s: records[s] for s in newest}))
                except OSError as e:
                    logger.warning("Cannot write to %s: %s. The state of this volume will be lost.", self.folder, e)
                for outdated in records.keys() - set(newest):
                    self._mask_file(image, outdated).unlink(missing_ok=True)
        return record

    def for_image(self, image: str) -> dict[str, dict]:
        """Return {structure: record} of an image; it is empty if the image was not worked on or its file cannot be read."""
        prefixes = tuple(f"{quote(image, safe='')}{end}" for end in (".json", DIGEST_MARK))
        if not self.folder.is_dir() or not any(name.startswith(prefixes) for name in os.listdir(self.folder)):
            return {}  # So that the content of images nobody has worked on is not read for its digest.
        return _read_records(self._file(image))

    def by_image(self) -> dict[str, dict[str, dict]]:
        """Return {image: {structure: record}} of all images that have records."""
        files = self.folder.glob("*.json") if self.folder.is_dir() else ()
        images = {unquote(f.stem.rpartition(DIGEST_MARK)[0] or f.stem) for f in files}
        return {image: records for image in sorted(images) if (records := self.for_image(image))}

    def forget(self, image: str) -> None:
        """Delete the records and masks of an image's present content."""
        with self._lock:
            for structure in self.for_image(image):
                self._mask_file(image, structure).unlink(missing_ok=True)
            self._file(image).unlink(missing_ok=True)

    def forget_structure(self, image: str, request: dict) -> None:
        """Delete the record and the mask of the structure that a request is about, because all of its prompts are gone."""
        with self._lock:
            records = self.for_image(image)
            structure = record_key(records, request)
            if records.pop(structure, None) is None:
                return
            try:
                write_text(self._file(image), json.dumps(records))
                self._mask_file(image, structure).unlink(missing_ok=True)
            except OSError as e:
                logger.warning("Cannot write to %s: %s. The state of this volume is not up to date.", self.folder, e)

    def key_of(self, image: str, request: dict) -> str:
        """Return the key under which the record of a request is or would be kept, see `record_key`."""
        return record_key(self.for_image(image), request)

    def mask(self, image: str, structure: str) -> np.ndarray | None:
        """Return the last mask under the key of a record, bool (T, Y, X), or None if there is none that can be read."""
        try:
            return _unpack_mask(self._mask_file(image, structure))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return None

    def _corrections(self, previous: dict, image: str, structure: str, annotated: frozenset[int], mask: np.ndarray) -> list:
        """Return pairs of expected and measured Dice of the slices that were corrected in this round and before.

        The measured Dice compares the previous mask of a newly annotated slice with the present `mask`. After a fresh start, with none of
        the slices that the `previous` record has as annotated, the list is empty.
        """
        earlier = set(previous.get("annotated", ()))
        if not earlier & annotated or previous.get("slices") != len(mask):
            return []
        corrections, displayed_mask = list(previous.get("learned", ())), self.mask(image, structure)
        if displayed_mask is not None and earlier < annotated and displayed_mask.shape == mask.shape:
            for t in sorted(annotated - earlier):
                corrections.append([previous["expected_dice"][t], round(metrics.dice(displayed_mask[t], mask[t]), 3)])
        return corrections[-MAX_CORRECTIONS:]

    def _file(self, image: str) -> Path:
        digest = self.digest_of(image)
        mark = f"{DIGEST_MARK}{digest[:DIGEST_LENGTH]}" if digest else ""
        return self.folder / f"{quote(image, safe='')}{mark}.json"

    def _mask_file(self, image: str, structure: str) -> Path:
        name = hashlib.blake2b(structure.encode(), digest_size=8).hexdigest()
        file = self._file(image)
        return file.with_name(file.name.removesuffix(".json")) / f"{name}.npz"


def _pack_mask(mask: np.ndarray) -> bytes:
    """Return the content of a .npz file with a bool (T, Y, X) mask: its shape, its bounding box and the bits within."""
    box, buffer = masks.bounding_box(mask) or (slice(0, 0),) * 3, io.BytesIO()
    np.savez_compressed(buffer, shape=mask.shape, box=[[s.start, s.stop] for s in box], bits=np.packbits(mask[box]))
    return buffer.getvalue()


def _unpack_mask(file: Path) -> np.ndarray:
    """Return the bool (T, Y, X) mask of a file that `_pack_mask` made."""
    with np.load(file, allow_pickle=False) as content:
        mask = np.zeros(content["shape"], bool)
        inside = mask[tuple(slice(*pair) for pair in content["box"])]
        inside[:] = np.unpackbits(content["bits"], count=inside.size).reshape(inside.shape)
    return mask


def _read_records(file: Path) -> dict[str, dict]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def structure_of(request: dict) -> str:
    """Return the key of a request's structure among its image's records: the label's name, or without one, as from OHIF, its first click.

    >>> structure_of({"label": "spleen"}), structure_of({"foreground": [[3, 4, 5], [1, 1, 1]]}), structure_of({})
    ('spleen', '@3,4,5', '')
    """
    clicks = request.get("foreground") or [None]
    if isinstance(clicks, str):
        clicks = json.loads(clicks) or [None]
    return structure_name(request) or ("" if clicks[0] is None else "@" + ",".join(str(round(float(v))) for v in clicks[0]))


def record_key(records: dict[str, dict], request: dict) -> str:
    """Return the key of a request's record among those of its image.

    It is the structure's, and names the client as well if another client has begun that structure, so that neither overwrites the other's.

    >>> record_key({"spleen": {"client": "anna"}}, {"label": "spleen", "client_id": "ben"}), record_key({}, {"label": "spleen"})
    ('spleen by ben', 'spleen')
    """
    structure, client = structure_of(request), str(request.get("client_id") or "")
    is_of_another = structure in records and records[structure]["client"] not in ("", client)
    return f"{structure} by {client}" if is_of_another else structure


def _to_json(proposal: Proposal) -> dict:
    return {**proposal.__dict__, "expected_dice": round(proposal.expected_dice, 3), "point": proposal.point and list(proposal.point)}
