"""Losses as in the training of SAM 2, weighted such that training from random weights works."""

import torch
import torch.nn.functional as F

from lib.model.differentiable import Prediction


def mask_losses(logits: torch.Tensor, target: torch.Tensor, balance: float) -> torch.Tensor:
    """Return cross-entropy plus Dice loss (B, M) of mask logits (B, M, H, W) with targets, bool (B, H, W).

    Args:
        balance: Weight in [0, 1] of a cross-entropy that counts foreground and background equally; the rest is 4 times the plain mean.
            With that alone the masks of an untrained model become empty and stay so; later it gives more accurate borders.
    """
    t = target[:, None].float()
    bce = F.binary_cross_entropy_with_logits(logits, t.expand_as(logits), reduction="none")
    inside, outside = t.sum((2, 3)).clamp_min(1), (1 - t).sum((2, 3)).clamp_min(1)
    balanced = (bce * t).sum((2, 3)) / inside + (bce * (1 - t)).sum((2, 3)) / outside
    p = logits.sigmoid()
    dice = 1 - (2 * (p * t).sum((2, 3)) + 1) / (p.sum((2, 3)) + inside + 1)
    return dice + balance * balanced + (1 - balance) * (4 * bce.mean((2, 3)))


@torch.no_grad()
def mask_iou(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the IoU (B, M) of masks given as logits (B, M, H, W) with targets, bool (B, H, W); it is 1 where both are empty."""
    m, t = logits > 0, target[:, None]
    union = (m | t).sum((2, 3))
    return torch.where(union > 0, (m & t).sum((2, 3)) / union.clamp_min(1), 1.0)


def frame_loss(prediction: Prediction, target: torch.Tensor, balance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss (a scalar) of one decoder call and the IoU (B,) of its chosen masks with targets, bool (B, H, W).

    The losses of masks and predicted IoU count only where the object is present; the loss of the object score always counts. The
    single mask and the best of the three alternatives are both trained, whichever of them was chosen. See `mask_losses` for `balance`.
    """
    logits = F.interpolate(prediction.masks, target.shape[-2:], mode="bilinear", align_corners=False)
    present = target.flatten(1).any(1).float()
    true_iou, losses = mask_iou(logits, target), mask_losses(logits, target, balance)
    per_object = losses[:, 0] + losses[:, 1:].amin(1) + (prediction.ious - true_iou).abs().mean(1)
    loss = (per_object * present).sum() / present.sum().clamp_min(1)
    score_loss = F.binary_cross_entropy_with_logits(prediction.object_score[:, 0], present)
    chosen_iou = true_iou[torch.arange(len(target), device=target.device), prediction.chosen]
    return loss + 4 * score_loss, chosen_iou
