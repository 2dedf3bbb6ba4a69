"""Annotate the slices with prompts, and track from them, for one request."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from lib.engine.task import SegmentationTask, threshold
from lib.imaging.frames import Frames
from lib.model import device
from lib.model.features import SliceFeatures
from lib.model.worker_pool import run_all
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.prompt_decoder import MOST_CLICKS_IN_ORDER
from lib.propagation.propagator import PropagationTask
from lib.propagation.result_cache import ResultCache
from lib.propagation.tracks import ABSENT_LOGIT, Annotation, Tracks
from lib.propagation.volume_smoothing import smooth_tracks
from lib.propagation.zoom import Crop, DisplayedSlice, tracking_crops


class Tracker:
    """Computes the annotations and tracks of a request; what is computed once is kept for later requests.

    Args:
        features: Returns the encoded slices of frames, for the network and options of the request.
        result_cache: Holds annotations and passes.
    """

    def __init__(self, features: Callable[[Frames], SliceFeatures], result_cache: ResultCache):
        self._features, self._result_cache = features, result_cache

    def annotate(self, request: SegmentationTask) -> dict[int, Annotation]:
        """Return annotations of the slices with prompts, in whole frames.

        Annotators who click on a further slice look at the mask that tracking gives there and click on what is wrong with it. So these
        clicks correct that mask. They are decoded alone only where tracking gives none, where they are very many, and where more of them
        lie in errors of the masks that the slice alone gives than in errors of the tracked ones.
        """
        prompts = request.prompts_by_slice
        alone = [t for t, p in prompts.items() if p.mask is not None or (p.labels > 1).any()]
        if all(prompts[t].mask is not None and not prompts[t].mask.any() for t in alone):
            alone.append(next(t for t, p in prompts.items() if p.defines_structure and t not in alone))
        annotated = self._annotate_alone(request, alone)
        for t in prompts:
            if t not in annotated:
                annotated = annotated | {t: self._correct(request, annotated, t)}
        return annotated

    def split_by_crop(self, request: SegmentationTask) -> list[SegmentationTask]:
        """Return the tasks of a request, one for each range of slices that is tracked in one crop of the frames."""
        if not (request.options.focus and request.network.decoder.zooms):
            return [request]
        logits = {t: request.displayed_logits(a) for t, a in request.annotated.items()}
        t, prompt = next((t, p) for t, p in request.prompts_by_slice.items() if t in logits and (p.mask is None or p.mask.any()))
        first_click, first_logits = prompt.first_click, logits[t]
        if first_click is not prompt:
            alone = replace(request, prompts_by_slice={t: first_click})
            first_logits = request.displayed_logits(self._annotate_alone(alone, [t])[t])
        nothing = torch.zeros(request.frames.size)
        displayed = {t: _displayed(p, logits.get(t, nothing)) for t, p in request.prompts_by_slice.items()}
        first = _displayed(first_click, first_logits)
        ranges = tracking_crops(request.frames, first, displayed, list(logits), request.low, request.high)
        return [self._crop_task(request, low, high, crop, logits) for low, high, crop in ranges]

    def propagate(self, tasks: Sequence[SegmentationTask]) -> list[Tracks]:
        """Return the model outputs for all slices of each task of a request."""
        task, options = tasks[0], tasks[0].options
        with task.stopwatch("propagate"):
            all_tracks = task.network.propagator.propagate_all(
                [PropagationTask(t.features, t.annotated, t.low, t.high, t.scope, t.ensure_encoded) for t in tasks],
                forward=options.direction != "backward", backward=options.direction != "forward", stop_mm=options.stop_mm,
                stride=task.network.stride(options, task.frames), batch=options.batch or device.passes_at_once(task.features.device),
                refines=options.refine, cache=self._result_cache, progress=lambda x: task.progress(x, desc="Propagating"),
            )  # fmt: skip
            if not options.refine:
                return all_tracks
            return [smooth_tracks(tracks, t.features, t.annotated, *t.followed) for t, tracks in zip(tasks, all_tracks, strict=True)]

    def _annotate_alone(self, task: SegmentationTask, slices: list[int]) -> dict[int, Annotation]:
        """Return annotations of slices whose prompts say what the structure is."""
        prompts, decoder = task.prompts_by_slice, task.network.decoder_for(task.options)

        def annotate(t: int) -> Annotation:
            return self._cached((*task.scope, t, prompts[t].key), lambda: decoder.annotate(task.features, t, prompts[t]))

        return self._decode_side_by_side(task, annotate, slices)

    def _correct(self, request: SegmentationTask, annotated: dict[int, Annotation], t: int) -> Annotation:
        """Return the annotation of slice `t`, whose clicks correct the mask that tracking from the annotated slices gives."""
        prompts, options = request.prompts_by_slice, request.options
        known = replace(request, annotated=annotated, prompts_by_slice={s: prompts[s] for s in annotated})
        task = next(task for task in self.split_by_crop(known) if task.low <= t <= task.high).gap_around(t)
        ends = tuple((s, a.key) for s, a in task.annotated.items())
        tracking = task.frames.key, task.low, task.high, options.direction, options.stop_mm, options.stride, options.refine
        key = "corrected", t, prompts[t].key, ends, tracking

        def correct() -> Annotation:
            task.tracks = tracks = self.propagate([task])[0]
            if options.refine:
                self._adapt(task, t)
            may_be_alone, clicks = prompts[t].defines_structure, len(prompts[t].labels)
            if may_be_alone and (clicks > MOST_CLICKS_IN_ORDER or not (tracks.logits[t] > 0).any()):
                return self._annotate_alone(request, [t])[t]
            crop, decoder = task.frames.crop, task.network.decoder_for(options)
            with task.stopwatch("encode"):
                task.ensure_encoded([t])
            prompt = prompts[t] if crop is None else prompts[t].cropped(*crop)
            with task.stopwatch("prompt"):
                corrected, wrong = decoder.correct(task.features, t, prompt, task.annotated, tracks, key)
                if may_be_alone and clicks > 1 and wrong < decoder.count_wrong_alone(request.features, t, prompts[t]):
                    return self._annotate_alone(request, [t])[t]
                if crop is None:
                    return corrected
                logits = torch.full(request.frames.size, ABSENT_LOGIT, device=corrected.logits.device)
                logits[crop] = task.displayed_logits(corrected)
                return decoder.adopt(request.features, t, prompts[t], corrected, logits)

        return self._cached((*request.scope, key), correct)

    @torch.inference_mode()
    def _adapt(self, task: SegmentationTask, t: int) -> None:
        """Adapt the track of slice `t`, which is not annotated, to the prompts on both ends of its gap.

        What was displayed there was adapted to the prompts of all slices; those beside the gap matter most. Logits (h, w) change in place.
        """
        if len(task.annotated) < 2:  # Prompts on one slice change nothing.
            return
        stack = np.zeros((len(task.frames), *task.frames.size), bool)
        threshold(task, stack)
        before = stack[t].copy()
        ends = {s: p for s, p in task.prompts_by_slice.items() if s in task.annotated}
        task.network.adapt(stack, task.frames, ends, *task.followed)
        if (stack[t] != before).any():
            logits, changed = task.features.to_slices(task.tracks.logits[t][None])[0], torch.from_numpy(stack[t] != before)
            side = torch.from_numpy(np.where(stack[t], 1.0, -1.0).astype(np.float32)).to(logits)
            adapted = torch.where(changed.to(logits.device), side, logits)
            task.tracks.logits[t] = task.features.from_slices(adapted[None], task.tracks.logits.shape[-1])[0, 0]

    def _crop_task(self, request: SegmentationTask, low: int, high: int, crop: Crop | None, logits: dict) -> SegmentationTask:
        """Return the task for the slices low..high of a request within a crop of the frames.

        Args:
            logits: Logits of the annotated slices in whole frames, {slice: (Y, X)}.
        """
        prompts, annotated = ({t: v for t, v in d.items() if low <= t <= high} for d in (request.prompts_by_slice, request.annotated))
        task = replace(request, low=low, high=high, prompts_by_slice=prompts, annotated=annotated)
        if crop is None:
            return task
        task.frames = request.frames.cropped(*crop)
        task.features = self._features(task.frames)
        task.prompts_by_slice = {t: p.cropped(*crop) for t, p in prompts.items()}
        with task.stopwatch("encode"):
            task.ensure_encoded(list(prompts))
        adopt = task.network.decoder_for(task.options).adopt

        def adopt_cropped(t: int) -> Annotation:
            make = lambda: adopt(task.features, t, task.prompts_by_slice[t], annotated[t], logits[t][crop])  # noqa: E731
            return self._cached((*task.scope, annotated[t].key), make)

        task.annotated = self._decode_side_by_side(task, adopt_cropped, list(annotated))
        return task

    def _decode_side_by_side(self, task: SegmentationTask, decode: Callable[[int], Annotation], slices: list[int]) -> dict[int, Annotation]:
        """Return {slice: decode(slice)}, each computed as a task of its own."""
        with task.stopwatch("prompt"):
            return dict(zip(slices, run_all(decode, slices, task.features.device, task.features.threads_each), strict=True))

    def _cached(self, key: tuple, make: Callable[[], Annotation]) -> Annotation:
        annotation = self._result_cache.get(key)
        if annotation is None:
            annotation = make()
            self._result_cache.put(key, annotation, annotation.nbytes)
        return annotation


def _displayed(prompt: SlicePrompt, logits: torch.Tensor) -> DisplayedSlice:
    """Return a prompt with the mask that its slice shows: the painting itself, which may be finer than its logits (Y, X), or that of these."""
    return prompt, (logits > 0).cpu().numpy() if prompt.mask is None else prompt.mask
