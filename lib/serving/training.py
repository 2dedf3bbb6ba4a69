"""MONAI Label's training task: it fine-tunes the app's checkpoint on the labels that were submitted."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from fastapi import HTTPException
from monailabel.interfaces.tasks.train import TrainTask

from lib.common.atomic_files import write_text
from lib.common.errors import UserError
from lib.imaging.datasets import Case, case_from_files
from lib.imaging.studies import image_of_label
from lib.model.device import available_devices, resolve_device
from lib.model.versions import Versions
from lib.serving.datastore.folder import FINAL
from lib.serving.datastore.labels import label_names
from lib.training.fine_tuning import FineTuning, fine_tune
from lib.training.trainable_parts import PARTS

logger = logging.getLogger(__name__)


class Sam2Train(TrainTask):
    """The task behind *Train* in 3D Slicer and *Update Model* in OHIF, which adds a version to the fine-tuned `versions`.

    MONAI Label runs it in a process of its own. Whatever happens there, the server goes on with the checkpoint that it has.
    """

    def __init__(self, versions: Versions, window: str = "auto"):
        super().__init__("Fine-tunes SAM 2 on the submitted labels; the new version is served if it is better")
        self.versions, self._window, self._stats_file = versions, window, versions.folder / "train_stats.json"

    def config(self) -> dict:
        """Return the options that clients can set, with their defaults; a list holds the choices, the default first."""
        return {
            "max_epochs": 8, "steps_per_epoch": 60, "max_minutes": 0, "learning_rate": 2e-4, "val_split": 0.25,
            "parts": list(PARTS), "device": available_devices(),
        }  # fmt: skip

    def stats(self) -> dict:
        """Return the progress and the best metric (mean Dice of volumes) of the present or the last run."""
        try:
            return json.loads(self._stats_file.read_text())
        except (OSError, ValueError):
            return {}

    def __call__(self, request, datastore) -> dict:
        """Fine-tune on the labels in a datastore and return the final statistics; unsuitable options or labels raise HTTPException 400."""
        try:
            options = self._parse_options({**request, **(request.get(request.get("model")) or {})})
            cases = usable_cases(datastore)
            return fine_tune(cases, self.versions, self.versions.folder / "runs", options, self._write_stats)
        except UserError as e:
            logger.error("Training refused: %s", e)
            self._write_stats({**self.stats(), "message": str(e), "accepted": False})
            raise HTTPException(400, str(e)) from e

    def _parse_options(self, request: dict) -> FineTuning:
        """Return the options in a request, or raise UserError if one is not a number."""
        defaults = self.config()

        def option(name: str, convert: Callable):
            value = request.get(name, defaults[name])
            value = value[0] if isinstance(value, list) and value else value  # A client sends all choices if none was made.
            try:
                return convert(value)
            except (TypeError, ValueError, OverflowError) as e:
                raise UserError(f"{name} = {value!r} is not a number.") from e

        return FineTuning(
            parts=option("parts", str), epochs=option("max_epochs", int), steps=option("steps_per_epoch", int),
            minutes=option("max_minutes", float), rate=option("learning_rate", float), val_share=option("val_split", float),
            device=str(resolve_device(option("device", str))), window=self._window,
        )  # fmt: skip

    def _write_stats(self, stats: dict) -> None:
        """Replace the statistics file as a whole, because the server may read it at any time."""
        write_text(self._stats_file, json.dumps(stats))


def usable_cases(datastore) -> list[Case]:
    """Return the images whose submitted label fits and is not empty. Files that cannot be read are skipped with a warning."""
    cases, images = [], datastore.list_images()
    for row in datastore.datalist():
        image, _ = image_of_label(Path(row["label"]).name, images)
        try:
            case = case_from_files(row["image"], row["label"], names=label_names(datastore, image, FINAL))
        except (UserError, OSError, MemoryError) as e:
            logger.warning("Left out %s: %s", Path(row["label"]).name, e)
            continue
        if case.labels:
            cases.append(case)
    return cases
