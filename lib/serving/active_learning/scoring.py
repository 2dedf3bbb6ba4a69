"""Scoring methods of MONAI Label: how good is each slice of each volume, against a reference or expected?

MONAI Label runs them in a process of its own. Results go into the images' info in the datastore, where the server and its clients
find them: {structures: {name: {dice, worst_slice, mean, volume_dice}}, worst_structure, worst_slice, mean, axis, time, ...}.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np
from monailabel.interfaces.tasks.scoring import ScoringMethod
from tqdm import tqdm

from lib.common.errors import UserError
from lib.engine.options import Options
from lib.engine.segmenter import Segmenter
from lib.imaging import metrics
from lib.imaging.frames import Frames
from lib.imaging.readers import read_mask, read_volume
from lib.prompts import simulated_annotator
from lib.quality.next_slice import pick_worst_slice, slice_errors
from lib.serving.active_learning.annotation_records import AnnotationRecords
from lib.serving.datastore.labels import label_names, label_path
from lib.serving.inference.checkpoint_catalog import AUTO, CheckpointCatalog

logger = logging.getLogger(__name__)

SESSION = "session"  # instead of a label tag: what the annotators' clicks gave last


class _Scoring(ScoringMethod):
    """Goes through all images; those whose inputs have not changed since they were scored are passed over.

    Args:
        name: of the method, and of its entry in the images' info.
    """

    def __init__(self, name: str, description: str):
        super().__init__(description)
        self.name = name

    def __call__(self, request: dict, datastore) -> dict:
        """{image: result} of the images that could be scored; what is wrong with the others goes to the log."""
        results = {}
        for image in tqdm(datastore.list_images(), desc=self.name):
            try:
                inputs = self._inputs(image, request, datastore)
                known = datastore.get_image_info(image).get(self.name)
                if inputs is None or (known and known.get("inputs") == inputs):
                    if inputs is not None:
                        results[image] = known
                    continue
                result = self._score(image, request, datastore)
            except (UserError, OSError, ValueError) as e:
                logger.warning("Not scored: %s: %s", image, e)
                continue
            if result:
                results[image] = {**result, "inputs": inputs, "time": int(time.time())}
                _keep(datastore, image, {self.name: results[image]})
                logger.info("%s: %s slice %s of %s, mean %.3f", self.name, image, result["worst_slice"], result["worst_structure"], result["mean"])
        return results

    @abstractmethod
    def _inputs(self, image, request, datastore) -> list | None:
        """What the result depends on; None if there is nothing to score."""

    @abstractmethod
    def _score(self, image, request, datastore) -> dict | None:
        """The result for an image; None if it cannot be scored."""


class SliceDice(_Scoring):
    """Dice of every slice of one label (tag `y_pred`, default "original"; or "session") against another (tag `y`, default "final")."""

    def __init__(self, rounds: AnnotationRecords):
        super().__init__("slice_dice", "Dice of each slice against a reference label")
        self._rounds = rounds

    def info(self) -> dict:
        return {**super().info(), "config": {"y": "final", "y_pred": ["original", SESSION]}}

    def _inputs(self, image, request, datastore):
        reference_path = label_path(datastore, image, _tag(request, "y", "final"))
        tag = _tag(request, "y_pred", "original")
        if reference_path is None:
            return None
        if tag == SESSION:
            records = self._rounds.of(image)
            return [_stamp(reference_path), tag, max(r["time"] for r in records.values())] if records else None
        prediction = label_path(datastore, image, tag)
        return None if prediction is None else [_stamp(reference_path), tag, _stamp(prediction)]

    def _score(self, image, request, datastore):
        volume = read_volume(datastore.get_image_uri(image))
        frames = Frames.of(volume)
        reference = frames.from_volume(read_mask(label_path(datastore, image, _tag(request, "y", "final")), volume))
        names = label_names(datastore, image, _tag(request, "y", "final"))
        tag = _tag(request, "y_pred", "original")
        if tag == SESSION:
            pairs = self._session(image, reference, names)
        else:
            predicted = frames.from_volume(read_mask(label_path(datastore, image, tag), volume))
            values = np.union1d(np.unique(reference), np.unique(predicted))
            pairs = {names.get(int(v), f"label_{v}"): (predicted == v, reference == v) for v in values if v > 0}
        structures = {}
        for name, (mask, of) in pairs.items():
            dice, wrong = slice_errors(mask, of)
            structures[name] = _structure(dice, wrong) | {"volume_dice": round(metrics.dice(mask, of), 4)}
        checkpoint = sorted({r["checkpoint"] for r in self._rounds.of(image).values()}) if tag == SESSION else None
        return _summary(structures, frames.axis, checkpoint=checkpoint, y=_tag(request, "y", "final"), y_pred=tag)

    def _session(self, image, reference, names) -> dict:
        """{name: (mask, reference_path)} of the structures that were clicked; one without a name is compared with what it covers most."""
        pairs, values = {}, {name: v for v, name in names.items()}
        for structure, record in self._rounds.of(image).items():
            mask = self._rounds.mask(image, structure)
            if mask is None or mask.shape != reference.shape:
                continue
            covered = np.bincount(reference[mask & (reference > 0)], minlength=2)
            value = values.get(record["label"], int(covered.argmax()))
            if value:
                pairs[record["label"] or names.get(value, f"label_{value}")] = mask, reference == value
        return pairs


class SliceQuality(_Scoring):
    """Dice that is expected of every slice, without a reference.

    Of volumes in work it is what the last round said. A label that came otherwise (tag `tag`, default "original") is tested by itself:
    three of its slices are given to the engine as painted ones, and what tracking makes of them is compared with the label.
    """

    def __init__(self, rounds: AnnotationRecords, catalog: CheckpointCatalog, segmenter: Callable[[], Segmenter], window: str = "auto"):
        super().__init__("slice_quality", "Dice expected of each slice, without a reference")
        self._rounds, self._catalog, self._segmenter, self._window = rounds, catalog, segmenter, window

    def info(self) -> dict:
        return {**super().info(), "config": {"tag": "original"}}

    def _inputs(self, image, request, datastore):
        records = self._rounds.of(image)
        if records:
            return [SESSION, max(r["time"] for r in records.values())]
        label = label_path(datastore, image, _tag(request, "tag", "original"))
        return None if label is None else [_stamp(label), self._catalog.resolve(AUTO)[1]]

    def _score(self, image, request, datastore):
        records = self._rounds.of(image)
        if records:
            structures = {}
            for name, r in records.items():
                allowed = np.setdiff1d(np.arange(r["slices"]), r["annotated"])
                structures[r["label"] or name] = _structure(r["expected_dice"], r["areas"], allowed) | {"volume_dice": r["volume_dice"]}
            first = next(iter(records.values()))
            return _summary(structures, first["axis"], checkpoint=sorted({r["checkpoint"] for r in records.values()}))
        return self._tested(image, _tag(request, "tag", "original"), datastore)

    def _tested(self, image, tag, datastore) -> dict:
        volume = read_volume(datastore.get_image_uri(image))
        checkpoint, name = self._catalog.resolve(AUTO)
        options = Options(checkpoint=checkpoint, window=self._window)
        frames, segmenter = Frames.of(volume, window=self._window), self._segmenter()
        labels, names = frames.from_volume(read_mask(label_path(datastore, image, tag), volume)), label_names(datastore, image, tag)
        structures = {}
        for value in (int(v) for v in np.unique(labels) if v > 0):
            mask = labels == value
            slices = simulated_annotator.slices_at_shares(mask)
            masks = {t: frames.to_volume(mask).take(t, frames.axis) for t in slices}
            again = frames.from_volume(segmenter.segment(volume, segmenter.prompts(volume, options, masks=masks), options).mask)
            dice, wrong = slice_errors(mask, again)
            structures[names.get(value, f"label_{value}")] = _structure(dice, wrong) | {"volume_dice": round(metrics.dice(mask, again), 4)}
        return _summary(structures, frames.axis, checkpoint=name, tag=tag)


def _structure(dice, wrong, allowed=None) -> dict:
    dice, wrong = np.asarray(dice, float), np.asarray(wrong)
    t = pick_worst_slice(dice, wrong, np.arange(len(dice)) if allowed is None else allowed)
    return {"dice": [round(float(d), 3) for d in dice], "worst_slice": t, "mean": round(float(dice.mean()), 4)}


def _summary(structures: dict, axis: int, **more) -> dict | None:
    """The structures, and the worst slice of the worst of them."""
    if not structures:
        return None

    def low(name):
        s = structures[name]
        return 1.0 if s["worst_slice"] is None else s["dice"][s["worst_slice"]]

    name = min(structures, key=low)
    mean = round(float(np.mean([s["mean"] for s in structures.values()])), 4)
    return {"structures": structures, "worst_structure": name, "worst_slice": structures[name]["worst_slice"], "mean": mean, "axis": axis, **more}


def _tag(request: dict, name: str, default: str) -> str:
    value = request.get(name) or default
    return str(value[0] if isinstance(value, list) else value)


def _stamp(path: Path) -> list:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _keep(datastore, image: str, entry: dict) -> None:
    """Adds to an image's info; what other processes have written since is read first, where the datastore is a folder."""
    reload = getattr(datastore, "_init_from_datastore_file", None)
    if reload:
        reload()
    datastore.update_image_info(image, entry)
