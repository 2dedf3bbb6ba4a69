"""Segment a structure: from a volume and prompts to a mask."""

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch

from lib.engine.loaded_network import LoadedNetwork, load_network
from lib.engine.options import Options, slice_range
from lib.engine.result import Result, TrackedRange
from lib.engine.task import SegmentationTask, combine_estimates, combine_masks
from lib.engine.tracker import Tracker
from lib.imaging import masks
from lib.imaging.frames import Frames, resolve_axis
from lib.imaging.volume import Volume
from lib.model import checkpoints, device
from lib.model.feature_cache import FeatureCache
from lib.model.features import SliceFeatures
from lib.model.prefetch import Prefetcher
from lib.prompts.volume_prompts import Prompts, group_by_slice, make_prompts
from lib.propagation.result_cache import ResultCache
from lib.propagation.tracks import Tracks

logger = logging.getLogger(__name__)

SLICES_BEYOND_MASK = 48  # A correction may be tracked this many slices beyond the ends of a mask.


class Segmenter:
    """Loads networks when they are first needed, keeps features and results of recent requests, and answers requests.

    Nothing belongs to a user or a session: volumes and prompts are recognised by their content, and after a change of prompts only what
    depends on the change is computed. Requests may come from several threads: each network runs one request at a time, and all share
    features and results.
    """

    def __init__(self, feature_cache: FeatureCache | None = None, result_cache: ResultCache | None = None):
        self._feature_cache, self._result_cache = feature_cache or FeatureCache(), result_cache or ResultCache()
        self._prefetcher = Prefetcher()
        self._networks: dict[tuple, LoadedNetwork] = {}
        self._lock = threading.Lock()

    @property
    def feature_bytes(self) -> int:
        """Bytes of encoded slices that are held."""
        return self._feature_cache.bytes

    def prompts(self, volume: Volume, options: Options, **prompts) -> Prompts:
        """Return the prompts that `make_prompts` makes of these keywords with the slicing axis of `options`."""
        return make_prompts(volume, axis=resolve_axis(volume, options.axis), **prompts)

    def segment(self, volume: Volume, prompts: Prompts, options: Options = Options(), progress: Callable = lambda x, **_: x) -> Result:
        """Segment one structure.

        Slices with a box or a painting, else the first slice with a click inside, say what the structure is. Clicks on other slices
        correct the mask that tracking gives there, one slice after the other. Then masks are propagated from every annotated slice to
        both sides. The result depends on the volume, the prompts and the options alone, not on earlier requests.

        Args:
            progress: Wraps an iterable for display and takes the keyword desc, as `tqdm` does. An error that it raises ends the request.

        Raises:
            UserError: The checkpoint cannot be loaded, or prompts or options make no sense; see `lib.common.errors`.
        """
        with self._prefetcher.paused():
            try:
                return self._segment(volume, prompts, options, progress)
            except torch.OutOfMemoryError:
                target = device.resolve_device(options.device)
                if target.type == "cpu":
                    raise
                logger.warning("%s is out of memory: forgetting all features, going on with single slices.", target)
                self._forget()
            try:
                return self._segment(volume, prompts, replace(options, batch=1), progress)
            except torch.OutOfMemoryError:
                logger.warning("%s is out of memory again: this request is answered by the CPU.", target)
                self._forget()
            return self._segment(volume, prompts, replace(options, device="cpu"), progress)

    def prefetch(
        self, volume: Volume, options: Options = Options(), around: Sequence[int] = (), tracked: Sequence[TrackedRange] = ()
    ) -> None:
        """Encode all slices in the background, those nearest to the slices `around` (default: the middle) first.

        Args:
            tracked: `Result.tracked` of the last result. Its crops are encoded before whole frames.
        """
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        centres = list(around) or [len(frames) // 2]
        network = self._network(options)

        def request(frames: Frames, slices: Iterable[int]) -> None:
            order = sorted(slices, key=lambda t: min(abs(t - c) for c in centres))
            self._prefetcher.request(self._features(network, frames, options), order)

        request(frames, range(len(frames)))
        stride, slices_by_crop = network.stride(options, frames), {}
        for low, high, crop in tracked:
            if crop is not None:
                cropped = frames.cropped(*crop)
                _, slices = slices_by_crop.setdefault(cropped.key, (cropped, set()))
                slices.update(t for t in range(low, high + 1) if t % stride == 0)
        for cropped, slices in slices_by_crop.values():
            request(cropped, slices)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until everything requested by `prefetch` is encoded, and return False if that takes longer than `timeout_s` seconds."""
        return self._prefetcher.wait(timeout_s)

    def _forget(self) -> None:
        self._feature_cache.clear()
        self._result_cache.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _segment(self, volume: Volume, prompts: Prompts, options: Options, progress: Callable) -> Result:
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        prompts_by_slice = group_by_slice(prompts, frames)
        low, high = slice_range(frames, prompts, options, prompts_by_slice)
        request = SegmentationTask(self._network(options), frames, options, low, high, progress)
        stopwatch = request.stopwatch
        with request.network.lock:
            request.features = self._features(request.network, frames, options)
            with stopwatch("encode"):
                request.ensure_encoded(list(prompts_by_slice))
            request.prompts_by_slice = prompts_by_slice
            tracker = Tracker(lambda frames: self._features(request.network, frames, options), self._result_cache)
            request.annotated = tracker.annotate(request)
            if options.propagate:
                tasks = tracker.split_by_crop(request)
                all_tracks = tracker.propagate(tasks)
            else:
                tasks = [request]
                all_tracks = [Tracks.from_annotations(request.annotated, len(frames), request.features.device, absent_iou=0.0)]
            for task, tracks in zip(tasks, all_tracks, strict=True):
                task.tracks = tracks
            with stopwatch("finish"):
                mask = combine_masks(tasks, frames, prompts, prompts_by_slice)
        self._feature_cache.trim()
        with stopwatch("estimate"):
            has_mask = masks.slice_areas(frames.from_volume(mask)) > 0
            estimates = combine_estimates(tasks, len(frames), has_mask)
        annotated = tuple(sorted({t for task in tasks for t in task.annotated}))
        return Result(
            mask, frames.axis, annotated, estimates, stopwatch.seconds, sum(request.encoded_counts),
            _tracked_ranges(tasks, np.union1d(np.flatnonzero(has_mask), annotated)) if options.propagate else (),
        )  # fmt: skip

    def _network(self, options: Options) -> LoadedNetwork:
        checkpoint, target = checkpoints.find(options.checkpoint), device.resolve_device(options.device)
        with self._lock:
            if (checkpoint, target) not in self._networks:  # One file may serve at two image sizes.
                self._networks[checkpoint, target] = load_network(checkpoint, target)
            return self._networks[checkpoint, target]

    def _features(self, network: LoadedNetwork, frames: Frames, options: Options) -> SliceFeatures:
        target = device.resolve_device(options.device)
        model = network.decoder.network.model
        key = frames.key, network.encoder_digest, target.type

        def make() -> SliceFeatures:
            batch = device.slices_at_once(target, model.image_size)
            batch = min(batch, options.batch) if options.batch else batch
            limit, overflow = self._feature_cache.limit_bytes, self._feature_cache.overflow
            return SliceFeatures(model, frames, target, device.autocast_factory(target), batch, limit, overflow, key, keep_half=True)

        return self._feature_cache.get((*key, str(target)), make)


def _tracked_ranges(tasks: Sequence[SegmentationTask], filled_slices: np.ndarray) -> tuple[TrackedRange, ...]:
    """Return where each task has tracked, at most `SLICES_BEYOND_MASK` beyond the filled slices."""
    low, high = int(filled_slices[0]) - SLICES_BEYOND_MASK, int(filled_slices[-1]) + SLICES_BEYOND_MASK
    return tuple(TrackedRange(max(t.low, low), min(t.high, high), t.frames.crop) for t in tasks)
