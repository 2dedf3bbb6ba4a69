"""A contact sheet of generated clips, to see what the generator produces."""

import numpy as np
from matplotlib.figure import Figure

from lib.training.clip_generator import ClipGenerator
from lib.training.supervoxels import RealImages

_COLORS = ("orange", "cyan", "magenta")


def draw_sheet(path: str, seed: int = 1, clips: int = 8, slices: int = 6, size: int = 192, images: RealImages | None = None) -> str:
    """Save a picture of generated clips, one per row, with the contours of three targets each, and return its path."""
    clip = ClipGenerator(seed, images=images).generate_batch(clips, slices, size, objects=len(_COLORS))
    masks = clip.masks.view(clips, len(_COLORS), slices, size, size)
    figure = Figure(figsize=(2 * slices, 2 * clips), facecolor="black")
    for (row, t), axes in np.ndenumerate(figure.subplots(clips, slices, squeeze=False)):
        axes.imshow(clip.frames[row, t].numpy(), cmap="gray", vmin=0, vmax=255)
        for mask, color in zip(masks[row, :, t], _COLORS, strict=True):
            if mask.any() and not mask.all():
                axes.contour(mask.byte().numpy(), [0.5], colors=color, linewidths=1)
        axes.axis("off")
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=80)
    return path
