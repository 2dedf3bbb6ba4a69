"""MONAI Label's training task: fine-tunes the app's checkpoint on the labels that were submitted."""

import json
import logging
from pathlib import Path

from fastapi import HTTPException
from monailabel.interfaces.tasks.train import TrainTask

from lib.common.errors import UserError
from lib.imaging.datasets import Case, case_from_files
from lib.model.device import available_devices, resolve_device
from lib.model.versions import Versions
from lib.training.fine_tuning import FineTuning, fine_tune
from lib.training.trainable_parts import PARTS

logger = logging.getLogger(__name__)


class Sam2Train(TrainTask):
    """*Train* in 3D Slicer, *Update Model* in OHIF. MONAI Label runs it in a process of its own, so whatever happens here,
    the server goes on with the checkpoint that it has.

    Args:
        versions: where new versions go, and which one is served.
        window: intensity window of the slices.
    """

    def __init__(self, versions: Versions, window: str = "auto"):
        super().__init__("Fine-tunes SAM 2 on the submitted labels; the new version is served if it is better")
        self.versions, self._window = versions, window

    def config(self) -> dict:
        return {
            "max_epochs": 8,
            "steps_per_epoch": 60,
            "max_minutes": 0,
            "learning_rate": 2e-4,
            "val_split": 0.25,
            "parts": list(PARTS),
            "device": available_devices(),
        }

    def stats(self) -> dict:
        """Progress and best metric (mean volume Dice) of the run that goes on, or of the last one."""
        try:
            return json.loads(self._file.read_text())
        except (OSError, ValueError):
            return {}

    @property
    def _file(self) -> Path:
        return self.versions.folder / "train_stats.json"

    def __call__(self, request, datastore) -> dict:
        """The last stats.

        Raises:
            HTTPException: 400, options or labels that cannot be trained on.
        """
        try:
            options = self._options({**request, **(request.get(request.get("model")) or {})})
            cases = usable_cases(datastore)
            return fine_tune(cases, self.versions, self.versions.folder / "runs", options, self._report)
        except UserError as e:
            logger.error("Training refused: %s", e)
            self._report({**self.stats(), "message": str(e), "accepted": False})
            raise HTTPException(400, str(e)) from e

    def _options(self, request: dict) -> FineTuning:
        def value(name, default, kind):
            given = request.get(name, default)
            given = given[0] if isinstance(given, list) and given else given  # an untouched list of choices
            try:
                return kind(given)
            except (TypeError, ValueError, OverflowError) as e:
                raise UserError(f"{name} = {given!r} is not a number.") from e

        defaults = self.config()
        return FineTuning(
            parts=value("parts", defaults["parts"], str), epochs=value("max_epochs", 8, int),
            steps=value("steps_per_epoch", 60, int), minutes=value("max_minutes", 0, float),
            rate=value("learning_rate", 2e-4, float), val_share=value("val_split", 0.25, float),
            device=str(resolve_device(value("device", "auto", str))), window=self._window,
        )  # fmt: skip

    def _report(self, stats: dict) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps(stats))
        temporary.replace(self._file)


def usable_cases(datastore) -> list[Case]:
    """Images with a submitted label that fits; what cannot be read is left out with a warning."""
    cases = []
    for row in datastore.datalist():
        try:
            case = case_from_files(row["image"], row["label"])
        except UserError as e:
            logger.warning("Left out %s: %s", Path(row["label"]).name, e)
            continue
        if case.labels:
            cases.append(case)
    return cases
