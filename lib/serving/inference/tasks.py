"""MONAI Label inference tasks: one click to one slice or to the whole volume."""

import logging
import math
import os
import tempfile
import threading
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from tqdm import tqdm

from lib.common.errors import PromptError
from lib.common.stopwatch import Stopwatch
from lib.engine.options import DIRECTIONS, Options
from lib.engine.request import parse_bool, parse_options, parse_prompts, parse_roi, uploaded_label_path
from lib.engine.result import Result
from lib.engine.segmenter import Segmenter
from lib.imaging import masks
from lib.imaging.frames import AXES, WINDOWS, Frames
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume
from lib.imaging.writers import mask_extension, write_mask
from lib.model.device import available_devices
from lib.prompts.scribbles import prompts_from_layers, split_layers
from lib.prompts.volume_prompts import Prompts, make_prompts
from lib.serving import observability
from lib.serving.active_learning.annotation_records import AnnotationRecords, structure_of
from lib.serving.datastore.labels import structure_in
from lib.serving.inference.checkpoint_catalog import AUTO, CheckpointCatalog
from lib.serving.inference.request_queue import stop_if_gone
from lib.serving.web.http_errors import clear_errors

logger = logging.getLogger(__name__)


class VolumeCache:
    """The last few volumes that were read, by path, size and time of change.

    Args:
        count: how many. channel: of 4D images, which one.
    """

    def __init__(self, count: int = 4, channel: int | None = None):
        self._count, self._channel = count, channel
        self._volumes: OrderedDict[tuple, Volume] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> Volume:
        """The volume at `path`.

        Raises:
            VolumeError: see `lib.imaging.readers.read_volume`.
        """
        key = (path, *_stamp(Path(path)))
        with self._lock:
            if key not in self._volumes:
                self._volumes[key] = read_volume(path, channel=self._channel)
                while len(self._volumes) > self._count:
                    self._volumes.popitem(last=False)
            self._volumes.move_to_end(key)
            return self._volumes[key]


def _stamp(path: Path) -> tuple:
    try:
        stat = path.stat()
    except OSError:
        return ()  # the reader says what is wrong
    return stat.st_size, stat.st_mtime_ns


class Sam2Task(InferTask):
    """Click or box in; mask of one structure out.

    Args:
        segmenter, volumes: shared by all tasks of the app.
        labels: names of the structures that can be segmented.
        dimension: 3 fills the volume, 2 only the clicked slice.
        catalog: the checkpoints on offer.
        rounds: where the state of volumes in work is noted.
        window: default of the option.
    """

    kind, how = InferType.DEEPGROW, "click, box or painted slice"

    def __init__(
        self, segmenter: Segmenter, volumes: VolumeCache, labels, catalog: CheckpointCatalog, rounds: AnnotationRecords, *, dimension=3, window="auto"
    ):
        whole = dimension == 3
        config: dict[str, Any] = {
            "device": available_devices(),
            "checkpoint": catalog.names(),
            "window": list(dict.fromkeys([window, *WINDOWS])),
            "axis": list(AXES),
        }
        if whole:
            config |= {
                "direction": list(DIRECTIONS),
                "components": list(masks.COMPONENTS),
                "largest_cc": False,
                "z_range": "",
                "stop_mm": 6,
                "stride": 0,
                "focus": True,
            }
        what = "all slices" if whole else "the clicked slice"
        super().__init__(
            type=self.kind, labels=labels, dimension=dimension, config=config, description=f"SAM 2: {self.how} to a mask on {what}",
        )  # fmt: skip
        self._segmenter, self._volumes, self._whole = segmenter, volumes, whole
        self._catalog, self._rounds, self._window = catalog, rounds, window

    @property
    def feature_bytes(self) -> int:
        """Of encoded slices that are held."""
        return self._segmenter.feature_bytes

    def config(self) -> dict:
        return {**super().config(), "checkpoint": self._catalog.names()}  # a fine-tuning may have added one

    def is_valid(self) -> bool:
        return True

    def open(self, path: str) -> None:
        """Reads the volume at `path` and has its slices encoded in the background, with default options.

        Raises:
            UserError: it cannot be read.
        """
        checkpoint, _ = self._catalog.resolve(AUTO)
        self._segmenter.prefetch(self._volumes.get(path), Options(checkpoint=checkpoint, window=self._window))

    def __call__(self, request: dict) -> tuple[str, dict]:
        """Path of the mask file and the JSON answer (see README, "What the server answers").

        Raises:
            HTTPException: 400 wrong input, 503 out of memory, 507 disk full; with a sentence as detail.
        """
        with clear_errors(400):
            return self._answer(request)

    def _answer(self, request: dict) -> tuple[str, dict]:
        start = time.perf_counter()
        clock = Stopwatch()
        if not request.get("image"):
            raise HTTPException(404, "There is no such image in the datastore.")
        ending = _ending(request)
        chosen = request.get("checkpoint") or AUTO
        checkpoint, served = self._catalog.resolve(str(chosen[0] if isinstance(chosen, list) else chosen))
        options = parse_options({"window": self._window, **request, "checkpoint": checkpoint}, propagate=self._whole)
        with clock("load"):
            volume = self._volumes.get(str(request["image"]))
        prompts = self._prompts(request, volume, options)
        result = self._segmenter.segment(volume, prompts, options, _progress)
        with clock("write"):
            path = _write(result, volume, request, ending)
        answer = _params(result, volume, served, request)
        if self._whole:
            with clock("next"):
                answer |= self._note(volume, request, options, result, served)
            self._segmenter.prefetch(volume, options, result.annotated, result.followed)
        seconds = {**clock.seconds, **result.seconds, "total": time.perf_counter() - start}
        logger.info(
            "Answered %s in %.2f s: slices %s annotated, %d encoded, %d of %d with the object.",
            volume.name, seconds["total"], list(result.annotated), result.encoded, np.count_nonzero(result.areas), len(result.present),
        )  # fmt: skip
        answer["latencies"] = {k: round(v, 4) for k, v in seconds.items()}
        clicks = (len(prompts.positive), len(prompts.negative))
        observability.note_inference(answer, str(request.get("image_id") or ""), str(request.get("model")), *clicks)
        return path, answer

    def _prompts(self, request: dict, volume: Volume, options: Options) -> Prompts:
        return parse_prompts(request, volume, options, saved=_saved(request, volume))

    def _note(self, volume: Volume, request: dict, options: Options, result: Result, served: str) -> dict:
        """Keeps the state of the volume, and says what to do next."""
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        image = str(request.get("image_id") or "")
        record = self._rounds.note(image, request, frames, result, served, keep=bool(image) and not os.path.exists(image))
        return {
            "expected_dice": record["expected_dice"], "expected_volume_dice": record["volume_dice"], "next_slice": record["proposal"],
        }  # fmt: skip


