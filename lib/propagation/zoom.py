"""Enlarge the surroundings of a small structure to the network's whole square.

A structure of 20 pixels in a slice of 512 is five cells of the mask that a network for 256 pixels draws. Cut out and enlarged it is
drawn much finer. A prompted slice is decoded again in such a crop (`refine_zoomed`), and the structure is tracked in one
(`tracking_crops`).
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch

from lib.imaging.frames import Frames
from lib.imaging.masks import BorderStrength, bounding_box
from lib.model.features import SliceFeatures
from lib.prompts.volume_prompts import SlicePrompt

MOST_CLICKS_AS_CORRECTIONS = 8  # With more clicks on a slice, going through them one by one takes long and brings nothing.
START_LOGIT_LIMIT = 32.0  # Mask logits that a decoding starts from are clamped to this, as in SAM 2's training.

Crop = tuple[slice, slice]  # Rows and columns of a frame.
DisplayedSlice = tuple[SlicePrompt, np.ndarray]  # A prompt and the mask bool (Y, X) that its slice shows.


class CropSize(NamedTuple):
    """How large a crop is: `margin` times the structure, rounded up to one of `shares` of the frame's longer side."""

    margin: float
    shares: tuple[float, ...]


# On generated slices, margins of 1.6 and 2.2 refine as well as 1.8, and a margin of 2.8 tracks as well as 2.0.
REFINING = CropSize(1.8, (0.19, 0.22, 0.26, 0.31, 0.37, 0.44, 0.52, 0.61, 0.7))
TRACKING = CropSize(2.0, (0.25, 0.35, 0.5, 0.7))


def click_agreement(prompt: SlicePrompt, logits: torch.Tensor) -> float:
    """Return the share of the clicks that logits (Y, X) of the slice are right about; 1 without clicks."""
    is_click = prompt.labels < 2
    if not is_click.any():
        return 1.0
    limit = np.array(logits.shape)[::-1] - 1
    x, y = np.clip(np.rint(prompt.points[is_click]), 0, limit).astype(int).T
    is_inside = (logits[y, x] > 0).cpu().numpy()
    return float((is_inside == (prompt.labels[is_click] == 1)).mean())


def refine_zoomed(decoder, features: SliceFeatures, t: int, prompt: SlicePrompt, logits: torch.Tensor) -> torch.Tensor | None:
    """Decode slice `t` again in the enlarged surroundings of the structure.

    The result is averaged with the first decoding and counts only if it agrees with the clicks as well as that did. One click may mean a
    part or the whole, and a small network hardly knows which of its alternatives is better. Of these and their averages with the
    first decoding, the one whose border is most clearly an edge of the image is taken. Several clicks are also tried as corrections
    of the mask that was displayed before the last of them.

    Args:
        decoder: `PromptDecoder` whose network and earlier results are used.
        logits: Logits (1, 1, h, w) of the first decoding.

    Returns:
        Logits (Y, X) of the slice, or None where zooming brings nothing.
    """
    first = features.to_slices(logits[0])[0]
    crop = surrounding_crop(features.frames, [(prompt, (first > 0).cpu().numpy())], REFINING)
    if crop is None:
        return None
    zoomed = SliceFeatures(decoder.network.model, _crop_frames(features.frames, crop), features.device, features.autocast, 1)
    cropped_prompt, before = prompt.cropped(*crop), first[crop]

    def decode_from(start: torch.Tensor) -> dict:
        start_logits = zoomed.from_slices(start[None], logits.shape[-1]).clamp(-START_LOGIT_LIMIT, START_LOGIT_LIMIT)
        return decoder.network.decode(zoomed, [t], prompt=cropped_prompt, start_logits=start_logits)

    output = decode_from(before)
    again = zoomed.to_slices(output["pred_masks"][0])[0]
    candidates = [(before + again) / 2]
    click_count = int((prompt.labels < 2).sum())
    if click_count < 2:  # One click or a box.
        alternatives = [zoomed.to_slices(c[None])[0] for c in output["candidates"][0]]
        candidates += [(before + a) / 2 for a in alternatives] + alternatives
    elif click_count <= MOST_CLICKS_AS_CORRECTIONS:
        earlier = decoder.displayed_logits(features, t, prompt.without_last_click())[crop]
        corrected = zoomed.to_slices(decode_from(earlier)["pred_masks"][0])[0]
        candidates += [corrected, (earlier + corrected) / 2]
    best = best_candidate(zoomed.frames.windowed([t])[0], cropped_prompt, candidates)
    refined = first.clone()
    refined[crop] = best
    return refined if click_agreement(cropped_prompt, best) >= click_agreement(cropped_prompt, before) and (refined > 0).any() else None


