"""A request on its way through the engine, and how its parts become one answer.

A request is one `Job`, or several where some slices are followed in a part of the frames and others are not. Each knows its slices
low..high; neighbours share the annotated slice where they meet.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from lib.common.stopwatch import Stopwatch
from lib.engine.options import Options
from lib.imaging import masks
from lib.imaging.frames import Frames
from lib.model.features import SliceFeatures
from lib.model.worker_pool import share
from lib.prompts.volume_prompts import Prompts, SlicePrompt
from lib.propagation.propagator import Tracker
from lib.propagation.tracks import Annotation, Tracks
from lib.quality.estimator import QualityEstimator
from lib.quality.slice_estimates import expected_quality

THIN = 1 / 128  # of the field of view; slices of small networks' training were no closer
_AT_ONCE = 4  # slices; at full resolution they are large


@dataclass(frozen=True)
class Engine:
    """A network on its device; those with one `encoder` (fine-tuned decoders) share features."""

    name: tuple
    tracker: Tracker
    encoder: str
    estimator: QualityEstimator | None
    lock: threading.Lock


@dataclass
class Job:
    """Slices low..high (both included) of one request, in frames or a part of them.

    Attributes:
        said: prompts of slices. annotated: what the network says of those slices. tracks: what it says of all.
        encoded: how many slices each time; runs side by side append, and all jobs of a request share the list.
    """

    engine: Engine
    frames: Frames
    options: Options
    low: int
    high: int
    progress: Callable
    clock: Stopwatch = field(default_factory=Stopwatch)
    features: SliceFeatures | None = None
    said: dict[int, SlicePrompt] = field(default_factory=dict)
    annotated: dict[int, Annotation] = field(default_factory=dict)
    tracks: Tracks | None = None
    encoded: list[int] = field(default_factory=list)

    @property
    def scope(self) -> tuple:
        """What results of the network depend on besides prompts."""
        return self.frames.key, self.engine.name

    def encode(self, slices) -> None:
        """Encodes what is missing, and counts it."""
        self.encoded.append(self.features.ensure(slices))

    def drawn(self, t: int, annotation: Annotation | None = None) -> torch.Tensor:
        """Logits (Y, X) of an annotated slice's own pixels."""
        a = annotation or self.annotated[t]
        return self.features.to_slices(a.logits[0])[0] if a.fine is None else a.fine


def stride_of(options: Options, engine: Engine, frames: Frames) -> int:
    """Every how many slices are tracked; the same for whole frames and parts."""
    if options.stride or not engine.tracker.zoom:
        return options.stride or 1
    volume, axis = frames.volume, frames.axis
    extent = max(n * mm for a, (n, mm) in enumerate(zip(volume.shape, volume.spacing_mm, strict=True)) if a != axis)
    return max(1, round(extent * THIN / frames.slice_mm))


def finish(spans: Sequence[Job], frames: Frames, prompts: Prompts) -> np.ndarray:
    """The mask bool (I, J, K): thresholds at full resolution, keeps the wanted components, obeys clicks and region."""
    whole = masks.empty_mask((len(frames), *frames.size))
    for span in spans:
        _threshold(span, whole if span.frames.crop is None else whole[:, span.frames.crop[0], span.frames.crop[1]])
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
        annotated = sorted({t for span in spans for t in span.annotated} & set(range(box[0].start, box[0].stop)))
        whole[box] = masks.keep_components(whole[box], spans[0].options.components, [t - box[0].start for t in annotated])
    for value, voxels in ((True, prompts.positive), (False, prompts.negative)):
        for voxel in voxels:
            mask[voxel] = value
    return mask


def _threshold(span: Job, stack: np.ndarray) -> None:
    """Writes where the span's tracks are positive into bool (T, Y, X) of its frames."""
    tracks, features = span.tracks, span.features
    hit = torch.nonzero(tracks.logits.amax((1, 2)) > 0)[:, 0].tolist()

    @torch.inference_mode()
    def fill(index):
        found, rows, columns = features.masks(tracks.logits[index])
        stack[index, rows, columns] = found

    share(fill, [hit[n : n + _AT_ONCE] for n in range(0, len(hit), _AT_ONCE)], features.device)
    for t, annotation in span.annotated.items():
        if annotation.fine is not None:
            stack[t] = (annotation.fine > 0).cpu().numpy()


def join(spans: Sequence[Job], total: int, filled: np.ndarray) -> tuple[np.ndarray, ...]:
    """Per slice, of all `total`: predicted IoU, probability of presence, agreement, signals, expected IoU; see `Result`.

    Args:
        filled: bool (T,), slices whose final mask is not empty.
    """
    parts = []
    for n, span in enumerate(spans):
        reach = range(span.low if n else 0, span.high + 1 if n + 1 < len(spans) else total)
        here, own = slice(reach.start, reach.stop), slice(1 if n else 0, None)  # the shared slice belongs to the first of two
        tracks = span.tracks.of_slices(here)
        annotated = [t - reach.start for t in span.annotated]
        thumbnails = span.features.thumbnails[here]
        known, expected = expected_quality(span.features, thumbnails, filled[here], annotated, tracks, span.engine.estimator)
        rows = tracks.iou.float(), tracks.object_score.float().sigmoid(), tracks.agreement
        parts.append([*(x.cpu().numpy()[own] for x in rows), known[own], expected[own]])
    return tuple(np.concatenate(p) for p in zip(*parts, strict=True))
