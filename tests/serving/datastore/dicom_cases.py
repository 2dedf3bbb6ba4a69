"""What the tests of the datastore for a DICOM store have in common; the fixtures are in conftest.py."""

import numpy as np

from lib.imaging.readers import read_grid, read_mask, read_volume
from lib.imaging.writers import write_mask
from tests.imaging.dicom.series import SHAPE

TILT_MM = 0.8
NAMES = {2: "肝臟", 7: "Größe"}
ROWS = [{"name": "unused", "idx": 1}, {"name": "Größe", "idx": 7, "color": [255, 0, 0, 255]}, {"name": "肝臟", "id": 2}]
LABEL_INFO = {"label_info": ROWS}


def make_labels(value=2) -> np.ndarray:
    labels = np.zeros(SHAPE, np.int32)
    labels[1:5, 2:4, 1:3] = value
    return labels


def upload(datastore, image, labels, tmp_path, ending=".nrrd") -> str:
    """Write a label map on the grid of an image, and return its path."""
    return str(write_mask(labels, read_grid(datastore.get_image_uri(image)), tmp_path / f"label{ending}"))


def downloaded(datastore, image, tag="final") -> np.ndarray:
    """Return the label that clients get, checked against the image that they get."""
    return read_mask(datastore.get_label_uri(image, tag), read_volume(datastore.get_image_uri(image)))
