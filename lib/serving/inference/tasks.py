"""MONAI Label's inference tasks: they turn prompts on a volume into the mask of one structure."""

import logging
import os
import threading
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
from fastapi import HTTPException
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from tqdm import tqdm

from lib.common.errors import PromptError
from lib.common.stopwatch import Stopwatch
from lib.engine.options import DIRECTIONS, Options
from lib.engine.request import has_no_prompt, parse_options, parse_prompts, parse_roi, uploaded_label_path
from lib.engine.result import Result
from lib.engine.segmenter import Segmenter
from lib.imaging import masks
from lib.imaging.frames import AXES, WINDOWS, Frames, resolve_axis
from lib.imaging.readers import read_mask, read_volume
from lib.imaging.volume import Volume
from lib.model.device import available_devices
from lib.prompts.scribbles import prompts_from_layers, split_layers
from lib.prompts.volume_prompts import Prompts, make_prompts
from lib.serving import observability
from lib.serving.active_learning.annotation_records import AnnotationRecords, structure_of
from lib.serving.datastore.labels import structure_in, structure_name
from lib.serving.dicomweb.viewer_grid import request_from_viewer
from lib.serving.inference.answer import json_answer, requested_extension, write_result
from lib.serving.inference.checkpoint_catalog import AUTO, CheckpointCatalog
from lib.serving.inference.request_queue import stop_if_gone
from lib.serving.web.http_errors import clear_errors

logger = logging.getLogger(__name__)


class VolumeCache:
    """The volumes that were used last. A file that has changed since it was read is read again.

    Args:
        capacity: Number of volumes to keep.
        channel: Index of the channel to read from 4D images; None to refuse them.
    """

    def __init__(self, capacity: int = 4, channel: int | None = None):
        self._read = lru_cache(capacity)(lambda path, file_version: read_volume(path, channel=channel))
        self._lock = threading.Lock()  # Requests for one volume must not read it twice.

    def get(self, path: str) -> Volume:
        """Return the volume at `path`, or raise VolumeError if it cannot be read."""
        try:
            stat = os.stat(path)
            file_version = (stat.st_size, stat.st_mtime_ns, stat.st_ino)
        except OSError:
            file_version = None  # The reader reports a missing file.
        with self._lock:
            return self._read(path, file_version)


