"""Label maps that clients upload: checked against the image, and with a name for each value."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from lib.common.errors import VolumeError
from lib.imaging.dicom.segmentations import label_values
from lib.imaging.readers import read_mask
from lib.imaging.study_files import LABEL_ENDINGS
from lib.imaging.volume import Grid
from lib.imaging.writers import write_mask
from lib.serving.datastore.labels import BACKGROUND, unique_names

BARE_VOXELS = ".bin"  # Ending of the label maps that OHIF sends: uint8, i fastest, without a header.
MAX_HEADER_BYTES = 2**20
MAX_UNNAMED = 32  # Values that are listed although none of them has a name; the list would be long for noise.


def read_label(path: str | Path, image: Grid) -> np.ndarray:
    """Return an uploaded label map, int32 (I, J, K): an image file, or the bare voxels (.bin, uint8, i fastest) that OHIF sends.

    Raises:
        VolumeError: It does not fit the image, has values below 0, or cannot be read.
    """
    path = Path(path)
    if path.suffix == BARE_VOXELS:
        voxels = np.fromfile(path, np.uint8)
        if voxels.size != np.prod(image.shape):
            size = " x ".join(map(str, image.shape))
            raise VolumeError(f"The label has {voxels.size} voxels, but the image has {size}: reload the image and submit it again.")
        return voxels.reshape(image.shape, order="F").astype(np.int32)
    if not path.name.lower().endswith(LABEL_ENDINGS):
        raise VolumeError(f"Labels are files with one of the endings {', '.join(LABEL_ENDINGS)}.")
    try:
        labels = read_mask(path, image)
    except VolumeError as e:
        text = str(e).replace(path.name, "the label")  # The file has a temporary name, which no user knows.
        raise VolumeError(text[0].upper() + text[1:]) from e
    if (lowest := int(labels.min(initial=0))) < 0:
        raise VolumeError(f"The label holds the value {lowest}: use whole numbers from 0 (nothing).")
    return labels


@contextmanager
def checked_label(path: str | Path, image: Grid, info: dict | None) -> Iterator[tuple[str, np.ndarray, dict]]:
    """Yield an uploaded label as a file to store (a temporary one for bare voxels), as a label map (I, J, K), and its `named_info`.

    Raises:
        VolumeError: It does not fit the image, or cannot be read.
    """
    labels = read_label(path, image)
    info = named_info(info, labels, path)
    with tempfile.TemporaryDirectory(prefix="sam2_label_") as folder:
        is_bare = Path(path).suffix == BARE_VOXELS
        yield str(write_labels(labels, image, Path(folder, "label.nrrd")) if is_bare else path), labels, info


def write_labels(labels: np.ndarray, image: Grid, path: Path) -> Path:
    """Write a label map (I, J, K) with the smallest type of whole numbers that holds its values, and return the path."""
    return write_mask(labels, image, path, dtype=np.min_scalar_type(int(labels.max(initial=0))).name)


def segment_rows(label_info, labels: np.ndarray, file_names: dict[int, str] | None = None) -> list[dict]:
    """Return the rows {"name", "idx" (value), "color"} for all values in a label map, in their order, each with a name of its own.

    Args:
        label_info: A client's list of {"name", "idx" or "id", "color"}, also for values that the label map does not hold. A row without
            value belongs to the value of its place in the list, and so do all rows if values of the label map have none, as in 3D Slicer
            when its list has a row "background". Such a row names nothing and has no place. The only row belongs to the only value.
        file_names: Names of values in the file of the label map, which precede those of the list.
    """
    listed = [row for row in label_info if isinstance(row, dict)] if isinstance(label_info, list) else []
    listed = [row for row in listed if str(row.get("name") or "").strip().casefold() != BACKGROUND]
    by_place = dict(enumerate(listed, 1))
    numbers = [(row.get("idx", row.get("id", n)), row) for n, row in by_place.items()]
    rows, values = {int(number): row for number, row in numbers if str(number).isdigit()}, label_values(labels)
    if len(listed) == len(values) == 1:
        rows = {values[0]: listed[0]}
    elif not set(values) <= set(rows) and set(values) <= set(by_place):
        rows = by_place
    names = {v: " ".join(str((file_names or {}).get(v) or rows.get(v, {}).get("name") or "").split()) for v in values}
    names = unique_names(values, names)
    return [{**rows.get(v, {}), "name": names[v], "idx": v} for v in values]


def named_info(info: dict | None, labels: np.ndarray, path: str | Path) -> dict:
    """Return a label's info with the `segment_rows` of its values as label_info, also in the form in which 3D Slicer looks for names.

    Args:
        info: What the client has sent.
        labels: The label map, and `path` its file.
    """
    info = dict(info or {})
    rows = segment_rows(info.get("label_info"), labels, names_in_file(path))
    is_named = any(row["name"] != f"label_{row['idx']}" for row in rows)
    info["label_info"] = rows if is_named or len(rows) <= MAX_UNNAMED else []
    params = info.get("params") if isinstance(info.get("params"), dict) else {}
    info["params"] = {**params, "label_names": {row["name"]: row["idx"] for row in info["label_info"]}}
    return info


def names_in_file(path: str | Path) -> dict[int, str]:
    """Return the names of the values in a segmentation of 3D Slicer (.seg.nrrd); other files name nothing."""
    if not str(path).lower().endswith(".seg.nrrd"):
        return {}
    with open(path, "rb") as file:
        header = file.read(MAX_HEADER_BYTES).partition(b"\n\n")[0].decode(errors="replace")
    fields = dict(line.split(":=", 1) for line in header.splitlines() if ":=" in line)
    pairs = ((fields.get(f"Segment{n}_LabelValue", ""), fields.get(f"Segment{n}_Name", "")) for n in range(len(fields)))
    return {int(value): unescape(name) for value, name in pairs if value.strip().isdigit() and name.strip()}


def unescape(text: str) -> str:
    r"""Return a value of a NRRD header as it was before line ends and backslashes in it were escaped.

    >>> unescape(r"a\\b\nc") == "a\\b" + chr(10) + "c"
    True
    """
    return re.sub(r"\\(.)", lambda match: "\n" if match[1] == "n" else match[1], text)
