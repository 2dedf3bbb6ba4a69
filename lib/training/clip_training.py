"""The forward pass of a training step: prompt the first slice of each clip (sometimes the last one too), then track the targets."""

from dataclasses import dataclass, field

import torch
from torch import nn

from lib.model import differentiable
from lib.training import training_prompts
from lib.training.clip_generator import Clip
from lib.training.losses import frame_loss

_FAR_END = 1 << 19  # Frame number of a gap's far end, beyond the reach of object pointers like `lib.model.sam2_network.FAR_END_TIME`.
_LOGIT_LIMITS = (-32, 32)  # Range of the logits of a mask that is passed to the decoder again as a prompt.


@dataclass
class StepLosses:
    """The losses and metrics of all decoder calls of one training step.

    Attributes:
        balance: Weighting of the mask loss, see `losses.mask_losses`.
        metrics: Values by name: the mean Dice of each call by its kind ("click", "box", "correct", "track" or "fix"), and "presence",
            the fraction of objects whose object score has the right sign on a tracked slice.
    """

    balance: float
    losses: list = field(default_factory=list)
    metrics: dict = field(default_factory=dict)

    def add(self, kind: str, prediction: differentiable.Prediction, target: torch.Tensor) -> None:
        """Add the loss of a prediction and, where the target (bool (B, H, W)) is present, its Dice."""
        loss, iou = frame_loss(prediction, target, self.balance)
        self.losses.append(loss)
        present = target.flatten(1).any(1)
        if present.any():
            dice = 2 * iou / (1 + iou)
            self.metrics.setdefault(kind, []).append(float(dice[present].mean()))
        if kind == "track":
            is_right = (prediction.object_score[:, 0] > 0) == present
            self.metrics.setdefault("presence", []).append(float(is_right.float().mean()))

    @property
    def mean_loss(self) -> torch.Tensor:
        """The mean loss of all calls, a scalar."""
        return torch.stack(self.losses).mean()


