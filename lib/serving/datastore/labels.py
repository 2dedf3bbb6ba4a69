"""Names of the structures that an annotator can choose, and where submitted labels lie."""

from pathlib import Path

import numpy as np
from monailabel.datastore.local import LocalDatastore

from lib.common.errors import PromptError

DEFAULT_LABELS = (
    "lesion", "tumor", "liver", "spleen", "kidney_left", "kidney_right", "pancreas", "gallbladder", "stomach",
    "urinary_bladder", "prostate", "aorta", "inferior_vena_cava", "heart", "lung_left", "lung_right", "brain",
    "vertebra", "bone", "muscle", "other",
)  # fmt: skip


def parse_labels(text: str | None) -> list[str]:
    """Names from `--conf labels "spleen,liver"`, else the default list.

    >>> parse_labels("spleen, liver,spleen")
    ['spleen', 'liver']
    """
    names = [n.strip() for n in (text or "").split(",") if n.strip()]
    return list(dict.fromkeys(names)) or list(DEFAULT_LABELS)


def label_path(datastore, image: str, tag: str) -> Path | None:
    """The file of an image's label with that tag, or None.

    A DICOMweb store would look for a series of the label's name; the file that was submitted lies in its cache.
    """
    found = datastore.get_label_by_image_id(image, tag)
    if not found:
        return None
    kind = LocalDatastore if isinstance(datastore, LocalDatastore) else type(datastore)
    return Path(kind.get_label_uri(datastore, found, tag))


def label_names(datastore, image: str, tag: str) -> dict[int, str]:
    """{value: name} of a label, as clients submit it."""
    info = datastore.get_label_info(image, tag) or {}
    rows = info.get("label_info") or info.get("params", {}).get("label_info") or []
    pairs = ((r.get("idx", r.get("id", n + 1)), r.get("name")) for n, r in enumerate(rows) if isinstance(r, dict))
    return {int(v): str(name) for v, name in pairs if name and str(v).isdigit()}


def saved_label(datastore, image: str, request: dict) -> dict | None:
    """{tag, path, names} of the label whose slices a request takes as prompts; None if it wants none. The path is None if none is saved."""
    if not request.get("mask_slices"):
        return None
    tag = str(request.get("mask_tag") or "final")
    path = label_path(datastore, image, tag)
    return {"tag": tag, "path": path and str(path), "names": label_names(datastore, image, tag) if path else {}}


def structure_in(labels: np.ndarray, names: dict[int, str], wanted: str) -> np.ndarray:
    """The mask, bool (I, J, K), of a structure in a label map; without names (or a wish) the only one that there is.

    Raises:
        PromptError: it is not there, or there are several.
    """
    value = next((v for v, name in names.items() if wanted and name == wanted), None)
    if value is None:
        there = [int(v) for v in np.unique(labels) if v > 0]
        if len(there) != 1 or (wanted and there[0] in names):
            called = ", ".join(names.get(v, f"label_{v}") for v in there) or "nothing"
            raise PromptError(f"The saved label holds {called}: name one of these in the field 'label'.")
        value = there[0]
    return labels == value
