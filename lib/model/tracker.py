"""Prompts on a few slices in, logits on every slice out: SAM 2's memory carried through a volume in both directions.

How it differs from the official video predictor, whose network it uses unchanged: every gap between two neighbouring
annotated slices is a run of its own that knows only the memories of its two ends, so the result is a function of the
prompts alone, whatever was asked before. A run steps away from its near end in virtual time 1, 2, ...; all runs of
one kind go through the network as one batch. Inner gaps are run from both ends and blended by distance.
"""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from lib.model.features import FrameFeatures
from lib.prompts import SlicePrompt

FAR_END = 10**6  # virtual time of a gap's far end: beyond reach of pointers that look into the past only
ABSENT = -1024.0  # SAM 2's logit for "no object on this frame"
_CLAMP = 10.0  # before blending, so that one direction's "absent" does not overrule the other


@dataclass(frozen=True, eq=False)
class Annotation:
    """A prompted slice, decoded: logits (1, 1, h, w) at stride 4, predicted IoU, object score logit, memory entry."""

    logits: torch.Tensor
    iou: float
    object_score: float
    memory: dict = field(repr=False)


@dataclass(frozen=True, eq=False)
class Tracks:
    """Outcome for T slices.

    Attributes:
        logits: float32 (T, h, w) at stride 4 of the model's square; ABSENT where nothing was tracked.
        iou: (T,) predicted IoU in [0, 1]. object_score: (T,) logits of presence.
        agreement: (T,) Dice of the two directions where there are two, else NaN.
    """

    logits: torch.Tensor
    iou: torch.Tensor
    object_score: torch.Tensor
    agreement: torch.Tensor


@dataclass(frozen=True)
class _Run:
    """Steps from the annotated slice `near`, `length` slices in direction `step`; `far` is the other end or None."""

    near: int
    step: int
    length: int
    far: int | None = None


