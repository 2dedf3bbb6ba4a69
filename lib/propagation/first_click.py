"""Find out what the first click on a slice means: one click may mean a part or the whole, and a small network hardly knows which.

So the click is decoded in crops of several sizes round the network's first answer, each of which gives several alternatives. All of them are
adapted to the intensities of the image, and only then compared: an alternative that means something follows clear edges after that, and
resembles what others have become.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from lib.imaging.masks import BorderStrength, bounding_box
from lib.model.features import SliceFeatures
from lib.model.sam2_network import Sam2Network
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.obedience import adapt_to_intensities, surroundings
from lib.propagation.zoom import REFINING, START_LOGIT_LIMIT, CropSize, crop_frames, surrounding_crop

# Chosen on generated slices and patients of the training data; docs/architecture.md has the figures.
MARGINS = 1.3, 1.8, 2.6  # Sizes of the crops, as multiples of the network's first answer.
AGREEMENT_WEIGHT = 0.2  # Of the mean Dice with all alternatives, beside the strength of edges along the outline.
MOST_PIXELS = 64  # Longer side of the largest alternative when they are compared.
OUTSIDE_LOGIT = -8.0  # Of pixels outside of a crop.


def decode_first_click(
    network: Sam2Network, features: SliceFeatures, t: int, prompt: SlicePrompt, first: Sequence[torch.Tensor]
) -> torch.Tensor | None:
    """Return logits (Y, X) of what a click means, adapted to the intensities of the slice; None if no alternative contains the click.

    Args:
        features: Encoded slices.
        t: Index of the slice.
        prompt: The click, which is inside.
        first: Logits (Y, X) of the whole slice: the network's answer to the click, then its alternatives.
    """
    alternatives = _decode_in_crops(network, features, t, prompt, first[0]) or list(first)
    (x, y), shape = np.rint(prompt.points[0]).astype(int), features.frames.size
    row, column = np.clip(y, 0, shape[0] - 1), np.clip(x, 0, shape[1] - 1)
    containing = [a for a in (a.cpu().numpy() for a in alternatives) if a[row, column] > 0]
    if not containing:
        return None
    best = choose_alternative(features.frames.stack[t], features.frames.windowed([t])[0], prompt, containing)
    return torch.from_numpy(adapt_to_intensities(features.frames.stack[t], prompt, containing[best])).to(first[0].device)


def choose_alternative(image: np.ndarray, windowed: np.ndarray, prompt: SlicePrompt, alternatives: Sequence[np.ndarray]) -> int:
    """Return the index of the alternative that probably is what a click means.

    All are adapted to the intensities; large ones in a shrunken copy of the slice, which tells as much and takes far less time.

    Args:
        image: Intensities (Y, X).
        windowed: The same slice with the intensity window applied, uint8 (Y, X).
        prompt: The click.
        alternatives: Logits (Y, X), each positive at the click.
    """
    boxes = [bounding_box((a > 0)[None]) for a in alternatives]
    factor = math.ceil(max(s.stop - s.start for box in boxes for s in box[1:]) / MOST_PIXELS)
    small_image, small_windowed = shrink(image, factor), shrink(windowed, factor).astype(np.uint8)
    click = SlicePrompt((prompt.points + 0.5) / factor - 0.5, prompt.labels)
    return clearest_mask(small_windowed, click, [adapt_to_intensities(small_image, click, shrink(a, factor)) > 0 for a in alternatives])


def clearest_mask(image: np.ndarray, prompt: SlicePrompt, masks: Sequence[np.ndarray]) -> int:
    """Return the index of the mask, bool (Y, X), with the largest sum of two figures: the strength of edges of the image, uint8 (Y, X), along
    its outline, where the edge of the frame counts as none, and `AGREEMENT_WEIGHT` times its mean Dice with all masks."""
    window = surroundings(prompt, masks, image.shape)
    borders, parts = BorderStrength(image[window]), np.stack([mask[window] for mask in masks])
    flat = parts.reshape(len(parts), -1).astype(np.float32)
    areas = flat.sum(1)
    agreement = (2 * flat @ flat.T / np.maximum(areas[:, None] + areas, 1)).mean(1)
    edges = [borders.edge_strength(part) * (1 - share_on_frame_edge(mask)) for part, mask in zip(parts, masks, strict=True)]
    return int(np.argmax(np.array(edges) + AGREEMENT_WEIGHT * agreement))


def shrink(image: np.ndarray, factor: int) -> np.ndarray:
    """Return the means of blocks of `factor` x `factor` pixels of an image (Y, X), float32; the last blocks may be smaller."""
    return F.avg_pool2d(torch.from_numpy(image.astype(np.float32))[None, None], factor, ceil_mode=True)[0, 0].numpy()


def share_on_frame_edge(mask: np.ndarray) -> float:
    """Return the share of the outline of a mask, bool (Y, X), that lies on the edge of the frame; 0 for an empty mask."""
    on_edge = mask.copy()
    on_edge[1:-1, 1:-1] = False
    inner = mask[1:-1, 1:-1]
    surrounded = inner & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    return float(on_edge.sum() / max(on_edge.sum() + (inner & ~surrounded).sum(), 1))


def _decode_in_crops(
    network: Sam2Network, features: SliceFeatures, t: int, prompt: SlicePrompt, first: torch.Tensor
) -> list[torch.Tensor]:
    """Return alternatives (Y, X) from crops round the first answer (Y, X): decoded from the click alone, and starting from that answer."""
    displayed = [(prompt, (first > 0).cpu().numpy())]
    crops, alternatives = [], []
    for margin in MARGINS:
        crop = surrounding_crop(features.frames, displayed, CropSize(margin, REFINING.shares))
        if crop is None or crop in crops:
            continue
        crops.append(crop)
        zoomed = SliceFeatures(network.model, crop_frames(features.frames, crop), features.device, features.autocast, 1)
        start = zoomed.from_slices(first[crop][None], network.mask_side).clamp(-START_LOGIT_LIMIT, START_LOGIT_LIMIT)
        for start_logits in (None, start):
            output = network.decode(zoomed, [t], prompt=prompt.cropped(*crop), start_logits=start_logits)
            for candidate in output["candidates"][0]:
                alternative = torch.full_like(first, OUTSIDE_LOGIT)
                alternative[crop] = zoomed.to_slices(candidate[None])[0]
                alternatives.append(alternative)
    return alternatives
