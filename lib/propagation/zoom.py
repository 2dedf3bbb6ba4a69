"""A second look at a prompted slice: the surroundings of a small structure, enlarged to the network's whole square.

A structure of 20 pixels in a slice of 512 is five cells of the mask that a network for 256 pixels draws. Cut out and enlarged it is
drawn much finer. Two looks are averaged; the second counts only if it agrees with the prompts as well as the first.

One click may mean a part or the whole, and a small network hardly knows which of its alternatives is better. Of those of the second
look, and their averages with the first, the one whose border is most clearly an edge of the image is taken. More clicks are also
taken as corrections of what was seen before the last of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from lib.imaging.frames import Frames
from lib.imaging.masks import BorderStrength, bounding_box
from lib.model.features import SliceFeatures
from lib.prompts.volume_prompts import SlicePrompt


@dataclass(frozen=True)
class Zoom:
    """How large the part is: `margin` times the structure, rounded up to one of `sides` (shares of the frame's longer side)."""

    margin: float
    sides: tuple[float, ...]


Shown = tuple[SlicePrompt, np.ndarray]  # a prompt and the mask bool (Y, X) of its slice

# Margins of 1.6 and 2.2 gave the same on generated slices; with 2.0 and 2.8 tracking did.
LOOK = Zoom(1.8, (0.19, 0.22, 0.26, 0.31, 0.37, 0.44, 0.52, 0.61, 0.7))
FOLLOW = Zoom(2.0, (0.25, 0.35, 0.5, 0.7))
MANY = 8  # clicks on a slice: with more, going through them one by one takes long and brings nothing


def agreement(features: SliceFeatures, prompt: SlicePrompt, logits: torch.Tensor) -> float:
    """Share of the clicks that a mask (1, 1, h, w) is right about."""
    return _agreement(prompt, features.to_slices(logits[0])[0])


def refine_zoomed(tracker, features: SliceFeatures, t: int, prompt: SlicePrompt, logits: torch.Tensor) -> torch.Tensor | None:
    """Better logits (Y, X) of slice t, or None where a closer look brings nothing.

    Args:
        tracker: whose `_step` is used. logits: (1, 1, h, w), from the first look.
    """
    first = features.to_slices(logits[0])[0]
    where = surrounding_crop(features.frames, [(prompt, (first > 0).cpu().numpy())], LOOK)
    if where is None:
        return None
    rows, columns = where
    whole = features.frames.crop
    down, right = (whole[0].start, whole[1].start) if whole else (0, 0)
    frames = features.frames.cropped(
        slice(rows.start + down, rows.stop + down), slice(columns.start + right, columns.stop + right)
    )  # fmt: skip
    near = SliceFeatures(tracker.model, frames, features.device, features.autocast, 1)
    start = near.from_slices(first[None, rows, columns], logits.shape[-1]).clamp(-32, 32)
    part = prompt.cropped(rows, columns)
    out = tracker._step(near, [t], prompt=part, start=start)
    seen, look = first[rows, columns], near.to_slices(out["pred_masks"][0])[0]
    answers = [(seen + look) / 2]
    clicks = int((prompt.labels < 2).sum())
    if clicks < 2:  # a click, a box
        looks = [near.to_slices(c[None])[0] for c in out["candidates"][0]]
        answers += [(seen + look) / 2 for look in looks] + looks
    elif clicks <= MANY:
        before = tracker.seen(features, t, prompt.without_last_click())[rows, columns]
        start = near.from_slices(before[None], logits.shape[-1]).clamp(-32, 32)
        mended = near.to_slices(tracker._step(near, [t], prompt=part, start=start)["pred_masks"][0])[0]
        answers += [mended, (before + mended) / 2]
    second = first.clone()
    second[rows, columns] = _clearest(near.frames.windowed([t])[0], part, answers)
    return second if _agreement(part, second[rows, columns]) >= _agreement(part, seen) and (second > 0).any() else None


def _clearest(image: np.ndarray, prompt: SlicePrompt, answers: Sequence[torch.Tensor]) -> torch.Tensor:
    """Of several logits (Y, X) those that agree best with the clicks; among equals, those whose border is clearest in the image."""
    borders = BorderStrength(image)
    return max(answers, key=lambda a: (_agreement(prompt, a), borders.contrast((a > 0).cpu().numpy())))


Crop = tuple[slice, slice]


def tracking_crops(
    frames: Frames, first: "Shown", shown: Mapping[int, "Shown"], ends: Sequence[int], low: int, high: int
) -> list[tuple[int, int, Crop | None]]:
    """(first slice, last slice, rows and columns in which to track there, or None for whole frames) of the slices low..high,
    which spread from annotated ones; neighbours share the slice where they meet.

    The first click alone decides, so that features of the part are there for all that follow, and so that what was tracked stays as
    it is. Only where the ends of a gap do not lie well within that part, the surroundings of all annotated slices are taken. They
    are taken everywhere if they are less than half as large: the first click alone had shown too much.

    Args:
        first: the first prompt and what it shows. shown: the same of all slices with prompts. ends: slices that others spread from.
    """
    part, wanted = surrounding_crop(frames, [first], FOLLOW), surrounding_crop(frames, list(shown.values()), FOLLOW)
    whole = slice(0, frames.size[0]), slice(0, frames.size[1])
    sides = [max((s.stop - s.start) * mm for s, mm in zip(p or whole, frames.pixel_mm, strict=True)) for p in (part, wanted)]
    if part is None or part == wanted or sides[0] > 2 * sides[1] or low == high:
        return [(low, high, part if sides[0] <= 2 * sides[1] else wanted)]
    spans: list[tuple[int, int, Crop | None]] = []
    for a, b in pairwise(sorted({low, *ends, high})):
        box = _extent(frames, [s for t, s in shown.items() if a <= t <= b])
        fits = part if box is None or _well_within(box, part, frames.size) else wanted
        if spans and spans[-1][2] == fits:
            spans[-1] = spans[-1][0], b, fits
        else:
            spans.append((a, b, fits))
    return spans


def surrounding_crop(frames: Frames, said: Sequence["Shown"], how: "Zoom") -> Crop | None:
    """Rows and columns of a square (in mm) round masks and prompts, or None if that is most of the frame.

    Sides and places come in steps, so that small changes mostly leave it where it is.
    """
    mm, shape = np.array(frames.pixel_mm), np.array(frames.size)
    box = _extent(frames, said)
    if box is None:
        return None
    low, high = box
    extent = float((shape * mm).max())
    wanted = float(((high - low) * mm).max()) * how.margin / extent
    share = next((s for s in how.sides if s >= wanted), None)
    if share is None:
        return None
    size = np.minimum(np.maximum(np.rint(share * extent / mm), 2), shape).astype(int)
    step = np.maximum(size // 8, 1)
    start = np.rint((low + high - size) / 2 / step).astype(int) * step
    start = np.clip(start, 0, shape - size)
    return slice(int(start[0]), int(start[0] + size[0])), slice(int(start[1]), int(start[1] + size[1]))


def _extent(frames: Frames, said: Sequence["Shown"]) -> tuple[np.ndarray, np.ndarray] | None:
    """First and one past the last (y, x) of masks and prompts; None if there are none."""
    boxes = [bounding_box(mask[None]) for _, mask in said]
    corners = [[(rows.start, columns.start), (rows.stop - 1, columns.stop - 1)] for _, rows, columns in filter(None, boxes)]
    points = np.concatenate([np.reshape(corners, (-1, 2)), *(np.rint(prompt.points[:, ::-1]) for prompt, _ in said)]).astype(float)
    if not len(points):
        return None
    last = np.array(frames.size) - 1
    return np.clip(points.min(0), 0, last), np.clip(points.max(0), 0, last) + 1


def _well_within(box, part: Crop, size: tuple[int, int]) -> bool:
    """Whether a box keeps clear of the part's edges, where these are not those of the frame."""
    for low, high, p, n in zip(*box, part, size, strict=True):
        clear = (p.stop - p.start) / 12
        if (p.start > 0 and low < p.start + clear) or (p.stop < n and high > p.stop - clear):
            return False
    return True


def _agreement(prompt: SlicePrompt, logits: torch.Tensor) -> float:
    clicks = prompt.labels < 2
    if not clicks.any():
        return 1.0
    limit = np.array(logits.shape)[::-1] - 1
    x, y = np.clip(np.rint(prompt.points[clicks]), 0, limit).astype(int).T
    inside = (logits[y, x] > 0).cpu().numpy()
    return float((inside == (prompt.labels[clicks] == 1)).mean())