class Tracker:
    """Runs one network. Stateless: all state is in the features and annotations passed in.

    Args:
        model: `SAM2Base` in evaluation mode on its device.
        autocast: factory of a context manager entered around each forward pass.
    """

    def __init__(self, model, autocast):
        self.model, self._autocast = model, autocast

    @torch.inference_mode()
    def annotate(self, features: FrameFeatures, t: int, prompt: SlicePrompt) -> Annotation:
        """Decodes a slice from its prompt alone (no memory).

        All clicks are given at once, and the mask they give is refined once with the same clicks. (Five clicks, mean slice
        Dice: at once 0.61, refined 0.64, one after the other 0.66 on generated slices; refined 0.72, one after the other
        0.64 on real volumes, where the order in which clients list clicks is not the order in which they were made.)
        """
        with self._autocast():
            if prompt.mask is not None:
                return self._painted(features, t, prompt)
            out = self._step(features, [t], prompt=prompt)
            if len(prompt.labels) > 1 and not (prompt.labels == 2).any():
                out = self._step(features, [t], prompt=prompt, start=out["pred_masks"].clamp(-32, 32))
            return self._annotation(features, t, out, from_points=True)

    @torch.inference_mode()
    def correct(self, features: FrameFeatures, t: int, prompt: SlicePrompt, annotated, tracks: Tracks) -> Annotation:
        """Decodes clicks on a slice that already has a tracked mask: they mend that mask.

        Args:
            annotated: {slice: Annotation} that `tracks` came from.
        """
        start = tracks.logits[t][None, None].clamp(-32, 32)
        nearest = min(annotated, key=lambda s: abs(s - t))
        memories = {"cond_frame_outputs": {0: annotated[nearest].memory}, "non_cond_frame_outputs": {}}
        with self._autocast():
            for n in range(1, len(prompt.labels) + 1):
                part = SlicePrompt(prompt.points[:n], prompt.labels[:n])
                out = self._step(features, [t], prompt=part, start=start, memories=memories, time=abs(nearest - t))
                start = out["pred_masks"].clamp(-32, 32)
            return self._annotation(features, t, out, from_points=True)

    @torch.inference_mode()
    def propagate(
        self, features: FrameFeatures, annotated: dict[int, Annotation], *, low: int, high: int,
        forward: bool = True, backward: bool = True, progress=lambda iterable: iterable,
    ) -> Tracks:  # fmt: skip
        """Fills the slices low..high (both included) from the annotated ones.

        Args:
            annotated: at least one, all within low..high; a slice annotated as empty stops tracking there.
            forward, backward: directions to track in (towards higher, lower slice indices).
        """
        runs = _plan(sorted(annotated), low, high, forward, backward, annotated)
        total = len(features.frames)
        shape = next(iter(annotated.values())).logits.shape[-2:]
        device = features.device
        results: dict[_Run, tuple] = {}
        groups = [[r for r in runs if r.far is None], [r for r in runs if r.far is not None]]
        steps = sum(max((r.length for r in g), default=0) for g in groups)
        bar = iter(progress(range(steps)))
        for group in groups:
            results.update(self._run_batch(features, annotated, group, bar))
        logits = torch.full((total, *shape), ABSENT, device=device)
        iou, score = torch.ones(total, device=device), torch.full((total,), -10.0, device=device)
        agreement = torch.full((total,), torch.nan, device=device)
        for t, a in annotated.items():
            logits[t], iou[t], score[t] = a.logits[0, 0], a.iou, a.object_score
        for run in runs:
            _merge(run, runs, results, (logits, iou, score, agreement))
        for _ in bar:  # lets a progress bar finish
            pass
        return Tracks(logits, iou, score, agreement)

    # ----------------------------------------------------------------------------------------------------------------
    def _run_batch(self, features, annotated, runs, bar) -> dict:
        """Steps all runs together; {run: (logits (L, h, w), iou (L,), score (L,))}."""
        if not runs:
            return {}
        runs = sorted(runs, key=lambda r: -r.length)
        cond = {0: _stack([annotated[r.near].memory for r in runs])}
        if runs[0].far is not None:
            cond[FAR_END] = _stack([annotated[r.far].memory for r in runs])
        memories = {"cond_frame_outputs": cond, "non_cond_frame_outputs": {}}
        out: dict[_Run, list] = {r: [] for r in runs}
        keep = max(self.model.num_maskmem * max(1, self.model.memory_temporal_stride_for_eval) + 1,
                   self.model.max_obj_ptrs_in_encoder)  # fmt: skip
        alive = len(runs)
        for d in range(1, runs[0].length + 1):
            next(bar, None)
            active = sum(r.length >= d for r in runs)
            if active < alive:
                memories = _shrink(memories, active)
                alive = active
            slices = [r.near + d * r.step for r in runs[:active]]
            with self._autocast():
                step = self._step(features, slices, memories=memories, time=d, remember=True)
            memories["non_cond_frame_outputs"][d] = _memory_of(step)
            memories["non_cond_frame_outputs"].pop(d - keep, None)
            for n, r in enumerate(runs[:active]):
                out[r].append((step["pred_masks"][n, 0].float(), step["iou"][n], step["object_score_logits"][n, 0]))
        return {r: tuple(torch.stack([torch.as_tensor(s[n]) for s in rows]) for n in range(3)) for r, rows in out.items()}

    def _step(self, features, slices, *, prompt=None, start=None, memories=None, time=0, remember=False) -> dict:
        """One call of SAM 2's own `track_step` for a batch of slices at the same virtual time, plus predicted IoU."""
        feats, positions, sizes = features.gather(slices)
        points = None
        if prompt is not None:
            xy = torch.as_tensor(features.to_square(prompt.points), dtype=torch.float32, device=features.device)
            points = {
                "point_coords": xy[None],
                "point_labels": torch.as_tensor(prompt.labels, dtype=torch.int32, device=features.device)[None],
            }
        initial = memories is None
        current, heads, _, _ = self.model._track_step(
            time, initial, feats, positions, sizes, points, None,
            memories or {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}, 2 * FAR_END, False, start,
        )  # fmt: skip
        _, _, ious, low_res, high_res, pointer, score = heads
        current.update(pred_masks=low_res, obj_ptr=pointer, object_score_logits=score, iou=ious.float().amax(1))
        if remember:
            self.model._encode_memory_in_output(feats, sizes, points, True, high_res, score, current)
            current["maskmem_features"] = current["maskmem_features"].to(torch.bfloat16)
        return current

    def _annotation(self, features, t, out, from_points: bool) -> Annotation:
        """Encodes the memory of a prompted slice as the official predictor does before it propagates."""
        feats, _, sizes = features.gather([t])
        big = F.interpolate(out["pred_masks"].float(), (self.model.image_size,) * 2, mode="bilinear", align_corners=False)
        memory, position = self.model._encode_new_memory(feats, sizes, big, out["object_score_logits"], from_points)
        entry = {
            "maskmem_features": memory.to(torch.bfloat16),  # as the official predictor keeps them
            "maskmem_pos_enc": position,
            "obj_ptr": out["obj_ptr"],
        }
        return Annotation(out["pred_masks"].float(), float(out["iou"][0]), float(out["object_score_logits"][0, 0]), entry)

    def _painted(self, features, t, prompt) -> Annotation:
        feats, positions, sizes = features.gather([t])
        mask = features.mask_to_square(prompt.mask)
        current, heads, _, _ = self.model._track_step(
            0, True, feats, positions, sizes, None, mask, {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}},
            2 * FAR_END, False, None,
        )  # fmt: skip
        _, _, _, low_res, _, pointer, score = heads
        current.update(pred_masks=low_res, obj_ptr=pointer, object_score_logits=score.float(), iou=torch.ones(1))
        return self._annotation(features, t, current, from_points=True)


