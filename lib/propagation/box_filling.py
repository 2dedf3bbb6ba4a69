"""Make the mask of a box fill the box, also where the structure is a ring, has several parts or is thin.

For networks for small images, the network's answer is averaged with that of a small correction network. Beside this mask, masks are cut
out of the box mostly by intensities, as in GrabCut (Rother et al. 2004), beginning with an ellipse, with the brighter and with the darker half of the box. Of those that fill the box, the one that fills it best and whose border is
most clearly an edge of the image is taken; where the border lies at the edge of the box, this counts more. If none fills it, an ellipse is
given more and more weight.
"""

from operator import itemgetter

import numpy as np
from scipy import ndimage

from lib.imaging.masks import BorderStrength, bounding_box
from lib.prompts.volume_prompts import SlicePrompt
from lib.propagation.graph_cut import graph_cut, intensity_logits, scale_intensities
from lib.propagation.obedience import Correction, average_limited, limited, signed

MIN_BOX_IOU = 0.7  # From which a mask counts as filling its box.
FILLING_WEIGHT = 2.0  # Of the IoU of a mask's bounding box with the box beside the edge strength of its border.
NETWORK_BONUS = 0.3  # Edge strength by which another mask must be clearer than the network's.
CUT_OFF_WEIGHT = 0.25  # Of the edge strength at the edge of the box; where there is none, the structure would go on outside.
NETWORK_WEIGHT = 0.25  # Of the network's answer beside the intensities.
SMOOTHNESS = 1.0  # Of the cuts.
_CUTS = 4  # After so many, masks hardly change any more.
_ELLIPSE_WEIGHTS = (1.0, 2.0, 4.0, 16.0)


def fill_box(image: np.ndarray, prompt: SlicePrompt, logits: np.ndarray, correct: Correction | None = None) -> np.ndarray:
    """Return logits float32 (Y, X) of a mask that lies in the box of a prompt and fills it.

    Args:
        image: Intensities (Y, X).
        prompt: A box without clicks.
        logits: The network's answer, float (Y, X).
        correct: What else answers to the box, see `lib.propagation.click_correction`; None: nothing.
    """
    box = box_pixels(prompt, logits.shape)
    in_box = np.zeros(logits.shape, bool)
    in_box[box] = True
    answer = np.where(in_box, logits, np.minimum(logits, -1.0)).astype(np.float32)
    if correct is not None:
        corrected = average_limited(answer, correct(image, prompt, answer))
        answer = np.where(in_box, corrected, np.minimum(corrected, -1.0))
    margins = [max(4, (s.stop - s.start) // 3) for s in box]
    window = tuple(slice(max(s.start - m, 0), min(s.stop + m, n)) for s, m, n in zip(box, margins, logits.shape, strict=True))
    cutter = _BoxCutter(image[window], in_box[window], limited(answer[window]))
    borders, filling = BorderStrength(cutter.scaled), []
    rim = in_box[window] & ~ndimage.binary_erosion(in_box[window], border_value=1)
    for candidate, bonus in [(answer[window], NETWORK_BONUS), *((c, 0.0) for c in cutter.cut_from_intensities())]:
        mask = candidate > 0
        iou = box_iou(mask, in_box[window])
        if iou >= MIN_BOX_IOU:
            border, strengths = borders.along_border(mask)
            at_rim = strengths[rim[border]]
            clearness = strengths.mean() + CUT_OFF_WEIGHT * (at_rim.mean() if at_rim.size else 1.0)
            filling.append((FILLING_WEIGHT * iou + clearness + bonus, candidate))
    if filling:
        best = max(filling, key=itemgetter(0))[1]
    else:
        best = cutter.cut_towards_ellipse()
    answer = np.minimum(answer, -1.0)
    answer[window] = best
    return answer


def box_pixels(prompt: SlicePrompt, shape: tuple[int, int]) -> tuple[slice, slice]:
    """Return the rows and columns of the pixels that the box of a prompt holds; at least one pixel."""
    corners = prompt.points[prompt.labels > 1][:, ::-1]
    last = np.array(shape) - 1
    low = np.clip(np.ceil(corners.min(0)), 0, last).astype(int)
    high = np.clip(np.floor(corners.max(0)), low, last).astype(int)
    return slice(int(low[0]), int(high[0]) + 1), slice(int(low[1]), int(high[1]) + 1)


def box_iou(mask: np.ndarray, other: np.ndarray) -> float:
    """Return the IoU of the bounding boxes of two masks bool (Y, X), 0 if one is empty."""
    boxes = [bounding_box(m[None]) for m in (mask, other)]
    if None in boxes:
        return 0.0
    overlap = np.prod([max(0, min(a.stop, b.stop) - max(a.start, b.start)) for a, b in zip(*boxes, strict=True)])
    areas = [np.prod([s.stop - s.start for s in box]) for box in boxes]
    return float(overlap / (sum(areas) - overlap))


class _BoxCutter:
    """Cuts masks out of a box by intensities.

    Args:
        image: Intensities (Y, X) of the box and its surroundings.
        in_box: bool (Y, X).
        answer: Limited logits (Y, X) of the network.

    Attributes:
        scaled: The image in [0, 1].
    """

    def __init__(self, image: np.ndarray, in_box: np.ndarray, answer: np.ndarray):
        self.scaled, self._in_box, self._answer = scale_intensities(image), in_box, answer
        self._seeds = np.where(in_box, 0, -1).astype(np.int8)
        _, rows, columns = bounding_box(in_box[None])
        sides = zip((rows, columns), image.shape, strict=True)
        y, x = ((2 * np.arange(n) - (s.start + s.stop - 1)) / (s.stop - s.start) for s, n in sides)  # 1 at the box's edge.
        self._radius = np.hypot(y[:, None], x)

    def cut_from_intensities(self) -> list[np.ndarray]:
        """Return logits (Y, X) of the masks that come from different beginnings."""
        smooth = ndimage.gaussian_filter(self.scaled, 1.0)
        is_bright = smooth > np.median(smooth[self._in_box])
        return [self._cut(begin & self._in_box) for begin in (self._radius <= 1, is_bright, ~is_bright)]

    def cut_towards_ellipse(self) -> np.ndarray:
        """Return logits (Y, X) of the first mask that fills the box when the ellipse in it gets more and more weight."""
        for weight in _ELLIPSE_WEIGHTS:
            logits = self._cut((self._radius <= 1) & self._in_box, weight)
            if box_iou(logits > 0, self._in_box) >= MIN_BOX_IOU:
                return logits
        return np.where((self._radius <= 1) & self._in_box, 1.0, -1.0)

    def _cut(self, mask: np.ndarray, ellipse_weight: float = 0.0) -> np.ndarray:
        """Return logits (Y, X) of the mask that comes of a mask bool (Y, X) when intensities and mask are adapted to each other."""
        ellipse = ellipse_weight * np.where(self._radius <= 1, 1.0, -1.0)
        for _ in range(_CUTS):
            evidence = intensity_logits(self.scaled, mask, ~mask) + NETWORK_WEIGHT * self._answer + ellipse
            before, mask = mask, graph_cut(self.scaled, evidence, self._seeds, SMOOTHNESS)
            if not mask.any() or (mask == before).all():
                break
        return signed(evidence, mask)
