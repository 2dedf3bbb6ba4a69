"""Scoring methods of MONAI Label, which rate every slice of every volume, against a reference label or without one.

MONAI Label runs them in a process of its own. The results go into the images' info in the datastore, where the server and its clients
find them: {structures: {name: {dice, worst_slice, mean, volume_dice}}, worst_structure, worst_slice, mean, axis, time, ...}.
"""

import logging
import time
from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path

import numpy as np
from monailabel.interfaces.exception import MONAILabelException
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
from lib.serving.datastore.labels import label_names, label_path, named_masks
from lib.serving.inference.checkpoint_catalog import AUTO, CheckpointCatalog

logger = logging.getLogger(__name__)

SESSION = "session"  # Stands in place of a label's tag for the last masks that the annotators' prompts gave.


class _Scoring(ScoringMethod):
    """Base of the scoring methods: goes through all images and skips those whose inputs have not changed since they were scored.

    Args:
        name: Name of the method, and of its entry in the images' info.
        description: Text shown to clients.
    """

    def __init__(self, name: str, description: str):
        super().__init__(description)
        self.name = name

    def __call__(self, request: dict, datastore) -> dict:
        """Return {image: result} of the images that could be scored; problems with the others are logged."""
        results = {}
        for image in tqdm(datastore.list_images(), desc=self.name):
            try:
                if (inputs := self._inputs(image, request, datastore)) is None:
                    continue
                previous = datastore.get_image_info(image).get(self.name)
                if previous and previous.get("inputs") == inputs:
                    results[image] = previous
                    continue
                result = self._score(image, request, datastore)
            except (UserError, OSError, ValueError, MemoryError, MONAILabelException) as e:
                logger.warning("Not scored: %s: %s", image, getattr(e, "msg", e))
                continue
            if result:
                results[image] = {**result, "inputs": inputs, "time": int(time.time())}
                # What other processes have written to a folder's list of images since then must not be lost.
                getattr(datastore, "_init_from_datastore_file", lambda: None)()
                datastore.update_image_info(image, {self.name: results[image]})
                worst = result["worst_slice"], result["worst_structure"]
                logger.info("%s: %s, worst slice %s of %s, mean Dice %.3f", self.name, image, *worst, result["mean"])
        return results

    @abstractmethod
    def _inputs(self, image, request, datastore) -> list | None:
        """Return what the result depends on, as JSON can hold it, or None if there is nothing to score."""

    @abstractmethod
    def _score(self, image, request, datastore) -> dict | None:
        """Return the result for an image, or None if it cannot be scored."""


class SliceDice(_Scoring):
    """Dice of every slice of one label (tag `y_pred`, default "original"; or "session") against another (tag `y`, default "final")."""

    def __init__(self, records: AnnotationRecords):
        super().__init__("slice_dice", "Dice of each slice against a reference label")
        self._records = records

    def info(self) -> dict:
        return {**super().info(), "config": {"y": "final", "y_pred": ["original", SESSION]}}

    def _inputs(self, image, request, datastore):
        tag = _tag(request, "y_pred", "original")
        if (reference_path := label_path(datastore, image, _tag(request, "y", "final"))) is None:
            return None
        if tag == SESSION:
            records = self._records.for_image(image)
            return [_file_stamp(reference_path), tag, max(r["time"] for r in records.values())] if records else None
        prediction = label_path(datastore, image, tag)
        return None if prediction is None else [_file_stamp(reference_path), tag, _file_stamp(prediction)]

    def _score(self, image, request, datastore):
        volume = read_volume(datastore.get_image_uri(image))
        frames = Frames.of(volume)
        reference_tag, tag = _tag(request, "y", "final"), _tag(request, "y_pred", "original")
        reference = frames.from_volume(read_mask(label_path(datastore, image, reference_tag), volume))
        names = label_names(datastore, image, reference_tag)
        if tag == SESSION:
            pairs = self._session_pairs(image, reference, names)
        else:
            predicted = frames.from_volume(read_mask(label_path(datastore, image, tag), volume))
            predicted_names = label_names(datastore, image, tag)  # A label without any names has those of the other one.
            references, predictions = named_masks(reference, names or predicted_names), named_masks(predicted, predicted_names or names)
            nothing = np.zeros(reference.shape, bool)
            pairs = {name: (predictions.get(name, nothing), references.get(name, nothing)) for name in {**references, **predictions}}
        structures = {name: _compare(mask, reference_mask) for name, (mask, reference_mask) in pairs.items()}
        checkpoint = sorted({r["checkpoint"] for r in self._records.for_image(image).values()}) if tag == SESSION else None
        return _summarize(structures, frames.axis, checkpoint=checkpoint, y=reference_tag, y_pred=tag)

    def _session_pairs(self, image: str, reference: np.ndarray, names: dict[int, str]) -> dict[str, tuple]:
        """Return {name: (mask, reference mask)}, bool (T, Y, X), of the structures that were annotated.

        A structure without a name is compared with the reference label that its mask covers most.
        """
        pairs, values = {}, {name: v for v, name in names.items()}
        for structure, record in self._records.for_image(image).items():
            mask = self._records.mask(image, structure)
            if mask is None or mask.shape != reference.shape:
                continue
            covered_voxels = np.bincount(reference[mask & (reference > 0)], minlength=2)
            if value := values.get(record["label"], int(covered_voxels.argmax())):
                name = record["label"] or names.get(value, f"label_{value}")
                pairs[structure if name in pairs else name] = mask, reference == value
        return pairs


