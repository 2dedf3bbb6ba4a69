"""One training step's forward pass: annotate the first slice (sometimes the last one too), follow through the clip."""

from dataclasses import dataclass, field

import torch

from lib.model import differentiable
from lib.training import training_prompts
from lib.training.clip_generator import Clip
from lib.training.losses import frame_loss


@dataclass
class Steps:
    """Collects losses and figures over the decoder calls of one training step."""

    balance: float
    losses: list = field(default_factory=list)
    figures: dict = field(default_factory=dict)

    def add(self, kind: str, prediction, target) -> None:
        loss, iou = frame_loss(prediction, target, self.balance)
        self.losses.append(loss)
        present = target.flatten(1).any(1)
        if present.any():
            i = iou[present]
            self.figures.setdefault(kind, []).append(float((2 * i / (1 + i)).mean()))
        if kind == "track":
            self.figures.setdefault("presence", []).append(
                float(((prediction.object_score[:, 0] > 0) == present).float().mean())
            )

    @property
    def loss(self) -> torch.Tensor:
        return torch.stack(self.losses).mean()


class ClipTrainer:
    """Runs clips through the model as a user would prompt them.

    Args:
        model: a trainable `SAM2Base`.
        rng: `torch.Generator` of the prompts.
        balance: see `losses.mask_losses`.
    """

    def __init__(self, model, rng: torch.Generator, balance: float):
        self.model, self.rng, self.balance = model, rng, balance

    def _u(self) -> float:
        return float(torch.rand((), generator=self.rng, device=self.rng.device))

    def _pick(self, weights: dict[str, float]) -> str:
        """One key, drawn by its weight."""
        draw = self._u() * sum(weights.values())
        for name, w in weights.items():
            draw -= w
            if draw <= 0:
                return name
        return name

    def boxes_on_noise(self, clip: Clip) -> Steps:
        """Warm-up of the prompt path: the target is simply the prompted box."""
        steps = Steps(self.balance)
        features = differentiable.encode_clip(self.model, clip.frames, clip.objects)[0]
        prompt = training_prompts.box(clip.masks[:, 0], self.rng, jitter=0.0)
        x = differentiable.unconditioned(self.model, features)
        steps.add("box", differentiable.decode(self.model, features, x, prompt), clip.masks[:, 0])
        return steps

    def single_slices(self, clip: Clip, max_corrections: int = 3) -> Steps:
        """Clicks or a box on one slice, then corrective clicks."""
        steps = Steps(self.balance)
        features = differentiable.encode_clip(self.model, clip.frames[:, :1], clip.objects)[0]
        self._annotate(features, clip.masks[:, 0], {"click": 0.6, "box": 0.4}, max_corrections, steps)
        return steps

    def copies(self, clip: Clip) -> Steps:
        """Warm-up of the memory path: the second slice is the first one again, with other noise."""
        noise = torch.randn(clip.frames[:, :1].shape, generator=self.rng, device=clip.frames.device)
        frames = torch.cat([clip.frames[:, :1], clip.frames[:, :1] + 6 * noise], 1)
        return self.clips(Clip(frames, clip.masks[:, :1].expand(-1, 2, -1, -1)), kinds={"mask": 1.0})

    def clips(self, clip: Clip, kinds: dict[str, float] | None = None, max_corrections: int = 1) -> Steps:
        """Annotate, follow, sometimes correct on the way."""
        kinds = kinds or {"click": 0.2, "box": 0.2, "mask": 0.6}
        model, steps = self.model, Steps(self.balance)
        features = differentiable.encode_clip(model, clip.frames, clip.objects)
        slices = clip.frames.shape[1]
        memories = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
        memories["cond_frame_outputs"][0] = self._annotation(features[0], clip.masks[:, 0], kinds, max_corrections, steps)
        last = slices
        if slices > 2 and self._u() < 0.25:  # a gap between two annotated slices
            last = slices - 1
            memories["cond_frame_outputs"][1 << 19] = self._annotation(
                features[last], clip.masks[:, last], {"mask": 1.0}, 0, steps
            )
        for t in range(1, last):
            target = clip.masks[:, t]
            x = differentiable.condition(model, features[t], t, memories)
            out = differentiable.decode(model, features[t], x, None)
            steps.add("track", out, target)
            corrected = slices > 2 and self._u() < 0.12
            if corrected:
                click = training_prompts.corrective_click(None, self._binary(out, target), target, self.rng)
                out = differentiable.decode(model, features[t], x, click, self._gated(out, target).clamp(-32, 32).detach())
                steps.add("fix", out, target)
            entry = differentiable.remember(model, features[t], out.mask, out.pointer, self._present(out, target))
            memories["cond_frame_outputs" if corrected else "non_cond_frame_outputs"][t] = entry
        return steps

    def _annotation(self, features, target, kinds, max_corrections, steps) -> dict:
        """Memory entry of a prompted slice."""
        if self._pick(kinds) == "mask":
            logits, pointer = differentiable.mask_prompt(self.model, features, target)
            return differentiable.remember(self.model, features, logits, pointer, target.flatten(1).any(1))
        out = self._annotate(features, target, {k: v for k, v in kinds.items() if k != "mask"}, max_corrections, steps)
        return differentiable.remember(self.model, features, out.mask, out.pointer, self._present(out, target))

    def _annotate(self, features, target, kinds, max_corrections, steps):
        kind = self._pick(kinds)
        first = training_prompts.box if kind == "box" else training_prompts.first_click
        prompt = first(target, self.rng)
        x = differentiable.unconditioned(self.model, features)
        out = differentiable.decode(self.model, features, x, prompt, multimask=kind == "click")
        steps.add(kind, out, target)
        for _ in range(int(self._u() * (max_corrections + 1))):
            prompt = training_prompts.corrective_click(prompt, self._binary(out, target), target, self.rng)
            out = differentiable.decode(self.model, features, x, prompt, out.mask.clamp(-32, 32).detach())
            steps.add("correct", out, target)
        return out

    @staticmethod
    def _present(out, target) -> torch.Tensor:
        """A wrong "absent" would cut the mask's gradient: where the object is, it counts as present."""
        return (out.object_score[:, 0] > 0) | target.flatten(1).any(1)

    def _gated(self, out, target) -> torch.Tensor:
        return torch.where(self._present(out, target)[:, None, None, None], out.mask, torch.full_like(out.mask, -1024.0))

    @staticmethod
    def _binary(out, target) -> torch.Tensor:
        big = torch.nn.functional.interpolate(out.mask.detach(), target.shape[-2:], mode="bilinear", align_corners=False)
        return big[:, 0] > 0
