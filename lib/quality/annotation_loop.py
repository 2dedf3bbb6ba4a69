"""Simulate an annotation session: annotate a slice, propagate, choose the next slice, and so on."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lib.imaging import metrics
from lib.imaging.frames import Frames
from lib.prompts.simulated_annotator import Annotator, Segment, largest_slice
from lib.quality.next_slice import RoundState, Strategy


@dataclass(frozen=True, eq=False)
class AnnotationRound:
    """The result of one more annotated slice.

    Attributes:
        slice: Index of the slice that was annotated in this round.
        prompts: All prompts so far, as keywords of `make_prompts`.
        state: The state of the structure after this round.
        dice: Dice of the whole mask against the reference.
    """

    slice: int
    prompts: dict
    state: RoundState
    dice: float


def annotation_rounds(
    segment: Segment, frames: Frames, reference: np.ndarray, choose: Strategy, annotate: Annotator, *, count: int = 8,
) -> Iterator[AnnotationRound]:  # fmt: skip
    """Yield the rounds of a session, which starts on the slice with the largest reference, as in He et al. 2024 (section 2.3).

    Args:
        segment: Segments with all prompts so far.
        reference: Mask bool (T, Y, X), not empty.
        choose: Returns the next slice, or None to stop; see `lib.quality.next_slice`.
        annotate: The simulated annotator, which returns the prompts of one slice.
        count: Largest number of slices to annotate.
    """
    prompts: dict = {}
    t = largest_slice(reference)
    annotated: list[int] = []
    while t is not None and len(annotated) < count:
        annotated.append(t)

        def segment_with_earlier(new_prompts, propagate, earlier=prompts):
            return segment(merge_prompts(earlier, new_prompts), propagate)

        prompts = merge_prompts(prompts, annotate(segment_with_earlier, frames, reference, t))
        result = segment(prompts, True)
        mask = frames.from_volume(result.mask)
        state = RoundState(frames, reference, result.estimates, mask, frozenset(annotated))
        yield AnnotationRound(t, prompts, state, metrics.dice(mask, reference))
        t = choose(state)


def merge_prompts(first: dict, second: dict) -> dict:
    """Return the prompts of both, which are keywords of `make_prompts`; on a slice that both paint, the second counts."""
    merged = dict(first)
    for name, values in second.items():
        merged[name] = {**merged.get(name, {}), **values} if isinstance(values, dict) else [*merged.get(name, []), *values]
    return merged
