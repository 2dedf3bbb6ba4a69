"""Combine the outputs of passes into one result for all slices: interpolate between tracked slices, and blend two directions."""

from collections.abc import Mapping, Sequence

import torch

from lib.model.sam2_network import ABSENT_LOGIT
from lib.propagation.gaps import GapPass, opposite_pass
from lib.propagation.tracks import ABSENT_SCORE, Tracks

BLENDED_LOGIT_LIMIT = 10.0  # Logits are clamped before blending, so that one direction's "absent" does not overrule the other.

# The outputs for the L slices of a pass, in its order: logits (L, h, w), predicted IoU (L,), object score (L,).
PassOutputs = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def fill_pass(gap_pass: GapPass, steps: Sequence[tuple], start: tuple) -> PassOutputs:
    """Return the outputs of a pass for all its slices: interpolated linearly between tracked slices, absent where it did not arrive.

    Args:
        steps: (logits (h, w), predicted IoU, object score) of the tracked slices that the pass has reached.
        start: The same of the annotated slice where it began.
    """
    logits, iou, score = (torch.stack([torch.as_tensor(step[n]).float() for step in steps]) for n in range(3))
    unreached = len(gap_pass.tracked_slices) - len(steps)
    if unreached:
        logits = torch.cat([logits, logits.new_full((unreached, *logits.shape[1:]), ABSENT_LOGIT)])
        iou, score = torch.cat([iou, iou.new_ones(unreached)]), torch.cat([score, score.new_full((unreached,), ABSENT_SCORE)])
    if gap_pass.stride == 1:
        return logits, iou, score
    known = [torch.cat([torch.as_tensor(s).float().to(x)[None], x]) for s, x in zip(start, (logits, iou, score), strict=True)]
    known_distance = torch.tensor([0, *(abs(t - gap_pass.near) for t in gap_pass.tracked_slices)], device=logits.device)
    distance = torch.arange(1, gap_pass.length + 1, device=logits.device)
    after = torch.searchsorted(known_distance, distance).clamp_max(len(gap_pass.tracked_slices))
    weight = ((distance - known_distance[after - 1]) / (known_distance[after] - known_distance[after - 1])).clamp(0, 1)
    limit, is_absent = BLENDED_LOGIT_LIMIT, known[0].amax((1, 2), keepdim=True) <= ABSENT_LOGIT
    known[0] = torch.where(is_absent, -limit, known[0].clamp(-limit, limit))
    logits, iou, score = (torch.lerp(x[after - 1], x[after], weight.view(-1, *[1] * (x.ndim - 1))) for x in known)
    return torch.where(logits.amax((1, 2), keepdim=True) > -limit, logits, ABSENT_LOGIT), iou, score


def blend_into(tracks: Tracks, outputs: Mapping[GapPass, PassOutputs]) -> None:
    """Write the outputs of all passes into `tracks`; where two go through one gap, they are blended.

    Each direction is weighted by its nearness and by how sure it is of its mask (predicted IoU times probability of presence).
    """
    for gap_pass, (logits, iou, score) in outputs.items():
        index, other = gap_pass.slices, opposite_pass(gap_pass, list(outputs))
        if other is None:
            tracks.logits[index], tracks.iou[index], tracks.object_score[index] = logits, iou.to(tracks.iou), score.float()
        elif gap_pass.step > 0:
            _blend(tracks, index, (logits, iou, score), tuple(x.flip(0) for x in outputs[other]))


def _blend(tracks: Tracks, index: list[int], forward: PassOutputs, backward: PassOutputs) -> None:
    """Write the blend of two passes, both in forward order, into the slices `index` of `tracks`."""
    distance = torch.arange(1, len(index) + 1, device=tracks.logits.device, dtype=torch.float32)
    nearness = 1 - distance / (len(index) + 1)
    trust_forward = nearness * (forward[1] * forward[2].float().sigmoid()).clamp_min(1e-3)
    trust_backward = (1 - nearness) * (backward[1] * backward[2].float().sigmoid()).clamp_min(1e-3)
    weight = trust_forward / (trust_forward + trust_backward)
    a, b = (x[0].clamp(-BLENDED_LOGIT_LIMIT, BLENDED_LOGIT_LIMIT) for x in (forward, backward))
    tracks.logits[index] = weight[:, None, None] * a + (1 - weight[:, None, None]) * b
    tracks.iou[index] = (weight * forward[1] + (1 - weight) * backward[1]).to(tracks.iou)
    tracks.object_score[index] = weight * forward[2].float() + (1 - weight) * backward[2].float()
    both, total = ((a > 0) & (b > 0)).sum((1, 2)), (a > 0).sum((1, 2)) + (b > 0).sum((1, 2))
    tracks.agreement[index] = torch.where(total > 0, 2 * both / total.clamp_min(1), 1.0)