def best_candidate(image: np.ndarray, prompt: SlicePrompt, candidates: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return those of several logits (Y, X) that agree best with the clicks; among equals, those whose border is the clearest edge of the
    image, uint8 (Y, X)."""
    borders = BorderStrength(image)
    return max(candidates, key=lambda c: (click_agreement(prompt, c), borders.edge_strength((c > 0).cpu().numpy())))


def tracking_crops(
    frames: Frames, first: DisplayedSlice, displayed: Mapping[int, DisplayedSlice], gap_ends: Sequence[int], low: int, high: int
) -> list[tuple[int, int, Crop | None]]:
    """Choose where the structure is tracked in the slices low..high.

    The first click alone decides, so that all later requests find the features of its crop encoded, and results of tracking in it
    stay valid. Only where the ends of a gap do not lie well within that crop, the surroundings of all annotated slices are taken. If
    they are less than half as large, they are taken everywhere, because the first click alone had displayed too much.

    Args:
        first: The first prompt and what it displays.
        displayed: The same for all slices with prompts.
        gap_ends: Annotated slices, from which passes begin.

    Returns:
        (first slice, last slice, crop or None for whole frames), in order; neighbours share the slice where they meet.
    """
    crop, wider = surrounding_crop(frames, [first], TRACKING), surrounding_crop(frames, list(displayed.values()), TRACKING)
    whole = slice(0, frames.size[0]), slice(0, frames.size[1])
    side, wider_side = (max((s.stop - s.start) * mm for s, mm in zip(c or whole, frames.pixel_mm, strict=True)) for c in (crop, wider))
    if crop is None or crop == wider or side > 2 * wider_side or low == high:
        return [(low, high, crop if side <= 2 * wider_side else wider)]
    ranges: list[tuple[int, int, Crop | None]] = []
    for a, b in pairwise(sorted({low, *gap_ends, high})):
        box = _extent(frames, [d for t, d in displayed.items() if a <= t <= b])
        fitting = crop if box is None or _lies_well_within(box, crop, frames.size) else wider
        if ranges and ranges[-1][2] == fitting:
            ranges[-1] = ranges[-1][0], b, fitting
        else:
            ranges.append((a, b, fitting))
    return ranges


def surrounding_crop(frames: Frames, displayed: Sequence[DisplayedSlice], size: CropSize) -> Crop | None:
    """Return a square crop (in mm) round masks and prompts, or None if that is most of the frame.

    Sides and places come in steps, so that small changes mostly leave the crop where it is.
    """
    pixel_mm, frame_size = np.array(frames.pixel_mm), np.array(frames.size)
    box = _extent(frames, displayed)
    if box is None:
        return None
    low, high = box
    extent_mm = float((frame_size * pixel_mm).max())
    needed = float(((high - low) * pixel_mm).max()) * size.margin / extent_mm
    share = next((s for s in size.shares if s >= needed), None)
    if share is None:
        return None
    side = np.minimum(np.maximum(np.rint(share * extent_mm / pixel_mm), 2), frame_size).astype(int)
    step = np.maximum(side // 8, 1)
    start = np.rint((low + high - side) / 2 / step).astype(int) * step
    start = np.clip(start, 0, frame_size - side)
    return slice(int(start[0]), int(start[0] + side[0])), slice(int(start[1]), int(start[1] + side[1]))


def _crop_frames(frames: Frames, crop: Crop) -> Frames:
    """Return a crop of frames that may be cropped already."""
    down, right = (frames.crop[0].start, frames.crop[1].start) if frames.crop else (0, 0)
    rows, columns = crop
    return frames.cropped(slice(rows.start + down, rows.stop + down), slice(columns.start + right, columns.stop + right))


def _extent(frames: Frames, displayed: Sequence[DisplayedSlice]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the first and one past the last (y, x) of masks and prompts, or None if there are none."""
    boxes = [bounding_box(mask[None]) for _, mask in displayed]
    corners = [[(rows.start, columns.start), (rows.stop - 1, columns.stop - 1)] for _, rows, columns in filter(None, boxes)]
    points = [np.rint(prompt.points[:, ::-1]) for prompt, _ in displayed]
    places = np.concatenate([np.reshape(corners, (-1, 2)), *points]).astype(float)
    if not len(places):
        return None
    last = np.array(frames.size) - 1
    return np.clip(places.min(0), 0, last), np.clip(places.max(0), 0, last) + 1


def _lies_well_within(box, crop: Crop, frame_size: tuple[int, int]) -> bool:
    """Return whether a box keeps a distance from the crop's edges where these are not edges of the frame."""
    for low, high, side, size in zip(*box, crop, frame_size, strict=True):
        distance = (side.stop - side.start) / 12
        if (side.start > 0 and low < side.start + distance) or (side.stop < size and high > side.stop - distance):
            return False
    return True
