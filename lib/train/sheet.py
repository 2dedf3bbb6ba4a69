"""A picture of what the generator makes."""

import numpy as np
from matplotlib.figure import Figure

from lib.train.synthetic import ClipGenerator


def draw_sheet(path: str, seed: int = 1, clips: int = 8, slices: int = 5, size: int = 192) -> str:
    """Draws `clips` generated clips, one a row, with the target's contour."""
    clip = ClipGenerator(seed).batch(clips, slices, size)
    figure = Figure(figsize=(2 * slices, 2 * clips), facecolor="black")
    for row in range(clips):
        for t in range(slices):
            axes = figure.add_subplot(clips, slices, row * slices + t + 1)
            axes.imshow(clip.frames[row, t].numpy(), cmap="gray", vmin=0, vmax=255)
            mask = clip.masks[row, t].numpy()
            if mask.any() and not mask.all():
                axes.contour(mask.astype(np.uint8), [0.5], colors="orange", linewidths=1)
            axes.axis("off")
    figure.tight_layout(pad=0.2)
    figure.savefig(path, dpi=80)
    return path
