"""Prompts on a few slices in, logits on every slice out: SAM 2's memory carried through a volume in both directions.

How it differs from the official video predictor, whose network it uses unchanged: every gap between two neighbouring
annotated slices is a run of its own that knows only the memories of its two ends, so the result is a function of the
prompts alone, whatever was asked before. A run steps away from its near end in virtual time 1, 2, ...; on a GPU all
runs of one kind, of all structures, go through the network as one batch, on a CPU they run side by side. Inner gaps
are run from both ends and blended by distance. What a run gives depends on its two ends only, so a `Memo` makes a
correction cost no more than its two gaps.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from lib.model.features import SliceFeatures
from lib.model.memory_entries import memory_of, stack
from lib.model.worker_pool import Ticks, also, side_by_side, soon, spare
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.gaps import ABSENT, GapPass, Outcome, ResultCache, blend_into, pass_outputs, plan_passes
from lib.propagation.object_end import ObjectEndDetector
from lib.propagation.pass_batch import Group
from lib.propagation.tracks import Annotation, Tracks
from lib.propagation.zoom import agreement, refine_zoomed

FAR_END = 10**6  # virtual time of a gap's far end: beyond reach of pointers that look into the past only
RECENT = 16  # looks at slices that are kept: clicks come one after the other
_AHEAD = 2  # slices that a run has encoded before it comes to them


@dataclass(frozen=True, eq=False)
class PropagationTask:
    """Slices low..high (both included) of a structure, to be filled from those that are annotated.

    Attributes:
        features: of the frames, or the part of them, to track in.
        annotated: at least one, all within low..high; a slice annotated as empty stops tracking there.
        scope: what outcomes depend on besides annotations (volume, part, network); only needed with a memo.
        prepare: called with slice indices shortly before they are needed; default: encodes them.
    """

    features: SliceFeatures
    annotated: dict[int, Annotation]
    low: int
    high: int
    scope: tuple = ()
    prepare: Callable | None = None


class Tracker:
    """Runs one network. All state is in the features and annotations passed in; the last few looks at slices are kept.

    Args:
        model: `SAM2Base` in evaluation mode on its device.
        autocast: factory of a context manager entered around each forward pass.
        zoom: whether annotated slices get a second look at a higher resolution.
        drop: the object counts as lost where its score falls by more than this below that of the slices beside the
            annotation, as it does at the end of an object (0: only where the score is negative, as in SAM 2). A property
            of a checkpoint, see `lib.training.object_end_calibration`.
        gain: how much more it may fall where the mask still looks as it did (times `looks.contrast`). Found likewise.

    Attributes:
        compiled: whether the network is, or will be; on a CPU this is for single runs.
    """

    compiled = False

    def __init__(self, model, autocast, drop: float = 0.0, zoom: bool = False, gain: float = 0.0):
        self.model, self._autocast, self.drop, self.zoom, self.gain = model, autocast, drop, zoom, gain
        self._recent: dict[tuple, tuple] = {}
        self._turns: dict[tuple, dict] = {}

    @torch.inference_mode()
    def annotate(self, features: SliceFeatures, t: int, prompt: SlicePrompt) -> Annotation:
        """Decodes a slice from its prompt alone (no memory).

        Several clicks are given all at once, again on the mask that this gives, and one after the other; the answer that
        agrees with most of the clicks counts, the higher predicted IoU among equals. With `zoom`, the network then looks
        once more at the surroundings of a small structure.
        """
        with self._autocast():
            if prompt.mask is not None:
                return self._painted(features, t, prompt)
            out, fine = self._looks(features, t, prompt)
            if fine is not None:
                out["pred_masks"] = features.from_slices(fine[None], out["pred_masks"].shape[-1])
            return self._annotation(features, t, out, from_points=True, key=(t, prompt.key), fine=fine)

    def seen(self, features: SliceFeatures, t: int, prompt: SlicePrompt) -> torch.Tensor:
        """Logits (Y, X) that the user sees for this prompt."""
        out, fine = self._looks(features, t, prompt)
        return features.to_slices(out["pred_masks"][0])[0] if fine is None else fine

    def _looks(self, features, t, prompt: SlicePrompt) -> tuple[dict, torch.Tensor | None]:
        """The first look, and with `zoom` the logits (Y, X) of both; kept for a while, as clicks come one after the other."""
        key = features.frames.key, t, prompt.key
        if key not in self._recent:
            out = self._decode(features, t, prompt)
            _keep(self._recent, key, (out, refine_zoomed(self, features, t, prompt, out["pred_masks"]) if self.zoom else None))
        out, fine = self._recent[key]
        return dict(out), fine

    @torch.inference_mode()
    def adopt(self, features: SliceFeatures, t: int, prompt: SlicePrompt, fine: torch.Tensor, key: tuple) -> Annotation:
        """A slice whose mask is known from other frames of it: logits (Y, X) of these frames' pixels."""
        with self._autocast():
            if prompt.mask is not None:
                return self._painted(features, t, prompt)
            start = features.from_slices(fine[None], self.model.image_size // 4)
            out = self._step(features, [t], prompt=prompt, start=start.clamp(-32, 32))
            out["pred_masks"] = start
            return self._annotation(features, t, out, from_points=True, key=key, fine=fine)

    def _decode(self, features, t, prompt: SlicePrompt) -> dict:
        """Output of the step that agrees best with the clicks."""
        out = self._step(features, [t], prompt=prompt)
        if len(prompt.labels) < 2 or (prompt.labels == 2).any():
            return out
        answers = [out, self._step(features, [t], prompt=prompt, start=out["pred_masks"].clamp(-32, 32))]
        answers.append(self._in_turn(features, t, prompt))
        return max(answers, key=lambda o: (agreement(features, prompt, o["pred_masks"]), float(o["iou"][0])))

    def _in_turn(self, features, t, prompt: SlicePrompt) -> dict:
        """Clicks given one after the other, each on the mask before; kept for a while."""
        def key(part):
            return features.frames.key, t, part.key

        parts = [prompt]
        while key(parts[-1]) not in self._turns and len(parts[-1].labels) > 1:
            parts.append(parts[-1].without_last_click())
        out = self._turns.get(key(parts[-1]))
        for part in reversed(parts[:-1] if out else parts):
            out = self._step(features, [t], prompt=part, start=out and out["pred_masks"].clamp(-32, 32))
            _keep(self._turns, key(part), out)
        return dict(out)

    @torch.inference_mode()
    def correct(self, features: SliceFeatures, t: int, prompt: SlicePrompt, annotated, tracks: Tracks) -> Annotation:
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
            drawn = hashlib.blake2b(tracks.logits[t].cpu().numpy().tobytes(), digest_size=16).hexdigest()
            key = (t, prompt.key, annotated[nearest].key, drawn)
            return self._annotation(features, t, out, from_points=True, key=key)

    def propagate(self, features: SliceFeatures, annotated: dict[int, Annotation], *, low: int, high: int, **options) -> Tracks:
        """Fills the slices low..high from the annotated ones; see `propagate_all`."""
        return self.propagate_all([PropagationTask(features, annotated, low, high)], **options)[0]

    @torch.inference_mode()
    def propagate_all(
        self, stretches: Sequence[PropagationTask], *, forward: bool = True, backward: bool = True, stop_mm: float = 0.0, stride: int = 1,
        batch: int = 32, memo: ResultCache | None = None, progress: Callable = lambda iterable: iterable,
    ) -> list[Tracks]:  # fmt: skip
        """Fills slices of a volume from annotated ones, of several structures or parts of it together.

        Args:
            forward, backward: directions to track in (towards higher, lower slice indices).
            stop_mm: an outer run ends when the object has been absent for that distance (and 3 slices); 0 = never.
            stride: only every so many slices go through the network, those between are interpolated.
            batch: most runs that go through the network at once; on a CPU batches run side by side.
            memo: known outcomes of runs.
        """
        patience = max(3, math.ceil(stop_mm / stretches[0].features.frames.slice_mm / stride)) if stop_mm else 0
        plans = [plan_passes(sorted(s.annotated), s.low, s.high, forward, backward, s.annotated, stride) for s in stretches]
        jobs = {(n, run): self._key(stretches[n], run, patience) for n, runs in enumerate(plans) for run in runs}
        results = {job: memo.get(key) for job, key in jobs.items()} if memo else {}
        todo = sorted((job for job in jobs if results.get(job) is None), key=lambda job: -len(job[1].stops))
        kinds: dict[tuple, list] = {}
        for n, run in todo:
            kinds.setdefault((id(stretches[n].features), run.far is None), []).append((n, run))
        groups = [g[i : i + batch] for g in kinds.values() for i in range(0, len(g), batch)]
        ticks = Ticks(progress, sum(len(g[0][1].stops) for g in groups))
        steps = (self._run_batch(stretches, g, patience, ticks) for g in groups)
        for made in side_by_side(steps, stretches[0].features.device):
            for job, done in made.items():
                results[job] = done
                if memo:
                    memo.put(jobs[job], done, sum(t.nbytes for t in done))
        ticks.finish()
        return [self._assemble(stretches[n], runs, {run: results[n, run] for run in runs}) for n, runs in enumerate(plans)]

    # ----------------------------------------------------------------------------------------------------------------
    @staticmethod
    def _key(stretch: PropagationTask, run: GapPass, patience: int) -> tuple:
        far = None if run.far is None else stretch.annotated[run.far].key
        return (*stretch.scope, run, stretch.annotated[run.near].key, far, patience if run.far is None else 0)

    @staticmethod
    def _assemble(stretch: PropagationTask, runs, results) -> Tracks:
        tracks = Tracks.of(stretch.annotated, len(stretch.features.frames), stretch.features.device)
        for run in runs:
            blend_into(run, runs, results, tracks)
        return tracks

    @torch.inference_mode()  # which belongs to a thread
    def _run_batch(self, stretches, jobs, patience, ticks) -> Generator[int, None, dict[tuple[int, GapPass], Outcome]]:
        """Begins runs of one kind (outer, or inner) through the same frames, longest first, and goes on with them; see `_go`."""
        ends = [stretches[n].annotated[run.near] for n, run in jobs]
        cond = {0: stack([a.memory for a in ends])}
        if jobs[0][1].far is not None:
            cond[FAR_END] = stack([stretches[n].annotated[run.far].memory for n, run in jobs])
        starts = [(run.near, a.logits[0, 0]) for (_, run), a in zip(jobs, ends, strict=True)]
        judge = ObjectEndDetector(stretches[jobs[0][0]].features, self.drop, self.gain, starts)
        memories = {"cond_frame_outputs": cond, "non_cond_frame_outputs": {}}
        return (yield from self._go(stretches, Group(jobs, memories, judge, [0] * len(jobs), [[] for _ in jobs]), patience, ticks))

    @torch.inference_mode()  # which belongs to a thread
    def _go(self, stretches, group: Group, patience, ticks) -> Generator[int, None, dict[tuple[int, GapPass], Outcome]]:
        """Steps runs together; yields how many steps are left at most. A lane that is free takes half of the runs over."""
        stretch, outer = stretches[group.jobs[0][0]], group.jobs[0][1].far is None
        features, prepare = stretch.features, stretch.prepare or stretch.features.ensure
        keep = max(self.model.num_maskmem * max(1, self.model.memory_temporal_stride_for_eval) + 1,
                   self.model.max_obj_ptrs_in_encoder)  # fmt: skip
        done = {}
        while True:
            d = group.step + 1
            alive = [i for i, (_, run) in enumerate(group.jobs) if len(run.stops) >= d and not 0 < patience <= group.absent[i]]
            for i in set(range(len(group.jobs))) - set(alive):
                n, run = group.jobs[i]
                end = stretches[n].annotated[run.near]
                done[n, run] = pass_outputs(run, group.made[i], (end.logits[0, 0], end.iou, end.object_score))
            if not alive:
                return done
            ticks.next()
            group = group.of(alive)
            steps = len(group.jobs[0][1].stops)
            if features.device.type != "cpu":
                if d % _AHEAD == 1:  # few large batches
                    prepare([t for _, run in group.jobs for t in run.stops[d - 1 : d - 1 + _AHEAD]])
            else:
                prepare([run.stops[d - 1] for _, run in group.jobs])
                new = slice(d if d == 1 else d + _AHEAD - 1, d + _AHEAD)
                for t in features.untouched(t for _, run in group.jobs for t in run.stops[new]):
                    soon(lambda t=t: prepare(features.untouched([t])))
                if len(group.jobs) > 1 and spare():
                    half = len(group.jobs) // 2
                    also(self._go(stretches, group.of(range(half, len(group.jobs))), patience, ticks))
                    group = group.of(range(half))
            slices = [run.stops[d - 1] for _, run in group.jobs]
            with self._autocast():
                judge = group.judge.judge(d, slices)
                step = self._step(features, slices, memories=group.memories, time=d, remember=d < steps, judge=judge)
            if d < steps:  # nothing comes after the last
                group.memories["non_cond_frame_outputs"][d] = memory_of(step)
                group.memories["non_cond_frame_outputs"].pop(d - keep, None)
            scores = step["object_score_logits"][:, 0].float()
            group.judge.note(d, scores)
            there = (scores > 0).tolist() if patience and outer else [True] * len(group.jobs)
            for n, made in enumerate(group.made):
                made.append((step["pred_masks"][n, 0].float(), step["iou"][n], scores[n]))
                group.absent[n] = 0 if there[n] else group.absent[n] + 1
            group.step = d
            yield steps - d

    def _step(
        self, features, slices, *, prompt=None, start=None, memories=None, time=0, remember=False, judge=None
    ) -> dict:  # fmt: skip
        """One call of SAM 2's own `track_step` for a batch of slices at the same virtual time, plus predicted IoU.

        Args:
            judge: from object scores (B,) and logits (B, h, w), scores that count instead: negative where the object is lost.
        """
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
        candidates, _, ious, low_res, high_res, pointer, score = heads
        if judge is not None:
            score = judge(score[:, 0].float(), low_res[:, 0])[:, None].to(score)
            gone = score <= 0
            low_res, high_res = (x.masked_fill(gone[:, :, None, None], ABSENT) for x in (low_res, high_res))
            pointer = torch.where(gone, self.model.no_obj_ptr.to(pointer), pointer)
        current.update(pred_masks=low_res, obj_ptr=pointer, object_score_logits=score, iou=ious.float().amax(1), candidates=candidates)
        if remember:
            self.model._encode_memory_in_output(feats, sizes, points, True, high_res, score, current)
            current["maskmem_features"] = current["maskmem_features"].to(torch.bfloat16)
        return current

    def _annotation(self, features, t, out, from_points: bool, key: tuple, fine=None) -> Annotation:
        """Encodes the memory of a prompted slice as the official predictor does before it propagates."""
        feats, _, sizes = features.gather([t])
        side = self.model.image_size
        if fine is None:
            big = F.interpolate(out["pred_masks"].float(), (side, side), mode="bilinear", align_corners=False)
        else:
            big = features.from_slices(fine[None], side)
        memory, position = self.model._encode_new_memory(feats, sizes, big, out["object_score_logits"], from_points)
        entry = {
            "maskmem_features": memory.to(torch.bfloat16),  # as the official predictor keeps them
            "maskmem_pos_enc": position,
            "obj_ptr": out["obj_ptr"],
        }
        score = float(out["object_score_logits"][0, 0])
        return Annotation(out["pred_masks"].float(), float(out["iou"][0]), score, entry, key, fine)

    def _painted(self, features, t, prompt) -> Annotation:
        feats, positions, sizes = features.gather([t])
        mask = features.mask_to_square(prompt.mask)
        current, heads, _, _ = self.model._track_step(
            0, True, feats, positions, sizes, None, mask, {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}},
            2 * FAR_END, False, None,
        )  # fmt: skip
        _, _, _, low_res, _, pointer, score = heads
        current.update(pred_masks=low_res, obj_ptr=pointer, object_score_logits=score.float(), iou=torch.ones(1))
        return self._annotation(features, t, current, from_points=True, key=(t, prompt.key))


def _keep(kept: dict, key: tuple, value) -> None:
    """One thing more, in place of the oldest when there are many."""
    kept[key] = value
    while len(kept) > RECENT:
        kept.pop(next(iter(kept)))
