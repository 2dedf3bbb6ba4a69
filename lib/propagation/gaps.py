"""Plan the passes that fill the gaps between annotated slices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from lib.propagation.tracks import Annotation


@dataclass(frozen=True)
class GapPass:
    """One pass through a gap, away from an annotated slice.

    Attributes:
        near: Index of the annotated slice where the pass begins.
        step: 1 towards higher slice indices, -1 towards lower ones.
        length: Number of slices to fill, beginning with the one beside `near`.
        far: Index of the annotated slice at the other end of the gap, or None beyond the outermost annotated slice.
        stride: Only slices whose index is a multiple of it go through the network (so that all passes share features); those between
            are interpolated.
    """

    near: int
    step: int
    length: int
    far: int | None = None
    stride: int = 1

    @property
    def slices(self) -> list[int]:
        """Indices of the slices to fill, in the order of the pass."""
        return [self.near + (d + 1) * self.step for d in range(self.length)]

    @cached_property
    def tracked_slices(self) -> list[int]:
        """Indices of the slices that go through the network."""
        return [t for t in self.slices if t % self.stride == 0] or self.slices[-1:]


def plan_passes(
    annotated: Mapping[int, Annotation], low: int, high: int, *, forward: bool = True, backward: bool = True, stride: int = 1
) -> list[GapPass]:
    """Return the passes that fill the slices low..high (both included) from the annotated ones.

    Gaps between two annotated slices get a pass from each end, the outer ones a single pass. Nothing goes outward from a slice that is
    annotated as empty, and a gap between two empty slices stays empty.

    Args:
        annotated: At least one annotation, by slice index.
        forward, backward: Whether to pass towards higher and towards lower slice indices.
        stride: See `GapPass`.
    """
    order = sorted(annotated)
    first, last = order[0], order[-1]
    passes = []
    if backward and first > low and not annotated[first].is_empty:
        passes.append(GapPass(first, -1, first - low, None, stride))
    if forward and last < high and not annotated[last].is_empty:
        passes.append(GapPass(last, 1, high - last, None, stride))
    for a, b in pairwise(order):
        if b - a > 1 and not (annotated[a].is_empty and annotated[b].is_empty):
            if forward:
                passes.append(GapPass(a, 1, b - a - 1, b, stride))
            if backward:
                passes.append(GapPass(b, -1, b - a - 1, a, stride))
    return passes


def opposite_pass(gap_pass: GapPass, passes: Sequence[GapPass]) -> GapPass | None:
    """Return the pass through the same gap from its other end, if there is one."""
    if gap_pass.far is None:
        return None
    return next((p for p in passes if p.far == gap_pass.near and p.near == gap_pass.far), None)
