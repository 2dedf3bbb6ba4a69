"""The history of labels: what was replaced or removed, with who made it, when, with which checkpoint, and on which image content.

A label of the history is a file labels/history/IMAGE/NAME, with its description beside it in NAME.json.
"""

import json
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from monailabel.datastore.local import DataModel

from lib.common.errors import ConflictError, UserError
from lib.serving.datastore.transaction import Retirement, description_file

FOLDER = "history"  # In the folder of labels; no tag may have this name.
DIGEST = "digest"  # Field of an image's and of a label's info: the digest of the image's content.
GONE, EXCHANGED = "the image's file is gone", "the image's file was exchanged"  # Reasons; such labels come back with their image.
SERIES = "SeriesInstanceUID"  # Field of an image's and a label's info: the series in the DICOM store that holds it.
_OWN_FIELDS = ("temporary", "ts", "name", SERIES, "StudyInstanceUID")  # Of a label's info; they say where it was stored.
_FIELDS = ("client", "user", "checkpoint", DIGEST)


class LabelHistory:
    """The history of the labels in a folder.

    Args:
        labels: The folder of labels, which holds the history.
    """

    def __init__(self, labels: str | Path):
        self.folder = Path(labels, FOLDER)

    def plan(self, image: str, tag: str, label: DataModel, file: Path, reason: str, *, stays: bool) -> Retirement:
        """Return the retirement of a label with the tag `tag`, for a `Change`.

        Args:
            label: The label's entry.
            file: The label's file.
            reason: Words that say what becomes of the label in its place.
            stays: See `Retirement`.
        """
        name = f"{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}_{uuid.uuid4().hex[:6]}{label.ext}"
        description = {**describe_label(tag, label.info), "retired": int(time.time()), "reason": reason, "info": label.info}
        return Retirement(file, self.folder / image / name, json.dumps(description, default=str), stays)

    def items(self, image: str, digest: str) -> list[dict]:
        """Return the descriptions of an image's labels in the history, the newest first.

        Each has name, tag, client, user, time, checkpoint, structures, digest, retired (time), reason, series (of the DICOM SEG that was
        stored of it, or None) and restorable: whether it was made for the image's present content, whose digest is `digest`.
        """
        files = [f for f in (self.folder / image).glob("[!.]*") if not f.name.endswith((".json", ".tmp"))]
        items = []
        for file in sorted(files, reverse=True):
            description = _read(description_file(file))
            info = description.pop("info", None)
            series = info.get(SERIES) if isinstance(info, dict) else None
            is_restorable = description.get(DIGEST) in ("", None, digest)
            items.append({"name": file.name, **description, "series": series, "restorable": is_restorable})
        return items

    def images(self) -> list[str]:
        """Return the ids of the images with labels in the history, among them images that are no longer there."""
        return sorted(f.name for f in self.folder.glob("*/") if any(f.iterdir())) if self.folder.is_dir() else []

    def find(self, image: str, name: str, digest: str) -> tuple[Path, str, dict]:
        """Return file, tag and info of a label in the history.

        Raises:
            UserError: There is no such label.
            ConflictError: It was made for another content of the image than the present one, whose digest is `digest`.
        """
        item = next((item for item in self.items(image, digest) if item["name"] == name), None)
        if item is None:
            raise UserError(f"The history of {image} holds no label called {name}: list it to see the names.")
        if not item["restorable"]:
            raise ConflictError(f"The label {name} was made for another image that was called {image}: bring that image back first.")
        file = self.folder / image / name
        return file, str(item.get("tag") or "final"), _read(description_file(file)).get("info") or {}

    def of_returned_image(self, image: str, digest: Callable[[], str]) -> list[tuple[Path, str, dict]]:
        """Return file, tag and info of the labels that went when the image did, the newest of each tag, if it is the same image again.

        Args:
            digest: Returns the digest of the image's present content; called only if there are such labels.
        """
        found = {}
        for item in self.items(image, ""):
            if item.get("reason") in (GONE, EXCHANGED) and item.get(DIGEST) and item[DIGEST] == digest():
                file = self.folder / image / item["name"]
                found.setdefault(item["tag"], (file, item["tag"], _read(description_file(file)).get("info") or {}))
        return list(found.values())

    def leftovers(self) -> list[Path]:
        """Return the temporary files that a killed server has left."""
        return list(self.folder.glob("*/*.tmp")) + list(self.folder.glob("*/.*.tmp"))


def restoration(name: str, by: dict) -> dict:
    """Return the fields of a label's info that say that it was restored under the name it had in the history, and by whom."""
    return {"restored": name, "restored_by": by}


def without_storage(info: dict) -> dict:
    """Return a label's info without the fields that say where and when it was stored."""
    return {key: value for key, value in info.items() if key not in _OWN_FIELDS}


def describe_label(tag: str, info: dict) -> dict:
    """Return who made a label, when, with which checkpoint, on which image content, and the names of its structures."""
    fields = {name: info.get(name) or "" for name in _FIELDS}
    rows = info.get("label_info") if isinstance(info.get("label_info"), list) else []
    structures = [str(row.get("name")) for row in rows if isinstance(row, dict) and row.get("name")]
    client = fields["client"] or info.get("client_id") or ""
    return {"tag": tag, "time": _time(info.get("ts")), **fields, "client": client, "structures": structures}


def _read(file: Path) -> dict:
    """Return a description; it is empty if it is missing or damaged."""
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _time(value) -> int | None:
    """Return a time in seconds since 1970 that a client may have set, or None if it is no time before the year 10000."""
    return int(value) if isinstance(value, int | float) and 0 <= value < 253_402_300_800 else None
