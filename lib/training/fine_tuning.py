"""Fine-tuning on labelled volumes. Some are set aside for validation, and a new version is served only if it is better on them."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from lib.common.atomic_files import write_text
from lib.common.errors import OptionError, UserError
from lib.engine.options import Options
from lib.imaging.datasets import Case
from lib.model import checkpoints
from lib.model.versions import Versions
from lib.training import object_end_calibration
from lib.training.loop import Settings, Training
from lib.training.trainable_parts import PARTS
from lib.training.validation import VolumeCheck
from lib.training.volume_clips import VolumeClips

logger = logging.getLogger(__name__)

_SCORE_DROPS = (0.2, 0.4, 0.8, 1.2, 1.6, 2.0)  # To try when the object's end is calibrated again.
_RUN_FORMAT = 2  # Counts changes of what a run saves: runs of another format are not resumed.
_SLICES = 6  # Of a clip.
_WARM_UP = 0.08  # Share of the steps until the learning rate is reached.
_TRAINING_TIME_SHARE = 0.9  # Share of the time limit for training and validation. The rest is for the calibration.


@dataclass(frozen=True)
class FineTuning:
    """Options of a fine-tuning.

    Attributes:
        parts: Part of the network that is trained, see `lib.training.trainable_parts`.
        epochs, steps: Number of epochs, and of steps in an epoch. After each epoch the network is validated.
        rate: Learning rate at the start.
        minutes: Time limit including validation; 0 for none.
        val_share: Fraction of the volumes that are used for validation only; at least one is.
        most, clicks: Largest number of structures in a validation, and of clicks per structure.
        window: Intensity window, see `lib.imaging.frames`.
    """

    parts: str = "decoder"
    epochs: int = 8
    steps: int = 60
    rate: float = 2e-4
    minutes: float = 0.0
    val_share: float = 0.25
    most: int = 12
    clicks: int = 3
    seed: int = 1
    device: str = "cpu"
    window: str = "auto"

    def __post_init__(self):
        if self.parts not in PARTS:
            raise OptionError(f"Unknown part {self.parts!r}: use {', '.join(PARTS)}.")
        if not 0 < self.val_share < 1:
            raise OptionError("val_share must lie between 0 and 1.")
        if self.epochs < 1 or self.steps < 1 or not 0 < self.rate < 1 or self.minutes < 0:
            raise OptionError("epochs and steps must be at least 1, the learning rate between 0 and 1, minutes not negative.")


def split_cases(cases: Sequence[Case], share: float, seed: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Split volumes into those for training and a fraction `share` for validation; each side gets at least one.

    Names and seed decide, so most volumes stay on their side when others are added. Fewer than two volumes raise UserError.
    """
    if len(cases) < 2:
        raise UserError(f"Fine-tuning needs at least two labelled volumes (one to check on); there are {len(cases)}.")
    count = min(len(cases) - 1, max(1, round(share * len(cases))))
    order = sorted(cases, key=lambda c: hashlib.sha256(f"{seed} {c.name}".encode()).digest())
    return tuple(order[count:]), tuple(order[:count])


def fine_tune(
    cases: Sequence[Case], versions: Versions, out: Path, options: FineTuning = FineTuning(),
    report: Callable[[dict], None] = lambda stats: None,
) -> dict:  # fmt: skip
    """Fine-tune the served version and add the best state to `versions`. An interrupted run in `out` is resumed.

    Args:
        out: Folder for runs, removed at the end. Each combination of volumes, options and base checkpoint has its own folder there.
        report: Called with the stats {epoch, max_epochs, best_metric, base_metric, total_time, ...} whenever they change.

    Returns:
        The last stats, with accepted, version (its path) and message.

    Raises:
        UserError: There are too few volumes, or the checkpoint or the options are unknown.
    """
    training_cases, validation_cases = split_cases(cases, options.val_share, options.seed)
    base = checkpoints.find(str(versions.served() or versions.base))
    checkpoints.verify(base)
    weights = checkpoints.read_weights(base.path)
    folder = Path(out) / _run_name(cases, base, options)
    folder.mkdir(parents=True, exist_ok=True)
    start = f"{base.path}@{base.config}@{base.image_size}"
    settings = Settings(
        str(folder), start=start, steps=options.epochs * options.steps, seed=options.seed, device=options.device, parts=options.parts,
        slices=_SLICES, rate=options.rate, final_rate=options.rate / 20, warm_up=_WARM_UP, weight_decay=0.0, ema=0.995,
        half=next(iter(weights.values())).itemsize == 2, check_every=options.steps,
    )  # fmt: skip
    run = _FineTuningRun(folder, options, report, checkpoints.metadata(base), training_cases, validation_cases)
    run.validate_base(start)
    # The activations of larger images fill a GPU.
    clips = VolumeClips(training_cases, options.window, clips=2 if base.image_size <= 512 else 1)
    Training(settings, clips, check=run.validate_epoch, stop=run.is_out_of_time).run()
    return run.finish(versions)


