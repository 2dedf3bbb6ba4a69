"""The engine as a whole: a volume and prompts in, a mask and what it cost out."""

import logging
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch

from lib import masks
from lib.errors import OptionError, PromptError
from lib.frames import Frames, resolve_axis
from lib.model import checkpoints, device
from lib.model.features import FeatureStore, FrameFeatures, encoder_key
from lib.model.tracker import Annotation, Tracker, Tracks
from lib.prompts import Prompts, by_slice, make_prompts
from lib.volume import Volume

logger = logging.getLogger(__name__)

DIRECTIONS = ("both", "forward", "backward")


@dataclass(frozen=True)
class Options:
    """What a user can choose.

    Attributes:
        checkpoint: name or path, see `lib.model.checkpoints.find`.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        window, axis: see `lib.frames`.
        direction: "both", or "forward" (higher slice indices) or "backward" only.
        z_range: slices (low, high), both included, to which the structure is confined; None for all.
        components: see `lib.masks.keep_components`.
        propagate: False leaves all slices but the annotated ones empty.
    """

    checkpoint: str = "embedded"
    device: str = "auto"
    window: str = "auto"
    axis: str = "auto"
    direction: str = "both"
    z_range: tuple[int, int] | None = None
    components: str = "annotated"
    propagate: bool = True

    def __post_init__(self):
        if self.direction not in DIRECTIONS:
            raise OptionError(f"Unknown direction {self.direction!r}: use {', '.join(DIRECTIONS)}.")
        if self.components not in masks.COMPONENTS:
            raise OptionError(f"Unknown components {self.components!r}: use {', '.join(masks.COMPONENTS)}.")


@dataclass(frozen=True, eq=False)
class Result:
    """Outcome of one request.

    Attributes:
        mask: bool (I, J, K) on the volume's grid.
        axis: slicing axis. annotated: the slices that were prompted.
        predicted_iou: (T,) the model's own estimate for each slice. present: (T,) its probability that the object is
            there. agreement: (T,) Dice of the two directions between annotated slices, else NaN.
        seconds: time of each stage (encode, prompt, propagate, finish).
        encoded: slices that had to be encoded for this request.
    """

    mask: np.ndarray
    axis: int
    annotated: tuple[int, ...]
    predicted_iou: np.ndarray
    present: np.ndarray
    agreement: np.ndarray
    seconds: dict[str, float] = field(default_factory=dict)
    encoded: int = 0


@dataclass(frozen=True)
class _Engine:
    """A network on its device; those with one `encoder` (fine-tuned decoders) share features."""

    tracker: Tracker
    encoder: str
    lock: threading.Lock


