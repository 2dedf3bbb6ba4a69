"""Correct the displayed mask of a slice by a small network that sees the image, all clicks, the box and that mask."""

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from lib.imaging.masks import bounding_box
from lib.model.correction_network import CorrectionNetwork
from lib.model.u_net import SIDE
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.square import Square

STRUCTURE_SHARE = 0.5  # Of the network's square that mask and clicks take up.
MOST_ENLARGED = 6.0  # Times.
DISPLAYED_LIMIT = 8.0  # Logits of the displayed mask are clamped to this.
OUTSIDE_LOGIT = -4.0  # Of the displayed mask outside of the slice.


@torch.inference_mode()
def correct_displayed(network: CorrectionNetwork, image: np.ndarray, prompt: SlicePrompt, displayed: np.ndarray) -> np.ndarray:
    """Return logits float32 (Y, X) of the mask that a slice should have after its prompts.

    Args:
        image: Intensities (Y, X).
        prompt: Clicks, a box, or both.
        displayed: Logits (Y, X) that were displayed before the last click; SAM 2's answer to a box alone.
    """
    square = _square_around(prompt, displayed > 0)
    smooth = ndimage.gaussian_filter(image.astype(np.float32), 0.4 / square.zoom) if square.zoom < 0.8 else image
    picture, is_within = square.cut(smooth)
    before, _ = square.cut(np.clip(displayed, -DISPLAYED_LIMIT, DISPLAYED_LIMIT))
    before[~is_within] = OUTSIDE_LOGIT
    low, high = np.percentile(picture[is_within], [0.5, 99.5])
    picture = ((picture - float(low)) / max(float(high - low), 1e-6)).clamp(0, 1)
    picture[~is_within] = 0.0
    inside, outside, corners = (prompt.points[is_one][:, ::-1] for is_one in (prompt.labels == 1, prompt.labels == 0, prompt.labels > 1))
    edges = square.from_slice(np.stack([corners.min(0) - 0.5, corners.max(0) + 0.5])) if len(corners) else None
    logits = network(network_input(picture, square.from_slice(inside), square.from_slice(outside), before, edges)[None])[0]
    return square.enlarge(logits, image.shape, np.minimum(displayed, -DISPLAYED_LIMIT))


def _square_around(prompt: SlicePrompt, displayed: np.ndarray) -> Square:
    """Return the square round the prompts and the displayed mask, bool (Y, X)."""
    box = bounding_box(displayed[None])
    corners = [[(s.start, s.stop - 1) for s in box[1:]]] if box else []
    places = np.concatenate([prompt.points[:, ::-1], *(np.transpose(c) for c in corners)])
    low, high = places.min(0), places.max(0)
    zoom = min(SIDE * STRUCTURE_SHARE / max((high - low).max() + 1, 8), MOST_ENLARGED)
    return Square((low + high) / 2, max(zoom, SIDE / max(displayed.shape)))


def network_input(
    picture: torch.Tensor, inside_yx: Sequence, outside_yx: Sequence, displayed: torch.Tensor, box_yx: np.ndarray | None = None
) -> torch.Tensor:
    """Return an input of the network, float (CHANNELS, h, w).

    Args:
        picture: Intensities (h, w) in any units.
        inside_yx, outside_yx: Clicks in pixels of the picture.
        displayed: Logits (h, w) of the mask to correct; all 0 if there is none.
        box_yx: The low and the high edges of the box, float (2, 2); None without a box.
    """
    scaled = (picture - picture.mean()) / picture.std().clamp_min(0.02)
    maps = [m for clicks in (inside_yx, outside_yx) for m in _click_maps(clicks, picture.shape)]
    return torch.stack([scaled, *maps, torch.tanh(displayed / 3), _box_map(box_yx, picture.shape)])


def _click_maps(clicks_yx: Sequence, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return two maps (h, w) that are 1 at the clicks and fall off quickly and slowly."""
    if not len(clicks_yx):
        return torch.zeros(shape), torch.zeros(shape)
    rows, columns = (torch.arange(n, dtype=torch.float32) for n in shape)
    squares = [(rows[:, None] - float(y)) ** 2 + (columns - float(x)) ** 2 for y, x in clicks_yx]
    nearest = torch.stack(squares).amin(0)
    return torch.exp(-nearest / 8), torch.exp(-nearest.sqrt() / 12)


def _box_map(box_yx: np.ndarray | None, shape: tuple[int, int]) -> torch.Tensor:
    """Return a map (h, w) that is 1 in the box."""
    if box_yx is None:
        return torch.zeros(shape)
    rows, columns = ((v >= low) & (v <= high) for v, low, high in zip(map(torch.arange, shape), *box_yx.tolist(), strict=True))
    return (rows[:, None] & columns).float()