def _run_name(cases, base, options) -> str:
    """Return a name that is the same for the same volumes (by path, size and modification time), base checkpoint and options."""
    files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for c in cases for p in (c.image, c.label)]
    text = json.dumps([_RUN_FORMAT, files, checkpoints.sha256(base.path), asdict(options)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _FineTuningRun:
    """The validation of a fine-tuning: it keeps the best state, and stats.json, from which an interrupted run is resumed.

    `metadata` is that of the base checkpoint, see `checkpoints.metadata`.
    """

    def __init__(self, folder: Path, options: FineTuning, report, metadata: dict[str, str], training_cases, validation_cases):
        self._folder, self._options, self._report, self._metadata, self._training_cases = folder, options, report, metadata, training_cases
        engine_options = Options(device=options.device, window=options.window)
        self._check = VolumeCheck(validation_cases, engine_options, clicks=options.clicks, max_structures=options.most)
        self._stats_path, self._best_path = folder / "stats.json", folder / "best.safetensors"
        self.stats = json.loads(self._stats_path.read_text()) if self._stats_path.exists() else {
            "epoch": 0, "max_epochs": options.epochs, "total_time": 0.0, "history": [],
            "learn": [c.name for c in training_cases], "check": [c.name for c in validation_cases],
        }  # fmt: skip
        self._earlier_s, self._start = self.stats["total_time"], time.monotonic()

    def validate_base(self, base: str) -> None:
        """Measure the base checkpoint, as `checkpoints.find` takes it, unless an earlier process has done so."""
        if "base_metric" not in self.stats:
            dice = self._check(base)["dice"]
            logger.info("Before training: volume Dice %.3f with %d clicks.", dice, self._options.clicks)
            self.stats |= {"base_metric": dice, "best_metric": dice, "best_epoch": 0}
        self._save_stats()

    def is_out_of_time(self, training: Training) -> bool:
        """Return whether training must stop to keep the time limit."""
        return bool(self._options.minutes) and self._total_s() > 60 * self._options.minutes * _TRAINING_TIME_SHARE

    def validate_epoch(self, training: Training) -> dict[str, float]:
        """Measure the present state and keep it if it is the best so far; return the metrics to log."""
        metrics = self._check(training.export("candidate.safetensors"))
        self.stats["epoch"] = -(-training.step // self._options.steps)
        # An epoch that was repeated after an interruption replaces its earlier entry.
        self.stats["history"][self.stats["epoch"] - 1 :] = [round(metrics["dice"], 4)]
        if metrics["dice"] > self.stats["best_metric"]:
            shutil.copy(self._folder / "candidate.safetensors", self._best_path)
            self.stats |= {"best_metric": metrics["dice"], "best_epoch": self.stats["epoch"]}
        self._save_stats()
        return metrics

    def finish(self, versions: Versions) -> dict:
        """Add the best state to the versions, or the last one if none was better than the base; return the final stats."""
        is_better = self._best_path.exists()
        if is_better and "refitted" not in self.stats:
            self._recalibrate_object_end()
            self.stats["refitted"] = True
        metrics = {k: round(self.stats[k], 4) for k in ("base_metric", "best_metric")}
        chosen_path = self._best_path if is_better else self._folder / "candidate.safetensors"
        path = versions.add(chosen_path, {**metrics, "options": asdict(self._options), **self.stats}, better=is_better)
        last, base = self.stats["history"][-1], metrics["base_metric"]
        message = f"{path.stem} is no better (volume Dice {last:.3f}, served {base:.3f}) and was kept aside."
        if is_better:
            message = f"{path.stem} is served now: volume Dice {metrics['best_metric']:.3f}, before {base:.3f}."
        logger.info(message)
        self.stats |= {"accepted": is_better, "version": str(path), "message": message}
        self._save_stats()
        shutil.rmtree(self._folder.parent, ignore_errors=True)  # This also removes runs that were never finished.
        return self.stats

    def _recalibrate_object_end(self) -> None:
        """Calibrate the score drop of the best state on the training volumes; keep it if validation is no worse with it.

        New weights have new object scores, so the limit of the base checkpoint (`lib.training.object_end_calibration`) may not fit.
        """
        if "presence_drop" not in self._metadata:
            return
        path = self._folder / "fitted.safetensors"
        shutil.copy(self._best_path, path)
        logger.info("Fitting where tracking stops.")
        options = replace(self._check.options, checkpoint=str(path), components="all")
        limits = [(score_drop, float(self._metadata.get("presence_gain", 0))) for score_drop in _SCORE_DROPS]
        volumes = object_end_calibration.read_structures(self._training_cases, options, self._options.most)
        object_end_calibration.fit(path, volumes, options, limits)
        metrics = self._check(path)
        if metrics["dice"] >= self.stats["best_metric"]:
            path.replace(self._best_path)
            self.stats["best_metric"] = metrics["dice"]
            self._save_stats()

    def _total_s(self) -> float:
        """Return the duration of the run in seconds, including that of earlier processes."""
        return self._earlier_s + time.monotonic() - self._start

    def _save_stats(self) -> None:
        self.stats["total_time"] = round(self._total_s(), 1)
        write_text(self._stats_path, json.dumps(self.stats))
        self._report(dict(self.stats))
