"""The engine as a whole: a volume and prompts in, a mask and what it cost out."""

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from lib.engine.options import Options, slice_range
from lib.engine.result import Followed, Result
from lib.engine.task import Engine, Job, finish, join, stride_of
from lib.imaging import masks
from lib.imaging.frames import Frames, resolve_axis
from lib.imaging.volume import Volume
from lib.model import checkpoints, device, worker_pool
from lib.model.compiled import Compiler
from lib.model.features import FeatureCache, SliceFeatures, encoder_key
from lib.model.prefetch import Prefetcher
from lib.prompts.volume_prompts import Prompts, group_by_slice, make_prompts
from lib.propagation.gaps import ResultCache
from lib.propagation.propagator import PropagationTask, Tracker
from lib.propagation.tracks import Annotation, Tracks
from lib.propagation.zoom import Crop, tracking_crops
from lib.quality.estimator import QualityEstimator

logger = logging.getLogger(__name__)

FURTHER = 48  # slices beyond the ends of a mask that a correction may be followed to
ZOOM_UP_TO = 512  # pixels; networks for larger squares see small structures well


class Segmenter:
    """Loads networks when they are first needed, keeps features and results of recent requests, answers requests.

    Nothing belongs to a user or a session: the same volume and the same prompts are recognised by their content, a change
    of prompts costs what the change costs. Requests may come from several threads: one network runs one request at a time
    (its lock), features and results are shared.

    Args:
        compiled: whether networks are compiled in the background (`torch.compile`) as they are loaded and used.
    """

    def __init__(self, store: FeatureCache | None = None, memo: ResultCache | None = None, compiled: bool = False):
        self._store, self._memo = store or FeatureCache(), memo or ResultCache()
        self._prefetcher, self._compiler = Prefetcher(), Compiler() if compiled else None
        self._engines: dict[tuple, Engine] = {}
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
            UserError: prompts or options that make no sense; see `lib.common.errors`.
        """
        with self._prefetcher.paused():
            try:
                return self._segment(volume, prompts, options, progress)
            except torch.OutOfMemoryError:
                where = device.resolve_device(options.device)
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

    def prefetch(self, volume: Volume, options: Options = Options(), around: Sequence[int] = (), followed: Sequence[Followed] = ()) -> None:
        """Encodes all slices in the background, those nearest to the slices `around` (default: the middle) first.

        Args:
            followed: of the last result; these parts of the frames come first.
        """
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        centres = list(around) or [len(frames) // 2]
        engine = self._engine(options)

        def wish(frames, slices):
            order = sorted(slices, key=lambda t: min(abs(t - c) for c in centres))
            self._prefetcher.wish(self._features(engine, frames, options), order)

        wish(frames, range(len(frames)))
        stride, stops = stride_of(options, engine, frames), {}
        for low, high, part in followed:
            if part is not None:
                near = frames.cropped(*part)
                stops.setdefault(near.key, (near, set()))[1].update(t for t in range(low, high + 1) if t % stride == 0)
        for near, slices in stops.values():
            wish(near, slices)

    def wait(self, timeout: float | None = None) -> bool:
        """Until the background has encoded and compiled what it was asked for."""
        return self._prefetcher.wait(timeout) and (self._compiler is None or self._compiler.wait(timeout))

    # ----------------------------------------------------------------------------------------------------------------
    def _forget(self) -> None:
        self._store.clear()
        self._memo.clear()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _segment(self, volume: Volume, prompts: Prompts, options: Options, progress: Callable) -> Result:
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        said = group_by_slice(prompts, frames)
        low, high = slice_range(frames, prompts, options, said)
        job = Job(self._engine(options), frames, options, low, high, progress)
        with job.engine.lock:
            job.features = self._features(job.engine, frames, options)
            with job.clock("encode"):
                job.encode(list(said))
            job.said, job.annotated = said, self._annotate(job, said)
            spans = self._spans(job)
            for span in spans:
                self._correct(span)
            if options.propagate:
                found = self._propagate(spans)
            else:
                found = [Tracks.of(s.annotated, len(frames), s.features.device, iou=0.0) for s in spans]
            for span, tracks in zip(spans, found, strict=True):
                span.tracks = tracks
            with job.clock("finish"):
                mask = finish(spans, frames, prompts)
        self._store.trim()
        with job.clock("estimate"):
            filled = masks.slice_areas(frames.from_volume(mask)) > 0
            per_slice = join(spans, len(frames), filled)
        annotated = tuple(sorted({t for s in spans for t in s.annotated}))
        filled = np.union1d(np.flatnonzero(filled), annotated)
        ends = (int(filled[0]) - FURTHER, int(filled[-1]) + FURTHER)
        followed = tuple((max(s.low, ends[0]), min(s.high, ends[1]), s.frames.crop) for s in spans) if options.propagate else ()
        return Result(mask, frames.axis, annotated, *per_slice, job.clock.seconds, sum(job.encoded), followed)

    def _engine(self, options: Options) -> Engine:
        checkpoint = checkpoints.find(options.checkpoint)
        where = device.resolve_device(options.device)
        key = (checkpoint, where)  # one file may serve at two image sizes
        with self._lock:
            if key not in self._engines:
                model = checkpoints.load(checkpoint).to(where)
                traits = checkpoints.metadata(checkpoint)
                drop, gain = (float(traits.get(name, 0)) for name in ("presence_drop", "presence_gain"))
                zoom = checkpoint.image_size <= ZOOM_UP_TO
                tracker = Tracker(model, device.autocast_factory(where), drop, zoom, gain)
                if self._compiler:
                    self._compiler.install(tracker, where)
                estimator = QualityEstimator.from_json(traits.get("slice_quality", "{}"))
                self._engines[key] = Engine(key, tracker, encoder_key(model), estimator, threading.Lock())
            return self._engines[key]

    def _features(self, engine: Engine, frames: Frames, options: Options) -> SliceFeatures:
        where = device.resolve_device(options.device)
        model = engine.tracker.model

        key = frames.key, engine.encoder, where.type

        def make():
            batch = options.batch or device.encoder_batch(where, model.image_size)
            return SliceFeatures(
                model, frames, where, device.autocast_factory(where), batch, self._store.limit, self._store.spill, key, half=True
            )

        return self._store.get((*key, str(where)), make)

    def _annotate(self, job: Job, said) -> dict[int, Annotation]:
        """Annotations of the slices that stand alone."""
        with self._prompting(job):
            return {
                t: self._remembered((*job.scope, t, p.key), lambda t=t, p=p: job.engine.tracker.annotate(job.features, t, p))
                for t, p in said.items() if p.defines_structure
            }  # fmt: skip

    def _spans(self, job: Job) -> list[Job]:
        """The slices of a request, cut where tracking changes from one part of the frames, enlarged, to another."""
        if not (job.options.propagate and job.options.focus and job.engine.tracker.zoom):
            return [job]
        drawn = {t: job.drawn(t) for t in job.annotated}
        t, start = next((t, p) for t, p in job.said.items() if t in drawn and (p.mask is None or p.mask.any()))
        first = drawn[t]
        if start.first_click is not start:
            first = job.drawn(t, self._annotate(job, {t: start.first_click})[t])
        nothing = torch.zeros(job.frames.size)
        shown = {t: (p, (drawn.get(t, nothing) > 0).cpu().numpy()) for t, p in job.said.items()}
        parts = tracking_crops(job.frames, (start.first_click, (first > 0).cpu().numpy()), shown, list(drawn), job.low, job.high)
        return [self._span(job, low, high, part, drawn) for low, high, part in parts]

    def _span(self, job: Job, low: int, high: int, part: Crop | None, drawn) -> Job:
        """The slices low..high, within a part of the frames."""
        said, annotated = ({t: v for t, v in d.items() if low <= t <= high} for d in (job.said, job.annotated))
        span = replace(job, low=low, high=high, said=said, annotated=annotated)
        if part is None:
            return span
        span.frames = job.frames.cropped(*part)
        span.features = self._features(span.engine, span.frames, span.options)
        span.said = {t: p.cropped(*part) for t, p in said.items()}
        with job.clock("encode"):
            span.encode(list(said))
        with self._prompting(job):
            adopt = job.engine.tracker.adopt
            span.annotated = {
                t: self._remembered((*span.scope, a.key), lambda t=t, a=a: adopt(span.features, t, span.said[t], drawn[t][part], a.key))
                for t, a in annotated.items()
            }  # fmt: skip
        return span

    def _correct(self, job: Job) -> None:
        """Annotates the slices where something is wrong with what tracking from the others shows."""
        rest = [t for t in job.said if t not in job.annotated]
        if not rest:
            return
        shown = self._propagate([job])[0]
        with self._prompting(job):
            job.annotated = job.annotated | {
                t: job.engine.tracker.correct(job.features, t, job.said[t], job.annotated, shown) for t in rest
            }  # fmt: skip

    @staticmethod
    @contextmanager
    def _prompting(job: Job):
        with job.clock("prompt"), worker_pool.threads(1 if job.engine.tracker.zoom else torch.get_num_threads()):
            yield

    def _remembered(self, key: tuple, make: Callable[[], Annotation]) -> Annotation:
        found = self._memo.get(key)
        if found is None:
            found = make()
            self._memo.put(key, found, found.nbytes)
        return found

    def _propagate(self, spans: Sequence[Job]) -> list[Tracks]:
        """What the network says of all slices of each span."""
        job = spans[0]
        batch = job.options.batch or device.run_batch(job.features.device, job.engine.tracker.compiled)
        with job.clock("propagate"):
            return job.engine.tracker.propagate_all(
                [PropagationTask(s.features, s.annotated, s.low, s.high, s.scope, s.encode) for s in spans],
                forward=job.options.direction != "backward", backward=job.options.direction != "forward",
                stop_mm=job.options.stop_mm, stride=stride_of(job.options, job.engine, job.frames), batch=batch,
                memo=self._memo, progress=lambda x: job.progress(x, desc="Propagating"),
            )  # fmt: skip
