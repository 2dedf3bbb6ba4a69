"""Fine-tuning on labelled volumes: some to learn from, some to check on; a version is served only if it is better there."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from lib.common.errors import OptionError, UserError
from lib.engine.options import Options
from lib.imaging.datasets import Case
from lib.model import checkpoints
from lib.model.versions import Versions
from lib.training import object_end_calibration
from lib.training.curriculum import Phase
from lib.training.loop import Settings, Training
from lib.training.trainable_parts import PARTS
from lib.training.validation import VolumeCheck
from lib.training.volume_clips import VolumeSteps

logger = logging.getLogger(__name__)

_DROPS = (0.2, 0.4, 0.8, 1.2, 1.6, 2.0)


@dataclass(frozen=True)
class FineTuning:
    """Options of a fine-tuning.

    Attributes:
        parts: what learns, see `lib.training.trainable_parts`: "decoder" keeps the encoder, and cached features, as they are.
        epochs, steps: of how many steps an epoch consists; after each the volumes set aside are checked.
        rate: learning rate at the start. minutes: time limit, checks included; 0 = none.
        val_share: of the volumes (at least one) is only checked on. most: structures that a check looks at.
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


def split(cases: Sequence[Case], share: float, seed: int) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """(to learn from, to check on), by volume; names decide, so most volumes stay on their side when others are added.

    Raises:
        UserError: fewer than two volumes.
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
    """Trains, checks, and adds the best state to `versions`; an interrupted run in `out` is gone on with.

    Args:
        out: folder for runs; each set of volumes, options and base has its own below it, removed at the end.
        report: called with the stats {epoch, max_epochs, best_metric, base_metric, total_time, ...} whenever they change.

    Returns:
        The last stats, with accepted, version (its path) and message.

    Raises:
        UserError: too few volumes, unknown checkpoint or options.
    """
    learn, held = split(cases, options.val_share, options.seed)
    base = checkpoints.find(str(versions.served() or versions.base))
    checkpoints.verify(base)
    weights = checkpoints.read_weights(base.path)
    run = Path(out) / _run_name(cases, base, options)
    run.mkdir(parents=True, exist_ok=True)
    phase = Phase(
        "clips", options.epochs * options.steps, base.image_size, *_batch(base.image_size), options.rate, options.rate / 20, 0.2,
        objects=2,
    )  # fmt: skip
    settings = Settings(
        str(run), start=str(base.path), config=base.config, seed=options.seed, device=options.device, parts=options.parts,
        half=next(iter(weights.values())).itemsize == 2, ema=0.995, ema_start=3, weight_decay=0.0, save_every=options.steps,
        check_every=options.steps,
    )  # fmt: skip
    check = VolumeCheck(held, Options(device=options.device, window=options.window), clicks=options.clicks, most=options.most)
    watch = _Watch(check, run, options, report, checkpoints.metadata(base), learn, held)
    watch.begin(f"{base.path}@{base.config}@{base.image_size}")
    training = Training(
        settings, (phase,), check=watch.epoch, stop=watch.is_over, data=partial(_steps, cases=learn, window=options.window)
    )
    training.run()
    return watch.finish(versions)


def _steps(seed: int, phase: Phase, cases, window) -> VolumeSteps:
    return VolumeSteps(seed, phase, cases, window)


def _batch(size: int) -> tuple[int, int]:
    """(clips, slices) of a step: fewer for large squares, whose activations fill a GPU."""
    return (2, 6) if size <= 512 else (1, 6)


def _run_name(cases, base, options) -> str:
    """Same volumes, base and options: same run. Files count by name, size and time of change."""
    files = [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for c in cases for p in (c.image, c.label)]
    text = json.dumps([files, checkpoints.sha256(base.path), asdict(options)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Watch:
    """Checks after each epoch, keeps the best state, writes what a later process needs to go on."""

    def __init__(self, check, run: Path, options: FineTuning, report, traits: dict[str, str], learn, held):
        self._traits = traits
        self.check, self.run, self.options, self._report = check, run, options, report
        self.file, self.best = run / "stats.json", run / "best.safetensors"
        self._learn = learn
        self.stats = json.loads(self.file.read_text()) if self.file.exists() else {
            "epoch": 0, "max_epochs": options.epochs, "total_time": 0.0, "history": [],
            "learn": [c.name for c in learn], "check": [c.name for c in held],
        }  # fmt: skip
        self._before, self._start = self.stats["total_time"], time.monotonic()

    def begin(self, base: str) -> None:
        if "base_metric" not in self.stats:
            figures = self.check(base)
            logger.info("Before training: volume Dice %.3f with %d clicks.", figures["dice"], self.options.clicks)
            self.stats |= {"base_metric": figures["dice"], "best_metric": figures["dice"], "best_epoch": 0}
        self._save()

    def is_over(self, training) -> bool:
        return bool(self.options.minutes) and self._seconds() > 60 * self.options.minutes * 0.9

    def epoch(self, training: Training) -> dict[str, float]:
        figures = self.check(training.export("candidate.safetensors", **self._traits))
        self.stats["epoch"] = -(-training.total // self.options.steps)
        self.stats["history"][self.stats["epoch"] - 1 :] = [round(figures["dice"], 4)]  # an epoch may be done again
        if figures["dice"] > self.stats["best_metric"]:
            shutil.copy(self.run / "candidate.safetensors", self.best)
            self.stats |= {"best_metric": figures["dice"], "best_epoch": self.stats["epoch"]}
        self._save()
        return figures

    def _refit(self) -> None:
        """Other weights, other object scores: finds where tracking stops (`lib.training.object_end_calibration`) again, on what was learned from."""
        if "presence_drop" not in self._traits:
            return
        fitted = self.run / "fitted.safetensors"
        shutil.copy(self.best, fitted)
        logger.info("Fitting where tracking stops.")
        options = replace(self.check.options, checkpoint=str(fitted), components="all")
        gain = float(self._traits.get("presence_gain", 0))
        limits = [(drop, gain) for drop in _DROPS]
        object_end_calibration.fit(fitted, object_end_calibration.structures_of(self._learn, options, self.options.most), options, limits)
        figures = self.check(fitted)
        if figures["dice"] >= self.stats["best_metric"]:
            fitted.replace(self.best)
            self.stats["best_metric"] = figures["dice"]
            self._save()

    def finish(self, versions: Versions) -> dict:
        better = self.best.exists()
        if better and "refitted" not in self.stats:
            self._refit()
            self.stats["refitted"] = True
        figures = {k: round(self.stats[k], 4) for k in ("base_metric", "best_metric")}
        picked = self.best if better else self.run / "candidate.safetensors"
        path = versions.add(picked, {**figures, "options": asdict(self.options), **self.stats}, better=better)
        last = self.stats["history"][-1]
        message = (
            f"{path.stem} is served now: volume Dice {figures['best_metric']:.3f}, before {figures['base_metric']:.3f}."
            if better
            else f"{path.stem} is no better (volume Dice {last:.3f}, served {figures['base_metric']:.3f}) and was kept aside."
        )
        logger.info(message)
        self.stats |= {"accepted": better, "version": str(path), "message": message}
        self._save()
        shutil.rmtree(self.run.parent, ignore_errors=True)  # runs that were given up before go too
        return self.stats

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def _save(self) -> None:
        self.stats["total_time"] = round(self._seconds(), 1)
        temporary = self.file.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.stats))
        temporary.replace(self.file)
        self._report(dict(self.stats))
