"""Painted and edited slices, and strokes, as prompts: what 3D Slicer sends when its user has painted instead of clicked.

A slice that differs from the last answer was edited by the user and is right as it is, also when it is empty now. A stroke of a
scribble layer only says that what it runs through is inside, or outside: it becomes a few clicks.
"""

import numpy as np
from scipy import ndimage

from lib.imaging.frames import Frames

POINTS = 3  # of one stroke
MOST = 8  # on one slice, of each kind
LAYERS = ("foreground_scribbles", "background_scribbles")


def split_layers(labels: np.ndarray, info: list[dict], selected: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Segment, strokes inside and strokes outside (bool, shape of `labels`) of an uploaded label map.

    Args:
        labels: integers. info: rows {name, id} that say which is which; without them everything is the segment.
        selected: name of the segment.
    """
    ids = {str(r.get("name")): r.get("id") for r in info if isinstance(r, dict)}
    nothing = np.zeros(labels.shape, bool)
    if not ids:
        return labels > 0, nothing, nothing
    return tuple(labels == ids[name] if ids.get(name) is not None else nothing for name in (selected, *LAYERS))


def prompts_from_layers(
    segment: np.ndarray, inside: np.ndarray, outside: np.ndarray, frames: Frames, last: np.ndarray | None = None, annotated=()
) -> dict:
    """Keywords of `lib.prompts.volume_prompts.make_prompts`: painted slices and clicks.

    Args:
        segment, inside, outside: bool (T, Y, X), see `layers`. Strokes hide what lies below them.
        last: the last answer; without one, or if most of it is gone, because somebody began anew, all slices of the segment count as
            painted.
        annotated: slices that said something then; they keep what they show.
    """
    strokes = inside | outside
    if last is not None and not _goes_on(segment, last, strokes):
        last = None
    if last is None:
        painted = set(np.flatnonzero(segment.any((1, 2))))
    else:
        painted = set(np.flatnonzero(((segment ^ last) & ~strokes).any((1, 2)))) | set(annotated)
    stroked = set(np.flatnonzero(strokes.any((1, 2))))
    # A slice without a mask and with strokes, or one that only the last answer filled, is told by the strokes.
    by_strokes = {t for t in stroked if last is not None or not segment[t].any()}
    prompts: dict = {"positive": [], "negative": [], "masks": {}}
    for t in sorted(painted - by_strokes):
        stack = np.zeros(segment.shape, bool)
        stack[t] = (segment[t] | inside[t]) & ~outside[t]
        prompts["masks"][int(t)] = frames.to_volume(stack).take(t, frames.axis)
    for t in sorted(by_strokes):
        for name, layer in (("positive", inside[t]), ("negative", outside[t])):
            prompts[name] += [frames.to_voxel(t, y, x) for y, x in points_along_strokes(layer)]
    return prompts


def _goes_on(segment: np.ndarray, last: np.ndarray, strokes: np.ndarray) -> bool:
    """Whether at least half of the slices of the last answer are as they were."""
    filled = last.any((1, 2))
    same = ~((segment ^ last) & ~strokes).any((1, 2))
    return bool(2 * (same & filled).sum() >= filled.sum())


def points_along_strokes(strokes: np.ndarray) -> list[tuple[int, int]]:
    """Pixels (y, x) along the strokes of bool (Y, X): of each the one nearest its centre, then those farthest from all before."""
    parts, count = ndimage.label(strokes, np.ones((3, 3)))
    out: list[tuple[int, int]] = []
    for n in range(1, count + 1):
        pixels = np.argwhere(parts == n)
        chosen = [int(((pixels - pixels.mean(0)) ** 2).sum(1).argmin())]
        for _ in range(min(POINTS, len(pixels)) - 1):
            away = ((pixels[:, None] - pixels[chosen]) ** 2).sum(2).min(1)
            chosen.append(int(away.argmax()))
        out += [(int(y), int(x)) for y, x in pixels[chosen]]
    return out[:MOST]
