"""Turn painted slices, edited slices and scribbles into prompts, as 3D Slicer sends them when a user paints instead of clicking.

A slice that differs from the previous mask was edited by the user and is taken as correct, even if it is now empty. A scribble
only marks the voxels that it runs through as inside or outside the structure, so each stroke becomes a few clicks.
"""

import numpy as np
from scipy import ndimage

from lib.imaging.frames import Frames
from lib.imaging.masks import filled_slices

MAX_CLICKS_PER_STROKE = 3
MAX_CLICKS_PER_SLICE = 8  # for clicks inside and for clicks outside
SCRIBBLE_LAYERS = ("foreground_scribbles", "background_scribbles")


def split_layers(labels: np.ndarray, info: list[dict], selected: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Split an uploaded label map into the segment, the strokes inside it and the strokes outside it.

    Args:
        labels: Integer label map of any shape.
        info: Rows {"name", "id"} that name the values of the label map. Without rows, all labels belong to the segment.
        selected: Name of the segment.

    Returns:
        Three bool arrays of the shape of `labels`; a layer that `info` does not name is empty.
    """
    ids = {str(row.get("name")): row.get("id") for row in info if isinstance(row, dict)}
    empty = np.zeros(labels.shape, bool)
    if not ids:
        return labels > 0, empty, empty
    return tuple(labels == ids[name] if ids.get(name) is not None else empty for name in (selected, *SCRIBBLE_LAYERS))


def prompts_from_layers(
    segment: np.ndarray, inside: np.ndarray, outside: np.ndarray, frames: Frames, previous_mask: np.ndarray | None = None, annotated=()
) -> dict:
    """Return the prompts that a segment and its scribbles express, as keywords of `lib.prompts.volume_prompts.make_prompts`.

    Args:
        segment: bool (T, Y, X), the segment as the user sees it. Strokes are layers of their own and hide the segment below them.
        inside, outside: bool (T, Y, X), the strokes; see `split_layers`.
        previous_mask: bool (T, Y, X), what the model returned last, or None. If it is None, or if most of it is gone because the
            user has started anew, all slices of the segment count as painted.
        annotated: Indices of the slices that had prompts when the previous mask was made; they keep their present content.
    """
    strokes = inside | outside
    if previous_mask is not None and not _continues(segment, previous_mask, strokes):
        previous_mask = None
    if previous_mask is None:
        painted = set(filled_slices(segment))
    else:
        painted = set(filled_slices((segment ^ previous_mask) & ~strokes)) | set(annotated)
    stroked = set(filled_slices(strokes))
    # If the user has painted no mask on a stroked slice (it is empty, or only the model filled it), the strokes alone count.
    clicked = {t for t in stroked if previous_mask is not None or not segment[t].any()}
    prompts: dict = {"positive": [], "negative": [], "masks": {}}
    for t in sorted(painted - clicked):
        prompts["masks"][int(t)] = ((segment[t] | inside[t]) & ~outside[t]).T
    for t in sorted(clicked):
        for kind, layer in (("positive", inside[t]), ("negative", outside[t])):
            prompts[kind] += [frames.to_voxel(t, y, x) for y, x in points_along_strokes(layer)]
    return prompts


def _continues(segment: np.ndarray, previous_mask: np.ndarray, strokes: np.ndarray) -> bool:
    """Return whether at least half of the filled slices of the previous mask are unchanged outside the strokes."""
    filled = previous_mask.any((1, 2))
    unchanged = ~((segment ^ previous_mask) & ~strokes).any((1, 2))
    return bool(2 * (unchanged & filled).sum() >= filled.sum())


def points_along_strokes(strokes: np.ndarray) -> list[tuple[int, int]]:
    """Return pixels (y, x) of each stroke in bool (Y, X): the one nearest to its centre, then those farthest from all before them."""
    components, count = ndimage.label(strokes, np.ones((3, 3)))
    points: list[tuple[int, int]] = []
    for n in range(1, count + 1):
        pixels = np.argwhere(components == n)
        chosen = [int(((pixels - pixels.mean(0)) ** 2).sum(1).argmin())]
        for _ in range(min(MAX_CLICKS_PER_STROKE, len(pixels)) - 1):
            squared_distance = ((pixels[:, None] - pixels[chosen]) ** 2).sum(2).min(1)
            chosen.append(int(squared_distance.argmax()))
        points += [(int(y), int(x)) for y, x in pixels[chosen]]
    return points[:MAX_CLICKS_PER_SLICE]
