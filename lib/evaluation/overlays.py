"""Slices with the contours of mask and reference: cut out while a case is at hand, drawn at the end."""

import base64
import io

import numpy as np
from matplotlib.figure import Figure

from lib.evaluation.protocols.steps import Step
from lib.imaging.metrics import dice

SHARES = (0.25, 0.5, 0.75)  # of the structure's extent
MOST = 256  # pixels of a side


def cut(title: str, step: Step) -> dict:
    """Three slices of a step as plain text: what `sheet` draws."""
    target, mask = step.target, step.answer.mask
    filled = target.filled
    slices = sorted({int(filled[round(s * (len(filled) - 1))]) for s in SHARES})
    every = -(-max(target.frames.size) // MOST)
    small = (slice(None), slice(None, None, every), slice(None, None, every))
    arrays = {
        "image": target.frames.windowed(slices)[small], "reference": target.reference[slices][small], "mask": mask[slices][small],
        "index": target.index[slices],
    }  # fmt: skip
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    aspect = target.frames.pixel_mm[0] / target.frames.pixel_mm[1]
    text = base64.b64encode(buffer.getvalue()).decode()
    return {"title": title, "dice": round(dice(mask, target.reference), 4), "aspect": aspect, "arrays": text}


def sheet(shown: list[dict], path, most: int = 3) -> None:
    """Draws up to `most` of the best, of the median and of the worst structures as PNG: orange the mask, green the reference."""
    order = sorted(shown, key=lambda s: (-s["dice"], s["title"]))
    count = min(most, max(1, len(order) // 3))
    middle = max(0, len(order) // 2 - count // 2)
    groups = {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}
    rows = [(name, s) for name, group in groups.items() for s in group]
    figure = Figure(figsize=(3.2 * len(SHARES), 3.2 * len(rows)))
    for r, (name, one) in enumerate(rows):
        with np.load(io.BytesIO(base64.b64decode(one["arrays"]))) as arrays:
            for c, (image, reference, mask, index) in enumerate(zip(*(arrays[k] for k in ("image", "reference", "mask", "index")), strict=True)):
                axes = figure.add_subplot(len(rows), len(SHARES), r * len(SHARES) + c + 1)
                axes.imshow(image, cmap="gray", vmin=0, vmax=255, aspect=one["aspect"])
                for drawn, colour in ((reference, "lime"), (mask, "orange")):
                    if drawn.any():
                        axes.contour(drawn, [0.5], colors=colour, linewidths=1)
                axes.set_title(f"{name}: {one['title']}\nDice {one['dice']:.2f}, slice {index}", fontsize=7)
                axes.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
