"""Losses of SAM 2's training, made safe for training from scratch."""

import torch
import torch.nn.functional as F

from lib.model.differentiable import Prediction


def mask_losses(logits: torch.Tensor, target: torch.Tensor, balance: float) -> torch.Tensor:
    """Cross-entropy plus Dice loss (B, M) of mask logits (B, M, H, W) against bool (B, H, W).

    `balance` = 1 weighs foreground and background alike: with the plain mean, masks of a fresh model collapse to empty
    and stay there. 0 is the plain mean (times 4), which draws better edges later on.
    """
    t = target[:, None].float()
    bce = F.binary_cross_entropy_with_logits(logits, t.expand_as(logits), reduction="none")
    inside = t.sum((2, 3)).clamp_min(1)
    outside = (1 - t).sum((2, 3)).clamp_min(1)
    balanced = (bce * t).sum((2, 3)) / inside + (bce * (1 - t)).sum((2, 3)) / outside
    plain = 4 * bce.mean((2, 3))
    p = logits.sigmoid()
    dice = 1 - (2 * (p * t).sum((2, 3)) + 1) / (p.sum((2, 3)) + inside + 1)
    return dice + balance * balanced + (1 - balance) * plain


@torch.no_grad()
def iou(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """IoU (B, M) of thresholded logits (B, M, H, W) and bool (B, H, W); both empty = 1."""
    m, t = logits > 0, target[:, None]
    union = (m | t).sum((2, 3))
    return torch.where(union > 0, (m & t).sum((2, 3)) / union.clamp_min(1), 1.0)


def frame_loss(prediction: Prediction, target: torch.Tensor, balance: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss (scalar) and IoU of the chosen mask (B,) for one decoder call.

    Masks and predicted IoU count only where the object is present, the object score always. The single mask and the
    best of the three alternatives are both trained, whichever was chosen.
    """
    logits = F.interpolate(prediction.masks, target.shape[-2:], mode="bilinear", align_corners=False)
    present = target.flatten(1).any(1)
    true_iou = iou(logits, target)
    losses = mask_losses(logits, target, balance)
    per_clip = losses[:, 0] + losses[:, 1:].amin(1)
    per_clip = per_clip + (prediction.ious - true_iou).abs().mean(1)
    weight = present.float()
    loss = (per_clip * weight).sum() / weight.sum().clamp_min(1)
    score = F.binary_cross_entropy_with_logits(prediction.object_score[:, 0], weight)
    chosen = true_iou[torch.arange(len(target), device=target.device), prediction.chosen]
    return loss + 4 * score, chosen
