"""Simulate wrong masks of a volume, and the clicks of an annotator who corrects them, for the training of the volume network.

The masks are wrong as tracking makes them: they leak into what looks alike, hold a part of the structure only, drift, or end too early or
too late. Clicks after the first one lie in errors of the mask as it is then; each mends its surroundings, or the whole slice.
"""

from dataclasses import dataclass, field

import numpy as np
from scipy import ndimage

from lib.imaging.masks import bounding_box, deepest_pixel
from lib.prompts.volume_prompts import SlicePrompt
from lib.training.variation import corrupt

_LEAK_SHARE, _PART_SHARE, _DRIFT_SHARE = 0.55, 0.15, 0.6  # Of the masks that leak, hold a part only (none does both), and drift.
_EARLY_SHARE, _LATE_SHARE = 0.25, 0.25  # Of the ends of masks that come too early, and too late.
_FIRST_SHARES = {"click": 0.6, "painted": 0.15, "box": 0.15, "clicked": 0.1}  # Of the requests that begin with a click, or with such slices.
_DEEPEST_SHARE = 0.5  # Of the clicks, where a slice's error is deepest.
_CLICKS_ON_SLICE = 3  # Of one that a request begins with.
_CLICK_COUNTS = 0, 1, 2, 3, 4, 6, 8, 12, 16  # After the first one.
_LEAST_AREA = 12  # Pixels of a slice's mask that is corrupted.


@dataclass
class SimulatedRequest:
    """A mask, bool (T, Y, X), and what an annotator has done about it.

    Attributes:
        clicks: (t, y, x, inside) of each click.
        painted: Slices that were painted.
        boxes: Box (x, y, x, y) of slices that have one.
    """

    mask: np.ndarray
    clicks: list[tuple[int, int, int, bool]] = field(default_factory=list)
    painted: list[int] = field(default_factory=list)
    boxes: dict[int, tuple[int, int, int, int]] = field(default_factory=dict)

    @property
    def prompts(self) -> dict[int, SlicePrompt]:
        """The prompts by slice."""
        prompts = {t: SlicePrompt(np.zeros((0, 2)), np.zeros(0, np.int32), self.mask[t]) for t in self.painted}
        for t in sorted(({c[0] for c in self.clicks} | self.boxes.keys()) - set(self.painted)):
            corners = [(*self.boxes[t][:2], 2), (*self.boxes[t][2:], 3)] if t in self.boxes else []
            points = corners + [(x, y, inside) for s, y, x, inside in self.clicks if s == t]
            prompts[t] = SlicePrompt(np.array([p[:2] for p in points], float), np.array([p[2] for p in points], np.int32))
        return prompts


def simulate_request(reference: np.ndarray, image: np.ndarray, spacing_mm: np.ndarray, random: np.random.Generator) -> SimulatedRequest:
    """Return a request for a structure.

    Args:
        reference: bool (T, Y, X), not empty.
        image: Intensities (T, Y, X).
        spacing_mm: Distance of slices, rows and columns.
    """
    request = SimulatedRequest(wrong_mask(reference, image, spacing_mm, random))
    first = str(random.choice(list(_FIRST_SHARES), p=list(_FIRST_SHARES.values())))
    if first == "click":
        _click(request, reference, reference, random)
    else:
        filled = np.flatnonzero(reference.any((1, 2)))
        for t in random.choice(filled, 1 if first == "box" else min(len(filled), random.integers(1, 4)), replace=False):
            _annotate(request, int(t), first, reference[t], random)
    for _ in range(random.choice(_CLICK_COUNTS)):
        wrong = request.mask ^ reference
        if not wrong.any():
            break
        _click(request, wrong, reference, random)
    return request


def _annotate(request: SimulatedRequest, t: int, kind: str, reference: np.ndarray, random: np.random.Generator) -> None:
    """Paint a slice, draw a box on it or click on it, and set its mask to nearly the reference, bool (Y, X) and not empty."""
    request.mask[t] = reference
    if kind == "painted":
        request.painted.append(t)
        return
    _, rows, columns = bounding_box(reference[None])
    if reference.sum() > _LEAST_AREA:
        request.mask[t] = corrupt(reference, random, random.uniform(0.05, 0.5))
    if kind == "box":
        request.boxes[t] = columns.start, rows.start, columns.stop - 1, rows.stop - 1
        is_in_box = np.zeros_like(reference)
        is_in_box[rows, columns] = True
        request.mask[t] &= is_in_box
        return
    places = [deepest_pixel(reference), *zip(*(random.integers(s.start, s.stop, _CLICKS_ON_SLICE - 1) for s in (rows, columns)), strict=True)]
    for y, x in places:
        request.clicks.append((t, int(y), int(x), bool(reference[y, x])))
        request.mask[t, y, x] = reference[y, x]


