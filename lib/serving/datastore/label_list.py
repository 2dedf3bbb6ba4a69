"""The command `main.py labels`: the labels of a studies folder with their history, as lines of text."""

import getpass
import logging
import time
from collections.abc import Iterator
from pathlib import Path

from lib.common.errors import OptionError
from lib.serving.datastore.history import list_labels, restore_label
from lib.serving.datastore.studies import StudiesDatastore


def list_labels_of_folder(studies: str, image: str | None = None) -> Iterator[str]:
    """Yield a line for each label of a studies folder, the history of an image after its present labels.

    Args:
        image: Id of the only image that is listed, or None for all.

    Raises:
        OptionError: There is no such folder, or no such image in it.
    """
    store = _open(studies)
    images = sorted({*store.list_images(), *store.history.images()})
    if image and image not in images:
        raise OptionError(f"There is no image {image} in {studies}.")
    yield f"{'image':24} {'label':36} {'made':16} {'by':14} {'checkpoint':12} structures"
    for image_id in [image] if image else images:
        listed = list_labels(store, image_id)
        for label in listed["labels"]:
            yield _line(image_id, label["tag"], label, "")
        for item in listed["history"]:
            note = item.get("reason", "") if item["restorable"] else f"{item.get('reason', '')}; of another image called so"
            yield _line(image_id, item["name"], item, f" ({note})")


def restore_label_of_folder(studies: str, image: str | None, name: str) -> str:
    """Make a label of the history the present one, and return a sentence about it.

    Raises:
        OptionError: There is no such folder, or no image is given.
        UserError: There is no such label, or it belongs to another image content.
    """
    if not image:
        raise OptionError("Say with --image ID which image the label belongs to.")
    tag = restore_label(_open(studies), image, name, {"user": getpass.getuser()})
    return f"The label {name} is the label {tag} of {image} again; the one before it is in the history."


def _open(studies: str) -> StudiesDatastore:
    if not Path(studies).is_dir():
        raise OptionError(f"There is no folder {studies}.")
    logging.getLogger("lib.serving.datastore").setLevel(logging.WARNING)
    logging.getLogger("monailabel").setLevel(logging.WARNING)
    return StudiesDatastore(studies)


def _line(image: str, label: str, fields: dict, note: str) -> str:
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime(fields["time"])) if fields.get("time") else ""
    who = fields.get("user") or fields.get("client") or ""
    structures = ", ".join(fields.get("structures") or ())
    return f"{image:24} {label:36} {made:16} {who:14} {fields.get('checkpoint') or '':12} {structures}{note}".rstrip()
