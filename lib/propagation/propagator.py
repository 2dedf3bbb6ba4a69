"""Carry SAM 2's memory from annotated slices through a volume, in both directions.

The network is unchanged, but it is used in another way than by the official video predictor. Every gap between two neighbouring
annotated slices is filled by passes of its own that know only the memories of its two ends. The result therefore depends on the
prompts alone, not on what was asked before, and a correction costs no more than the two gaps beside it. A pass moves away from its
near end in virtual time 1, 2, ...; gaps between two annotated slices are passed from both ends and blended
(`lib.propagation.blending`). On a GPU passes go through the network as batches, on a CPU each is computed alone by a worker.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from lib.model.features import SliceFeatures
from lib.model.memory_entries import memory_entry, select_rows, stack_entries
from lib.model.sam2_network import FAR_END_TIME, Sam2Network
from lib.model.tracking_network import TrackingNetwork
from lib.model.worker_pool import run_all
from lib.propagation.blending import PassOutputs, blend_into, fill_pass
from lib.propagation.fresh_look import look_afresh
from lib.propagation.gaps import GapPass, plan_passes
from lib.propagation.mask_refiner import MaskRefiner, PassRefiner
from lib.propagation.object_end import ObjectEndDetector
from lib.propagation.progress import SharedProgress
from lib.propagation.result_cache import ResultCache
from lib.propagation.tracks import Annotation, Tracks

SLICES_AHEAD = 2  # Number of steps of a pass for which a GPU encodes the slices at once.


@dataclass(frozen=True, eq=False)
class PropagationTask:
    """Slices low..high (both included) of one structure, to be filled from those that are annotated.

    Attributes:
        features: Encoded slices of the frames, or of the crop of them, to track in.
        annotated: At least one annotation by slice, all within low..high. A slice annotated as empty stops tracking there.
        scope: Everything that results depend on besides annotations (volume, crop, network); needed only with a result cache.
        ensure_encoded: Encodes slices of given indices shortly before they are needed; None means `features.ensure`.
    """

    features: SliceFeatures
    annotated: dict[int, Annotation]
    low: int
    high: int
    scope: tuple = ()
    ensure_encoded: Callable | None = None


TaskPass = tuple[PropagationTask, GapPass]


class Propagator:
    """Fills slices from annotated ones. It keeps no state.

    Args:
        network: The network.
        score_drop, appearance_gain: Calibrated limits of the network's checkpoint, see `ObjectEndDetector`.
        looks_afresh: Whether masks beyond the outermost annotated slices are mixed with what the slice alone shows before they are
            refined, see `lib.propagation.fresh_look`; networks for large images need not.
        tracking_network: What tracks beside the network where masks are refined, see `lib.propagation.learned_tracking`; None: nothing.
    """

    def __init__(
        self, network: Sam2Network, score_drop: float = 0.0, appearance_gain: float = 0.0, looks_afresh: bool = False,
        tracking_network: TrackingNetwork | None = None,
    ):  # fmt: skip
        self.network, self.score_drop, self.appearance_gain, self.looks_afresh = network, score_drop, appearance_gain, looks_afresh
        self.tracking_network = tracking_network

    def propagate(self, features: SliceFeatures, annotated: dict[int, Annotation], *, low: int, high: int, **options) -> Tracks:
        """Fill the slices low..high of one structure; see `propagate_all`, which takes the same `options`."""
        return self.propagate_all([PropagationTask(features, annotated, low, high)], **options)[0]

    @torch.inference_mode()
    def propagate_all(
        self, tasks: Sequence[PropagationTask], *, forward: bool = True, backward: bool = True, stop_mm: float = 0.0, stride: int = 1,
        batch: int = 32, refines: bool = False, cache: ResultCache | None = None, progress: Callable = lambda iterable: iterable,
    ) -> list[Tracks]:  # fmt: skip
        """Fill the slices of at least one task (structures, or crops of one), all on one device and volume.

        Args:
            forward, backward: Whether to track towards higher and towards lower slice indices.
            stop_mm: A pass beyond the outermost annotated slice ends when the object has been absent for that distance (and for three
                tracked slices); 0 never ends it.
            stride: Only slices whose index is a multiple of it go through the network; those between are interpolated.
            batch: Largest number of passes that go through the network as one batch; on a CPU it should be 1.
            refines: Whether each mask is adapted to its slice before it is remembered, see `lib.propagation.mask_refiner`.
            cache: Holds known outputs of passes, and gets the new ones.
            progress: Wraps an iterable for display; an error that it raises ends all passes.

        Returns:
            The outputs for all slices of the volume, for each task.
        """
        patience = max(3, math.ceil(stop_mm / tasks[0].features.frames.slice_mm / stride)) if stop_mm else 0
        plans = [plan_passes(t.annotated, t.low, t.high, forward=forward, backward=backward, stride=stride) for t in tasks]
        keys = {(task, p): (*_cache_key(task, p, patience), refines) for task, passes in zip(tasks, plans, strict=True) for p in passes}
        outputs: dict[TaskPass, PassOutputs] = {tp: hit for tp, key in keys.items() if cache and (hit := cache.get(key)) is not None}
        missing = sorted((tp for tp in keys if tp not in outputs), key=lambda tp: -len(tp[1].tracked_slices))
        batches = sorted(_batches(missing, batch), key=lambda b: -len(b[0][1].tracked_slices))
        bar = SharedProgress(progress, sum(len(b[0][1].tracked_slices) for b in batches))
        features = tasks[0].features
        for results in run_all(lambda b: self._run_batch(b, patience, refines, bar), batches, features.device, features.threads_each):
            for task_pass, result in results.items():
                outputs[task_pass] = result
                if cache:
                    cache.put(keys[task_pass], result, sum(t.nbytes for t in result))
        bar.finish()
        tracks = []
        for task, passes in zip(tasks, plans, strict=True):
            tracks.append(Tracks.from_annotations(task.annotated, len(task.features.frames), task.features.device))
            blend_into(tracks[-1], {p: outputs[task, p] for p in passes})
        return tracks

    @torch.inference_mode()  # The mode belongs to a thread, and this one may be a worker.
    def _run_batch(self, batch: list[TaskPass], patience: int, refines: bool, bar: SharedProgress) -> dict[TaskPass, PassOutputs]:
        """Take passes of one kind (outer or inner) through the same frames, the longest first, and return their outputs."""
        features, ensure_encoded = batch[0][0].features, batch[0][0].ensure_encoded or batch[0][0].features.ensure
        starts = [task.annotated[p.near] for task, p in batch]
        is_outer = batch[0][1].far is None
        ends = {0: stack_entries([a.memory for a in starts])}
        if not is_outer:
            ends[FAR_END_TIME] = stack_entries([task.annotated[p.far].memory for task, p in batch])
        memories = {"cond_frame_outputs": ends, "non_cond_frame_outputs": {}}
        first = [(p.near, a.logits[0, 0]) for (_, p), a in zip(batch, starts, strict=True)]
        detector = ObjectEndDetector(features, self.score_drop, self.appearance_gain, first)
        refiner = MaskRefiner([PassRefiner(features, _ends(*p), self.tracking_network) for p in batch]) if refines else None
        steps: list[list] = [[] for _ in batch]
        absent_steps = [0] * len(batch)
        running, time = list(range(len(batch))), 0
        while True:
            time += 1
            remaining = [i for i in running if len(batch[i][1].tracked_slices) >= time and not 0 < patience <= absent_steps[i]]
            if not remaining:
                break
            bar.advance()
            if len(remaining) < len(running):
                rows = [running.index(i) for i in remaining]
                memories, detector, running = select_rows(memories, rows), detector.select(rows), remaining
                refiner = refiner and refiner.select(rows)
            ahead = SLICES_AHEAD if features.device.type != "cpu" else 1  # A GPU encodes in few large batches.
            if time % ahead == 1 % ahead:
                ensure_encoded([t for i in running for t in batch[i][1].tracked_slices[time - 1 : time - 1 + ahead]])
            slices = [batch[i][1].tracked_slices[time - 1] for i in running]
            is_last = time == len(batch[running[0]][1].tracked_slices)
            adjust = detector.score_adjustment(time, slices)
            hooks = self._hooks(features, refiner, slices, adjust, is_outer)
            output = self.network.decode(features, slices, memories=memories, time=time, remember=not is_last, **hooks)
            if not is_last:
                memories["non_cond_frame_outputs"][time] = memory_entry(output)
                memories["non_cond_frame_outputs"].pop(time - self.network.memory_span, None)
            scores = output["object_score_logits"][:, 0].float()
            detector.observe(time, scores)
            if refiner is not None:
                refiner.accept((scores > 0).tolist())
            is_present = (scores > 0).tolist() if patience and is_outer else [True] * len(running)
            for row, i in enumerate(running):
                steps[i].append((output["pred_masks"][row, 0].float(), output["iou"][row], scores[row]))
                absent_steps[i] = 0 if is_present[row] else absent_steps[i] + 1
        begin = [(a.logits[0, 0], a.iou, a.object_score) for a in starts]
        return {task_pass: fill_pass(task_pass[1], steps[i], begin[i]) for i, task_pass in enumerate(batch)}

    def _hooks(self, features: SliceFeatures, refiner: MaskRefiner | None, slices: list[int], adjust: Callable | None, is_outer: bool) -> dict:
        """Return what `Sam2Network.decode` calls for a step: to refine the logits of `slices`, and to decide whether the object is there."""
        if refiner is None:
            return {"adjust_scores": adjust}

        def refine(logits: torch.Tensor) -> torch.Tensor:
            if self.looks_afresh and is_outer:  # Between two annotated slices, memory knows both ends.
                logits = look_afresh(self.network, features, slices, logits)
            return refiner.refine(slices, logits)

        def decide_presence(scores: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
            return refiner.decide_presence(scores if adjust is None else adjust(scores, logits), scores)

        return {"refine_logits": refine, "adjust_scores": decide_presence}


def _ends(task: PropagationTask, gap_pass: GapPass) -> list[tuple[int, torch.Tensor]]:
    """Return the index and logits (h, w) of the annotated slices at the ends of a pass, first the near one."""
    ends = [gap_pass.near] if gap_pass.far is None else [gap_pass.near, gap_pass.far]
    return [(t, task.annotated[t].logits[0, 0]) for t in ends]


def _cache_key(task: PropagationTask, gap_pass: GapPass, patience: int) -> tuple:
    """Return everything that the outputs of a pass depend on."""
    far = None if gap_pass.far is None else task.annotated[gap_pass.far].key
    return (*task.scope, gap_pass, task.annotated[gap_pass.near].key, far, patience if gap_pass.far is None else 0)


def _batches(passes: Sequence[TaskPass], size: int) -> Iterator[list[TaskPass]]:
    """Yield batches of passes of one kind (outer or inner) through the same frames, keeping their order."""
    kinds: dict[tuple, list[TaskPass]] = {}
    for task, gap_pass in passes:
        kinds.setdefault((id(task.features), gap_pass.far is None), []).append((task, gap_pass))
    for members in kinds.values():
        for n in range(0, len(members), size):
            yield members[n : n + size]
