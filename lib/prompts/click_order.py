"""Infer the order in which clicks inside and outside a structure were made, because viewers send them as two separate lists."""

from collections.abc import Callable

import numpy as np

from lib.imaging.masks import edge_distance
from lib.prompts.volume_prompts import SlicePrompt


def infer_click_order(
    prompt: SlicePrompt, displayed_mask: Callable[[SlicePrompt], np.ndarray], corrects: bool = False
) -> SlicePrompt:
    """Return the prompts of a slice with the clicks in the order in which an annotator would have made them.

    A box comes first, else the first click inside, unless all clicks correct a mask that was there before. Then, of the next click inside
    and the next one outside, always the one that lies deeper in an error of the mask displayed so far: nobody clicks where the mask is right.

    Args:
        displayed_mask: Returns the mask bool (Y, X) that is displayed for some of the prompts.
        corrects: Whether a mask is displayed without any of them.
    """
    corners, inside, outside = (list(np.flatnonzero(rows)) for rows in (prompt.labels > 1, prompt.labels == 1, prompt.labels == 0))
    order = corners or ([] if corrects else inside[:1])
    inside = inside if corners or corrects else inside[1:]
    while inside and outside:
        mask = displayed_mask(SlicePrompt(prompt.points[order], prompt.labels[order]))
        missed, in_excess = _depth(~mask, prompt.points[inside[0]]), _depth(mask, prompt.points[outside[0]])
        order.append((inside if missed >= in_excess else outside).pop(0))
    order += inside + outside
    return SlicePrompt(prompt.points[order], prompt.labels[order], prompt.mask)


def _depth(mask: np.ndarray, point_xy: np.ndarray) -> float:
    """Return the distance in pixels of a point inside a mask bool (Y, X) to its outside or the edge of the image; 0 outside."""
    x, y = np.clip(np.rint(point_xy), 0, np.array(mask.shape)[::-1] - 1).astype(int)
    return float(edge_distance(mask)[y, x])
