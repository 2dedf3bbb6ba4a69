"""Losses of a training step: masks, where most weight lies on what is wrong; prompts that must be obeyed; whether an object is there."""

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from lib.model.differentiable import Prediction

_LOSS_SIDE = 128  # Pixels at which masks are compared, or those of the logits if these are more.


def mask_losses(logits: torch.Tensor, target: torch.Tensor, balance: float) -> torch.Tensor:
    """Return cross-entropy plus Dice loss (R, M) of mask logits (R, M, H, W) with targets, float32 (R, H, W) in [0, 1].

    Args:
        balance: Weight in [0, 1] of a cross-entropy that counts foreground and background equally; the rest is 4 times the plain mean.
            With that alone the masks of an untrained model become empty and stay so; later it gives more accurate borders.
    """
    t = target[:, None]
    bce = F.binary_cross_entropy_with_logits(logits, t.expand_as(logits), reduction="none")
    inside, outside = t.sum((2, 3)).clamp_min(1), (1 - t).sum((2, 3)).clamp_min(1)
    balanced = (bce * t).sum((2, 3)) / inside + (bce * (1 - t)).sum((2, 3)) / outside
    p = logits.sigmoid()
    dice = 1 - (2 * (p * t).sum((2, 3)) + 1) / (p.sum((2, 3)) + inside + 1)
    return dice + balance * balanced + (1 - balance) * (4 * bce.mean((2, 3)))


@torch.no_grad()
def mask_iou(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the IoU (R, M) of masks given as logits (R, M, H, W) with targets (R, H, W) in [0, 1]; it is 1 where both are empty."""
    m, t = logits > 0, (target > 0.5)[:, None]
    union = (m | t).sum((2, 3))
    return torch.where(union > 0, (m & t).sum((2, 3)) / union.clamp_min(1), 1.0)


def click_losses(logits: torch.Tensor, prompt: dict, target: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy (R,) in the neighbourhoods of 3 x 3 pixels of all clicks and box corners.

    Args:
        logits: Mask logits (R, 1, h, w).
        target: Bool (R, H, W), at the size that clicks refer to.
    """
    side = target.shape[-1]
    steps = torch.arange(-1, 2, device=logits.device, dtype=torch.float32)
    offsets = torch.stack(torch.meshgrid(steps, steps, indexing="xy"), -1).view(1, 1, 9, 2)
    places = (prompt["point_coords"][:, :, None] + offsets + 0.5) / side * 2 - 1
    at_clicks = F.grid_sample(logits, places, align_corners=False, padding_mode="border")[:, 0]
    wanted = F.grid_sample(target[:, None].float(), places, mode="nearest", align_corners=False)[:, 0]
    return F.binary_cross_entropy_with_logits(at_clicks, wanted, reduction="none").mean((1, 2))


def box_losses(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the Dice loss (R,) between the projections of mask and target on either axis: a mask must fill its box."""
    p, loss = logits[:, 0].sigmoid(), 0.0
    for axis in (1, 2):
        mine, wanted = p.amax(axis), target.amax(axis)
        loss = loss + 1 - (2 * (mine * wanted).sum(1) + 1) / (mine.sum(1) + wanted.sum(1) + 1)
    return loss


@dataclass
class StepLosses:
    """The losses and metrics of all decoder calls of one training step. Nothing is copied from the device.

    Attributes:
        balance: Weighting of the mask loss, see `mask_losses`.
        end_weights: Weights (R,) of the loss of the object score.
        valid: Float32 (R,), 0 for targets that the first slice does not show.
        metrics: Pairs (sum, count) of tensors by name: the Dice of each kind of call, and "presence", the share of objects whose score
            has the right sign on a tracked slice.
    """

    balance: float
    end_weights: torch.Tensor
    valid: torch.Tensor
    losses: list = field(default_factory=list)
    metrics: dict = field(default_factory=dict)

    def add(self, kind: str, prediction: Prediction, target: torch.Tensor, prompt: dict | None = None, weight: float = 1.0) -> None:
        """Add the losses of a prediction for targets, bool (R, H, W).

        Args:
            kind: "click" trains the three alternatives and the single mask, all others the single mask only; "box" must fill its box.
            prompt: The clicks that the mask must obey, or None.
        """
        masks = prediction.masks if kind == "click" else prediction.masks[:, :1]
        side = max(_LOSS_SIDE, masks.shape[-1])
        soft = F.interpolate(target[:, None].float(), (side, side), mode="area")[:, 0]
        logits = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
        present = target.flatten(1).any(1).float() * self.valid
        iou, losses = mask_iou(logits, soft), mask_losses(logits, soft, self.balance)
        per_row = losses[:, 0] + (losses[:, 1:].amin(1) if kind == "click" else 0.0)
        per_row = per_row + (prediction.ious[:, : masks.shape[1]] - iou).abs().mean(1)
        if prompt is not None:
            per_row = per_row + 0.5 * click_losses(prediction.mask, prompt, target)
        if kind == "box":
            per_row = per_row + 0.5 * box_losses(logits, soft)
        chosen = prediction.chosen if kind == "click" else torch.zeros_like(prediction.chosen)
        dice = iou.gather(1, chosen[:, None])[:, 0]
        dice = 2 * dice / (1 + dice)
        hardness = 0.5 + (1 - dice)
        score = F.binary_cross_entropy_with_logits(prediction.object_score[:, 0], present, reduction="none")
        score_weights = self.end_weights * self.valid
        loss = (per_row * hardness * present).sum() / (hardness * present).sum().clamp_min(1)
        loss = loss + 3 * (score * score_weights).sum() / score_weights.sum().clamp_min(1)
        self.losses.append(weight * loss)
        self._count(kind, (dice.detach() * present).sum(), present.sum())
        if kind == "track":
            is_right = ((prediction.object_score[:, 0].detach() > 0) == (present > 0)).float()
            self._count("presence", (is_right * score_weights).sum(), score_weights.sum())

    def _count(self, name: str, total: torch.Tensor, count: torch.Tensor) -> None:
        known = self.metrics.get(name, (0.0, 0.0))
        self.metrics[name] = known[0] + total, known[1] + count

    @property
    def mean_loss(self) -> torch.Tensor:
        """The mean loss of all calls, a scalar."""
        return torch.stack(self.losses).mean()


