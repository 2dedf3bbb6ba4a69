"""The names of structures, and access to submitted labels."""

import os
from pathlib import Path

import numpy as np
from monailabel.datastore.local import LocalDatastore

from lib.common.errors import PromptError

DEFAULT_LABELS = (
    "lesion", "tumor", "liver", "spleen", "kidney_left", "kidney_right", "pancreas", "gallbladder", "stomach", "urinary_bladder",
    "prostate", "aorta", "inferior_vena_cava", "heart", "lung_left", "lung_right", "brain", "vertebra", "bone", "muscle", "other",
)  # fmt: skip


def parse_labels(text: str | None) -> list[str]:
    """Return the names in the value of `--conf labels`, or the default names if it is empty.

    >>> parse_labels("spleen, liver,spleen")
    ['spleen', 'liver']
    """
    names = [n.strip() for n in (text or "").split(",") if n.strip()]
    return list(dict.fromkeys(names)) or list(DEFAULT_LABELS)


def structure_name(request: dict) -> str:
    """Return the name of the structure that an inference request is about, or "" if it has none.

    With an uploaded label map, "label" is the path of that file, and 3D Slicer sends the name as "selected_label_name".
    """
    names = (request.get("label"), request.get("selected_label_name"))
    return next((n for n in names if isinstance(n, str) and n.strip() and not os.path.isabs(n)), "")


def label_path(datastore, image: str, tag: str) -> Path | None:
    """Return the path of an image's label with a tag, or None if there is none."""
    label_id = datastore.get_label_by_image_id(image, tag)
    if not label_id:
        return None
    # A DICOM datastore would download a series with the label's id, but the submitted file lies in its cache.
    kind = LocalDatastore if isinstance(datastore, LocalDatastore) else type(datastore)
    return Path(kind.get_label_uri(datastore, label_id, tag))


def label_names(datastore, image: str, tag: str) -> dict[int, str]:
    """Return the names of the values in a label map, as the client has submitted them."""
    info = datastore.get_label_info(image, tag) or {}
    rows = info.get("label_info") or info.get("params", {}).get("label_info") or []
    pairs = ((row.get("idx", row.get("id", n + 1)), row.get("name")) for n, row in enumerate(rows) if isinstance(row, dict))
    return {int(value): str(name) for value, name in pairs if name and str(value).isdigit()}


def saved_label(datastore, image: str, request: dict) -> dict | None:
    """Return the saved label whose slices a request uses as prompts, or None if it uses none ("mask_slices" is empty).

    Returns:
        A dict with "tag", "path" (None if no label is saved under that tag) and "names" (see `label_names`).
    """
    if not request.get("mask_slices"):
        return None
    tag = str(request.get("mask_tag") or "final")
    path = label_path(datastore, image, tag)
    return {"tag": tag, "path": path and str(path), "names": label_names(datastore, image, tag) if path else {}}


def structure_in(labels: np.ndarray, names: dict[int, str], structure: str) -> np.ndarray:
    """Return the mask, bool (I, J, K), of a structure in a label map.

    Args:
        labels: Integers (I, J, K).
        names: Names of the values, as far as they have any.
        structure: Name of the structure. If it is empty or no value has this name, a label map with a single value will do, unless
            that value has another name.

    Raises:
        PromptError: The label map does not hold the structure, or the choice between several is open.
    """
    value = next((v for v, name in names.items() if structure and name == structure), None)
    if value is None:
        values = [int(v) for v in np.unique(labels) if v > 0]
        if len(values) != 1 or (structure and values[0] in names):
            content = ", ".join(names.get(v, f"label_{v}") for v in values) or "nothing"
            raise PromptError(f"The saved label holds {content}: name one of these in the field 'label'.")
        value = values[0]
    return labels == value