class Sam2Task(InferTask):
    """Segmentation of one structure from clicks, boxes or painted slices.

    Args:
        segmenter, volumes: The engine and the volumes in memory, which all tasks of the app share.
        labels: Names of the structures that can be segmented.
        catalog: The checkpoints on offer.
        records: Where the state of each volume in work is kept.
        dimension: 3 to fill the volume, 2 to fill only the clicked slice.
        window: Default of the option `window`.
    """

    infer_type, prompt_kinds = InferType.DEEPGROW, "click, box or painted slice"
    may_clear = True  # A request without any prompt empties the structure.

    def __init__(
        self, segmenter: Segmenter, volumes: VolumeCache, labels, catalog: CheckpointCatalog, records: AnnotationRecords, *,
        dimension: int = 3, window: str = "auto",
    ):  # fmt: skip
        self._segmenter, self._volumes, self._catalog, self._records = segmenter, volumes, catalog, records
        self._propagates, self._window = dimension == 3, window
        windows = list(dict.fromkeys([window, *WINDOWS]))
        config: dict[str, Any] = {"device": available_devices(), "checkpoint": catalog.names(), "window": windows, "axis": list(AXES)}
        if self._propagates:
            config |= {
                "direction": list(DIRECTIONS), "components": list(masks.COMPONENTS), "largest_cc": False,
                "z_range": "", "stop_mm": 6, "stride": 0, "focus": True,
            }  # fmt: skip
        description = f"SAM 2: {self.prompt_kinds} to a mask on {'all slices' if self._propagates else 'the clicked slice'}"
        super().__init__(type=self.infer_type, labels=labels, dimension=dimension, description=description, config=config)

    @property
    def feature_bytes(self) -> int:
        """The memory that features of encoded slices occupy."""
        return self._segmenter.feature_bytes

    def config(self) -> dict:
        """Return the options that clients can set, with the checkpoints on offer at this moment."""
        return {**super().config(), "checkpoint": self._catalog.names()}

    def is_valid(self) -> bool:
        """Return True, because the task can always run: MONAI Label would look for a model file of its own."""
        return True

    def read(self, path: str) -> Volume:
        """Return the volume at `path`, which stays in memory for a while, or raise UserError."""
        return self._volumes.get(path)

    def open(self, path: str) -> None:
        """Read a volume, or raise UserError, and start to encode its slices in the background, with default options."""
        checkpoint, _ = self._catalog.resolve(AUTO)
        self._segmenter.prefetch(self._volumes.get(path), Options(checkpoint=checkpoint, window=self._window))

    @clear_errors(400)
    def __call__(self, request: dict) -> tuple[str, dict]:
        """Return the path of the mask file and the JSON answer, whose fields the documentation of the HTTP API explains.

        Args:
            request: Prompts and options (see `lib.engine.request`), "image" (the path of the volume), "image_id", "image_digest" (of the
                content when the request came), "saved_label" (see `lib.serving.datastore.labels.saved_label`), and "result_extension",
                "result_dtype", "result_compress" and "result_crop".

        Raises:
            HTTPException: 400 for wrong input, 404 for an unknown image, 503 if memory runs out, 507 if the disk is full.
        """
        start, stopwatch = time.perf_counter(), Stopwatch()
        if not request.get("image"):
            raise HTTPException(404, "There is no such image in the datastore.")
        chosen = request.get("checkpoint") or AUTO
        checkpoint, reported_checkpoint = self._catalog.resolve(str(chosen[0] if isinstance(chosen, list) else chosen))
        options = parse_options({"window": self._window, **request, "checkpoint": checkpoint}, propagate=self._propagates)
        with stopwatch("load"):
            volume = self._volumes.get(str(request["image"]))
        request = request_from_viewer(request, volume, options.axis)
        extension = requested_extension(request, volume)
        if is_cleared := self.may_clear and has_no_prompt(request):
            prompts, result = Prompts(), Result.empty(volume.shape, resolve_axis(volume, options.axis))
        else:
            prompts = self._prompts(request, volume, options)
            result = self._segmenter.segment(volume, prompts, options, _progress)
        with stopwatch("write"):
            path, fields = write_result(result, volume, request, extension)
        answer = json_answer(result, volume, reported_checkpoint, request) | fields
        if is_cleared:
            self._records.forget_structure(str(request.get("image_id") or ""), request)
            answer |= {"expected_dice": None, "expected_volume_dice": None, "next_slice": None}
        elif self._propagates:
            with stopwatch("next"):
                answer |= self._record(volume, request, options, result, reported_checkpoint)
            self._segmenter.prefetch(volume, options, result.annotated, result.tracked)
        seconds = {**stopwatch.seconds, **result.seconds, "total": time.perf_counter() - start}
        logger.info(
            "Answered %s in %.2f s: slices %s annotated, %d encoded, %d of %d with the object.",
            volume.name, seconds["total"], list(result.annotated), result.encoded_count, np.count_nonzero(result.areas), len(result.areas),
        )  # fmt: skip
        answer["latencies"] = {stage: round(s, 4) for stage, s in seconds.items()}
        image, model = str(request.get("image_id") or ""), str(request.get("model"))
        observability.note_inference(answer, image, model, len(prompts.positive), len(prompts.negative))
        return path, answer

    def _prompts(self, request: dict, volume: Volume, options: Options) -> Prompts:
        """Return the prompts of a request, which may name slices of a saved label, or raise PromptError."""
        mask, saved = None, request.get("saved_label")
        if saved and not uploaded_label_path(request):
            if not saved["path"]:
                raise PromptError(f"No label with the tag {saved['tag']!r} is saved for this image: save one, or leave out mask_slices.")
            mask = structure_in(read_mask(saved["path"], volume), saved["names"], structure_name(request))
        return parse_prompts(request, volume, options, saved=mask)

    def _record(self, volume: Volume, request: dict, options: Options, result: Result, checkpoint: str) -> dict:
        """Record the state of the volume and return the fields of the answer that say what to do next."""
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        image = str(request.get("image_id") or "")
        # An id that is the path of a file belongs to no datastore, and the mask of an image that was removed or exchanged during the
        # computation does not belong to the present one.
        keep = bool(image) and not os.path.exists(image) and self._records.digest_of(image) == request.get("image_digest", "")
        record = self._records.add_round(image, request, frames, result, checkpoint, keep=keep)
        return {"expected_dice": record["expected_dice"], "expected_volume_dice": record["volume_dice"], "next_slice": record["proposal"]}


class Sam2Scribbles(Sam2Task):
    """Segmentation from slices that were painted, corrected or scribbled on, as the section *Scribbles* of 3D Slicer sends them.

    `lib.prompts.scribbles` explains how such a label map becomes prompts.
    """

    infer_type, prompt_kinds = InferType.SCRIBBLES, "painted or scribbled slices"
    may_clear = False

    def _prompts(self, request, volume, options):
        """Return the prompts that differ from the previous answer for this structure, or raise PromptError without a label map."""
        upload = uploaded_label_path(request)
        if upload is None:
            raise PromptError("Nothing was painted: the label map of the segments and scribbles is missing in the request.")
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        image, structure = str(request.get("image_id") or ""), structure_of(request)
        key = self._records.key_of(image, request)
        previous_mask, record = self._records.mask(image, key), self._records.for_image(image).get(key, {})
        if previous_mask is not None and (previous_mask.shape != (len(frames), *frames.size) or record.get("axis") != frames.axis):
            previous_mask = None  # It belongs to another image that had this id before.
        layers = split_layers(read_mask(upload, volume), request.get("label_info") or [], structure)
        annotated = record.get("annotated", ()) if previous_mask is not None else ()
        prompts = prompts_from_layers(*map(frames.from_volume, layers), frames, previous_mask, annotated)
        return make_prompts(volume, axis=frames.axis, roi=parse_roi(request, volume), **prompts)


def _progress(items: Iterable, **options) -> Iterator:
    """Yield the items with a progress bar in the server's log; raise `Cancelled` when the client has disconnected."""
    for item in tqdm(items, mininterval=2.0, leave=False, **options):
        stop_if_gone()
        yield item
