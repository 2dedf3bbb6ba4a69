"""The data sets of the three papers, found in the folder layouts in which they are published."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib.common.errors import UserError
from lib.imaging.datasets import Case, find_cases, image_name

DECATHLON_TASK = re.compile(r"Task(\d\d)_\w+")


@dataclass(frozen=True)
class Dataset:
    """The labelled images of a data set; `name` is as in the papers' tables if they use it (MSD09, BTCV ...)."""

    name: str
    cases: list[Case]


BTCV_LABELS = dict(enumerate((
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "inferior vena cava",
    "portal vein and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
), 1))  # fmt: skip
FLARE22_LABELS = dict(enumerate((
    "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland", "left adrenal gland",
    "gallbladder", "esophagus", "stomach", "duodenum", "left kidney",
), 1))  # fmt: skip
ABDOMEN1K_LABELS = dict(enumerate(("liver", "kidney", "spleen", "pancreas"), 1))
CTORG_LABELS = dict(enumerate(("liver", "bladder", "lungs", "kidneys", "bone", "brain"), 1))
# Oedema, enhancing and necrotic core have the same name, so that they are evaluated as one structure.
BRATS_LABELS = dict.fromkeys((1, 2, 4), "whole tumour")


def find_btcv_cases(folder: Path) -> list[Case]:
    """Find BTCV: img/img0001.nii.gz and label/label0001.nii.gz, in the folder or in its (Abdomen/)RawData/Training or Training."""
    for root in (folder, folder / "Training", folder / "RawData" / "Training", folder / "Abdomen" / "RawData" / "Training"):
        images = sorted((root / "img").glob("img*.nii.gz"))
        if images:
            return _pair_with_labels(images, lambda p, root=root: root / "label" / p.name.replace("img", "label", 1), BTCV_LABELS)
    return []


def find_abdomen1k_cases(folder: Path) -> list[Case]:
    """Find AbdomenCT-1K: Case_00001_0000.nii.gz in the folder or its subfolders, Case_00001.nii.gz in Mask, mask or labelsTr."""
    images = sorted(folder.glob("Case_?????_0000.nii.gz")) + sorted(folder.glob("*/Case_?????_0000.nii.gz"))
    masks = {image_name(p): p for name in ("Mask", "mask", "labelsTr") for p in (folder / name).glob("Case_?????.nii.gz")}
    return _pair_with_labels(images, lambda p: masks.get(image_name(p).removesuffix("_0000")), ABDOMEN1K_LABELS)


def find_flare22_cases(folder: Path) -> list[Case]:
    """Find FLARE22: images/FLARE22_Tr_0001_0000.nii.gz and labels/FLARE22_Tr_0001.nii.gz, up to two levels below the folder."""
    for pattern in ("", "*/", "*/*/"):
        images = sorted(folder.glob(f"{pattern}images/FLARE22_Tr_????_0000.nii.gz"))
        if images:
            return _pair_with_labels(images, lambda p: p.parents[1] / "labels" / p.name.replace("_0000.nii.gz", ".nii.gz"), FLARE22_LABELS)
    return []


def find_brats2020_cases(folder: Path) -> list[Case]:
    """Find the FLAIR images of BraTS2020: BraTS20_Training_001/BraTS20_Training_001_flair.nii(.gz) and ..._seg.nii(.gz)."""
    name = "BraTS20_Training_???"
    images = [p for level in ("", "*/") for p in sorted(folder.glob(f"{level}{name}/{name}_flair.nii*"))]
    return _pair_with_labels(images, lambda p: p.with_name(p.name.replace("_flair.", "_seg.")), BRATS_LABELS)


def find_ctorg_cases(folder: Path) -> list[Case]:
    """Find CT-ORG: volume-0.nii(.gz) and labels-0.nii(.gz), in the folder or in one of its subfolders."""
    images = [p for level in ("", "*/") for p in folder.glob(f"{level}volume-*.nii*")]
    images.sort(key=lambda p: int(re.sub(r"\D", "", image_name(p)) or 0))
    return _pair_with_labels(images, lambda p: p.with_name(p.name.replace("volume-", "labels-", 1)), CTORG_LABELS)


LAYOUTS: dict[str, Callable[[Path], list[Case]]] = {
    "BTCV": find_btcv_cases, "AbdomenCT-1K": find_abdomen1k_cases, "FLARE22": find_flare22_cases,
    "BraTS2020": find_brats2020_cases, "CT-ORG": find_ctorg_cases,
}  # fmt: skip


def detect_dataset(folder: str | Path, download: bool = False) -> Dataset:
    """Return the data set in a folder: a Decathlon task (dataset.json), one of LAYOUTS, or a MONAI Label datastore.

    With `download`, a missing folder that is named as a Decathlon task ("data/Task09_Spleen") is downloaded first. Otherwise a missing
    folder raises UserError, and so does an unknown layout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        _download_decathlon_task(folder, download)
    if not (folder / "dataset.json").is_file():
        for name, find in LAYOUTS.items():
            if cases := find(folder):
                return Dataset(name, cases)
    try:
        return Dataset(_dataset_name(folder), find_cases(folder))
    except UserError as e:
        if (folder / "dataset.json").is_file():
            raise
        raise UserError(
            f"{folder} has no known layout: a Decathlon task (dataset.json), {', '.join(LAYOUTS)}, or a datastore with labels/final."
        ) from e


def select_cases(cases: list[Case], names: tuple[str, ...] = (), limit: int | None = None) -> list[Case]:
    """Return the first `limit` of the cases with these names, in the order of the data; without names, of all cases.

    An unknown name raises UserError.
    """
    unknown = set(names) - {c.name for c in cases}
    if unknown:
        raise UserError(f"There is no case {min(unknown)!r}; there are {', '.join(c.name for c in cases[:8])} ...")
    return [c for c in cases if not names or c.name in names][:limit]


def _pair_with_labels(images: list[Path], label_of: Callable[[Path], Path | None], labels: dict[int, str]) -> list[Case]:
    """Return a case for each image whose label file, given by `label_of`, exists."""
    pairs = [(p, label_of(p)) for p in images]
    return [Case(image_name(p), p, label, dict(labels)) for p, label in pairs if label is not None and label.is_file()]


def _download_decathlon_task(folder: Path, download: bool) -> None:
    """Download the Decathlon task that a missing folder is named after, if that is allowed."""
    if not DECATHLON_TASK.fullmatch(folder.name):
        raise UserError(f"There is no folder {folder}.")
    if not download:
        raise UserError(f"There is no folder {folder}; with --download the Decathlon task {folder.name} is fetched to there.")
    from monai.apps import DecathlonDataset

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        DecathlonDataset(folder.parent, folder.name, "training", download=True, cache_num=0)
    except (OSError, RuntimeError, ValueError) as e:
        raise UserError(f"{folder.name} could not be fetched: {e}") from e


def _dataset_name(folder: Path) -> str:
    """Return the name of a data set: MSD09 for Task09_Spleen, else the one in dataset.json, else the folder's."""
    if task := DECATHLON_TASK.fullmatch(folder.resolve().name):
        return f"MSD{task[1]}"
    try:
        return str(json.loads((folder / "dataset.json").read_text()).get("name") or folder.resolve().name)
    except (OSError, ValueError, AttributeError):
        return folder.resolve().name
