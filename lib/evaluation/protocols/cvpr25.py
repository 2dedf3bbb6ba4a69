"""The protocol of the challenge "Foundation Models for Interactive 3D Biomedical Image Segmentation" (CVPR 2025).

All structures of a case are segmented together, as classes of one label map. A 3D box of each class comes first. Then follow five steps;
in each, every class whose mask is not perfect gets one more click, at the centre of its largest error in 3D. Each method is clicked by
its own errors.

The definitions are those of the organisers' evaluation code (CVPR25_iter_eval.py). Two things are left open there and decided here.
The 2D box on the middle slice is tight, whereas the organisers' boxes were widened at random by up to 2 % of the image's side. Where
masks of two classes overlap, the voxel belongs to the smaller mask.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from lib.evaluation.methods.method import (
    Annotations,
    Method,
    Prediction,
    PropagationMode,
    box_prompt,
    click_prompt,
    mask_prompt,
    segment_or_empty,
)
from lib.evaluation.protocols.steps import Step
from lib.evaluation.protocols.target import Target
from lib.imaging.masks import bounding_box, filled_slices, keep_components, slice_areas
from lib.prompts.volume_prompts import SlicePrompt

SETTINGS = ("box and 5 clicks",)
CLICK_STEPS = 5
TIE_SEED = 42  # The organisers seed NumPy's global generator with it before each click.
SECONDS_PER_CLASS = 90.0  # Limit of the challenge for all steps of a case together, for each of its classes.

VolumeClick = tuple[bool, int, int, int]  # Whether it is positive, and its voxel t, y, x.


@dataclass(frozen=True)
class Box:
    """A box in 3D: the extent of a structure on its middle slice, and the slices that it spans. All indices are inclusive.

    Attributes:
        middle: Index of the middle slice.
        low_yx, high_yx: First and last pixel of the structure on that slice.
        first, last: First and last slice of the structure.
    """

    middle: int
    low_yx: tuple[int, int]
    high_yx: tuple[int, int]
    first: int
    last: int


def find_box(reference: np.ndarray) -> Box:
    """Return the 3D box of a structure, bool (T, Y, X), not empty.

    The middle slice is that of the middle voxel in reading order, so it always holds a part of the structure. A box that is one pixel
    wide or high is widened by a pixel, because it could not be drawn.
    """
    areas, filled = slice_areas(reference), filled_slices(reference)
    middle = int(np.searchsorted(np.cumsum(areas), areas.sum() // 2, side="right"))
    pixels_yx = np.argwhere(reference[middle])
    low, high = pixels_yx.min(0), pixels_yx.max(0)
    high = np.where((high == low) & (high + 1 < reference.shape[1:]), high + 1, high)
    low = np.where(high == low, np.maximum(low - 1, 0), low)
    return Box(middle, tuple(low.tolist()), tuple(high.tolist()), int(filled[0]), int(filled[-1]))


def find_click(predicted: np.ndarray, reference: np.ndarray) -> VolumeClick | None:
    """Return the click on the largest error of a mask, both bool (T, Y, X), or None if the mask is perfect.

    Missed and excess voxels form one error region; of its 26-connected components the one with the most voxels counts, and among
    equals the one that begins first in reading order. The click is at the voxel of this component that is farthest from its outside,
    in voxels; beyond the edge of the volume is outside. Among equally far voxels a seeded generator chooses. The click is positive
    where the reference is set.
    """
    error = predicted ^ reference
    box = bounding_box(error)
    if box is None:
        return None
    largest = keep_components(np.ascontiguousarray(error[box]), "largest", ())
    # More than one voxel of padding, as in the organisers' code, gives the same distances.
    distance = ndimage.distance_transform_edt(np.pad(largest, 1))[1:-1, 1:-1, 1:-1]
    candidates = np.argwhere(distance == distance.max())
    chosen = candidates[np.random.RandomState(TIE_SEED).choice(len(candidates))]
    t, y, x = (int(v) + s.start for v, s in zip(chosen, box, strict=True))
    return bool(reference[t, y, x]), t, y, x


def make_annotations(box: Box, clicks: list[VolumeClick], shape: tuple[int, int, int]) -> Annotations:
    """Return the prompts of a structure in a volume of the shape (T, Y, X), the slice of the box first.

    The slices just before and after the box are annotated as empty; a click there tells only methods that cannot take empty slices
    something new.
    """
    prompts: Annotations = {box.middle: box_prompt(box.low_yx, box.high_yx)}
    for t in (box.first - 1, box.last + 1):
        if 0 <= t < shape[0]:
            prompts[t] = mask_prompt(np.zeros(shape[1:], bool))
    for positive, t, y, x in dict.fromkeys(clicks):
        before = prompts.get(t, click_prompt([]))
        points, labels = np.vstack([before.points, [(x, y)]]), np.append(before.labels, np.int32(positive))
        prompts[t] = SlicePrompt(points, labels, before.mask)
    return prompts


def separate_classes(masks: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the masks, bool (T, Y, X), without overlaps: a voxel of several masks stays in the smallest, among equals in the last."""
    order = sorted(masks, key=lambda name: -np.count_nonzero(masks[name]))
    label_map = np.zeros(next(iter(masks.values())).shape, np.int16)
    for value, name in enumerate(order, 1):
        label_map[masks[name]] = value
    return {name: label_map == order.index(name) + 1 for name in masks}


def run_steps(method: Method, targets: dict[str, Target]) -> Iterator[tuple[str, Step]]:
    """Yield the name and the step of each class after the boxes (round 0) and after each of the five clicks (rounds 1 to 5).

    The targets share their frames. The seconds of a class that gets no further click are 0.
    """
    frames = next(iter(targets.values())).frames
    boxes = {name: find_box(target.reference) for name, target in targets.items()}
    modes = {name: PropagationMode(box_slices=(box.first, box.last)) for name, box in boxes.items()}
    clicks: dict[str, list[VolumeClick]] = {name: [] for name in targets}
    masks: dict[str, np.ndarray] = {}
    separated: dict[str, np.ndarray] = {}
    for number in range(CLICK_STEPS + 1):
        annotations, seconds = {}, dict.fromkeys(targets, 0.0)
        for name, target in targets.items():
            click = find_click(separated[name], target.reference) if number else None
            clicks[name] += [click] if click else []
            annotations[name] = make_annotations(boxes[name], clicks[name], target.reference.shape)
            if click or not number:
                start = time.perf_counter()
                method.open(frames)
                masks[name] = segment_or_empty(method, frames, annotations[name], modes[name]).mask
                seconds[name] = time.perf_counter() - start
        separated = separate_classes(masks)
        for name, target in targets.items():
            last = clicks[name][-1][1] if clicks[name] else boxes[name].middle
            prediction = Prediction(separated[name])
            yield name, Step(SETTINGS[0], number, target, annotations[name], modes[name], prediction, last, seconds=seconds[name])
