"""A second look at a prompted slice: the surroundings of a small structure, enlarged to the network's whole square.

A structure of 20 pixels in a slice of 512 is five cells of the mask that a network for 256 pixels draws. Cut out and enlarged it is
drawn much finer. Two looks are averaged; the second counts only if it agrees with the prompts as well as the first.
"""

import numpy as np
import torch

from lib.model.features import FrameFeatures
from lib.prompts import SlicePrompt

MARGIN = 1.8  # side of the enlarged part, as a multiple of the structure's (1.6 and 2.2 gave the same on generated slices)
LARGEST = 0.7  # of the slice; a structure that fills more is seen well enough
SMALLEST = 0.19  # of the slice; more enlargement shows nothing but blur


def agreement(features: FrameFeatures, prompt: SlicePrompt, logits: torch.Tensor) -> float:
    """Share of the clicks that a mask (1, 1, h, w) is right about."""
    return _agreement(prompt, features.to_slices(logits[0])[0])


def closer_look(tracker, features: FrameFeatures, t: int, prompt: SlicePrompt, logits: torch.Tensor) -> torch.Tensor | None:
    """Better logits (Y, X) of slice t, or None where a closer look brings nothing.

    Args:
        tracker: whose `_step` is used. logits: (1, 1, h, w), from the first look.
    """
    first = features.to_slices(logits[0])[0]
    part = _surroundings(features, prompt, (first > 0).cpu().numpy())
    if part is None:
        return None
    rows, columns = part
    frames = features.frames.crop(t, rows, columns)
    near = FrameFeatures(tracker.model, frames, features.device, features.autocast, 1)
    moved = SlicePrompt(prompt.points - np.array([columns.start, rows.start]), prompt.labels)
    start = near.from_slices(first[None, rows, columns], logits.shape[-1]).clamp(-32, 32)
    out = tracker._step(near, [0], prompt=moved, start=start)
    second = first.clone()
    second[rows, columns] = (first[rows, columns] + near.to_slices(out["pred_masks"][0])[0]) / 2
    return second if _agreement(prompt, second) >= _agreement(prompt, first) and (second > 0).any() else None


def _surroundings(features, prompt, mask: np.ndarray) -> tuple[slice, slice] | None:
    """Rows and columns of the part to look at: a square (in mm) round mask and prompts, within the slice."""
    mm = np.array(features.frames.pixel_mm)
    points = np.concatenate([np.argwhere(mask), np.rint(prompt.points[:, ::-1])]).astype(float)
    low, high = points.min(0), points.max(0) + 1
    extent = np.array(mask.shape) * mm
    side = max(float(((high - low) * mm).max()) * MARGIN, SMALLEST * float(extent.max()))
    if side > LARGEST * float(extent.max()):
        return None
    size = np.minimum(np.maximum(np.rint(side / mm), 2), mask.shape).astype(int)
    start = np.clip(np.rint((low + high - size) / 2).astype(int), 0, np.array(mask.shape) - size)
    return slice(start[0], start[0] + size[0]), slice(start[1], start[1] + size[1])


def _agreement(prompt: SlicePrompt, logits: torch.Tensor) -> float:
    clicks = prompt.labels < 2
    if not clicks.any():
        return 1.0
    limit = np.array(logits.shape)[::-1] - 1
    x, y = np.clip(np.rint(prompt.points[clicks]), 0, limit).astype(int).T
    inside = (logits[y, x] > 0).cpu().numpy()
    return float((inside == (prompt.labels[clicks] == 1)).mean())
