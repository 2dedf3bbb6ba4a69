"""Make the mask of a slice obey the clicks on it, whatever the network answers.

A click decides the 3 x 3 pixels round it. A further click changes what was displayed before it only within its reach, because annotators
click on what is wrong and are content with the rest; a network that is asked anew often spoils it. Within reach, the network's answer and
the intensities decide where the network has understood the click, else the intensities alone. The first click on a slice with a tracked mask
counts more, because no other click vouches for that mask. Where one click inside was misunderstood, so that a click outside hits the middle of
what is displayed, the network's answer to all clicks replaces it. In the end, a graph cut draws the border along the edges of the image, and
parts that no click has asked for go. The answer to a first click on a slice without a mask is adapted to the intensities as a whole.

For networks for small images, the result of a further click is averaged with what a small correction network makes of all clicks on the slice.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import ndimage

from lib.imaging.masks import bounding_box
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.graph_cut import graph_cut, intensity_logits, scale_intensities
from lib.propagation.mask_refiner import signed_depth

# Chosen on generated slices, drawn shapes and patients of the training data; docs/experiments.md has the figures.
REACH = 1.0  # A click changes all within this multiple of its distance to the mask's border, and nothing beyond twice that.
MIN_DEPTH = 3.0  # Pixels; clicks nearer to the border count as so far from it.
INTENSITY_WEIGHT = 0.5  # Of the intensities beside the network's answer.
CLICK_LOGIT = 4.0  # Of the first click on a tracked mask; it fades to 0 at the border of the mask, so that more than 3 x 3 pixels give way.
LOGIT_LIMIT = 4.0
SEED_MARGIN = 3  # Pixels round a click that say nothing about the intensities on the side where they are displayed.
MARGIN = 12  # Pixels round masks and clicks in which the image is looked at.
ADAPTED_MARGIN = 0.5  # The same for the answer to a first click, as a share of its longer side if that is more than `MARGIN`.
DEPTH_WEIGHT, DEPTH_LIMIT = 0.5, 2.0  # Logits for each pixel of depth in the answer to a first click, beside the intensities.
MISUNDERSTOOD_DEPTH = 0.65  # Share of the greatest depth of a mask from which a click outside says that the mask as a whole is wrong.
SMOOTHNESS = 4.0  # Of the cuts.
CORRECTED_SMOOTHNESS = 2.0  # Of the cut of the average with the correction network's answer.
_CUTS = 3  # Of the adaptation to the intensities; after so many, masks hardly change any more.

# Takes an image (Y, X), a prompt of clicks, and the logits (Y, X) displayed before the last of them; returns logits (Y, X).
Correction = Callable[[np.ndarray, SlicePrompt, np.ndarray], np.ndarray]


def obey_clicks(
    image: np.ndarray, prompt: SlicePrompt, logits: np.ndarray, earlier: np.ndarray | None = None, is_tracked: bool = False,
    correct: Correction | None = None,
) -> np.ndarray:  # fmt: skip
    """Return logits of a mask that obeys the clicks of a prompt, float32 (Y, X).

    Args:
        image: Intensities (Y, X).
        prompt: The clicks in the order in which they were made, perhaps after a box.
        logits: The network's answer to all of them, float (Y, X).
        earlier: Logits (Y, X) that were displayed before the last click, or None if it is the first one.
        is_tracked: Whether a mask from tracking was displayed before the first click.
        correct: What else answers to further clicks, see `lib.propagation.click_correction`; None: nothing.
    """
    own = _obey_by_image(image, prompt, logits, earlier, is_tracked)
    is_further_click = earlier is not None and not (is_tracked and len(prompt.labels) == 1)
    if correct is None or not is_further_click:
        return own
    average = average_limited(own, correct(image, prompt, earlier))
    window = surroundings(prompt, [average > 0, earlier > 0], average.shape)
    seeds = click_seeds(prompt, average.shape)[window]
    mask = graph_cut(scale_intensities(image[window]), average[window], seeds, CORRECTED_SMOOTHNESS)
    result = np.minimum(average, -1.0).astype(np.float32)
    result[window] = signed(average[window], mask)
    return result


def _obey_by_image(
    image: np.ndarray, prompt: SlicePrompt, logits: np.ndarray, earlier: np.ndarray | None, is_tracked: bool
) -> np.ndarray:
    """Return logits (Y, X) that obey the clicks by the network's answer and the image; the arguments are those of `obey_clicks`."""
    seeds = click_seeds(prompt, logits.shape)
    if earlier is None and len(prompt.labels) == 1 and (logits > 0).any():
        return adapt_to_intensities(image, prompt, logits)
    if earlier is None and obeys(seeds, logits > 0):
        return logits
    window = surroundings(prompt, [logits > 0, logits[:0] if earlier is None else earlier > 0], logits.shape)
    scaled, seeds, evidence = scale_intensities(image[window]), seeds[window], limited(logits[window])
    answer, fixed = evidence > 0, seeds
    if earlier is not None and not is_tracked and obeys(seeds, answer) and was_misunderstood(prompt.cropped(*window), earlier[window] > 0):
        evidence = evidence + INTENSITY_WEIGHT * intensity_logits(scaled, answer | (seeds > 0), ~answer | (seeds < 0))
    elif earlier is not None:
        last = SlicePrompt(prompt.points[-1:], prompt.labels[-1:])
        at_click = click_seeds(last, logits.shape)[window]
        is_first_click = is_tracked and len(prompt.labels) == 1
        evidence, fixed = _evidence_within_reach(scaled, seeds, at_click, evidence, limited(earlier[window]), is_first_click)
    elif not (evidence > 0).any():  # The network finds nothing where the user has clicked.
        near = ndimage.binary_dilation(seeds > 0)
        evidence = intensity_logits(scaled, near, ~near)
    mask = graph_cut(scaled, evidence, fixed, SMOOTHNESS)
    if earlier is not None:
        clicks_say_all = not is_tracked and (prompt.labels < 2).all() and (prompt.labels == 1).any()
        mask = keep_asked_for(mask, seeds, np.zeros_like(mask) if clicks_say_all else earlier[window] > 0)
    result = np.minimum(logits if earlier is None else earlier, -1.0).astype(np.float32)
    result[window] = signed(evidence, mask)
    return result


