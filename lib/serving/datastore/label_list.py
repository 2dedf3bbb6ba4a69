"""The command `main.py labels`: the labels of a studies folder or a DICOM store with their history, as lines of text."""

import getpass
import logging
import time
from collections.abc import Iterator

from lib.common.errors import OptionError
from lib.serving.datastore.folder import FolderDatastore
from lib.serving.datastore.mixin import open_datastore


def list_labels(studies: str, image: str | None = None) -> Iterator[str]:
    """Yield a line for each label of a studies folder or a DICOM store, the history of an image after its present labels.

    Args:
        studies: The folder, or the DICOMweb address.
        image: Id of the only image that is listed, or None for all.

    Raises:
        OptionError: The studies cannot be opened, or there is no such image in them.
    """
    store = _open(studies)
    images = sorted({*store.list_images(), *store.history.images()})
    if image and image not in images:
        raise OptionError(f"There is no image {image} in {studies}.")
    rows = [("image", "label", "made", "by", "checkpoint", "structures")]
    for image_id in [image] if image else images:
        listed = store.list_labels(image_id)
        rows += [_row(image_id, label["tag"], label, "") for label in listed["labels"]]
        for item in listed["history"]:
            note = item.get("reason", "") if item["restorable"] else f"{item.get('reason', '')}; of another image called so"
            rows.append(_row(image_id, item["name"], item, f" ({note})"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(f"{text:{width}}" for text, width in zip(row, widths, strict=True)).rstrip()


def restore_label(studies: str, image: str | None, name: str) -> str:
    """Make a label of the history the present one, and return a sentence about it.

    Raises:
        OptionError: The studies cannot be opened, or no image is given.
        UserError: There is no such label, or it belongs to another image content.
    """
    if not image:
        raise OptionError("Say with --image ID which image the label belongs to.")
    tag = _open(studies).restore_label(image, name, {"user": getpass.getuser()})
    return f"The label {name} is the label {tag} of {image} again; the one before it is in the history."


def _open(studies: str) -> FolderDatastore:
    """Open a datastore for a command that prints no messages but warnings; OptionError if that fails."""
    for name in ("lib.serving.datastore", "monailabel", "dicomweb_client"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return open_datastore(studies)


def _row(image: str, label: str, fields: dict, note: str) -> tuple[str, ...]:
    """Return the texts of a line: image, label, when and by whom it was made, with which checkpoint, and its structures with a note."""
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(fields["time"])) if fields.get("time") else ""
    who = fields.get("user") or fields.get("client") or ""
    return image, label, made, who, fields.get("checkpoint") or "", ", ".join(fields.get("structures") or ()) + note