class SliceQuality(_Scoring):
    """The Dice that is expected of every slice, without a reference.

    For volumes that are being annotated it is the estimate of the last round. Any other label (tag `tag`, default "original") is tested by
    itself: the engine gets three of its slices as painted ones, and the mask that results is compared with the label.
    """

    def __init__(self, records: AnnotationRecords, catalog: CheckpointCatalog, segmenter: Callable[[], Segmenter], window: str = "auto"):
        super().__init__("slice_quality", "Dice expected of each slice, without a reference")
        self._records, self._catalog, self._segmenter, self._window = records, catalog, segmenter, window

    def info(self) -> dict:
        return {**super().info(), "config": {"tag": "original"}}

    def _inputs(self, image, request, datastore):
        if records := self._records.for_image(image):
            return [SESSION, max(r["time"] for r in records.values())]
        label = label_path(datastore, image, _tag(request, "tag", "original"))
        return None if label is None else [_file_stamp(label), self._catalog.resolve(AUTO)[1]]

    def _score(self, image, request, datastore):
        records = self._records.for_image(image)
        if not records:
            return self._test_label(image, _tag(request, "tag", "original"), datastore)
        structures = {}
        for name, r in records.items():
            allowed = np.setdiff1d(np.arange(r["slices"]), r["annotated"])
            title = r["label"] if r["label"] and r["label"] not in structures else name
            structures[title] = _score_structure(r["expected_dice"], r["areas"], r["volume_dice"], allowed)
        axis = next(iter(records.values()))["axis"]
        return _summarize(structures, axis, checkpoint=sorted({r["checkpoint"] for r in records.values()}))

    def _test_label(self, image: str, tag: str, datastore) -> dict | None:
        """Return the scores of a saved label, by tracking each of its structures from three of its slices."""
        volume = read_volume(datastore.get_image_uri(image))
        checkpoint, name = self._catalog.resolve(AUTO)
        options = Options(checkpoint=checkpoint, window=self._window)
        frames, segmenter = Frames.of(volume, window=self._window), self._segmenter()
        labels, names = frames.from_volume(read_mask(label_path(datastore, image, tag), volume)), label_names(datastore, image, tag)
        structures = {}
        for value in (int(v) for v in np.unique(labels) if v > 0):
            mask = labels == value
            painted = {t: frames.to_volume(mask).take(t, frames.axis) for t in simulated_annotator.slices_at_shares(mask)}
            result = segmenter.segment(volume, segmenter.prompts(volume, options, masks=painted), options)
            structures[names.get(value, f"label_{value}")] = _compare(mask, frames.from_volume(result.mask))
        return _summarize(structures, frames.axis, checkpoint=name, tag=tag)


def _compare(mask: np.ndarray, other: np.ndarray) -> dict:
    """Return the scores of a structure from two bool (T, Y, X) masks of it."""
    return _score_structure(*slice_errors(mask, other), round(metrics.dice(mask, other), 4))


def _score_structure(dice, wrong_pixels, volume_dice: float, allowed=None) -> dict:
    """Return the scores of a structure from figures (T,) of its slices; `allowed` are the slices that may be its worst one."""
    dice, wrong_pixels = np.asarray(dice, float), np.asarray(wrong_pixels)
    t = pick_worst_slice(dice, wrong_pixels, np.arange(len(dice)) if allowed is None else allowed)
    return {"dice": [round(float(d), 3) for d in dice], "worst_slice": t, "mean": round(float(dice.mean()), 4), "volume_dice": volume_dice}


def _summarize(structures: dict, axis: int, **details) -> dict | None:
    """Return the scores of a volume: its structures and the worst slice of the worst of them; None without structures."""
    if not structures:
        return None
    worst_slices = {name: s["worst_slice"] for name, s in structures.items()}
    worst = min(structures, key=lambda name: 1.0 if worst_slices[name] is None else structures[name]["dice"][worst_slices[name]])
    mean = round(float(np.mean([s["mean"] for s in structures.values()])), 4)
    return {"structures": structures, "worst_structure": worst, "worst_slice": worst_slices[worst], "mean": mean, "axis": axis, **details}


def _tag(request: dict, name: str, default: str) -> str:
    value = request.get(name) or default
    return str(value[0] if isinstance(value, list) else value)


def _file_stamp(path: Path) -> list:
    """Return what changes when a file is written: its size in bytes and time of change in ns."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]
