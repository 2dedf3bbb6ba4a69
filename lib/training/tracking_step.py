"""The forward pass of a training step: prompt the first slice of each clip as a user would, then track the targets as the engine does."""

import random as python_random
from dataclasses import dataclass

import torch
from torch import nn

from lib.model import differentiable
from lib.training import batch_prompts
from lib.training.batch_random import BatchRandom
from lib.training.clip_source import ClipBatch
from lib.training.generated_targets import MIN_PIXELS
from lib.training.step_losses import StepLosses

_FAR_END = 1 << 19  # Frame number of a gap's far end, beyond the reach of object pointers like `lib.model.sam2_network.FAR_END_TIME`.
_LOGIT_LIMITS = (-32, 32)  # Range of the logits of a mask that is passed to the decoder again as a prompt.
_PAINTED_SHARE = 0.6  # Of the targets, whose first slice is painted; tracking of the others starts from the prompted mask.
_PAINTED_LOGIT = 10.0  # SAM 2's logit of a painted pixel.


@dataclass(frozen=True)
class StepPlan:
    """What one training step does with all of its clips.

    Attributes:
        first: The first prompt: "click" or "box".
        corrections: Number of corrective clicks on the first slice.
        starts_from_mask: Whether these correct the mask before them; otherwise all clicks are decoded at once.
        has_far_end: Whether the last slice is painted too, so that the clip is a gap between two annotated slices.
        fixed_slice: Slice whose tracked mask is corrected by a click, from which tracking then starts again, or None.
    """

    first: str
    corrections: int
    starts_from_mask: bool
    has_far_end: bool
    fixed_slice: int | None

    @classmethod
    def draw(cls, seed: int, slices: int) -> "StepPlan":
        """Return the random plan of a step on clips of `slices` slices."""
        rng = python_random.Random(seed)
        fixed = rng.randrange(2, slices - 2) if slices > 4 and rng.random() < 0.4 else None
        return cls(
            "click" if rng.random() < 0.55 else "box", rng.choices((0, 1, 2, 3, 4), (2, 3, 2, 2, 3))[0], rng.random() < 0.5,
            slices > 2 and rng.random() < 0.25, fixed,
        )  # fmt: skip


class TrackingStep(nn.Module):
    """The forward pass of one training step of a `SAM2Base` as a module, which `DistributedDataParallel` can wrap."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, clip: ClipBatch, plan: StepPlan, random: BatchRandom, balance: float) -> tuple[torch.Tensor, dict]:
        """Return the loss of a step, a scalar, and its metrics (`StepLosses.metrics`); for `balance` see `step_losses.mask_losses`."""
        valid = (clip.masks[:, 0].flatten(1).sum(1) >= MIN_PIXELS).float()
        losses = StepLosses(balance, clip.end_weights, valid)
        features = differentiable.encode_clip(self.model, clip.frames, clip.rows)
        prompted = self._prompt(features[0], clip.masks[:, 0], plan, random, losses)
        is_painted = random.chance(_PAINTED_SHARE, len(clip.rows))
        first = self._annotate(features[0], batch_prompts.paint(random, clip.masks[:, 0]), prompted, is_painted)
        self._track(features, clip.masks, first, plan, random, losses)
        return losses.mean_loss, losses.metrics

    def _track(self, features, masks, first: dict, plan: StepPlan, random, losses) -> None:
        """Track the targets through the slices after the first one, whose memory entry is `first`."""
        model, last = self.model, len(features)
        ends = {0: first}
        if plan.has_far_end:
            last -= 1
            ends[_FAR_END] = self._annotate(features[last], masks[:, last])
        memories, start = {"cond_frame_outputs": ends, "non_cond_frame_outputs": {}}, 0
        for t in range(1, last):
            target, time = masks[:, t], t - start
            embedding = differentiable.condition(model, features[t], time, memories)
            output = differentiable.decode(model, features[t], embedding, None)
            losses.add("track", output, target, weight=1.5)
            present = self._present(output, target)
            if t == plan.fixed_slice:
                fixed = self._fix(features[t], target, output, present, ends[0], time, random, losses)
                memory = differentiable.remember(model, features[t], _hard(fixed.mask), fixed.pointer, self._present(fixed, target))
                ends = {**ends, 0: memory}
                memories, start = {"cond_frame_outputs": ends, "non_cond_frame_outputs": {}}, t
            elif t < last - 1:
                memory = differentiable.remember(model, features[t], output.mask, output.pointer, present)
                memories["non_cond_frame_outputs"][time] = memory

    def _prompt(self, features, target, plan: StepPlan, random, losses) -> differentiable.Prediction:
        """Prompt the first slice by a click or a box and then by corrective clicks; return the last prediction."""
        model = self.model
        prompt = batch_prompts.sample_box(random, target) if plan.first == "box" else batch_prompts.sample_first_click(random, target)
        embedding = differentiable.unconditioned(model, features)
        output = differentiable.decode(model, features, embedding, prompt, multimask=plan.first == "click")
        losses.add(plan.first, output, target, prompt)
        for _ in range(plan.corrections):
            prompt = batch_prompts.add_corrective_click(random, prompt, _binary_mask(output, target), target)
            earlier_mask = output.mask.clamp(*_LOGIT_LIMITS).detach() if plan.starts_from_mask else None
            output = differentiable.decode(model, features, embedding, prompt, earlier_mask)
            losses.add("correct", output, target, prompt)
        return output

    def _annotate(self, features, masks, prompted: differentiable.Prediction | None = None, is_painted=None) -> dict:
        """Return the memory entry of an annotated slice: of painted `masks`, bool (R, H, W), or of `prompted` unless `is_painted` (R,)."""
        logits, pointer = differentiable.mask_prompt(self.model, features, masks)
        present = masks.flatten(1).any(1)
        if prompted is not None:
            size = logits.shape[-2:]
            predicted = nn.functional.interpolate(prompted.mask, size, mode="bilinear", align_corners=False)
            logits = torch.where(is_painted[:, None, None, None], logits, _hard(predicted))
            pointer = torch.where(is_painted[:, None], pointer, prompted.pointer.to(pointer.dtype))
        return differentiable.remember(self.model, features, logits, pointer, present)

    def _fix(self, features, target, output, present, annotated, time, random, losses) -> differentiable.Prediction:
        """Correct a tracked mask by a click, with the memory of the annotated slice alone as the engine does."""
        model = self.model
        click = batch_prompts.add_corrective_click(random, None, _binary_mask(output, target) & present[:, None, None], target)
        earlier_mask = torch.where(present[:, None, None, None], output.mask, -1024.0).clamp(*_LOGIT_LIMITS).detach()
        memories = {"cond_frame_outputs": {0: annotated}, "non_cond_frame_outputs": {}}
        embedding = differentiable.condition(model, features, time, memories)
        fixed = differentiable.decode(model, features, embedding, click, earlier_mask)
        losses.add("fix", fixed, target, click)
        return fixed

    @staticmethod
    def _present(output, target) -> torch.Tensor:
        """Return which objects are predicted or truly present, bool (R,), because a wrong "absent" would stop the mask's gradient."""
        return (output.object_score[:, 0] > 0) | target.flatten(1).any(1)


def _hard(logits: torch.Tensor) -> torch.Tensor:
    """Return logits as those of a painted mask, because the engine remembers annotated slices as the user sees them."""
    return torch.where(logits > 0, _PAINTED_LOGIT, -_PAINTED_LOGIT)


def _binary_mask(output, target) -> torch.Tensor:
    """Return the predicted masks at the size of the target, bool (R, H, W)."""
    return nn.functional.interpolate(output.mask.detach(), target.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0
