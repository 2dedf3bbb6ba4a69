"""The loop of an annotation session with a simulated annotator: annotate a slice, propagate, choose the next slice."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lib.imaging import metrics
from lib.imaging.frames import Frames
from lib.prompts.simulated_annotator import Annotator, Segment, largest_slice
from lib.quality.next_slice import RoundState


@dataclass(frozen=True, eq=False)
class AnnotationRound:
    """One annotated slice more.

    Attributes:
        slice: the one that was annotated. prompts: all so far. scene: what came out. dice: the volume Dice of its mask.
    """

    slice: int
    prompts: dict
    scene: RoundState
    dice: float


def annotation_rounds(
    segment: Segment, frames: Frames, reference: np.ndarray, choose: Callable[[RoundState], int | None], annotate: Annotator, *,
    count: int = 8, first: int | None = None,
) -> Iterator[AnnotationRound]:  # fmt: skip
    """The loop of He et al. 2024 (section 2.3): annotate a slice, propagate, choose the next one by what came out.

    Args:
        reference: bool (T, Y, X), not empty.
        choose: the next slice, or None to stop; see `lib.quality.next_slice`.
        count: annotated slices at most. first: where to start, default the largest slice.
    """
    prompts: dict = {}
    t = largest_slice(reference) if first is None else first
    annotated: list[int] = []
    mask = np.zeros_like(reference)
    while t is not None and len(annotated) < count:
        annotated.append(t)

        def with_earlier(more, propagate, earlier=prompts):
            return segment(merge_prompts(earlier, more), propagate)

        prompts = merge_prompts(prompts, annotate(with_earlier, frames, reference, t, mask[t]))
        result = segment(prompts, True)
        mask = frames.from_volume(result.mask)
        scene = RoundState(frames, reference, result, mask, frozenset(annotated))
        yield AnnotationRound(t, prompts, scene, metrics.dice(mask, reference))
        t = choose(scene)


def merge_prompts(first: dict, second: dict) -> dict:
    """Prompts of both."""
    out = dict(first)
    for name, more in second.items():
        out[name] = {**out.get(name, {}), **more} if isinstance(more, dict) else [*out.get(name, []), *more]
    return out