class Segmenter:
    """Loads networks when they are first needed, keeps the features of recent volumes, answers requests.

    Requests may come from several threads: one network runs one request at a time (its lock), features are shared.
    """

    def __init__(self, store: FeatureStore | None = None):
        self._store = store or FeatureStore()
        self._engines: dict[tuple, _Engine] = {}
        self._lock = threading.Lock()

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
        frames = Frames.of(volume, window=options.window, axis=options.axis)
        said = by_slice(prompts, frames)
        low, high = _range(frames, prompts, options, said)
        engine = self._engine(options)
        tracker = engine.tracker
        clock = Stopwatch()
        with engine.lock:
            features = self._features(engine, frames, options)
            # All slices at once, nearest first would help only if the client could be shown a part.
            wanted = list(range(low, high + 1)) if options.propagate else list(said)
            with clock("encode"):
                encoded = features.ensure(wanted, lambda x: progress(x, desc="Encoding slices"))
            annotated, tracks = self._annotate(tracker, features, said, options, (low, high), clock, progress)
            if options.propagate:
                with clock("propagate"):
                    tracks = self._propagate(tracker, features, annotated, (low, high), options, progress)
            with clock("finish"):
                mask = self._finish(features, annotated, tracks, prompts, options)
        self._store.trim()
        return Result(
            mask, frames.axis, tuple(sorted(annotated)), tracks.iou.float().cpu().numpy(),
            tracks.object_score.float().sigmoid().cpu().numpy(), tracks.agreement.cpu().numpy(), clock.seconds, encoded,
        )  # fmt: skip

    # ----------------------------------------------------------------------------------------------------------------
    def _engine(self, options: Options) -> "_Engine":
        checkpoint = checkpoints.find(options.checkpoint)
        where = device.resolve(options.device)
        key = (checkpoint, where)  # one file may serve at two image sizes
        with self._lock:
            if key not in self._engines:
                model = checkpoints.load(checkpoint).to(where)
                tracker = Tracker(model, device.autocast_factory(where))
                self._engines[key] = _Engine(tracker, encoder_key(model), threading.Lock())
            return self._engines[key]

    def _features(self, engine: "_Engine", frames: Frames, options: Options) -> FrameFeatures:
        where = device.resolve(options.device)
        model = engine.tracker.model

        def make():
            return FrameFeatures(
                model, frames, where, device.autocast_factory(where), device.encoder_batch(where, model.image_size)
            )

        return self._store.get((frames.key, engine.encoder, str(where)), make)

    def _annotate(self, tracker, features, said, options, limits, clock, progress):
        """Annotations of all prompted slices, and tracks that hold them."""
        roots = [t for t, p in said.items() if p.stands_alone]
        rest = [t for t in said if t not in roots]
        with clock("prompt"):
            annotated: dict[int, Annotation] = {t: tracker.annotate(features, t, said[t]) for t in roots}
        if rest:
            with clock("propagate"):
                shown = self._propagate(tracker, features, annotated, limits, options, progress)
            with clock("prompt"):
                mended = {t: tracker.correct(features, t, said[t], annotated, shown) for t in rest}
            annotated |= mended
        return annotated, _tracks_of(annotated, len(features.frames), features.device)

    @staticmethod
    def _propagate(tracker, features, annotated, limits, options, progress) -> Tracks:
        return tracker.propagate(
            features, annotated, low=limits[0], high=limits[1],
            forward=options.direction != "backward", backward=options.direction != "forward",
            progress=lambda x: progress(x, desc="Propagating"),
        )  # fmt: skip

    @staticmethod
    def _finish(features, annotated, tracks, prompts, options) -> np.ndarray:
        """Thresholds at full resolution slice by slice, keeps the wanted components, obeys clicks and region."""
        frames = features.frames
        stack = np.zeros((len(frames), *frames.size), bool)
        hit = torch.nonzero(tracks.logits.amax((1, 2)) > 0)[:, 0].tolist()
        for start in range(0, len(hit), 16):
            index = hit[start : start + 16]
            stack[index] = (features.to_slices(tracks.logits[index]) > 0).cpu().numpy()
        for t, painted in prompts.masks.items():  # as painted, not as resampled
            stack[t] = frames.from_volume(np.expand_dims(painted, frames.axis))[0]
        mask = np.ascontiguousarray(frames.to_volume(stack))
        if prompts.roi is not None:
            inside = np.zeros_like(mask)
            low, high = prompts.roi
            inside[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
            mask &= inside
        on_annotated = np.zeros_like(stack)
        on_annotated[list(annotated)] = True
        mask = masks.keep_components(mask, options.components, frames.to_volume(on_annotated))
        for value, voxels in ((True, prompts.positive), (False, prompts.negative)):
            for voxel in voxels:
                mask[voxel] = value
        return mask


class Stopwatch:
    """Adds up seconds under names."""

    def __init__(self):
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str):
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def _range(frames: Frames, prompts: Prompts, options: Options, said) -> tuple[int, int]:
    """Slices to fill (low, high), both included."""
    low, high = 0, len(frames) - 1
    if options.z_range is not None:
        low, high = max(low, min(options.z_range)), min(high, max(options.z_range))
    if prompts.roi is not None:
        low, high = max(low, prompts.roi[0][frames.axis]), min(high, prompts.roi[1][frames.axis])
    if low > high:
        raise PromptError(f"The range of slices is empty; slices go from 0 to {len(frames) - 1}.")
    outside = [t for t in said if not low <= t <= high]
    if outside:
        raise PromptError(f"Slice {outside[0]} has prompts but lies outside the chosen range {low} to {high}.")
    return low, high


def _tracks_of(annotated: dict[int, Annotation], total: int, where) -> Tracks:
    """Tracks that hold the annotated slices only."""
    shape = next(iter(annotated.values())).logits.shape[-2:]
    logits = torch.full((total, *shape), -1024.0, device=where)
    iou, score = torch.zeros(total), torch.full((total,), -10.0)
    for t, a in annotated.items():
        logits[t], iou[t], score[t] = a.logits[0, 0], a.iou, a.object_score
    return Tracks(logits, iou, score, torch.full((total,), torch.nan))
