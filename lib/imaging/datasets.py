"""Labelled folders: tasks of the Medical Segmentation Decathlon, and what MONAI Label's annotators submitted."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.common.errors import UserError
from lib.imaging.readers import read_mask, read_volume

ENDINGS = (".seg.nrrd", ".nii.gz", ".nii", ".nrrd", ".mha", ".mhd", ".dcm")


@dataclass(frozen=True)
class Case:
    """One labelled image; `labels` maps the values that are annotated in it to names."""

    name: str
    image: Path
    label: Path
    labels: dict[int, str]


def read_cases(folder: str | Path) -> list[Case]:
    """Cases of a folder with a dataset.json, whose entries may have "labels" of their own.

    Raises:
        UserError: no readable dataset.json there.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / "dataset.json").read_text())
        common = content.get("labels", {})
        return [_case(folder, row, common) for row in content["training"]]
    except (OSError, KeyError, TypeError, AttributeError, ValueError) as e:
        raise UserError(f"{folder} has no readable dataset.json of the Medical Segmentation Decathlon's layout.") from e


def _case(folder: Path, row: dict, common: dict) -> Case:
    image = folder / row["image"]
    names = {int(k): str(v) for k, v in row.get("labels", common).items() if int(k) != 0}
    return Case(image_name(image), image, folder / row["label"], names)


def image_name(path: str | Path) -> str:
    """File name without the ending of an image format; names may hold dots, as UIDs do.

    >>> image_name("1.2.826.0.1.nii.gz"), image_name("a/case_1.seg.nrrd"), image_name("folder/series.7")
    ('1.2.826.0.1', 'case_1', 'series.7')
    """
    name = Path(path).name
    return next((name[: -len(e)] for e in ENDINGS if name.lower().endswith(e)), name)


def case_from_files(image: str | Path, label: str | Path) -> Case:
    """A labelled image whose structures have no names but their values.

    Raises:
        UserError: one of the files cannot be read, or they do not belong together.
    """
    image, label = Path(image), Path(label)
    values = np.unique(read_mask(label, read_volume(image)))
    return Case(image_name(image), image, label, {int(v): f"label_{int(v)}" for v in values if v != 0})


def find_cases(folder: str | Path) -> list[Case]:
    """Cases of a folder in the Decathlon's layout, or of a MONAI Label datastore (images, and labels/final).

    Raises:
        UserError: neither, or nothing labelled in it.
    """
    folder = Path(folder)
    if (folder / "dataset.json").is_file():
        cases = read_cases(folder)
        if not cases:
            raise UserError(f"{folder}/dataset.json lists no training case.")
        return cases
    labels = sorted(p for p in (folder / "labels" / "final").glob("*") if p.name.lower().endswith(ENDINGS))
    images = {image_name(p): p for p in sorted(folder.glob("*")) if p.name.lower().endswith(ENDINGS)}
    cases = [case_from_files(images[image_name(p)], p) for p in labels if image_name(p) in images]
    if not cases:
        raise UserError(f"{folder} holds neither a dataset.json (Decathlon layout) nor labels/final with labels of its images.")
    return cases
