"""What a client submits as a label: its structures by name, compared with those of the saved label, which may be kept."""

import tempfile
import threading
from pathlib import Path

import numpy as np

from lib.common.errors import UserError
from lib.imaging.dicom.segmentations import label_values
from lib.imaging.readers import read_mask
from lib.imaging.volume import Grid
from lib.serving.datastore.labels import label_names, label_path, unique_names
from lib.serving.datastore.uploaded_labels import names_in_file, read_label, segment_rows, write_labels

_submitting = threading.Lock()  # What is kept must not change between reading and writing it.


def submit_label(datastore, image: str, file: str, tag: str, info: dict) -> dict:
    """Save a label, and return which structures differ from the saved label with this tag, by their names.

    Args:
        file: The label map; bare voxels (.bin) or an image file.
        info: The client's fields, with label_info (see `segment_rows`). "keep": structures of the saved label that the new one lacks
            stay, where the new one is empty. "preview": nothing is stored.

    Returns:
        {"new", "changed", "unchanged", "missing", "kept": lists of names}; "missing" are those that the label will not have any more.

    Raises:
        UserError: The label does not fit the image, or cannot be read.
    """
    keeps, is_preview = bool(info.get("keep")), bool(info.get("preview"))
    info = {key: value for key, value in info.items() if key not in ("keep", "preview")}
    with _submitting, tempfile.TemporaryDirectory(prefix="sam2_label_") as folder:
        grid = datastore.image_grid(image)
        labels = read_label(file, grid)
        rows = segment_rows(info.get("label_info"), labels, names_in_file(file))
        saved, saved_names = _saved_label(datastore, image, tag, grid)
        differences = compare(labels, {row["idx"]: row["name"] for row in rows}, saved, saved_names)
        kept = differences["missing"] if keeps else []
        differences |= {"missing": [] if keeps else differences["missing"], "kept": kept}
        if is_preview:
            return differences
        if kept:
            labels, rows = _add_structures(labels, rows, saved, {v: name for v, name in saved_names.items() if name in kept})
            file = str(write_labels(labels, grid, Path(folder, "label.nrrd")))
        datastore.save_label(image, file, tag, {**info, "label_info": rows})
    return differences


def compare(labels: np.ndarray, names: dict[int, str], saved: np.ndarray, saved_names: dict[int, str]) -> dict[str, list[str]]:
    """Return which structures of a label map (I, J, K) are new, changed or unchanged against a saved one, and which are missing.

    Args:
        names, saved_names: Names of all values of the two label maps.
    """
    saved_values = {name: value for value, name in saved_names.items()}
    result: dict[str, list[str]] = {"new": [], "changed": [], "unchanged": []}
    for value, name in names.items():
        kind = "new"
        if name in saved_values:
            kind = "unchanged" if np.array_equal(labels == value, saved == saved_values[name]) else "changed"
        result[kind].append(name)
    return {**result, "missing": [name for name in saved_values if name not in names.values()]}


def _saved_label(datastore, image: str, tag: str, grid: Grid) -> tuple[np.ndarray, dict[int, str]]:
    """Return the saved label map, int32 (I, J, K), and the names of its values; it is empty if there is none that fits the image."""
    try:
        path = label_path(datastore, image, tag)
        labels = read_mask(path, grid) if path is not None and path.exists() else np.zeros(grid.shape, np.int32)
    except UserError:  # It is damaged, or another program has made it for another grid. It stays in the history, or in the DICOM store.
        labels = np.zeros(grid.shape, np.int32)
    return labels, unique_names(label_values(labels), label_names(datastore, image, tag))


def _add_structures(labels, rows: list[dict], saved, names: dict[int, str]) -> tuple[np.ndarray, list[dict]]:
    """Return a label map with further structures of a saved one where it is empty, and its rows; values that are taken become free ones."""
    labels, rows = labels.copy(), list(rows)
    for value, name in names.items():
        taken = {row["idx"] for row in rows}
        number = value if value not in taken else max(taken) + 1
        labels[(saved == value) & (labels == 0)] = number
        rows.append({"name": name, "idx": number})
    return labels, rows