def _plan(annotated, low, high, forward, backward, annotations) -> list[_Run]:
    """Runs that fill the gaps; nothing runs outward from a slice annotated as empty."""
    def empty(t):
        return annotations[t].object_score <= 0

    runs = []
    first, last = annotated[0], annotated[-1]
    if backward and first > low and not empty(first):
        runs.append(_Run(first, -1, first - low))
    if forward and last < high and not empty(last):
        runs.append(_Run(last, 1, high - last))
    for a, b in zip(annotated, annotated[1:], strict=False):
        if b - a > 1 and not (empty(a) and empty(b)):
            if forward:
                runs.append(_Run(a, 1, b - a - 1, b))
            if backward:
                runs.append(_Run(b, -1, b - a - 1, a))
    return runs


def _merge(run, runs, results, out) -> None:
    """Writes a run's result; where the opposite run of the gap exists, the two are blended by distance."""
    logits, iou, score, agreement = out
    index = [run.near + (d + 1) * run.step for d in range(run.length)]
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
    a, b = own[0].clamp(-_CLAMP, _CLAMP), back[0].clamp(-_CLAMP, _CLAMP)
    logits[index] = share[:, None, None] * a + (1 - share[:, None, None]) * b
    iou[index] = (share * own[1] + (1 - share) * back[1]).to(iou)
    score[index] = share * own[2].float() + (1 - share) * back[2].float()
    inside, total = ((a > 0) & (b > 0)).sum((1, 2)), (a > 0).sum((1, 2)) + (b > 0).sum((1, 2))
    agreement[index] = torch.where(total > 0, 2 * inside / total.clamp_min(1), 1.0)


def _memory_of(step: dict) -> dict:
    return {k: step[k] for k in ("maskmem_features", "maskmem_pos_enc", "obj_ptr")}


def _stack(entries: list[dict]) -> dict:
    """One batched memory entry."""
    position = [torch.cat([e["maskmem_pos_enc"][n] for e in entries]) for n in range(len(entries[0]["maskmem_pos_enc"]))]
    return {
        "maskmem_features": torch.cat([e["maskmem_features"] for e in entries]),
        "maskmem_pos_enc": position,
        "obj_ptr": torch.cat([e["obj_ptr"] for e in entries]),
    }


def _shrink(memories: dict, n: int) -> dict:
    """The first `n` runs of all memory entries."""
    def cut(e):
        return {
            "maskmem_features": e["maskmem_features"][:n],
            "maskmem_pos_enc": [p[:n] for p in e["maskmem_pos_enc"]],
            "obj_ptr": e["obj_ptr"][:n],
        }

    return {kind: {d: cut(e) for d, e in entries.items()} for kind, entries in memories.items()}
