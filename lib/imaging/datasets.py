"""Find labelled images in folders: data sets of the Medical Segmentation Decathlon, and labels submitted to MONAI Label."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from lib.common.errors import UserError
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.studies import StudiesFolder, image_of_label, saved_names
from lib.imaging.study_files import DICOM_ENDINGS, IMAGE_ENDINGS, LABEL_ENDINGS, split_ending


@dataclass(frozen=True)
class Case:
    """One labelled image, given by its files; `labels` maps the values that are annotated in it to the structures' names."""

    name: str
    image: Path
    label: Path
    labels: dict[int, str]


def read_cases(folder: str | Path) -> list[Case]:
    """Return the training cases that a folder's dataset.json lists; an entry's own "labels" replace the common ones.

    A case has the name of its image, or that of its path in the folder where several images have one name.

    Raises:
        UserError: There is no readable dataset.json.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / "dataset.json").read_text())
        common_labels = content.get("labels", {})
        cases = [_case_from_entry(folder, entry, common_labels) for entry in content["training"]]
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as e:
        raise UserError(f"{folder} has no readable dataset.json of the Medical Segmentation Decathlon's layout.") from e
    counts = Counter(c.name for c in cases)
    return [c if counts[c.name] == 1 else replace(c, name=image_name(os.path.relpath(c.image, folder).replace(os.sep, "_"))) for c in cases]


def _case_from_entry(folder: Path, entry: dict, common_labels: dict) -> Case:
    """Return the case of one entry of dataset.json, without the background label 0."""
    image = folder / entry["image"]
    names = {int(k): str(v) for k, v in entry.get("labels", common_labels).items() if int(k) != 0}
    return Case(image_name(image), image, folder / entry["label"], names)


def image_name(path: str | Path) -> str:
    """Return a file's name without the ending of an image format; other dots, as in a DICOM UID, stay.

    >>> image_name("1.2.826.0.1.nii.gz"), image_name("a/case_1.seg.nrrd"), image_name("folder/series.7")
    ('1.2.826.0.1', 'case_1', 'series.7')
    """
    return split_ending(Path(path).name, (*LABEL_ENDINGS, *IMAGE_ENDINGS, *DICOM_ENDINGS))[0]


def case_from_files(image: str | Path, label: str | Path, name: str = "", names: Mapping[int, str] | None = None) -> Case:
    """Return the case of an image and its label map.

    Args:
        name: Name of the case; "" for the name of the image without its ending.
        names: Names of the structures by their values; those without one are named after the value ("label_1").

    Raises:
        UserError: One of the files cannot be read, or the label map does not fit the image.
    """
    image, label = Path(image), Path(label)
    values = (int(v) for v in np.unique(read_mask(label, read_volume(image))) if v != 0)
    return Case(name or image_name(image), image, label, {v: (names or {}).get(v) or f"label_{v}" for v in values})


def find_cases(folder: str | Path) -> list[Case]:
    """Return the cases of a folder in the Decathlon's layout or of a MONAI Label datastore (images, and labels/final).

    Raises:
        UserError: The folder has neither layout, or no image in it is labelled.
    """
    folder = Path(folder)
    if (folder / "dataset.json").is_file():
        cases = read_cases(folder)
        if not cases:
            raise UserError(f"{folder}/dataset.json lists no training case.")
        return cases
    images = StudiesFolder(folder).list_images().images if folder.is_dir() else {}
    labels = sorted(p for p in (folder / "labels" / "final").glob("[!.]*") if p.name.lower().endswith(LABEL_ENDINGS))
    names = {p: image_of_label(p.name, images)[0] for p in labels}
    saved = saved_names(folder)
    cases = [case_from_files(images[name].reader_path(), p, name, saved.get(name)) for p, name in names.items() if name in images]
    if not cases:
        raise UserError(f"{folder} holds neither a dataset.json (Decathlon layout) nor labels/final with labels of its images.")
    return cases
