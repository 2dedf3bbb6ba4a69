"""Draw a contact sheet of a segmentation: slices with the contour of the mask and the clicks."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lib.imaging.frames import Frames
from lib.prompts.volume_prompts import Prompts


def contact_sheet(frames: Frames, mask: np.ndarray, prompts: Prompts, path: str | Path, *, count: int = 16) -> Path:
    """Draw up to `count` slices as a PNG: those with clicks or paintings, and others spread over the mask and a little beyond.

    Args:
        mask: Bool (I, J, K).

    Returns:
        The path of the PNG.
    """
    stack = frames.from_volume(mask)
    points = [(*frames.to_pixel(v), c) for c, vs in (("lime", prompts.positive), ("red", prompts.negative)) for v in vs]
    chosen = _slices_to_draw(stack.any((1, 2)), {p[0] for p in points} | set(prompts.masks), count)
    columns = min(4, len(chosen))
    rows = -(-len(chosen) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows), facecolor="black")
    aspect = frames.pixel_mm[0] / frames.pixel_mm[1]
    for n, (t, image) in enumerate(zip(chosen, frames.windowed(chosen), strict=True)):
        axes = figure.add_subplot(rows, columns, n + 1)
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, aspect=aspect)
        if stack[t].any():
            axes.contour(stack[t], [0.5], colors="orange", linewidths=1.2)
        for _, y, x, colour in (p for p in points if p[0] == t):
            axes.plot(x, y, "+", color=colour, markersize=10, markeredgewidth=2)
        marked = any(p[0] == t for p in points) or t in prompts.masks
        axes.set_title(f"slice {t}" + (" (annotated)" if marked else ""), color="white", fontsize=9)
        axes.axis("off")
    figure.tight_layout()
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    return path


def _slices_to_draw(has_mask: np.ndarray, annotated: set[int], count: int) -> list[int]:
    """Return the indices of the slices to draw."""
    filled = np.flatnonzero(has_mask)
    low, high = (filled[0], filled[-1]) if len(filled) else (min(annotated, default=0), max(annotated, default=0))
    margin = max(1, (high - low) // 8)
    spread = np.linspace(max(0, low - margin), min(len(has_mask) - 1, high + margin), count).round().astype(int)
    chosen = set(sorted(annotated)[:count])
    for t in spread:
        if len(chosen) < count:
            chosen.add(int(t))
    return sorted(chosen)
