"""How gaps between annotated slices become runs of the network, and how the results of runs become one volume."""

from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock

import torch

ABSENT = -1024.0  # SAM 2's logit for "no object on this frame"
CLAMP = 10.0  # before blending, so that one direction's "absent" does not overrule the other
MEMO_BYTES = 512 << 20


@dataclass(frozen=True)
class Run:
    """Steps from the annotated slice `near`, `length` slices in direction `step`; `far` is the other end or None."""

    near: int
    step: int
    length: int
    far: int | None = None

    @property
    def slices(self) -> list[int]:
        """Slice indices in the order in which they are run."""
        return [self.near + (d + 1) * self.step for d in range(self.length)]


# Of a run: logits (L, h, w), predicted IoU (L,), object score (L,), in the run's order.
Outcome = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


@dataclass
class Memo:
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


def plan(annotated, low, high, forward, backward, annotations) -> list[Run]:
    """Runs that fill the gaps; nothing runs outward from a slice annotated as empty."""
    def empty(t):
        return annotations[t].object_score <= 0

    runs = []
    first, last = annotated[0], annotated[-1]
    if backward and first > low and not empty(first):
        runs.append(Run(first, -1, first - low))
    if forward and last < high and not empty(last):
        runs.append(Run(last, 1, high - last))
    for a, b in zip(annotated, annotated[1:], strict=False):
        if b - a > 1 and not (empty(a) and empty(b)):
            if forward:
                runs.append(Run(a, 1, b - a - 1, b))
            if backward:
                runs.append(Run(b, -1, b - a - 1, a))
    return runs


def merge(run, runs, results, out) -> None:
    """Writes a run's result; where the opposite run of the gap exists, the two are blended by distance."""
    logits, iou, score, agreement = out
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


def outcome(run: Run, rows: list) -> Outcome:
    """What a run gave; the slices that it did not come to are without the object."""
    logits, iou, score = (torch.stack([torch.as_tensor(r[n]).float() for r in rows]) for n in range(3))
    left = run.length - len(rows)
    if left:
        logits = torch.cat([logits, logits.new_full((left, *logits.shape[1:]), ABSENT)])
        iou, score = torch.cat([iou, iou.new_ones(left)]), torch.cat([score, score.new_full((left,), -10.0)])
    return logits, iou, score
