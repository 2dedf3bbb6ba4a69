"""How gaps between annotated slices become runs of the network, and how the results of runs become one volume."""

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property
from threading import Lock

import torch

ABSENT = -1024.0  # SAM 2's logit for "no object on this frame"
CLAMP = 10.0  # before blending, so that one direction's "absent" does not overrule the other
MEMO_BYTES = 512 << 20


@dataclass(frozen=True)
class GapPass:
    """Fills the `length` slices beyond the annotated slice `near` in direction `step`, going through those whose index is a
    multiple of `stride` (so that all runs share features); `far` is the other end or None."""

    near: int
    step: int
    length: int
    far: int | None = None
    stride: int = 1

    @property
    def slices(self) -> list[int]:
        """Indices of the slices to fill, in the order of the run."""
        return [self.near + (d + 1) * self.step for d in range(self.length)]

    @cached_property
    def stops(self) -> list[int]:
        """Indices of the slices that go through the network."""
        return [t for t in self.slices if t % self.stride == 0] or self.slices[-1:]


# Of a run: logits (L, h, w), predicted IoU (L,), object score (L,), in the run's order.
Outcome = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class ResultCache:
    """Results by all they depend on; least recently used ones go first when `limit` bytes are exceeded.

    This is the whole state between requests: a second click finds what the first one left, whoever made it.
    """

    limit: int = MEMO_BYTES
    bytes: int = 0
    _known: OrderedDict = field(default_factory=OrderedDict)
    _lock: Lock = field(default_factory=Lock)

    def get(self, key):
        """What is known under `key`, or None."""
        with self._lock:
            if key not in self._known:
                return None
            self._known.move_to_end(key)
            return self._known[key][0]

    def put(self, key, value, size: int) -> None:
        """Keeps `value` of `size` bytes under `key`."""
        with self._lock:
            self.bytes += size - self._known.pop(key, (None, 0))[1]
            self._known[key] = value, size
            while len(self._known) > 1 and self.bytes > self.limit:
                self.bytes -= self._known.popitem(last=False)[1][1]

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._known.clear()
            self.bytes = 0


def plan_passes(annotated, low, high, forward, backward, annotations, stride: int = 1) -> list[GapPass]:
    """Runs that fill the gaps; nothing runs outward from a slice annotated as empty."""
    def empty(t):
        return annotations[t].object_score <= 0

    runs = []
    first, last = annotated[0], annotated[-1]
    if backward and first > low and not empty(first):
        runs.append(GapPass(first, -1, first - low, None, stride))
    if forward and last < high and not empty(last):
        runs.append(GapPass(last, 1, high - last, None, stride))
    for a, b in zip(annotated, annotated[1:], strict=False):
        if b - a > 1 and not (empty(a) and empty(b)):
            if forward:
                runs.append(GapPass(a, 1, b - a - 1, b, stride))
            if backward:
                runs.append(GapPass(b, -1, b - a - 1, a, stride))
    return runs


def blend_into(run, runs, results, out) -> None:
    """Writes a run's result into the `Tracks` `out`; where the opposite run of the gap exists, the two are blended by distance."""
    logits, iou, score, agreement = out.logits, out.iou, out.object_score, out.agreement
    index = run.slices
    own = results[run]
    other = next((r for r in runs if r.far == run.near and r.near == run.far), None) if run.far is not None else None
    if other is None:
        logits[index], iou[index], score[index] = own[0], own[1].to(iou), own[2].float()
        return
    if run.step < 0:
        return  # blended when its partner was written
    back = tuple(x.flip(0) for x in results[other])
    d = torch.arange(1, run.length + 1, device=logits.device, dtype=torch.float32)
    w = 1 - d / (run.length + 1)
    # A direction counts by nearness and by how sure it is of its mask.
    trust = w * (own[1] * own[2].float().sigmoid()).clamp_min(1e-3)
    back_trust = (1 - w) * (back[1] * back[2].float().sigmoid()).clamp_min(1e-3)
    share = trust / (trust + back_trust)
    a, b = own[0].clamp(-CLAMP, CLAMP), back[0].clamp(-CLAMP, CLAMP)
    logits[index] = share[:, None, None] * a + (1 - share[:, None, None]) * b
    iou[index] = (share * own[1] + (1 - share) * back[1]).to(iou)
    score[index] = share * own[2].float() + (1 - share) * back[2].float()
    inside, total = ((a > 0) & (b > 0)).sum((1, 2)), (a > 0).sum((1, 2)) + (b > 0).sum((1, 2))
    agreement[index] = torch.where(total > 0, 2 * inside / total.clamp_min(1), 1.0)


def pass_outputs(run: GapPass, rows: list, start: tuple) -> Outcome:
    """What a run gave at its stops and, by interpolation, between them; stops that it did not come to are without the object.

    Args:
        rows: (logits (h, w), predicted IoU, object score) of the stops. start: the same of the annotated slice.
    """
    logits, iou, score = (torch.stack([torch.as_tensor(r[n]).float() for r in rows]) for n in range(3))
    left = len(run.stops) - len(rows)
    if left:
        logits = torch.cat([logits, logits.new_full((left, *logits.shape[1:]), ABSENT)])
        iou, score = torch.cat([iou, iou.new_ones(left)]), torch.cat([score, score.new_full((left,), -10.0)])
    if run.stride == 1:
        return logits, iou, score
    known = [torch.cat([torch.as_tensor(s).float().to(x)[None], x]) for s, x in zip(start, (logits, iou, score), strict=True)]
    at = torch.tensor([0, *(abs(t - run.near) for t in run.stops)], device=logits.device)
    d = torch.arange(1, run.length + 1, device=logits.device)
    after = torch.searchsorted(at, d).clamp_max(len(run.stops))
    share = ((d - at[after - 1]) / (at[after] - at[after - 1])).clamp(0, 1)
    known[0] = torch.where(known[0].amax((1, 2), keepdim=True) > ABSENT, known[0].clamp(-CLAMP, CLAMP), -CLAMP)
    logits, iou, score = (torch.lerp(x[after - 1], x[after], share.view(-1, *[1] * (x.ndim - 1))) for x in known)
    return torch.where(logits.amax((1, 2), keepdim=True) > -CLAMP, logits, ABSENT), iou, score
