"""Hold the state of a request while it is computed, and combine its ranges of slices to one result.

A request is one `SegmentationTask`, or several if some slices are tracked in another crop of the frames than others. Each has its own
slices low..high; neighbours share the annotated slice where they meet.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from lib.common.stopwatch import Stopwatch
from lib.engine.loaded_network import LoadedNetwork
from lib.engine.options import Options
from lib.imaging import masks
from lib.imaging.frames import Frames
from lib.model.features import SliceFeatures
from lib.model.worker_pool import run_all
from lib.prompts.volume_prompts import Prompts, SlicePrompt
from lib.propagation.gap_filling import fill_empty_slices
from lib.propagation.tracks import Annotation, Tracks
from lib.quality.slice_estimates import SliceEstimates, estimate_slices

_SLICES_AT_ONCE = 4  # At full resolution slices are large.


@dataclass
class SegmentationTask:
    """Slices low..high (both included) of one request, in whole frames or a crop of them.

    Attributes:
        network: The network that computes it.
        frames: The slices, perhaps cropped.
        progress: Wraps iterables for display.
        stopwatch: Shared by all tasks of a request.
        features: Encoded slices of `frames`.
        prompts_by_slice: Prompts of the annotated slices.
        annotated: Model outputs for those slices.
        tracks: Model outputs for all slices.
        encoded_counts: How many slices were encoded each time; shared by all tasks of a request, and several threads append to it.
    """

    network: LoadedNetwork
    frames: Frames
    options: Options
    low: int
    high: int
    progress: Callable
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    features: SliceFeatures | None = None
    prompts_by_slice: dict[int, SlicePrompt] = field(default_factory=dict)
    annotated: dict[int, Annotation] = field(default_factory=dict)
    tracks: Tracks | None = None
    encoded_counts: list[int] = field(default_factory=list)

    @property
    def scope(self) -> tuple:
        """Everything that results of the network depend on besides prompts and options of propagation."""
        return self.frames.key, self.network.name, self.options.obey

    @property
    def followed(self) -> tuple[int, int]:
        """First and last slice that may hold a mask, by the direction of propagation."""
        low = self.low if self.options.direction != "forward" else min(self.annotated)
        return low, self.high if self.options.direction != "backward" else max(self.annotated)

    def gap_around(self, t: int) -> "SegmentationTask":
        """Return the task for the slices between the annotated ones next to slice `t`, which is not annotated itself."""
        ends = [*sorted(s for s in self.annotated if s < t)[-1:], *sorted(s for s in self.annotated if s > t)[:1]]
        low, high = (ends[0] if ends[0] < t else self.low), (ends[-1] if ends[-1] > t else self.high)
        return replace(self, low=low, high=high, annotated={s: self.annotated[s] for s in ends})

    def ensure_encoded(self, slices: Iterable[int]) -> None:
        """Encode those of the slices that are missing, and add their number to `encoded_counts`."""
        self.encoded_counts.append(self.features.ensure(slices))

    def displayed_logits(self, annotation: Annotation) -> torch.Tensor:
        """Return the logits (Y, X) of the pixels of an annotated slice."""
        if annotation.slice_logits is not None:
            return annotation.slice_logits
        return self.features.to_slices(annotation.logits[0])[0]


def combine_masks(
    tasks: Sequence[SegmentationTask], frames: Frames, prompts: Prompts, prompts_by_slice: dict[int, SlicePrompt]
) -> np.ndarray:
    """Return the mask bool (I, J, K) of a request: thresholded at full resolution, with the wanted components, obeying clicks and region.

    Args:
        frames: The whole frames.
        prompts_by_slice: The same prompts, sorted by slice, in whole frames.
    """
    stack = np.zeros((len(frames), *frames.size), bool)
    for task in tasks:
        crop = task.frames.crop
        threshold(task, stack if crop is None else stack[:, crop[0], crop[1]])
    for t, painted in prompts.masks.items():  # The painting itself, not its copy at the network's resolution.
        stack[t] = frames.from_volume(np.expand_dims(painted, frames.axis))[0]
    if tasks[0].options.refine and tasks[0].options.propagate:
        fill_empty_slices(stack, {t for task in tasks for t in task.annotated})
        tasks[0].network.adapt(stack, frames, prompts_by_slice, tasks[0].followed[0], tasks[-1].followed[1])
    mask = frames.to_volume(stack)
    if prompts.roi is not None:
        in_region = np.zeros_like(mask)
        low, high = prompts.roi
        in_region[tuple(slice(a, b + 1) for a, b in zip(low, high, strict=True))] = True
        mask &= in_region
    box = masks.bounding_box(stack)
    if box is not None:  # A structure is a small part of a large volume.
        annotated = sorted({t for task in tasks for t in task.annotated} & set(range(box[0].start, box[0].stop)))
        stack[box] = masks.keep_components(stack[box], tasks[0].options.components, [t - box[0].start for t in annotated])
    for is_inside, voxels in ((True, prompts.positive), (False, prompts.negative)):
        for voxel in voxels:
            mask[voxel] = is_inside
    return mask


def threshold(task: SegmentationTask, stack: np.ndarray) -> None:
    """Write where a task's tracks are positive into bool (T, Y, X) of its frames."""
    tracks, features = task.tracks, task.features
    positive = torch.nonzero(tracks.logits.amax((1, 2)) > 0)[:, 0].tolist()

    @torch.inference_mode()
    def fill(slices: list[int]) -> None:
        slice_masks, rows, columns = features.masks(tracks.logits[slices])
        stack[slices, rows, columns] = slice_masks

    batches = [positive[n : n + _SLICES_AT_ONCE] for n in range(0, len(positive), _SLICES_AT_ONCE)]
    run_all(fill, batches, features.device, features.threads_each)
    for t, annotation in task.annotated.items():
        if annotation.slice_logits is not None:
            stack[t] = (annotation.slice_logits > 0).cpu().numpy()


def combine_estimates(tasks: Sequence[SegmentationTask], total: int, has_mask: np.ndarray) -> SliceEstimates:
    """Return the estimates for all `total` slices.

    Args:
        has_mask: Bool (T,), whether the final mask of a slice is not empty.
    """
    estimates = []
    for n, task in enumerate(tasks):
        slices = slice(task.low if n else 0, task.high + 1 if n + 1 < len(tasks) else total)
        annotated = [t - slices.start for t in task.annotated]
        features, tracks = task.features, task.tracks.select(slices)
        estimate = estimate_slices(features, features.thumbnails[slices], has_mask[slices], annotated, tracks, task.network.estimator)
        estimates.append(estimate.select(slice(1 if n else 0, None)))  # A shared slice belongs to the first of its two tasks.
    return SliceEstimates.concatenate(estimates)