class TrainingStep(nn.Module):
    """The forward pass of one training step of a `SAM2Base` as a module, which `DistributedDataParallel` can wrap."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, kind: str, clip: Clip, seed: int, balance: float) -> tuple[torch.Tensor, dict[str, list[float]]]:
        """Return the loss and the metrics to log; `kind` is a method of `ClipTrainer`, `seed` determines the prompts."""
        rng = torch.Generator(clip.frames.device).manual_seed(seed)
        losses = getattr(ClipTrainer(self.model, rng, balance), kind)(clip)
        return losses.mean_loss, {"loss": [float(losses.mean_loss.detach())], **losses.metrics}


class ClipTrainer:
    """Runs a trainable `SAM2Base` on clips that are prompted as a user would prompt them, with random choices from `rng`.

    Each public method is one kind of training step. An object serves one step only, because it collects the losses of all calls.
    """

    def __init__(self, model: nn.Module, rng: torch.Generator, balance: float):
        self.model, self.rng, self.losses = model, rng, StepLosses(balance)

    def boxes_on_noise(self, clip: Clip) -> StepLosses:
        """Warm up the prompt encoder and the mask decoder: the target is the prompted box itself."""
        target = clip.masks[:, 0]
        features = differentiable.encode_clip(self.model, clip.frames, clip.rows)[0]
        prompt = training_prompts.sample_box(target, self.rng, jitter=0.0)
        embedding = differentiable.unconditioned(self.model, features)
        self.losses.add("box", differentiable.decode(self.model, features, embedding, prompt), target)
        return self.losses

    def single_slices(self, clip: Clip, max_corrections: int = 3) -> StepLosses:
        """Prompt the first slice by a click or a box, then by corrective clicks."""
        features = differentiable.encode_clip(self.model, clip.frames[:, :1], clip.rows)[0]
        self._prompt_slice(features, clip.masks[:, 0], {"click": 0.6, "box": 0.4}, max_corrections)
        return self.losses

    def copies(self, clip: Clip) -> StepLosses:
        """Warm up the memory: the second slice is the first one with added noise."""
        noise = torch.randn(clip.frames[:, :1].shape, generator=self.rng, device=clip.frames.device)
        frames = torch.cat([clip.frames[:, :1], clip.frames[:, :1] + 6 * noise], 1)
        return self.clips(Clip(frames, clip.masks[:, :1].expand(-1, 2, -1, -1)), kinds={"mask": 1.0})

    def clips(self, clip: Clip, kinds: dict[str, float] | None = None, max_corrections: int = 1) -> StepLosses:
        """Prompt the first slice, sometimes paint the last one too, and track the targets between, with occasional corrections.

        Args:
            kinds: Weights by which the kind of the first prompt (click, box or mask) is chosen.
            max_corrections: Largest number of corrective clicks on the first slice.
        """
        kinds = kinds or {"click": 0.2, "box": 0.2, "mask": 0.6}
        model = self.model
        features = differentiable.encode_clip(model, clip.frames, clip.rows)
        slices = end = clip.frames.shape[1]
        annotated = {0: self._annotate(features[0], clip.masks[:, 0], kinds, max_corrections)}
        memories = {"cond_frame_outputs": annotated, "non_cond_frame_outputs": {}}
        if slices > 2 and self._uniform() < 0.25:  # The clip becomes a gap between two annotated slices.
            end = slices - 1
            annotated[_FAR_END] = self._annotate(features[end], clip.masks[:, end], {"mask": 1.0}, 0)
        for t in range(1, end):
            target = clip.masks[:, t]
            embedding = differentiable.condition(model, features[t], t, memories)
            output = differentiable.decode(model, features[t], embedding, None)
            self.losses.add("track", output, target)
            is_corrected = slices > 2 and self._uniform() < 0.12
            if is_corrected:
                click = training_prompts.add_corrective_click(None, self._binary_mask(output, target), target, self.rng)
                present = self._present(output, target)[:, None, None, None]
                earlier_mask = torch.where(present, output.mask, -1024.0).clamp(*_LOGIT_LIMITS).detach()
                output = differentiable.decode(model, features[t], embedding, click, earlier_mask)
                self.losses.add("fix", output, target)
            memory = differentiable.remember(model, features[t], output.mask, output.pointer, self._present(output, target))
            memories["cond_frame_outputs" if is_corrected else "non_cond_frame_outputs"][t] = memory
        return self.losses

    def _annotate(self, features, target, kinds, max_corrections) -> dict:
        """Prompt a slice by a click, a box or a mask, and return its memory entry."""
        if self._choose(kinds) == "mask":
            logits, pointer = differentiable.mask_prompt(self.model, features, target)
            return differentiable.remember(self.model, features, logits, pointer, target.flatten(1).any(1))
        output = self._prompt_slice(features, target, {k: v for k, v in kinds.items() if k != "mask"}, max_corrections)
        return differentiable.remember(self.model, features, output.mask, output.pointer, self._present(output, target))

    def _prompt_slice(self, features, target, kinds, max_corrections) -> differentiable.Prediction:
        """Prompt a slice by a click or a box and then by corrective clicks; return the last prediction."""
        kind = self._choose(kinds)
        prompt = (training_prompts.sample_box if kind == "box" else training_prompts.sample_first_click)(target, self.rng)
        embedding = differentiable.unconditioned(self.model, features)
        output = differentiable.decode(self.model, features, embedding, prompt, multimask=kind == "click")
        self.losses.add(kind, output, target)
        for _ in range(int(self._uniform() * (max_corrections + 1))):
            prompt = training_prompts.add_corrective_click(prompt, self._binary_mask(output, target), target, self.rng)
            earlier_mask = output.mask.clamp(*_LOGIT_LIMITS).detach()
            output = differentiable.decode(self.model, features, embedding, prompt, earlier_mask)
            self.losses.add("correct", output, target)
        return output

    def _uniform(self) -> float:
        """Return a random number in [0, 1)."""
        return float(torch.rand((), generator=self.rng, device=self.rng.device))

    def _choose(self, weights: dict[str, float]) -> str:
        """Return one of the keys, chosen with a probability proportional to its weight."""
        remaining = self._uniform() * sum(weights.values())
        for name, weight in weights.items():
            remaining -= weight
            if remaining <= 0:
                return name
        return name

    @staticmethod
    def _present(output, target) -> torch.Tensor:
        """Return which objects are predicted or truly present, bool (B,), because a wrong "absent" would stop the mask's gradient."""
        return (output.object_score[:, 0] > 0) | target.flatten(1).any(1)

    @staticmethod
    def _binary_mask(output, target) -> torch.Tensor:
        """Return the predicted masks at the size of the target, bool (B, H, W)."""
        return nn.functional.interpolate(output.mask.detach(), target.shape[-2:], mode="bilinear", align_corners=False)[:, 0] > 0