def adapt_to_intensities(image: np.ndarray, prompt: SlicePrompt, logits: np.ndarray) -> np.ndarray:
    """Return logits float32 (Y, X) of the answer to a first click after mask and intensities have been adapted to each other.

    As in GrabCut (Rother et al. 2004), the intensities inside and outside of the mask and a new mask are found in turns. Pixels deep in the
    network's mask, or far from it, hardly change. Only what is connected with the click stays.

    Args:
        image: Intensities (Y, X).
        prompt: The click, which is inside.
        logits: The network's answer, float (Y, X), with pixels inside.
    """
    answer = logits > 0
    _, rows, columns = bounding_box(answer[None])
    margin = max(MARGIN, round(ADAPTED_MARGIN * max(rows.stop - rows.start, columns.stop - columns.start)))
    window = surroundings(prompt, [answer], logits.shape, margin)
    scaled, seeds, mask = scale_intensities(image[window]), click_seeds(prompt, logits.shape)[window], answer[window]
    depth = np.clip(DEPTH_WEIGHT * signed_depth(mask), -DEPTH_LIMIT, DEPTH_LIMIT)
    for _ in range(_CUTS):
        evidence = intensity_logits(scaled, mask | (seeds > 0), ~mask) + depth
        before, mask = mask, graph_cut(scaled, evidence, seeds, SMOOTHNESS)
        if (mask == before).all():
            break
    components, _ = ndimage.label(mask)
    mask = np.isin(components, np.unique(components[seeds > 0]))
    result = np.minimum(logits, -1.0).astype(np.float32)
    result[window] = signed(evidence, mask)
    return result


def was_misunderstood(prompt: SlicePrompt, displayed: np.ndarray) -> bool:
    """Return whether the last click says that the answer to the only click inside is wrong as a whole: it is outside, and lies about where
    the displayed mask, bool (Y, X), is thickest."""
    if prompt.labels[-1] != 0 or (prompt.labels == 1).sum() != 1 or (prompt.labels > 1).any():
        return False
    row, column = np.clip(np.rint(prompt.points[-1, ::-1]), 0, np.array(displayed.shape) - 1).astype(int)
    depth = ndimage.distance_transform_edt(displayed)
    return bool(displayed[row, column]) and depth[row, column] >= MISUNDERSTOOD_DEPTH * depth.max()


def keep_asked_for(mask: np.ndarray, seeds: np.ndarray, displayed: np.ndarray) -> np.ndarray:
    """Return a mask bool (Y, X) without the parts that no click has asked for: parts without a click inside, unless most of them is `displayed`.

    Args:
        seeds: int8 (Y, X), see `click_seeds`.
        displayed: What stays without a click inside, bool (Y, X).
    """
    parts, count = ndimage.label(mask, np.ones((3, 3)))
    sizes, displayed_sizes = (np.bincount(parts[m], minlength=count + 1) for m in (mask, mask & displayed))
    is_kept = 2 * displayed_sizes > sizes
    is_kept[parts[mask & (seeds > 0)]] = True
    is_kept[0] = False
    return is_kept[parts]


