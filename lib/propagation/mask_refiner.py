"""Adapt each tracked mask to its slice before it is remembered: SAM 2's memory carries shape and place but hardly looks at the image.

Three kinds of evidence are added up for each pixel: the network's logit, that of a classifier which has learned the intensities of the
annotated slices, and how deep the pixel lies in the previous mask. The sum is smoothed, but not across edges of the image, and only
what touches the previous mask stays. Where intensities cannot tell the structure from its surroundings, and where the mask would grow
by leaps, the network's logits stay as they are. The same classifier decides where the object ends.

Beside networks for small images, a second network that has learned to track by looking at the image answers, too: its logits are mixed with
the first network's before all this.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from scipy import ndimage

from lib.model.features import PADDING_LOGIT, SliceFeatures
from lib.model.tracking_network import TrackingNetwork
from lib.propagation.intensity_classifier import IntensityClassifier
from lib.propagation.learned_tracking import AnnotatedSlice, LearnedTracker
from lib.propagation.mask_grid import grid_intensities, grid_size

# Chosen on generated volumes and patients of the training data; docs/experiments.md has the figures.
LARGEST_SIDE = 128  # Pixels of the square; larger masks are refined at this resolution.
MOST_CONFUSION = 0.55  # Of the classifier on the annotated slices; in noise without a structure it is about 0.65.
CLEAR_LEAK = 0.25  # Share of the surroundings that looks like the inside; beyond it, the object score may end a pass of refined masks as well.
MOST_GROWTH = 1.3  # Factor by which the area may exceed that of the previous mask and of the network's.
NETWORK_LIMIT, INTENSITY_LIMIT = 6.0, 2.0  # Of the logits.
PRIOR_PER_PIXEL, PRIOR_LIMIT = 1.0, 8.0  # Logits for the depth in the previous mask.
BAND = 8  # Pixels round the previous mask and the network's in which the mask may lie.
SMOOTHNESS, SWEEPS = 6.0, 20
EDGE_SCALE = 1 / 30  # Difference of scaled intensities that halves the smoothing about once.
END_RATIO = 0.6  # The object has ended where inside and outside differ by less than this share of what they did at first.
SURE_STEPS = 2  # Steps from an annotated slice in which the object is surely there.
LEAST_DIFFERENCE = 0.15  # Smaller differences at first count as this.
LOST_STEPS = 2  # After so many steps without the object, it does not come back.
TRACKER_WEIGHT = 1 / 3  # Of the tracking network's logits, beside SAM 2's.

PassEnds = Sequence[tuple[int, torch.Tensor]]


class PassRefiner:
    """Refines the masks of one pass, step by step.

    Args:
        features: Encoded slices of the frames in which the object is tracked.
        ends: Index and logits (h, w) of the annotated slices at the ends of the pass, first the one where it begins.
        tracking_network: What answers beside the network that made the features, or None.

    Attributes:
        is_active: Whether the structure can be told from its surroundings by intensities, so that masks are refined.
        decides_end: Whether intensities decide where the object ends; False where they say nothing at all.
        is_doubtful: Whether the network's object score may end it, too: masks are refined though much of the surroundings looks like the inside.
        is_between: Whether the pass leads to another annotated slice with the object in the same place, so that it is there all the way.
    """

    def __init__(self, features: SliceFeatures, ends: PassEnds, tracking_network: TrackingNetwork | None = None):
        self._features = features
        images, masks = zip(*((self._image(t, x.shape[-1]), self._shrink(x) > 0) for t, x in ends), strict=True)
        self._classifier = IntensityClassifier(images, masks)
        self.is_active, self.decides_end = self._classifier.confusion <= MOST_CONFUSION, self._classifier.confusion < 1
        self.is_doubtful = self.is_active and self._classifier.leak > CLEAR_LEAK
        self.is_between = len(masks) > 1 and bool((masks[0] & masks[1]).any())
        self._previous = masks[0]
        self._evidence = np.zeros(masks[0].shape)
        self._step, self._lost_steps, self._first_difference = 0, 0, 0.0
        annotated = [AnnotatedSlice(t, image, mask) for (t, _), image, mask in zip(ends, images, masks, strict=True)]
        self._tracker = LearnedTracker(tracking_network, annotated) if tracking_network is not None and masks[0].any() else None
        self._last = images[0], np.zeros(masks[0].shape)  # Image and logits of the slice that was refined last.

    def refine(self, t: int, logits: torch.Tensor) -> torch.Tensor:
        """Return refined logits (h, w) of slice `t`; passes that are not active only mix in the tracking network's, if there is one."""
        image, answer = self._image(t, logits.shape[-1]), self._shrink(logits)
        if self._tracker is not None:
            learned = self._tracker.find(t, image, self._previous)
            answer = (1 - TRACKER_WEIGHT) * np.clip(answer, -NETWORK_LIMIT, NETWORK_LIMIT) + TRACKER_WEIGHT * learned
        self._evidence, self._last = self._classifier.logits(image), (image, answer)
        if self.is_active:
            refined = self._refine(image, answer)
            if refined is not None:
                self._last = image, refined
        is_unchanged = self._tracker is None and self._last[1] is answer
        return logits.float() if is_unchanged else self._enlarge(self._last[1], logits)

    def _refine(self, image: np.ndarray, answer: np.ndarray) -> np.ndarray | None:
        """Return the sum of all evidence, smooth, as logits (h, w); None where the mask would grow by leaps."""
        total = np.clip(answer, -NETWORK_LIMIT, NETWORK_LIMIT) + np.clip(self._evidence, -INTENSITY_LIMIT, INTENSITY_LIMIT)
        total += np.clip(PRIOR_PER_PIXEL * signed_depth(self._previous), -PRIOR_LIMIT, PRIOR_LIMIT)
        refined = smooth_within_edges(total, self._classifier.scale(image))
        near = ndimage.distance_transform_edt(~(self._previous | (answer > 0))) <= BAND
        refined = keep_touching(np.where(near, refined, np.minimum(answer, -4.0)), self._previous)
        grows_by_leaps = (refined > 0).sum() > MOST_GROWTH * max((answer > 0).sum(), self._previous.sum())
        return None if grows_by_leaps else refined

    def is_present(self) -> bool:
        """Return whether the object is still there on the slice that was refined last; each slice must be asked about once."""
        self._step += 1
        difference = inside_outside_difference(1 / (1 + np.exp(-self._evidence)), self._previous)
        if self._step <= SURE_STEPS:
            self._first_difference += difference / SURE_STEPS
            return True
        is_lost = difference < END_RATIO * max(self._first_difference, LEAST_DIFFERENCE)
        if self._lost_steps < LOST_STEPS:
            self._lost_steps = self._lost_steps + 1 if is_lost else 0
        return not is_lost and self._lost_steps < LOST_STEPS

    def accept(self) -> None:
        """Take the mask that was refined last as the previous one of the next step."""
        mask = self._last[1] > 0
        if mask.any():
            self._previous = mask
        if self._tracker is not None:
            self._tracker.remember(*self._last)

    def _image(self, t: int, side: int) -> np.ndarray:
        """Return the original intensities of a slice, float32 (h, w), at the resolution of masks of this side."""
        return grid_intensities(self._features, slice(t, t + 1), min(side, LARGEST_SIDE))[0]

    def _shrink(self, logits: torch.Tensor) -> np.ndarray:
        """Return logits (h, w) of the square without the padding, at most `LARGEST_SIDE` pixels wide, as float32."""
        if logits.shape[-1] > LARGEST_SIDE:
            logits = F.interpolate(logits[None, None].float(), (LARGEST_SIDE, LARGEST_SIDE), mode="bilinear", antialias=True)[0, 0]
        height, width = grid_size(self._features, logits.shape[-1])
        return logits[:height, :width].float().cpu().numpy()

    def _enlarge(self, refined: np.ndarray, logits: torch.Tensor) -> torch.Tensor:
        """Return refined logits (h, w), with padding, at the resolution and on the device of `logits`."""
        enlarged = torch.full_like(logits, PADDING_LOGIT, dtype=torch.float32)
        height, width = grid_size(self._features, logits.shape[-1])
        values = torch.from_numpy(np.ascontiguousarray(refined, np.float32)).to(logits.device)
        if values.shape != (height, width):
            values = F.interpolate(values[None, None], (height, width), mode="bilinear", align_corners=False)[0, 0]
        enlarged[:height, :width] = values
        return enlarged