def _click(request: SimulatedRequest, region: np.ndarray, reference: np.ndarray, random: np.random.Generator) -> None:
    """Add a click in a region, bool (T, Y, X) and not empty, and mend the mask round it."""
    places = np.argwhere(region)
    t, y, x = (int(v) for v in places[random.integers(len(places))])
    if random.random() < _DEEPEST_SHARE:
        t = int(random.choice(np.unique(places[:, 0])))
        y, x = deepest_pixel(region[t])
    inside = bool(reference[t, y, x])
    request.clicks.append((t, y, x, inside))
    mask, count = request.mask, sum(c[0] == t for c in request.clicks)
    if count > 1 and random.random() < 0.6 and reference[t].sum() > _LEAST_AREA:
        mask[t] = corrupt(reference[t], random, random.uniform(0.05, 0.6))
    else:
        rows, columns = np.ogrid[: mask.shape[1], : mask.shape[2]]
        radius = random.uniform(0.1, 0.5) * np.sqrt(reference.sum() / reference.any((1, 2)).sum())
        near = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        reach = random.integers(1, 4) if random.random() < 0.4 else 0
        for s in range(max(0, t - reach), min(len(mask), t + reach + 1)):
            changed = near & (reference[s] == inside)
            mask[s][changed] = inside
    mask[t, y, x] = inside


def wrong_mask(reference: np.ndarray, image: np.ndarray, spacing_mm: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return a mask of a structure that is wrong in one or several ways; see `simulate_request`."""
    mask, kind = reference.copy(), random.random()
    if kind < _LEAK_SHARE:
        mask = _leak(reference, image, spacing_mm, random)
    elif kind < _LEAK_SHARE + _PART_SHARE:
        mask &= _smooth_noise(reference.shape, (2, 6, 6), random) > random.uniform(-1, 0.8)
    if random.random() < _DRIFT_SHARE:
        _drift(mask, reference, random)
    for t in np.flatnonzero(mask.sum((1, 2)) > _LEAST_AREA):
        if random.random() < 0.5:
            mask[t] = corrupt(mask[t], random, random.uniform(0.1, 0.7))
    for ordered in (mask, mask[::-1]):
        _move_end(ordered, random)
    return mask if mask.any() else reference.copy()


def _move_end(mask: np.ndarray, random: np.random.Generator) -> None:
    """Let a mask end too early or too late beyond its last slice, in place."""
    filled, kind = np.flatnonzero(mask.any((1, 2))), random.random()
    if not len(filled):
        return
    last, half = filled[-1], 1 + np.ptp(filled) // 2
    if kind < _EARLY_SHARE:
        mask[last + 1 - random.integers(half) : last + 1] = False
    elif kind < _EARLY_SHARE + _LATE_SHARE:
        mask[last + 1 : last + 1 + random.integers(1, 1 + half)] = mask[last]


def _leak(reference: np.ndarray, image: np.ndarray, spacing_mm: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the structure with what it is joined to, looks alike and lies near, sometimes only in some of the slices, or with gaps."""
    smooth = ndimage.gaussian_filter(image.astype(np.float32), (0, 0.7, 0.7))
    deviation, length = max(float(smooth[reference].std()), 1e-3), (reference.sum() * np.prod(spacing_mm)) ** (1 / 3)
    low, high = smooth[reference].mean() + random.uniform(0.8, 2.5, 2) * (-deviation, deviation)
    is_near = ndimage.distance_transform_edt(~reference, sampling=spacing_mm) < max(length, 2 * min(spacing_mm)) * random.uniform(0.2, 1.6)
    is_alike = (smooth > low) & (smooth < high) & is_near
    if random.random() < 0.6:
        is_alike = ndimage.binary_opening(is_alike) | (is_alike & reference)
    labels, _ = ndimage.label(is_alike | reference)
    joined = np.isin(labels, np.unique(labels[reference]))
    mask = joined & (is_alike | reference) if random.random() < 0.7 else joined & is_alike
    if random.random() < 0.3:
        t = random.choice(np.flatnonzero(reference.any((1, 2))))
        mask[:t] = reference[:t]
    if random.random() < 0.2:
        mask &= ~(reference & (_smooth_noise(reference.shape, (4, 4, 4), random) > 0.5))
    return mask


def _drift(mask: np.ndarray, reference: np.ndarray, random: np.random.Generator) -> None:
    """Move the slices of a mask, the farther from one of them the more."""
    filled = np.flatnonzero(reference.any((1, 2)))
    path = np.cumsum(ndimage.gaussian_filter1d(random.normal(size=(len(mask), 2)), 3, axis=0), 0)
    path -= path[random.choice(filled)]
    path *= random.uniform(0, 0.25) * np.sqrt(reference.sum((1, 2)).max()) / max(np.abs(path[filled]).max(), 1e-6)
    for t in filled:
        mask[t] = ndimage.shift(mask[t].astype(np.float32), path[t], order=1) > 0.5


def _smooth_noise(shape: tuple[int, ...], width: tuple[float, ...], random: np.random.Generator) -> np.ndarray:
    """Return noise of standard deviation 1 that is smoothed by a Gaussian of these widths, in voxels along each axis."""
    noise = ndimage.gaussian_filter(random.normal(size=shape), width)
    return noise / max(float(noise.std()), 1e-6)
