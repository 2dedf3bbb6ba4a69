"""Labelled folders: tasks of the Medical Segmentation Decathlon, and what MONAI Label's annotators submitted."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lib.errors import UserError
from lib.io.read import read_mask, read_volume


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
        rows = content["training"]
    except (OSError, KeyError, json.JSONDecodeError) as e:
        raise UserError(f"{folder} has no readable dataset.json of the Medical Segmentation Decathlon's layout.") from e
    common = content.get("labels", {})
    out = []
    for row in rows:
        names = {int(k): str(v) for k, v in row.get("labels", common).items() if int(k) != 0}
        image = folder / row["image"]
        out.append(Case(image.name.split(".")[0], image, folder / row["label"], names))
    return out


def case_of(image: str | Path, label: str | Path) -> Case:
    """A labelled image whose structures have no names but their values.

    Raises:
        UserError: one of the files cannot be read, or they do not belong together.
    """
    image, label = Path(image), Path(label)
    values = np.unique(read_mask(label, read_volume(image)))
    return Case(image.name.split(".")[0], image, label, {int(v): f"label_{int(v)}" for v in values if v != 0})


def find_cases(folder: str | Path) -> list[Case]:
    """Cases of a folder in the Decathlon's layout, or of a MONAI Label datastore (images, and labels/final).

    Raises:
        UserError: neither, or nothing labelled in it.
    """
    folder = Path(folder)
    if (folder / "dataset.json").is_file():
        return read_cases(folder)
    labels = sorted(p for p in (folder / "labels" / "final").glob("*") if p.is_file())
    images = {p.name.split(".")[0]: p for p in sorted(folder.glob("*")) if p.is_file() and p.suffix != ".json"}
    cases = [case_of(images[p.name.split(".")[0]], p) for p in labels if p.name.split(".")[0] in images]
    if not cases:
        raise UserError(f"{folder} holds neither a dataset.json (Decathlon layout) nor labels/final with labels of its images.")
    return cases
