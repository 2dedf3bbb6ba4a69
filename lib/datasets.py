"""Labelled folders laid out like a task of the Medical Segmentation Decathlon."""

import json
from dataclasses import dataclass
from pathlib import Path

from lib.errors import UserError


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
