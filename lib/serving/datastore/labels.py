"""The names of structures, and access to submitted labels."""

import os
from collections.abc import Iterable, Mapping
from itertools import chain, count
from pathlib import Path

import numpy as np

from lib.common.errors import OptionError, PromptError
from lib.imaging.dicom.segmentations import label_values

DEFAULT_LABELS = (
    "lesion", "tumor", "liver", "spleen", "kidney_left", "kidney_right", "pancreas", "gallbladder", "stomach", "urinary_bladder",
    "prostate", "aorta", "inferior_vena_cava", "heart", "lung_left", "lung_right", "brain", "vertebra", "bone", "muscle", "other",
)  # fmt: skip


BACKGROUND = "background"  # Names no structure: a list that holds it names the value 0 by it.
MAX_NAME_LENGTH = 64  # characters that a segment's name in DICOM can have


def parse_labels(text: str | None) -> list[str]:
    """Return the names in the value of `--conf labels`, or the default names if it is empty. A name "background" is left out.

    >>> parse_labels("spleen, background, liver,spleen")
    ['spleen', 'liver']

    Raises:
        OptionError: A name cannot be written as DICOM.
    """
    names = [n.strip() for n in (text or "").split(",") if n.strip() and n.strip().casefold() != BACKGROUND]
    for name in names:
        if len(name) > MAX_NAME_LENGTH or "\\" in name or not name.isprintable():
            raise OptionError(f"The label {name[:80]!r} in --conf labels must have up to {MAX_NAME_LENGTH} characters and no backslash.")
    return list(dict.fromkeys(names)) or list(DEFAULT_LABELS)


def unique_names(values: Iterable[int], names: Mapping[int, str]) -> dict[int, str]:
    """Return a name for each value; one without a name is called label_3, and of several with one name, the later ones are numbered.

    >>> unique_names([1, 2, 3, 4], {1: "cyst", 2: "", 3: "cyst"})
    {1: 'cyst', 2: 'label_2', 3: 'cyst (2)', 4: 'label_4'}
    """
    unique: dict[int, str] = {}
    for value in values:
        name = names.get(value) or f"label_{value}"
        others = set(unique.values())
        unique[value] = next(n for n in chain([name], (f"{name} ({k})" for k in count(2))) if n not in others)
    return unique


def structure_name(request: dict) -> str:
    """Return the name of the structure that an inference request is about, or "" if it has none.

    With an uploaded label map, "label" is the path of that file, and 3D Slicer sends the name as "selected_label_name".
    """
    names = (request.get("label"), request.get("selected_label_name"))
    return next((n for n in names if isinstance(n, str) and n.strip() and not os.path.isabs(n)), "")


def label_path(datastore, image: str, tag: str) -> Path | None:
    """Return the path of an image's label with a tag, or None if there is none. One in a DICOM store is fetched.

    Raises:
        UserError: The label does not fit the image.
    """
    label_id = datastore.get_label_by_image_id(image, tag)
    path = datastore.get_label_uri(label_id, tag) if label_id else ""
    return Path(path) if path else None


def label_names(datastore, image: str, tag: str) -> dict[int, str]:
    """Return the names of the values in a saved label map, as far as somebody has given them names."""
    info = datastore.get_label_info(image, tag) or {}
    rows = info.get("label_info") or (info.get("params") or {}).get("label_info") or []
    pairs = ((row.get("idx", row.get("id", n + 1)), row.get("name")) for n, row in enumerate(rows) if isinstance(row, dict))
    return {int(value): str(name) for value, name in pairs if name and str(value).isdigit() and name != f"label_{value}"}


def named_masks(labels: np.ndarray, names: Mapping[int, str]) -> dict[str, np.ndarray]:
    """Return the masks of the structures in a label map by their names, of which values without one have those of `unique_names`."""
    return {name: labels == value for value, name in unique_names(label_values(labels), names).items()}


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