class MaskRefiner:
    """Refines the masks of a batch of passes; see `PassRefiner`."""

    def __init__(self, passes: Sequence[PassRefiner]):
        self._passes = list(passes)

    def select(self, rows: Sequence[int]) -> "MaskRefiner":
        """Return a refiner for some of the passes."""
        return MaskRefiner([self._passes[row] for row in rows])

    def refine(self, slices: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
        """Return refined logits (B, h, w) of one slice of each pass."""
        return torch.stack([p.refine(t, x) for p, t, x in zip(self._passes, slices, logits, strict=True)])

    def decide_presence(self, scores: torch.Tensor, network_scores: torch.Tensor) -> torch.Tensor:
        """Return object scores (B,) whose sign tells whether the object is there.

        Args:
            scores: What counts where intensities do not decide, and may end passes that are doubtful.
            network_scores: The network's own scores, whose size is kept elsewhere.
        """
        decided = scores.clone()
        for row, refining in enumerate(self._passes):
            if refining.decides_end or refining.is_between:
                size = network_scores[row].abs().clamp_min(1.0)
                is_present = refining.is_between or (refining.is_present() and not (refining.is_doubtful and bool(scores[row] <= 0)))
                decided[row] = size if is_present else -size
        return decided

    def accept(self, is_present: Sequence[bool]) -> None:
        """Take the masks of the last slices as the previous ones, where the object was there."""
        for refining, present in zip(self._passes, is_present, strict=True):
            if present:
                refining.accept()


def signed_depth(mask: np.ndarray) -> np.ndarray:
    """Return the distance in pixels of each pixel of bool (h, w) to the border, positive inside; far outside if the mask is empty."""
    if not mask.any():
        return np.full(mask.shape, -float(max(mask.shape)))
    return np.where(mask, ndimage.distance_transform_edt(mask) - 0.5, 0.5 - ndimage.distance_transform_edt(~mask))


def smooth_within_edges(logits: np.ndarray, image: np.ndarray) -> np.ndarray:
    """Return logits (h, w) after diffusion of their probabilities that is slow across edges of an image (h, w) in [0, 1]."""
    probability = 1 / (1 + np.exp(-logits))
    down, right = (SMOOTHNESS * np.exp(-abs(np.diff(image, axis=axis)) / EDGE_SCALE) for axis in (0, 1))
    total = np.ones_like(probability)
    total[1:] += down
    total[:-1] += down
    total[:, 1:] += right
    total[:, :-1] += right
    start, down_in, down_out = probability / total, down / total[1:], down / total[:-1]
    right_in, right_out = right / total[:, 1:], right / total[:, :-1]
    for _ in range(SWEEPS):
        smoother = start.copy()
        smoother[1:] += down_in * probability[:-1]
        smoother[:-1] += down_out * probability[1:]
        smoother[:, 1:] += right_in * probability[:, :-1]
        smoother[:, :-1] += right_out * probability[:, 1:]
        probability = smoother
    probability = np.clip(probability, 1e-4, 1 - 1e-4)
    return np.log(probability / (1 - probability))


def keep_touching(logits: np.ndarray, previous: np.ndarray) -> np.ndarray:
    """Return logits (h, w) that are positive only in the components that touch a mask bool (h, w); if none does, in the largest."""
    components, count = ndimage.label(logits > 0, np.ones((3, 3)))
    if count < 2:
        return logits
    is_kept = np.zeros(count + 1, bool)
    is_kept[components[previous]] = True
    if not is_kept[1:].any():
        is_kept[1 + np.bincount(components.ravel())[1:].argmax()] = True
    is_kept[0] = True
    return np.where(is_kept[components], logits, -2.0)


def inside_outside_difference(probability: np.ndarray, mask: np.ndarray) -> float:
    """Return the mean of probabilities (h, w) in a mask bool (h, w), minus that within four pixels round it; 0 for an empty mask."""
    if not mask.any():
        return 0.0
    distance = ndimage.distance_transform_edt(~mask)
    around = (distance > 1) & (distance < 4)
    return float(probability[mask].mean() - (probability[around].mean() if around.any() else 0.0))
