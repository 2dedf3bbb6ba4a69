"""The engine as a whole: a volume and prompts in, a mask and what it cost out."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from lib import masks
from lib.clock import Stopwatch
from lib.estimate import expected_quality
from lib.frames import Frames, resolve_axis
from lib.model import checkpoints, device
from lib.model.closer import part_to_follow
from lib.model.features import FeatureStore, FrameFeatures, encoder_key
from lib.model.prefetch import Prefetcher
from lib.model.runs import Memo
from lib.model.tracker import Tracker
from lib.model.tracks import Annotation, Tracks
from lib.options import Options, slice_range
from lib.prompts import Prompts, by_slice, make_prompts
from lib.result import Result
from lib.slice_quality import Estimator
from lib.volume import Volume

logger = logging.getLogger(__name__)

ZOOM_UP_TO = 512  # pixels; networks for larger squares see small structures well
THIN = 1 / 128  # of the field of view; slices of such networks' training were no closer

@dataclass(frozen=True)
class _Engine:
    """A network on its device; those with one `encoder` (fine-tuned decoders) share features."""

    name: tuple
    tracker: Tracker
    encoder: str
    estimator: Estimator | None
    lock: threading.Lock


@dataclass
class _Job:
    """One request on its way."""

    engine: _Engine
    frames: Frames
    options: Options
    limits: tuple[int, int]
    progress: Callable
    clock: Stopwatch = field(default_factory=Stopwatch)
    features: FrameFeatures | None = None
    encoded: list[int] = field(default_factory=list)  # how many slices each time; runs side by side append

    @property
    def scope(self) -> tuple:
        """What results of the network depend on besides prompts."""
        return self.frames.key, self.engine.name

    @property
    def stride(self) -> int:
        """Every how many slices are tracked; the same for whole frames and parts."""
        if self.options.stride or not self.engine.tracker.zoom:
            return self.options.stride or 1
        volume, axis = self.frames.volume, self.frames.axis
        extent = max(n * mm for a, (n, mm) in enumerate(zip(volume.shape, volume.spacing_mm, strict=True)) if a != axis)
        return max(1, round(extent * THIN / self.frames.slice_mm))

    def encode(self, slices) -> None:
        self.encoded.append(self.features.ensure(slices))


class Segmenter:
    """Loads networks when they are first needed, keeps features and results of recent requests, answers requests.

    Nothing belongs to a user or a session: the same volume and the same prompts are recognised by their content, a change
    of prompts costs what the change costs. Requests may come from several threads: one network runs one request at a time
    (its lock), features and results are shared.
    """

    def __init__(self, store: FeatureStore | None = None, memo: Memo | None = None):
        self._store, self._memo = store or FeatureStore(), memo or Memo()
        self._prefetcher = Prefetcher()
        self._engines: dict[tuple, _Engine] = {}
        self._lock = threading.Lock()

    @property
    def feature_bytes(self) -> int:
        return self._store.bytes

    def prompts(self, volume: Volume, options: Options, **prompts) -> Prompts:
        """`make_prompts` with the slicing axis that `options` give."""
        return make_prompts(volume, axis=resolve_axis(volume, options.axis), **prompts)

    def segment(
        self, volume: Volume, prompts: Prompts, options: Options = Options(), progress: Callable = lambda x, **_: x
    ) -> Result:
        """Segments one structure.

        Slices with a click inside, a box or a painting say what the structure is; slices with clicks outside only mend
        what tracking gives there. Then every annotated slice spreads to both sides. The result depends on the prompts
        alone, not on what was asked before.

        Args:
            progress: wraps iterables for display, called with the keywords desc and total (for example `tqdm`).

        Raises:
            UserError: prompts or options that make no sense; see `lib.errors`.
        """
        with self._prefetcher.paused():
            try:
                return self._segment(volume, prompts, options, progress)
            except torch.OutOfMemoryError:
                where = device.resolve(options.device)
                if where.type == "cpu":
                    raise
                logger.warning("%s is out of memory: forgetting all features, going on with single slices.", where)
                self._forget()
            try:
                return self._segment(volume, prompts, replace(options, batch=1), progress)
            except torch.OutOfMemoryError:
                logger.warning("%s is out of memory again: this request is answered by the CPU.", where)
                self._forget()
            return self._segment(volume, prompts, replace(options, device="cpu"), progress)

    def prefetch(self, volume: Volume, options: Options = Options(), near: Sequence[int] = ()) -> None:
        """Encodes all slices in the background, those nearest to the slices `near` (default: the middle) first."""
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        centres = list(near) or [len(frames) // 2]
        order = sorted(range(len(frames)), key=lambda t: min(abs(t - c) for c in centres))
        self._prefetcher.wish(self._features(self._engine(options), frames, options), order)

    def wait(self, timeout: float | None = None) -> bool:
        """Until the background has encoded what it was asked for."""
        return self._prefetcher.wait(timeout)

    # ----------------------------------------------------------------------------------------------------------------
    def _forget(self) -> None:
        self._store.clear()
        self._memo.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _segment(self, volume: Volume, prompts: Prompts, options: Options, progress: Callable) -> Result:
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        said = by_slice(prompts, frames)
        low, high = slice_range(frames, prompts, options, said)
        job = _Job(self._engine(options), frames, options, (low, high), progress)
        with job.engine.lock:
            job.features = self._features(job.engine, frames, options)
            with job.clock("encode"):
                job.encode(list(said))
            annotated = self._annotate(job, said)
            if options.propagate and options.focus and job.engine.tracker.zoom:
                job, said, annotated = self._focus(job, said, annotated)
            annotated |= self._correct(job, said, annotated)
            tracks = self._propagate(job, annotated) if options.propagate else Tracks.of(annotated, len(frames), job.features.device, iou=0.0)
            with job.clock("finish"):
                mask = self._finish(frames, job.features, annotated, tracks, prompts, options)
        self._store.trim()
        with job.clock("estimate"):
            filled = frames.from_volume(mask).any((1, 2))
            known, expected = expected_quality(job.features, filled, annotated, tracks, job.engine.estimator)
        return Result(
            mask, frames.axis, tuple(sorted(annotated)), tracks.iou.float().cpu().numpy(),
            tracks.object_score.float().sigmoid().cpu().numpy(), tracks.agreement.cpu().numpy(), known, expected, job.clock.seconds,
            sum(job.encoded),
        )  # fmt: skip

    def _engine(self, options: Options) -> "_Engine":
        checkpoint = checkpoints.find(options.checkpoint)
        where = device.resolve(options.device)
        key = (checkpoint, where)  # one file may serve at two image sizes
        with self._lock:
            if key not in self._engines:
                model = checkpoints.load(checkpoint).to(where)
                traits = checkpoints.traits(checkpoint)
                drop, gain = (float(traits.get(name, 0)) for name in ("presence_drop", "presence_gain"))
                zoom = checkpoint.image_size <= ZOOM_UP_TO
                tracker = Tracker(model, device.autocast_factory(where), drop, zoom, gain)
                estimator = Estimator.from_json(traits.get("slice_quality", "{}"))
                self._engines[key] = _Engine(key, tracker, encoder_key(model), estimator, threading.Lock())
            return self._engines[key]

    def _features(self, engine: "_Engine", frames: Frames, options: Options) -> FrameFeatures:
        where = device.resolve(options.device)
        model = engine.tracker.model

        key = frames.key, engine.encoder, where.type

        def make():
            batch = options.batch or device.encoder_batch(where, model.image_size)
            return FrameFeatures(
                model, frames, where, device.autocast_factory(where), batch, self._store.limit, self._store.spill, key
            )

        return self._store.get((*key, str(where)), make)

    def _annotate(self, job: "_Job", said) -> dict[int, Annotation]:
        """Annotations of the slices that stand alone."""
        with job.clock("prompt"):
            return {
                t: self._remembered((*job.scope, t, p.key), lambda t=t, p=p: job.engine.tracker.annotate(job.features, t, p))
                for t, p in said.items() if p.stands_alone
            }  # fmt: skip

    def _focus(self, job: "_Job", said, annotated) -> tuple["_Job", dict, dict[int, Annotation]]:
        """The same in the surroundings of what is annotated, enlarged, where that is a small part of the slices."""
        drawn = {t: self._drawn(job, a) for t, a in annotated.items()}
        t, start = next((t, p) for t, p in said.items() if t in annotated and (p.mask is None or p.mask.any()))
        first = drawn[t] if start.first is start else self._drawn(job, self._annotate(job, {t: start.first})[t])
        nothing = torch.zeros(job.frames.size)
        shown = [(p, (drawn.get(t, nothing) > 0).cpu().numpy()) for t, p in said.items()]
        part = part_to_follow(job.frames, (start.first, (first > 0).cpu().numpy()), shown)
        if part is None:
            return job, said, annotated
        near = replace(job, frames=job.frames.within(*part))
        near.features = self._features(near.engine, near.frames, near.options)
        with job.clock("encode"):
            near.encode(list(said))
        said = {t: p.within(*part) for t, p in said.items()}
        with job.clock("prompt"):
            adopt = job.engine.tracker.adopt
            return near, said, {
                t: self._remembered((*near.scope, a.key), lambda t=t, a=a: adopt(near.features, t, said[t], drawn[t][part], a.key))
                for t, a in annotated.items()
            }  # fmt: skip

    @staticmethod
    def _drawn(job, annotation) -> torch.Tensor:
        """Logits (Y, X) of a slice's own pixels."""
        return job.features.to_slices(annotation.logits[0])[0] if annotation.fine is None else annotation.fine

    def _correct(self, job: "_Job", said, annotated) -> dict[int, Annotation]:
        """Annotations of the slices where something is wrong with what tracking from the others shows."""
        rest = [t for t in said if t not in annotated]
        if not rest:
            return {}
        shown = self._propagate(job, annotated)
        with job.clock("prompt"):
            return {t: job.engine.tracker.correct(job.features, t, said[t], annotated, shown) for t in rest}

    def _remembered(self, key: tuple, make: Callable[[], Annotation]) -> Annotation:
        found = self._memo.get(key)
        if found is None:
            found = make()
            self._memo.put(key, found, found.nbytes)
        return found

    def _propagate(self, job: "_Job", annotated) -> Tracks:
        with job.clock("propagate"):
            return job.engine.tracker.propagate(
                job.features, annotated, low=job.limits[0], high=job.limits[1],
                forward=job.options.direction != "backward", backward=job.options.direction != "forward",
                stop_mm=job.options.stop_mm, stride=job.stride, batch=job.options.batch or device.run_batch(job.features.device), memo=self._memo, scope=job.scope, prepare=job.encode,
                progress=lambda x: job.progress(x, desc="Propagating"),
            )  # fmt: skip

    @staticmethod
    def _finish(frames, features, annotated, tracks, prompts, options) -> np.ndarray:
        """Thresholds at full resolution slice by slice, keeps the wanted components, obeys clicks and region."""
        whole = np.zeros((len(frames), *frames.size), bool)
        part = features.frames.part
        stack = whole if part is None else whole[:, part[0], part[1]]
        hit = torch.nonzero(tracks.logits.amax((1, 2)) > 0)[:, 0].tolist()
        for start in range(0, len(hit), 16):
            index = hit[start : start + 16]
            stack[index] = (features.to_slices(tracks.logits[index]) > 0).cpu().numpy()
        for t, annotation in annotated.items():
            if annotation.fine is not None:
                stack[t] = (annotation.fine > 0).cpu().numpy()
        for t, painted in prompts.masks.items():  # as painted, not as resampled
            whole[t] = frames.from_volume(np.expand_dims(painted, frames.axis))[0]
        mask = frames.to_volume(whole)
        if prompts.roi is not None:
            inside = np.zeros_like(mask)
            low, high = prompts.roi
            inside[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
            mask &= inside
        box = masks.bounding_box(whole)
        if box is not None:  # of large volumes the structure is a small part
            on_annotated = np.zeros(whole[box].shape, bool)
            on_annotated[[t - box[0].start for t in annotated if box[0].start <= t < box[0].stop]] = True
            whole[box] = masks.keep_components(whole[box], options.components, on_annotated)
        for value, voxels in ((True, prompts.positive), (False, prompts.negative)):
            for voxel in voxels:
                mask[voxel] = value
        return mask
