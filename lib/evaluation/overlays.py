"""Pictures of slices with contours: extracted while a case is evaluated, kept in its report as text, and drawn at the end of the run."""

import base64
import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from lib.evaluation.protocols.steps import Step
from lib.imaging.metrics import dice
from lib.prompts.simulated_annotator import slices_at_shares

EXTENT_SHARES = (0.25, 0.5, 0.75)  # Where the pictured slices lie within the structure's slices.
MAX_SIDE_PIXELS = 256
MAX_PER_RANK = 3


def extract_overlay(title: str, step: Step) -> dict:
    """Return three slices of a step for `draw_overlays`, in a form that JSON can hold.

    "arrays" is the base64 text of an .npz file: image (uint8), reference and mask (bool), each (N, Y, X), and slice index (N,).
    """
    target, mask = step.target, step.prediction.mask
    slices = slices_at_shares(target.reference, EXTENT_SHARES)
    stride = -(-max(target.frames.size) // MAX_SIDE_PIXELS)
    thinned = (slice(None), slice(None, None, stride), slice(None, None, stride))
    arrays = {
        "image": target.frames.windowed(slices)[thinned], "reference": target.reference[slices][thinned],
        "mask": mask[slices][thinned], "index": target.source_slices[slices],
    }  # fmt: skip
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    aspect = target.frames.pixel_mm[0] / target.frames.pixel_mm[1]
    text = base64.b64encode(buffer.getvalue()).decode()
    return {"title": title, "dice": round(dice(mask, target.reference), 4), "aspect": aspect, "arrays": text}


def draw_overlays(overlays: list[dict], path: Path) -> None:
    """Draw what `extract_overlay` returned as PNG, with the mask in orange and the reference in green.

    Up to three structures each with the best, the median and the worst Dice are drawn.
    """
    order = sorted(overlays, key=lambda o: (-o["dice"], o["title"]))
    count = min(MAX_PER_RANK, max(1, len(order) // 3))
    middle = max(0, len(order) // 2 - count // 2)
    ranks = {"best": order[:count], "median": order[middle : middle + count], "worst": order[-count:]}
    rows = [(rank, overlay) for rank, ranked in ranks.items() for overlay in ranked]
    figure = Figure(figsize=(3.2 * len(EXTENT_SHARES), 3.2 * len(rows)))
    for row, (rank, overlay) in enumerate(rows):
        with np.load(io.BytesIO(base64.b64decode(overlay["arrays"]))) as arrays:
            slices = zip(*(arrays[k] for k in ("image", "reference", "mask", "index")), strict=True)
            for column, (image, reference, mask, index) in enumerate(slices, 1):
                axes = figure.add_subplot(len(rows), len(EXTENT_SHARES), row * len(EXTENT_SHARES) + column)
                axes.imshow(image, cmap="gray", vmin=0, vmax=255, aspect=overlay["aspect"])
                for region, colour in ((reference, "lime"), (mask, "orange")):
                    if region.any():
                        axes.contour(region, [0.5], colors=colour, linewidths=1)
                axes.set_title(f"{rank}: {overlay['title']}\nDice {overlay['dice']:.2f}, slice {index}", fontsize=7)
                axes.axis("off")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
