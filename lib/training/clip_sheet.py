"""A contact sheet of training clips, to see what a network is trained on."""

import numpy as np
import torch
from matplotlib.figure import Figure

from lib.training.clip_source import ClipSource

_COLORS = ("orange", "cyan", "magenta")


def draw_sheet(path: str, clips: ClipSource, seed: int = 1, slices: int = 8, side: int = 192) -> str:
    """Save a picture of a batch of clips, one per row, with the contours of their targets, and return its path."""
    torch.manual_seed(seed)
    batch = clips.make_batch(slices, side)
    figure = Figure(figsize=(2 * slices, 2 * len(batch.frames)), facecolor="black")
    for (row, t), axes in np.ndenumerate(figure.subplots(len(batch.frames), slices, squeeze=False)):
        axes.imshow(batch.frames[row, t].cpu().numpy(), cmap="gray", vmin=0, vmax=255)
        for mask, color in zip(batch.masks[batch.rows == row, t].cpu(), _COLORS, strict=False):
            if mask.any() and not mask.all():
                axes.contour(mask.byte().numpy(), [0.5], colors=color, linewidths=1)
        axes.axis("off")
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=80)
    return path
