"""Data sets of the three papers, read from the folder layouts in which they are published."""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from lib.common.errors import UserError
from lib.imaging.datasets import Case, find_cases, image_name

MSD = re.compile(r"Task(\d\d)_\w+")


@dataclass(frozen=True)
class Dataset:
    """Labelled images; `name` is that of the papers' tables where it is one of theirs (MSD09, BTCV ...)."""

    name: str
    cases: list[Case]


def _names(*names: str) -> dict[int, str]:
    return dict(enumerate(names, 1))


BTCV_LABELS = _names(
    "spleen", "right kidney", "left kidney", "gallbladder", "esophagus", "liver", "stomach", "aorta", "inferior vena cava",
    "portal vein and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip
FLARE22_LABELS = _names(
    "liver", "right kidney", "spleen", "pancreas", "aorta", "inferior vena cava", "right adrenal gland", "left adrenal gland",
    "gallbladder", "esophagus", "stomach", "duodenum", "left kidney",
)  # fmt: skip
ABDOMEN1K_LABELS = _names("liver", "kidney", "spleen", "pancreas")
CTORG_LABELS = _names("liver", "bladder", "lungs", "kidneys", "bone", "brain")
# Edema, enhancing and necrotic core are one structure, because they have one name.
BRATS_LABELS = dict.fromkeys((1, 2, 4), "whole tumour")


def btcv(folder: Path) -> list[Case]:
    """BTCV: img/img0001.nii.gz and label/label0001.nii.gz, in the folder or in RawData/Training or Training of it."""
    for root in (folder, folder / "Training", folder / "RawData" / "Training", folder / "Abdomen" / "RawData" / "Training"):
        images = sorted((root / "img").glob("img*.nii.gz"))
        if images:
            return _pairs(images, lambda p, root=root: root / "label" / p.name.replace("img", "label", 1), BTCV_LABELS)
    return []


def abdomen1k(folder: Path) -> list[Case]:
    """AbdomenCT-1K: Case_00001_0000.nii.gz in any folders, Case_00001.nii.gz in Mask (or mask, labelsTr)."""
    images = sorted(folder.glob("Case_?????_0000.nii.gz")) + sorted(folder.glob("*/Case_?????_0000.nii.gz"))
    masks = {image_name(p): p for name in ("Mask", "mask", "labelsTr") for p in (folder / name).glob("Case_?????.nii.gz")}
    return _pairs(images, lambda p: masks.get(image_name(p).removesuffix("_0000")), ABDOMEN1K_LABELS)


def flare22(folder: Path) -> list[Case]:
    """FLARE22: images/FLARE22_Tr_0001_0000.nii.gz and labels/FLARE22_Tr_0001.nii.gz, in the folder or one or two below."""
    for pattern in ("", "*/", "*/*/"):
        images = sorted(folder.glob(f"{pattern}images/FLARE22_Tr_????_0000.nii.gz"))
        if images:
            return _pairs(images, lambda p: p.parents[1] / "labels" / p.name.replace("_0000.nii.gz", ".nii.gz"), FLARE22_LABELS)
    return []


def brats2020(folder: Path) -> list[Case]:
    """BraTS2020: BraTS20_Training_001/BraTS20_Training_001_flair.nii(.gz) and ..._seg.nii(.gz); FLAIR, whole tumour."""
    name = "BraTS20_Training_???"
    images = [p for level in ("", "*/") for p in sorted(folder.glob(f"{level}{name}/{name}_flair.nii*"))]
    return _pairs(images, lambda p: p.with_name(p.name.replace("_flair.", "_seg.")), BRATS_LABELS)


def ctorg(folder: Path) -> list[Case]:
    """CT-ORG: volume-0.nii(.gz) and labels-0.nii(.gz) in one folder."""
    images = [p for level in ("", "*/") for p in folder.glob(f"{level}volume-*.nii*")]
    images.sort(key=lambda p: int(re.sub(r"\D", "", image_name(p)) or 0))
    return _pairs(images, lambda p: p.with_name(p.name.replace("volume-", "labels-", 1)), CTORG_LABELS)


LAYOUTS: dict[str, Callable[[Path], list[Case]]] = {
    "BTCV": btcv, "AbdomenCT-1K": abdomen1k, "FLARE22": flare22, "BraTS2020": brats2020, "CT-ORG": ctorg,
}  # fmt: skip


def read_dataset(folder: str | Path, download: bool = False) -> Dataset:
    """What a folder holds, found by its layout: Decathlon (dataset.json), one of LAYOUTS, or a MONAI Label datastore.

    Args:
        download: a missing folder whose name is that of a Decathlon task ("data/Task09_Spleen") is fetched first.

    Raises:
        UserError: nothing there, no known layout.
    """
    folder = Path(folder)
    if not folder.is_dir():
        _fetch(folder, download)
    if not (folder / "dataset.json").is_file():
        for name, read in LAYOUTS.items():
            cases = read(folder)
            if cases:
                return Dataset(name, cases)
    try:
        return Dataset(_decathlon_name(folder), find_cases(folder))
    except UserError as e:
        if (folder / "dataset.json").is_file():
            raise
        raise UserError(
            f"{folder} has no known layout: a Decathlon task (dataset.json), {', '.join(LAYOUTS)}, or a datastore with labels/final."
        ) from e


def chosen(cases: list[Case], names: tuple[str, ...] = (), limit: int | None = None) -> list[Case]:
    """Cases of those names (empty: all), of them the first `limit`.

    Raises:
        UserError: an unknown name.
    """
    unknown = set(names) - {c.name for c in cases}
    if unknown:
        raise UserError(f"There is no case {min(unknown)!r}; there are {', '.join(c.name for c in cases[:8])} ...")
    return [c for c in cases if not names or c.name in names][:limit]


def _pairs(images: list[Path], label_of: Callable[[Path], Path | None], labels: dict[int, str]) -> list[Case]:
    """Images that have a label."""
    pairs = [(p, label_of(p)) for p in images]
    return [Case(image_name(p), p, label, dict(labels)) for p, label in pairs if label is not None and label.is_file()]


def _fetch(folder: Path, download: bool) -> None:
    if not MSD.fullmatch(folder.name):
        raise UserError(f"There is no folder {folder}.")
    if not download:
        raise UserError(f"There is no folder {folder}; with --download the Decathlon task {folder.name} is fetched to there.")
    from monai.apps import DecathlonDataset

    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        DecathlonDataset(folder.parent, folder.name, "training", download=True, cache_num=0)
    except (OSError, RuntimeError, ValueError) as e:
        raise UserError(f"{folder.name} could not be fetched: {e}") from e


def _decathlon_name(folder: Path) -> str:
    task = MSD.fullmatch(folder.resolve().name)
    if task:
        return f"MSD{task[1]}"
    try:
        return str(json.loads((folder / "dataset.json").read_text()).get("name") or folder.resolve().name)
    except (OSError, ValueError, AttributeError):
        return folder.resolve().name