def click_seeds(prompt: SlicePrompt, shape: tuple[int, int]) -> np.ndarray:
    """Return the pixels that clicks decide, int8 (Y, X): 1 inside, -1 outside, 0 elsewhere. Of two competing clicks the nearer decides."""
    seeds, distances = np.zeros(shape, np.int8), np.full(shape, np.inf)
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        if label > 1:
            continue
        row, column = np.clip(np.rint([y, x]), 0, np.array(shape) - 1).astype(int)
        region = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
        rows, columns = (np.arange(n)[r] for n, r in zip(shape, region, strict=True))
        distance = (rows[:, None] - row) ** 2 + (columns - column) ** 2
        is_nearer = distance < distances[region]
        distances[region][is_nearer] = distance[is_nearer]
        seeds[region][is_nearer] = 1 if label == 1 else -1
    return seeds


def obeys(seeds: np.ndarray, mask: np.ndarray) -> bool:
    """Return whether a mask bool (Y, X) is right wherever seeds int8 (Y, X) decide."""
    return bool((mask[seeds != 0] == (seeds[seeds != 0] > 0)).all())


def limited(logits: np.ndarray) -> np.ndarray:
    """Return logits of the same signs whose absolute values lie between 1 and `LOGIT_LIMIT`."""
    return np.where(logits > 0, np.clip(logits, 1, LOGIT_LIMIT), np.clip(logits, -LOGIT_LIMIT, -1))


def average_limited(logits: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the mean of two arrays of logits, each clipped to `LOGIT_LIMIT`."""
    return (np.clip(logits, -LOGIT_LIMIT, LOGIT_LIMIT) + np.clip(other, -LOGIT_LIMIT, LOGIT_LIMIT)) / 2


def signed(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return logits that are at least 1 inside a mask and at most -1 outside."""
    return np.where(mask, np.maximum(logits, 1.0), np.minimum(logits, -1.0))


def surroundings(
    prompt: SlicePrompt, masks: Sequence[np.ndarray], shape: tuple[int, int], margin: int = MARGIN
) -> tuple[slice, slice]:
    """Return the rows and columns within `margin` pixels of masks bool (Y, X) and prompts."""
    last = np.array(shape) - 1
    boxes = [box[1:] for box in (bounding_box(mask[None]) for mask in masks) if box is not None]
    corners = [[[s.start for s in box], [s.stop - 1 for s in box]] for box in boxes]
    places = np.concatenate([np.clip(np.rint(prompt.points[:, ::-1]), 0, last), np.reshape(corners, (-1, 2))]).astype(int)
    low, high = np.maximum(places.min(0) - margin, 0), np.minimum(places.max(0) + margin, last)
    return slice(int(low[0]), int(high[0]) + 1), slice(int(low[1]), int(high[1]) + 1)


def _evidence_within_reach(
    scaled: np.ndarray, seeds: np.ndarray, at_click: np.ndarray, answer: np.ndarray, earlier: np.ndarray, is_first_click: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return the evidence for a mask after a further click: the answer to it within its reach, what was displayed before beyond that.
    Also return the seeds together with all pixels beyond twice the reach, which stay on the side where they were displayed: int8 (Y, X).

    All arrays are (Y, X). Limited logits: `answer` and `earlier`.

    Args:
        scaled: The image in [0, 1].
        seeds, at_click: Pixels that all clicks, and that the further click, decide.
        is_first_click: Whether no click on the slice came before it, so that what was displayed comes from tracking.
    """
    sign = 1.0 if (at_click > 0).any() else -1.0
    mask, last_click = earlier > 0, at_click != 0
    distance = ndimage.distance_transform_edt(~last_click)
    is_other_side = mask != (sign > 0)
    depth = ndimage.distance_transform_edt(is_other_side)[last_click].max() if not is_other_side.all() else np.inf
    weight = np.clip(2 - distance / (REACH * max(depth, MIN_DEPTH)), 0, 1)
    inside, outside = (mask & (distance > SEED_MARGIN)) | (seeds > 0), (~mask & (distance > SEED_MARGIN)) | (seeds < 0)
    is_tracked, radius = is_first_click and np.isfinite(depth), max(MIN_DEPTH, depth)
    if (np.sign(answer)[last_click] == sign).mean() > 0.5:
        changed = answer + INTENSITY_WEIGHT * intensity_logits(scaled, inside, outside)
    elif is_tracked:  # The network has not understood the click, and no other click vouches for the mask: what looks like the pixels near
        # the click, rather than like those farther off, changes sides.
        near, far = is_other_side & (distance <= radius / 2), is_other_side & (distance > radius)
        changed = sign * (intensity_logits(scaled, near | last_click, far) + 1.0)
    else:
        changed = intensity_logits(scaled, inside, outside) + sign
    if is_tracked:
        changed = changed + sign * CLICK_LOGIT * np.clip(1 - distance / radius, 0, 1)
    fixed = np.where((weight == 0) & (seeds == 0), np.sign(earlier), seeds).astype(np.int8)
    return weight * changed + (1 - weight) * earlier, fixed