class Sam2Scribbles(Sam2Task):
    """Painted, edited or scribbled slices in, as 3D Slicer sends them (section *Scribbles*); see `lib.prompts.scribbles`."""

    kind, how = InferType.SCRIBBLES, "painted or scribbled slices"

    def _prompts(self, request, volume, options):
        upload = uploaded_label_path(request)
        if upload is None:
            raise PromptError("Nothing was painted: the label map of the segments and scribbles is missing in the request.")
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        image, structure = str(request.get("image_id") or ""), structure_of(request)
        last, record = self._rounds.mask(image, structure), self._rounds.of(image).get(structure, {})
        if last is not None and (last.shape != (len(frames), *frames.size) or record.get("axis") != frames.axis):
            last = None  # of an image that was here before under this name
        drawn = split_layers(read_mask(upload, volume), request.get("label_info") or [], structure)
        drawn = [frames.from_volume(d) for d in drawn]
        said = prompts_from_layers(*drawn, frames, last, record.get("annotated", ()) if last is not None else ())
        return make_prompts(volume, axis=frames.axis, roi=parse_roi(request, volume), **said)


def _progress(iterable, **told):
    """A progress bar in the server's log; ends the work if nobody waits for it any more."""
    for item in tqdm(iterable, mininterval=2.0, leave=False, **told):
        stop_if_gone()
        yield item


def _saved(request: dict, volume: Volume) -> np.ndarray | None:
    """The structure, bool (I, J, K), in the saved label that the app found; None if no slices of it are wanted."""
    found = request.get("saved_label")
    if not found or uploaded_label_path(request):
        return None
    if not found["path"]:
        raise PromptError(f"No label with the tag {found['tag']!r} is saved for this image: save one, or leave out mask_slices.")
    return structure_in(read_mask(found["path"], volume), found["names"], _label(request) or "")


def _label(request: dict) -> str | None:
    """The name of the structure; with an uploaded painting, whose path "label" is, Slicer sends it as "selected_label_name"."""
    name = request.get("selected_label_name" if uploaded_label_path(request) else "label")
    return name if isinstance(name, str) and name.strip() else None


def _ending(request: dict) -> str:
    """The wanted file ending, checked before any work is done."""
    wanted = str(request.get("result_extension") or ".nii.gz")
    return mask_extension("mask" + (wanted if wanted.startswith(".") else "." + wanted))


def _write(result: Result, volume: Volume, request: dict, ending: str) -> str:
    """The mask as a new temporary file, which MONAI Label deletes after sending it."""
    handle, path = tempfile.mkstemp(prefix="sam2_", suffix=ending)
    os.close(handle)
    try:
        write_mask(
            result.mask, volume, path, dtype=str(request.get("result_dtype") or "uint8"),
            compress=parse_bool(request.get("result_compress")), label=_label(request) or "segment",
        )  # fmt: skip
    except BaseException:
        os.unlink(path)
        raise
    return path


def _params(result: Result, volume: Volume, checkpoint: str, request: dict) -> dict:
    """The JSON part of the answer."""
    def numbers(values) -> list:
        return [None if math.isnan(v) else round(float(v), 4) for v in np.asarray(values, float)]

    voxels = int(result.areas.sum())
    return {
        "label": _label(request),
        "axis": result.axis,
        "annotated_slices": list(result.annotated),
        "slices_with_object": int(np.count_nonzero(result.areas)),
        "slices_encoded": result.encoded,
        "predicted_iou": numbers(result.predicted_iou),
        "presence": numbers(result.present),
        "direction_agreement": numbers(result.agreement),
        "expected_iou": numbers(result.expected_iou),
        "voxels": voxels,
        "millilitres": round(float(voxels * np.prod(volume.spacing_mm) / 1000), 3),
        "checkpoint": checkpoint,
    }
